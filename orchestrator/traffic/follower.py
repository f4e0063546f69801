"""An edge on another host: serves what the board wants, and says there what it serves."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog
from pydantic import ValidationError

from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.herd import Herd
from orchestrator.ports.traffic import Board
from orchestrator.rollout.observation import Edge
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.words import REPORT, WANTED, Report, WantedRoute

log = structlog.get_logger()

SAY_EVERY = 1.0
"""Seconds between reports of an edge for which nothing changes, and between tries of one generation."""

ROUNDS = 20
"""Rounds in which an edge has looked at all services; they take less than `SAY_EVERY`."""

LOOK_DEADLINE = 3.0
"""Seconds for one look at a service; less than `edges/ttl`, after which an edge that says nothing is away."""

LONGEST_PAUSE = 60.0
"""Seconds between tries of an edge that fails by a bug, in the end; each pause is twice the one before."""


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
        self._herd = Herd()
        self._reading = asyncio.Lock()
        self._fresh: set[str] = set()
        """What is wanted anew since the last round."""
        self._returning: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, WantedRoute] = {}
        self._seen: dict[str, Edge] = {}
        self._edge = edge(lambda service: self._wanted[service].options)
        self._serving: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._interrupted: set[asyncio.Task[None]] = set()
        self._tried: dict[str, tuple[int, str]] = {}
        self._reports: dict[str, tuple[Edge, tuple[int, str], str]] = {}
        self._again: dict[str, tuple[int, float]] = {}
        self._pauses: dict[str, float] = {}
        self._next = 0.0
        self._due: dict[str, float] = {}

    def make_ready(self) -> None:
        """See `NginxEdge.prepare`."""
        self._edge.prepare()

    async def prepare(self) -> list[str]:
        """Write what is wanted now, for an nginx that is about to start; returns the services.

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
        return sorted(self._wanted)

    async def hear(self, wait: float = 0.0) -> None:
        """Take what is wanted from the board, and begin to send users back where that is what is wanted.

        Args:
            wait: Seconds for which it waits for news.

        Raises:
            Fault: The board can't be reached; what is served stays.
        """
        async with self._reading:
            fresh = await self._read(wait)
        self._fresh |= fresh
        for service in fresh:
            work = self._take_back(self._wanted[service], self._returning.get(service))
            self._returning[service] = asyncio.create_task(work, name=f"take back {service}")

    async def follow(self) -> None:
        """Hear what is wanted, and one round.

        Raises:
            Fault: The board can't be reached; what is served stays.
        """
        await self.hear()
        await self.go_round()

    async def go_round(self) -> None:
        """One round: begin to serve what is not served, and say what is, at once after a change.

        What nothing has happened to is looked at every `SAY_EVERY` seconds, few of them in one round.

        Raises:
            Fault: The board can't be reached; what is served stays.
        """
        fresh, self._fresh = self._fresh, set()
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

    async def _take_back(self, wanted: WantedRoute, before: asyncio.Task[None] | None) -> None:
        """Send users back before any look, where that is what is wanted; an earlier word is given up."""
        if before is not None:
            before.cancel()
            await asyncio.wait({before})
        with contextlib.suppress(Exception):  # it is told of the try that follows
            async with asyncio.timeout(LOOK_DEADLINE):
                await self._edge.take_back_at_once(wanted.plan, wanted.token)

    async def _look(self, wanted: WantedRoute, now: float) -> None:
        """See what is served of a service, and begin to serve what is wanted if that is seen not to be."""
        service = wanted.plan.service
        await self._herd.go_on()
        if (returning := self._returning.get(service)) is not None:
            await asyncio.wait({returning})
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

    async def _read(self, wait: float = 0.0) -> set[str]:
        """Take what is wanted from the board. The services of which there is anything new."""
        news = await self._board.news(self._version, wait)
        if news is None:
            return set()
        version, texts = news
        fresh = {service for service, text in texts.items() if text != self._texts.get(service)}
        for service in tuple(fresh):
            try:
                self._wanted[service] = WANTED.validate_json(texts[service])
            except ValidationError as error:  # a newer daemon's words: better what was wanted before
                log.error("wanted_not_understood", service=service, reason=str(error)[:300])
            except Exception:
                log.exception("edge_bug", service=service)
        self._version, self._texts = version, texts
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

    def _behind(self, wanted: WantedRoute, seen: Edge) -> bool:
        """Whether there is something to do. A rollback on this host stands until the daemon has followed."""
        followed = seen.local is None or seen.floor < wanted.plan.route.generation
        return followed and not self._serves(wanted, seen)

    @staticmethod
    def _serves(wanted: WantedRoute, seen: Edge) -> bool:
        generation = wanted.plan.route.generation
        served = None if wanted.plan.route.gone else generation
        return (seen.confirmed, seen.served) == (generation, served) and seen.file != "missing"

    def _said(self, service: str, seen: Edge) -> str:
        """Its report; written anew where it has been looked at, or tried, since the last one."""
        tried = generation, error = self._tried.get(service, (0, ""))
        of, when, text = self._reports.get(service, (None, tried, ""))
        if of is not seen or when != tried:
            serves = self._serves(self._wanted[service], seen)
            edge = seen if seen.unread else replace(seen, error="" if serves else error)
            text = REPORT.dump_json(Report(edge=edge, tried=generation)).decode()
            self._reports[service] = seen, tried, text
        return text

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
        serving = [*self._returning.values(), *(task for _, task in self._serving.values())]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, *self._interrupted, return_exceptions=True)
        await self._edge.close()


def _bug(error: Exception) -> str:
    return f"a bug, see the edge's log: {type(error).__name__}: {error}"
