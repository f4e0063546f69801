"""Several edges: the daemon's own nginx, and others on hosts of their own that are told through a board.

The board says what is wanted of every service; each edge applies that by itself and says there what it
serves. An edge that has not said anything for a while is away: it is not waited for, and serves what it
served last until it is back and has caught up. Time in which nobody could speak or read there is no silence.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import structlog
from pydantic import TypeAdapter, ValidationError

from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.traffic import Board, RoutePlan
from orchestrator.rollout.observation import Edge, LocalRollback
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions

log = structlog.get_logger()

POLL, SLOWEST_POLL = 0.05, 0.25
"""Seconds between looks at what the others say while a change is waited for, at first and in the end."""

SAY_EVERY = 1.0
"""Seconds between reports of an edge for which nothing changes, and between tries of one generation."""

ROUNDS = 20
"""Rounds in which an edge has looked at all services; they take less than `SAY_EVERY`."""

LOOK_DEADLINE = 3.0
"""Seconds for one look at a service; less than `edges/ttl`, after which an edge that says nothing is away."""

LONGEST_PAUSE = 60.0
"""Seconds between tries of an edge that fails by a bug, in the end; each pause is twice the one before."""

OnFailure = Literal["all_back", "go_on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRoute:
    """What every edge ought to serve for a service.

    Attributes:
        token: The fencing token of the daemon that wants it.
        options: How it is served; other hosts have no files of services.
    """

    plan: RoutePlan
    token: int
    options: EdgeOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one edge says of a service.

    Attributes:
        tried: The generation that it tried to serve last.
    """

    edge: Edge
    tried: int = 0


_WANTED: TypeAdapter[WantedRoute] = TypeAdapter(WantedRoute)
_REPORT: TypeAdapter[Report] = TypeAdapter(Report)


