"""One look at the metrics per tick, for all active rollouts together."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from orchestrator.engine.tasks import bug, unless_cancelled
from orchestrator.ports.clock import Clock
from orchestrator.ports.metrics import MetricQuery, Metrics
from orchestrator.rollout.observation import Reading

log = structlog.get_logger()


class Measurer:
    """Asks for every watched service at once and keeps the last answer of each.

    Args:
        metrics: The source.
        clock: Dates a look that met a bug.
        interval: Seconds between looks.
    """

    def __init__(self, metrics: Metrics, clock: Clock, interval: float) -> None:
        self._metrics = metrics
        self._clock = clock
        self._interval = interval
        self._watched: dict[str, tuple[MetricQuery, Callable[[], None]]] = {}
        self._latest: dict[str, Reading] = {}
        self._told: dict[str, str] = {}

    def watch(self, query: MetricQuery, wake: Callable[[], None]) -> None:
        """Read for a service from the next tick on; `wake` is called with each new reading."""
        self._watched[query.service] = (query, wake)

    def forget(self, service: str) -> None:
        """Read for a service no longer."""
        self._watched.pop(service, None)
        self._latest.pop(service, None)
        self._told.pop(service, None)

    def latest(self, service: str) -> Reading | None:
        """The last reading."""
        return self._latest.get(service)

    async def _read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        """One look for all; where that meets a bug, one for each, so that it is the trouble of one alone."""
        try:
            return await unless_cancelled(lambda: self._metrics.read(queries))
        except Exception as error:
            if len(queries) > 1:
                return {s: r for query in queries for s, r in (await self._read([query])).items()}
            said = bug(error)
            for service in [query.service for query in queries]:
                if self._told.get(service) != said:  # its traceback once, not at every look
                    log.exception("measure_failed", service=service)
                self._told[service] = said
            return {query.service: Reading(at=self._clock.now(), error=said) for query in queries}

    async def run(self) -> None:
        """Look, for ever. A look that takes longer than a tick is followed by the next at once."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            watched = dict(self._watched)
            found = await self._read([query for query, _ in watched.values()])
            for service, reading in found.items():
                if service in self._watched:
                    self._latest[service] = reading
                    watched[service][1]()
            await asyncio.sleep(max(self._interval - (loop.time() - began), 0.0))
