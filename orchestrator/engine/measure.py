"""One look at the metrics per tick, for all active rollouts together."""

import asyncio
from collections.abc import Callable

from orchestrator.ports.metrics import MetricQuery, Metrics
from orchestrator.rollout.observation import Reading


class Measurer:
    """Asks for every watched service at once and keeps the last answer of each.

    Args:
        metrics: The source.
        interval: Seconds between looks.
    """

    def __init__(self, metrics: Metrics, interval: float) -> None:
        self._metrics = metrics
        self._interval = interval
        self._watched: dict[str, tuple[MetricQuery, Callable[[], None]]] = {}
        self._latest: dict[str, Reading] = {}

    def watch(self, query: MetricQuery, wake: Callable[[], None]) -> None:
        """Read for a service from the next tick on; `wake` is called with each new reading."""
        self._watched[query.service] = (query, wake)

    def forget(self, service: str) -> None:
        """Read for a service no longer."""
        self._watched.pop(service, None)
        self._latest.pop(service, None)

    def latest(self, service: str) -> Reading | None:
        """The last reading."""
        return self._latest.get(service)

    async def run(self) -> None:
        """Look, for ever. A look that takes longer than a tick is followed by the next at once."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            watched = dict(self._watched)
            found = await self._metrics.read([query for query, _ in watched.values()])
            for service, reading in found.items():
                if service in self._watched:
                    self._latest[service] = reading
                    watched[service][1]()
            await asyncio.sleep(max(self._interval - (loop.time() - began), 0.0))