class Fleet:
    """`ports.Traffic` on all edges.

    Args:
        own: The edge of this host.
        board: Where the others are told, and say what they serve.
        options: How each service is served.
        deadline: Seconds until the others have to serve a change.
        on_failure: Whether an edge that can't follow takes a rollout back, or is left behind.
    """

    def __init__(
        self,
        own: NginxEdge,
        board: Board,
        options: Callable[[str], EdgeOptions],
        *,
        deadline: float,
        on_failure: OnFailure,
    ) -> None:
        self._own = own
        self._board = board
        self._options = options
        self._deadline = deadline
        self._on_failure = on_failure
        self._left: dict[str, dict[str, str]] = {}
        self._followed: dict[str, frozenset[str]] = {}
        self._wanted: dict[str, int] = {}
        self._hung: set[tuple[str, str]] = set()
        """By edge and service: who let a deadline pass, and has not caught up there."""
        self._found: dict[str, dict[str, Report]] = {}
        """By service: what was last heard of each edge that is not away."""
        self._agreed: dict[str, int] = {}
        """By service: what all had confirmed when all were last heard."""

    async def apply(self, plan: RoutePlan, token: int) -> None:
        """See `ports.Traffic`: every edge that is not away serves it, or was left behind."""
        await self._own.take_back_at_once(plan, token)
        wanted = WantedRoute(plan=plan, token=token, options=self._options(plan.service))
        await self._board.want(plan.service, _WANTED.dump_json(wanted).decode())
        await self._see_who_has_caught_up()
        self._wanted[plan.service] = generation = plan.route.generation
        self._left[plan.service] = {name: _not_served(name, generation) for name in self._hanging}
        before = self._followed.get(plan.service, frozenset())
        self._followed[plan.service] = frozenset()
        await self._own.apply(plan, token)
        await self._others_follow(plan, before)

    @property
    def _hanging(self) -> set[str]:
        """The edges that no change waits for."""
        return {name for name, _ in self._hung}

    async def _see_who_has_caught_up(self) -> None:
        """Wait again for those that serve what is wanted of every service at which they hung."""
        if not self._hung:
            return
        try:
            said = await self._board.reports()
        except Fault:
            return  # at the next change
        self._hung -= {
            (name, service)
            for name, service in self._hung
            if (text := said.get(name, {}).get(service))
            and _understood(text).edge.confirmed == self._wanted[service]
        }

    async def _others_follow(self, plan: RoutePlan, before: frozenset[str]) -> None:
        """Wait for the others. One that may be left behind lets one deadline pass, not one a change.

        Args:
            plan: What they are to serve.
            before: Who followed the last change.

        Raises:
            Fault: One of them can't follow and is not to be left behind, or could not be heard of.
        """
        service, generation, pause = plan.service, plan.route.generation, POLL
        late: dict[str, str] = {}
        failed: set[str] = set()
        found: dict[str, Report] = {}
        unheard = frozenset[str]()
        try:
            async with asyncio.timeout(self._deadline):
                while True:
                    found, unheard = await self._reports(service)
                    late = {
                        name: _not_served(name, generation, report.edge.error)
                        for name, report in found.items()
                        if report.edge.confirmed != generation
                    }
                    failed = {n for n in late if _has_failed(found[n], generation)}
                    if failed | self._hanging >= late.keys() | unheard:
                        break
                    await asyncio.sleep(pause)
                    pause = min(1.5 * pause, SLOWEST_POLL)
        except TimeoutError:
            if self._on_failure == "go_on":
                self._hung |= {(name, service) for name in late.keys() - failed}
        self._left[service] = late
        self._followed[service] = frozenset(found.keys() - late.keys()) | (before & unheard)
        if late and self._on_failure == "all_back":
            raise Fault("; ".join(late.values()))
        for why in late.values():
            log.warning("edge_left_behind", service=service, generation=generation, reason=why)
        if unheard - self._hanging:
            names = ", ".join(sorted(unheard - self._hanging))
            raise Fault(f"edge {names} could not be heard of: does it serve generation {generation}?")

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        """See `ports.Traffic`. This host's goes back; the others do as soon as the daemon follows."""
        return await self._own.retreat(service, actor, reason, token)

    async def observe(self, service: str) -> Edge:
        """See `ports.Traffic`: what is true of all edges that are not away or left behind.

        Of those that can't be heard it is what they said last; but what all have to agree to is only true
        as far as all had agreed to it when all were heard.
        """
        own = await self._own.observe(service)
        last, followed = self._found.get(service, {}), self._followed.get(service, frozenset())
        try:
            heard, unheard = await self._reports(service)
            whole = not unheard
        except Fault as error:
            log.debug("board_unread", service=service, reason=str(error))
            heard, unheard, whole = {}, followed | last.keys(), False
        found = self._found[service] = {name: last[name] for name in unheard & last.keys()} | heard
        left = {
            name: why
            for name, why in self._left.get(service, {}).items()
            if name in found and found[name].edge.confirmed != own.confirmed
        }
        away = followed - heard.keys() - unheard
        others = [report.edge for name, report in found.items() if name not in left]
        failed = [why for name, why in left.items() if name in heard]
        failed += [f"edge {name} has not been heard of" for name in sorted(away)]
        by_hand = max((e for e in (own, *others) if e.local), key=lambda e: e.floor, default=own)
        behind = next((e.served or 0 for e in others if e.served != own.served), own.served)
        silent = {f"edge {name}: ": r.edge.silence for name, r in found.items() if name not in left}
        unseen = [
            f"edge {name}: {r.edge.error}" for name, r in found.items() if r.edge.unread and name not in left
        ]
        switches = {report.edge.switched_to for report in found.values()}
        switched = next((e for e in (own, *others) if e.switched_to), own)
        confirmed = min([own.confirmed, *(e.confirmed for e in others)])
        if whole:
            self._agreed[service] = confirmed
        return replace(
            own,
            served=behind if own.served is not None else None,
            confirmed=min(confirmed, self._agreed.get(service, 0)),
            file=next((e.file for e in (own, *others) if e.file != "ours"), "ours"),
            drained=whole and own.drained and all(report.edge.drained for report in found.values()),
            floor=max([own.floor, *(e.floor for e in others)]),
            error=own.error or "; ".join((*left.values(), *unseen)),
            unread=own.unread or bool(unseen) or not whole,
            on_disk=by_hand.on_disk,
            switched_to=switched.switched_to,
            switched_for=switched.switched_for,
            switched_everywhere=whole and not away and switches <= {own.switched_to},
            failed="; ".join(failed) if self._on_failure == "all_back" else "",
            waited=max([own.waited, *(e.waited for e in others)]),
            silence="; ".join(f"{who}{why}" for who, why in {"": own.silence, **silent}.items() if why),
        )

    async def _reports(self, service: str) -> tuple[dict[str, Report], frozenset[str]]:
        """What those say that are heard, and who is silent and is not known to be away.

        One that has said nothing of the service has not served it.
        """
        said = await self._board.about(service)
        heard = {name: text for name, text in said.items() if text is not None}
        reports = {name: _understood(text) if text else Report(edge=Edge()) for name, text in heard.items()}
        return reports, frozenset(said.keys() - heard.keys())


