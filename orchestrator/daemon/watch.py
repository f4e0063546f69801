"""What is looked at now and then, so that people hear of it before a release has to wait for it."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial

import structlog

from orchestrator.analysis.prometheus import Prometheus
from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.settings import Settings
from orchestrator.observability.certificates import ends_at
from orchestrator.observability.metrics import DaemonMetrics
from orchestrator.ports.faults import Fault
from orchestrator.ports.metrics import Target
from orchestrator.store.board import RedisBoard
from orchestrator.store.server import disk_full, free_bytes
from orchestrator.traffic.shared import Shared, is_folder

log = structlog.get_logger()

DISKS_EVERY = 5.0
"""Seconds between looks at what the disks have left."""

SCRAPES_EVERY = 30.0
"""Seconds between looks at what Prometheus scrapes; what it has not scraped at two of them is told."""

EDGES_EVERY = 5.0
"""Seconds between looks at which edges of other hosts say what they serve."""

CERTIFICATES_EVERY = 60.0
"""Seconds between looks at the certificates that nginx shows."""


class Watch:
    """Where the daemon writes, what Prometheus scrapes, which edges speak, and what certificates nginx shows.

    Attributes:
        unwritten: Which disk is full, or which folder can't be written; '' while there is none.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: DaemonMetrics,
        prometheus: Prometheus,
        driven: Callable[[], Mapping[str, ServiceFile]],
        targets: Callable[[], Iterator[Target]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._prometheus = prometheus
        self._driven = driven
        self._targets = targets
        self.unwritten = ""

    def looks(self, board: RedisBoard) -> dict[str, Callable[[], Awaitable[None]]]:
        """What is to run as long as the daemon drives, each for ever."""
        looks: dict[str, Callable[[], Awaitable[None]]] = {
            "disks": self.disks,
            "certificates": self.certificates,
            "scrapes": self.scrapes,
        }
        if self._settings.edges.enabled:
            looks["edges"] = partial(self.edges, board)
        return looks

    async def disks(self) -> None:
        """Tell when the daemon can't write where it has to: nothing can be committed, or no route changed."""
        settings = self._settings
        while True:
            for path in (settings.state_dir, settings.nginx.directory):
                with contextlib.suppress(OSError):
                    self._metrics.disk.labels(str(path)).set(await asyncio.to_thread(free_bytes, path))
            found = await asyncio.to_thread(_unwritten, settings)
            if bool(found) != bool(self.unwritten):
                log.error("can_not_write", reason=found) if found else log.info("can_write_again")
            self.unwritten = found
            await asyncio.sleep(DISKS_EVERY)

    async def scrapes(self) -> None:
        """Tell once which instances Prometheus does not scrape, before a release has to wait for it.

        A service's first release is judged by nobody, so nothing else would say so.
        """
        told: dict[tuple[str, str], str] = {}
        before: dict[tuple[str, str], str] = {}
        while True:
            await asyncio.sleep(SCRAPES_EVERY)
            gated = {name for name, file in self._driven().items() if file.gates}
            wanted = [(t.labels["service"], t.labels["instance"]) for t in self._targets()]
            known = await self._prometheus.target_errors() if gated else None
            if known is None:
                continue
            found = {
                target: known.get(target, self._prometheus.absent) for target in wanted if target[0] in gated
            }
            unread = {target: why for target, why in found.items() if why}
            for target, why in unread.items():
                if target in before and target not in told:
                    log.warning("instance_not_scraped", service=target[0], instance=target[1], reason=why)
                    told[target] = why
            told = {target: why for target, why in told.items() if target in unread}
            before = unread

    async def edges(self, board: RedisBoard) -> None:
        """Show which edges of other hosts say what they serve, and tell of each that stops or begins to."""
        before: dict[str, bool] = {}
        while True:
            with contextlib.suppress(Fault):  # that Redis does not answer is shown by itself
                said = await board.reports()
                up = {name: name in said for name in await board.known()}
                for name in (name for name, speaks in up.items() if speaks != before.get(name, True)):
                    tell, event = (log.info, "edge_is_back") if up[name] else (log.warning, "edge_is_away")
                    tell(event, edge=name)
                self._metrics.show_edges(up)
                before = up
            await asyncio.sleep(EDGES_EVERY)

    async def certificates(self) -> None:
        """Tell when those end that nginx shows at generated `server` blocks."""
        while True:
            for name, file in self._driven().items():
                try:
                    place = file.edge.server
                    if place is None or place.tls is None:
                        continue
                    ends = await ends_at(*place.address, place.server_name.split()[0])
                except Exception as error:  # noqa: BLE001  those of the other services are looked at all the same
                    log.warning("certificate_unknown", service=name, reason=str(error) or "no answer")
                else:
                    self._metrics.certificate.labels(name).set(ends)
            await asyncio.sleep(CERTIFICATES_EVERY)


def _unwritten(settings: Settings) -> str:
    """Where the daemon has to write and can't, and why; '' if there is no such place."""
    edge = settings.nginx.directory
    found = [disk_full(path) for path in (settings.state_dir, edge)]
    places = [path for path in (settings.state_dir, *Shared(edge).folders) if is_folder(path)]
    shut = (path for path in places if not os.access(path, os.W_OK | os.X_OK))
    found += (f"{path}: can't be written by uid {os.getuid()}: orchestrator doctor says why" for path in shut)
    return "; ".join(filter(None, found))
