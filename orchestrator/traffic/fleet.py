"""Several edges: the daemon's own nginx, and others on hosts of their own that are told through a board.

The board says what is wanted of every service; each edge applies that by itself and says there what it
serves. An edge that has not said anything for a while is away: it is not waited for, and serves what it
served last until it is back and has caught up. Time in which nobody could speak or read there is no silence.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.ports.herd import Herd
from orchestrator.ports.traffic import Board, RoutePlan
from orchestrator.rollout.observation import Edge, LocalRollback
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.words import WANTED, Report, WantedRoute, understood

log = structlog.get_logger()

POLL, SLOWEST_POLL = 0.05, 0.25
"""Seconds between looks at what the others say while a change is waited for, at first and in the end."""

FRESH = 0.25
"""Seconds in which the looks at all services share one reading of what the others say."""

Said = Mapping[str, Mapping[str, str] | None]
"""See `Board.reports`."""

OnFailure = Literal["all_back", "go_on"]


class Fleet:
    """`ports.Traffic` on all edges.

    Args:
        own: The edge of this host.
        board: Where the others are told, and say what they serve.
        options: How each service is served.
        deadline: Seconds until the others have to serve a change.
        on_failure: Whether an edge that can't follow takes a rollout back, or is left behind.
        fresh: Seconds for which what the others have said counts for looks.
    """

    def __init__(
        self,
        own: NginxEdge,
        board: Board,
        options: Callable[[str], EdgeOptions],
        *,
        deadline: float,
        on_failure: OnFailure,
        fresh: float = FRESH,
    ) -> None:
        self._own = own
        self._board = board
        self._options = options
        self._deadline = deadline
        self._on_failure = on_failure
        self._fresh = fresh
        self._herd = Herd()
        self._reading: tuple[float, asyncio.Task[Said] | None] = 0.0, None
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
        wanted = WantedRoute(plan=plan, token=token, options=self._options(plan.service))
        told = self._board.want(plan.service, WANTED.dump_json(wanted).decode())
        back = self._own.take_back_at_once(plan, token)
        for failed in await asyncio.gather(back, told, return_exceptions=True):
            if isinstance(failed, BaseException):
                raise failed
        there = await self._see_who_has_caught_up()
        self._wanted[plan.service] = generation = plan.route.generation
        self._left[plan.service] = {name: _not_served(name, generation) for name in self._hanging}
        before = self._followed.get(plan.service, frozenset())
        self._followed[plan.service] = before = before if there is None else before & there
        await self._own.apply(plan, token)
        await self._others_follow(plan, before)

    @property
    def _hanging(self) -> set[str]:
        """The edges that no change waits for."""
        return {name for name, _ in self._hung}

    async def _see_who_has_caught_up(self) -> frozenset[str] | None:
        """Wait again for those that serve what is wanted of every service at which they hung.

        Returns:
            The edges that are not away; None where the board can't be read.
        """
        try:
            said = await self._said(within=POLL)
        except Fault:
            return None  # at the next change
        self._hung -= {
            (name, service)
            for name, service in self._hung
            if (text := (said.get(name) or {}).get(service))
            and understood(text).edge.confirmed == self._wanted[service]
        }
        return frozenset(said)

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
                    found, unheard = await self._reports(service, within=POLL)
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
        self._followed[service] = frozenset(found.keys() - late.keys()) | (before - found.keys())
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

        But one that was left behind may have requests under way where users are no more: nothing has drained.

        Of those that can't be heard it is what they said last; but what all have to agree to is only true
        as far as all had agreed to it when all were heard.
        """
        own = await self._own.observe(service)
        last, followed = self._found.get(service, {}), self._followed.get(service, frozenset())
        try:
            heard, unheard = await self._reports(service, within=self._fresh)
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
            drained=whole and not left and own.drained and all(r.edge.drained for r in found.values()),
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

    async def _reports(self, service: str, within: float) -> tuple[dict[str, Report], frozenset[str]]:
        """What those say that are heard, and who is silent and is not known to be away.

        One that has said nothing of the service has not served it.
        """
        said = await self._said(within)
        heard = {name: texts.get(service, "") for name, texts in said.items() if texts is not None}
        reports = {name: understood(text) if text else Report(edge=Edge()) for name, text in heard.items()}
        return reports, frozenset(said.keys() - heard.keys())

    async def _said(self, within: float) -> Said:
        """What all have said of all services: many looks share a reading, which is no older than this.

        Or it is under way: while Redis does not answer nobody asks it anew. One that failed is not shared.
        """
        now = asyncio.get_running_loop().time()
        began, reading = self._reading
        old = now - began >= min(within, self._fresh)
        if reading is None or (reading.done() and (old or reading.cancelled() or reading.exception())):
            reading = asyncio.create_task(self._board.reports(), name="what the edges say")
            reading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._reading = now, reading
        said = await asyncio.shield(reading)
        await self._herd.go_on()
        return said


def _has_failed(report: Report, generation: int) -> bool:
    """Whether it has tried a generation, in vain. One that sees nothing for a moment may serve it."""
    return bool(report.edge.error) and report.tried == generation and not report.edge.unread


def _not_served(name: str, generation: int, error: str = "") -> str:
    return f"edge {name}: {error or f'generation {generation} is not served'}"
