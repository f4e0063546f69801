"""What nginx is seen to serve: its processes are looked at for all services at once."""

import asyncio
from dataclasses import dataclass

from orchestrator.ports.herd import Herd
from orchestrator.ports.traffic import EdgeProcess, Workers
from orchestrator.traffic.listener import Answer, Listener

FRESH = 0.25
"""Seconds for which one look at nginx' processes counts for all services."""

HEARD = 1.0
"""Seconds since nginx has answered for any service, after which nothing that is kept of it counts."""

KEPT = 60.0
"""Seconds for which an answer is kept, whatever is seen of nginx."""


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Answer
    accepting: frozenset[int]
    at: float


class Sight:
    """The workers of an nginx, and what they say that they serve.

    Where routes change by reloads alone, the workers that accept say the same for as long as they are the
    same and answer at all: of all services one is asked every second, and each one after a reload. Where
    nobody can see the workers each is asked each time.
    """

    def __init__(self, process: EdgeProcess, listener: Listener) -> None:
        self._process = process
        self._listener = listener
        self._workers: tuple[float, Workers] | None = None
        """The newest look, by when it began."""
        self._looking: asyncio.Task[Workers] | None = None
        self._answers: dict[str, _Kept] = {}
        self._heard = -HEARD
        self._herd = Herd()

    async def look(self) -> Workers:
        """The workers as they are now; nobody is told of older ones afterwards."""
        began = self._now()
        workers = await self._process.workers()
        if self._workers is None or began >= self._workers[0]:
            self._workers = began, workers
        return workers

    async def of(self, service: str, *, known: bool = True) -> tuple[Answer, Workers]:
        """What is said of a service, nothing where nginx has no file of it, and its workers.

        These were seen when the answer had come, or it is kept and they are those that gave it.
        """
        before = await self._since(self._now() - FRESH)
        if not known:
            return Answer(""), before
        kept, now = self._answers.get(service), self._now()
        if (
            kept is not None
            and kept.accepting == before.accepting
            and now - kept.at < KEPT
            and now - self._heard < HEARD
        ):
            return kept.answer, before
        answer = await self._listener.ask(service)
        after = await self._since(self._now())
        self._keep(service, answer, before, after)
        return answer, after

    async def _since(self, moment: float) -> Workers:
        """The workers as the newest look has seen them, which began at a moment or later."""
        while self._workers is None or self._workers[0] < moment:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self.look(), name="look at nginx")
                self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(self._looking)
            await self._herd.go_on()
        return self._workers[1]

    def _keep(self, service: str, answer: Answer, before: Workers, after: Workers) -> None:
        self._answers.pop(service, None)
        if answer.generation is None:
            return
        self._heard = self._now()
        if not answer.shape and after.accepting and before.accepting == after.accepting:
            self._answers[service] = _Kept(answer, after.accepting, self._heard)

    async def close(self) -> None:
        """Give up what is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
