"""One look at the metrics per tick, for all active rollouts together."""

import asyncio
from collections.abc import Callable, Sequence

from orchestrator.engine.tasks import Jobs, bug, within
from orchestrator.ports.clock import Clock
from orchestrator.ports.faults import Fault
from orchestrator.ports.metrics import MetricQuery, Metrics
from orchestrator.rollout.observation import Reading

LOOK_DEADLINE = 60.0
"""Seconds for one look. Prometheus' own deadlines are shorter; this one holds where they do not."""


class Measurer:
    """Asks for every watched service at once and keeps the last answer of each.

    Where that look fails, each service is asked for alone, until it has been answered: so what is odd about
    one of them is its own trouble, and a look for it that hangs keeps nobody else waiting a second time.

    Args:
        metrics: The source.
        clock: Dates a look that failed.
        interval: Seconds between looks.
        deadline: Seconds for one look.
    """

    def __init__(
        self, metrics: Metrics, clock: Clock, interval: float, deadline: float = LOOK_DEADLINE
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._interval = interval
        self._deadline = deadline
        self._watched: dict[str, tuple[MetricQuery, Callable[[], None]]] = {}
        self._latest: dict[str, Reading] = {}
        self._alone: set[str] = set()
        self._jobs = Jobs(lambda: None)

    def watch(self, query: MetricQuery, wake: Callable[[], None]) -> None:
        """Read for a service from the next tick on; `wake` is called with each new reading."""
        self._watched[query.service] = (query, wake)

    def forget(self, service: str) -> None:
        """Read for a service no longer. One that has to be asked for alone is so when it is watched again."""
        self._watched.pop(service, None)
        self._latest.pop(service, None)

    def latest(self, service: str) -> Reading | None:
        """The last reading."""
        return self._latest.get(service)

    async def run(self) -> None:
        """Look, for ever. A look that takes longer than a tick is followed by the next at once."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                queries = [query for query, _ in self._watched.values()]
                for query in queries:
                    if query.service in self._alone:
                        self._ask_alone(query)
                together = [query for query in queries if query.service not in self._alone]
                if together and not await self._ask_together(together):
                    continue
                self._jobs.forget_others()
                await asyncio.sleep(max(self._interval - (loop.time() - began), 0.0))
        finally:
            await self._jobs.stop()

    async def _ask_together(self, queries: Sequence[MetricQuery]) -> bool:
        """One look for all; False where it failed, so that each is to be asked for alone."""
        try:
            await self._read(queries)
        except Exception as error:  # noqa: BLE001  whoever it is about fails alone too, and that is logged
            self._alone |= {query.service for query in queries}
            if len(queries) == 1:
                self._keep(queries[0].service, Reading(at=self._clock.now(), error=_told(error)))
            return False
        return True

    def _ask_alone(self, query: MetricQuery) -> None:
        async def ask() -> None:
            try:
                await self._read([query])
            except Exception as error:
                self._keep(query.service, Reading(at=self._clock.now(), error=_told(error)))
                raise
            self._alone.discard(query.service)

        self._jobs.start(f"measure {query.service}", ask)

    async def _read(self, queries: Sequence[MetricQuery]) -> None:
        found = await within(self._deadline, lambda: self._metrics.read(queries))
        for query in queries:
            self._keep(query.service, found[query.service])

    def _keep(self, service: str, reading: Reading) -> None:
        if service in self._watched:
            self._latest[service] = reading
            self._watched[service][1]()


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, Fault) else bug(error)