class Follower:
    """One of the others: serves what the board wants, and says there what it serves.

    Args:
        board: Where it is told.
        name: Its name there.
        edge: Its nginx, given how each service is served.
    """

    def __init__(
        self, board: Board, name: str, edge: Callable[[Callable[[str], EdgeOptions]], NginxEdge]
    ) -> None:
        self._board = board
        self._name = name
        self._version = ""
        self._texts: Mapping[str, str] = {}
        self._wanted: dict[str, WantedRoute] = {}
        self._seen: dict[str, Edge] = {}
        self._edge = edge(lambda service: self._wanted[service].options)
        self._serving: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._interrupted: set[asyncio.Task[None]] = set()
        self._tried: dict[str, tuple[int, str]] = {}
        self._again: dict[str, tuple[int, float]] = {}
        self._pauses: dict[str, float] = {}
        self._next = 0.0
        self._due: dict[str, float] = {}

    def make_ready(self) -> None:
        """See `NginxEdge.prepare`."""
        self._edge.prepare()

    async def prepare(self) -> None:
        """Write what is wanted now, for an nginx that is about to start.

        Raises:
            Fault: The board can't be reached, or the files of a service can't be written; all others are.
        """
        self.make_ready()
        await self._read()
        failed: list[str] = []
        for service, wanted in self._wanted.items():
            try:
                await self._edge.put_down(wanted.plan, wanted.token)
            except (Fault, Stale) as fault:
                failed.append(str(fault))
            except Exception as bug:
                log.exception("edge_bug", service=service, generation=wanted.plan.route.generation)
                failed.append(_bug(bug))
        if failed:
            raise Fault("; ".join(failed))

    async def follow(self) -> None:
        """One round: begin to serve what is not served, and say what is, at once after a change.

        What nothing has happened to is looked at every `SAY_EVERY` seconds, few of them in one round, which a
        rollback would have to wait for.

        Raises:
            Fault: The board can't be reached; what is served stays.
        """
        fresh = await self._read()
        await asyncio.gather(*(self._take_back(self._wanted[service]) for service in fresh))
        news = fresh | {name for name, (_, task) in self._serving.items() if task.done()}
        now = asyncio.get_running_loop().time()
        self._due |= dict.fromkeys(fresh, now)
        due = sorted(s for s in self._wanted if now >= self._due[s])
        look = news | set(due[: 1 + len(self._wanted) // ROUNDS])
        self._due |= dict.fromkeys(look, now + SAY_EVERY)
        self._serving = {name: trying for name, trying in self._serving.items() if not trying[1].done()}
        await asyncio.gather(*(self._look(self._wanted[service], now) for service in look))
        if news or now >= self._next:
            self._next = now + SAY_EVERY
            said = {service: self._said(service, edge) for service, edge in self._seen.items()}
            await self._board.report(self._name, said)

    async def _take_back(self, wanted: WantedRoute) -> None:
        """Send users back before any look, where that is what is wanted."""
        with contextlib.suppress(Exception):  # it is told of the try that follows
            async with asyncio.timeout(LOOK_DEADLINE):
                await self._edge.take_back_at_once(wanted.plan, wanted.token)

    async def _look(self, wanted: WantedRoute, now: float) -> None:
        """See what is served of a service, and begin to serve what is wanted if that is seen not to be."""
        service = wanted.plan.service
        self._interrupt(wanted)
        edge = self._seen[service] = await self._observe(service)
        if not edge.unread and self._may_try(wanted, now) and self._behind(wanted, edge):
            task = asyncio.create_task(self._serve(wanted), name=f"serve {service}")
            self._serving[service] = wanted.plan.route.generation, task

    async def _observe(self, service: str) -> Edge:
        """What is served, or why that is not seen: a service's own trouble, whatever it is."""
        unexpected: Exception | None = None
        try:
            async with asyncio.timeout(LOOK_DEADLINE):
                return await self._edge.observe(service)
        except TimeoutError:
            why = f"no look at what is served ended within {LOOK_DEADLINE:g} s"
        except Fault as fault:
            why = str(fault)
        except Exception as bug:  # noqa: BLE001  it is logged below, once
            why, unexpected = _bug(bug), bug
        unseen = Edge(error=why, unread=True)
        if unseen != self._seen.get(service):
            log.error("edge_not_seen", service=service, reason=why, exc_info=unexpected)
        return unseen

    async def _read(self) -> set[str]:
        """Take what is wanted from the board. The services of which there is anything new."""
        news = await self._board.news(self._version)
        if news is None:
            return set()
        self._version, texts = news
        fresh = {service for service, text in texts.items() if text != self._texts.get(service)}
        self._texts = texts
        for service in tuple(fresh):
            try:
                self._wanted[service] = _WANTED.validate_json(texts[service])
            except ValidationError as error:  # a newer daemon's words: better what was wanted before
                log.error("wanted_not_understood", service=service, reason=str(error)[:300])
        return fresh & self._wanted.keys()

    def _interrupt(self, wanted: WantedRoute) -> None:
        """Cancel the try of another generation; the edge lets the next one begin when its file is back."""
        generation, task = self._serving.get(wanted.plan.service, (0, None))
        if task is None or generation == wanted.plan.route.generation:
            return
        task.cancel()
        self._interrupted.add(task)
        task.add_done_callback(self._interrupted.discard)
        del self._serving[wanted.plan.service]

    def _may_try(self, wanted: WantedRoute, now: float) -> bool:
        """Whether nothing is being tried, and this generation was not tried a moment ago."""
        service, generation = wanted.plan.service, wanted.plan.route.generation
        tried, again = self._again.get(service, (0, 0.0))
        return service not in self._serving and (tried != generation or now >= again)

    @staticmethod
    def _behind(wanted: WantedRoute, seen: Edge) -> bool:
        """Whether there is something to do. A rollback on this host stands until the daemon has followed."""
        generation = wanted.plan.route.generation
        if seen.local is not None and seen.floor >= generation:
            return False
        served = None if wanted.plan.route.gone else generation
        return (seen.confirmed, seen.served) != (generation, served) or seen.file == "missing"

    def _said(self, service: str, seen: Edge) -> str:
        generation, error = self._tried.get(service, (0, ""))
        edge = seen if seen.unread else replace(seen, error=error)
        return _REPORT.dump_json(Report(edge=edge, tried=generation)).decode()

    async def _serve(self, wanted: WantedRoute) -> None:
        service, generation = wanted.plan.service, wanted.plan.route.generation
        error, pause = "", SAY_EVERY
        try:
            await self._edge.apply(wanted.plan, wanted.token)
        except (Fault, Stale) as fault:
            error = str(fault)
        except Exception as bug:
            log.exception("edge_bug", service=service, generation=generation)
            error = _bug(bug)
            pause = min(2 * self._pauses.get(service, SAY_EVERY / 2), LONGEST_PAUSE)
        if (generation, error) != self._tried.get(service):
            log.info("edge_tried", service=service, generation=generation, error=error)
        self._tried[service] = generation, error
        self._pauses[service] = pause
        self._again[service] = generation, asyncio.get_running_loop().time() + pause

    async def close(self) -> None:
        """Leave nginx as it is."""
        serving = [task for _, task in self._serving.values()]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, *self._interrupted, return_exceptions=True)
        await self._edge.close()


def _bug(error: Exception) -> str:
    return f"a bug, see the edge's log: {type(error).__name__}: {error}"


def told(texts: Mapping[str, str]) -> dict[str, Report]:
    """What an edge has said on the board, by service."""
    return {service: _understood(text) for service, text in texts.items()}


def _has_failed(report: Report, generation: int) -> bool:
    """Whether it has tried a generation, in vain. One that sees nothing for a moment may serve it."""
    return bool(report.edge.error) and report.tried == generation and not report.edge.unread


def _not_served(name: str, generation: int, error: str = "") -> str:
    return f"edge {name}: {error or f'generation {generation} is not served'}"


def _understood(text: str) -> Report:
    try:
        return _REPORT.validate_json(text)
    except ValidationError:
        return Report(edge=Edge(error="what it says is not understood: is it of another version?"))
