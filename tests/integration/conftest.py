"""A real Prometheus that scrapes exporters which say what a test tells them to say."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from examples.playground.lease import free_port
from orchestrator.analysis.prometheus import Prometheus
from orchestrator.daemon.clock import SystemClock
from orchestrator.ports.metrics import MetricQuery
from orchestrator.rollout.observation import Reading

CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 900ms}}
scrape_configs:
  - job_name: t
    static_configs:
{targets}
"""


class Exporter:
    """Says what a test tells it to say."""

    def __init__(self) -> None:
        self.text = ""
        self.up = True

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text, status=200 if self.up else 500)


class Kit:
    """A Prometheus, its exporters, and all that was read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.exporters = {name: Exporter() for name in ("api-1-0", "api-2-0")}
        self._listening = {name: socket.socket() for name in self.exporters}
        targets = ""
        for name, listening in self._listening.items():
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            for track in ("stable", "candidate") if name == "api-1-0" else ("candidate",):
                labels = f"{{service: api, release: {name[:-2]}, instance: {name}, track: {track}}}"
                targets += f"      - {{targets: ['127.0.0.1:{port}'], labels: {labels}}}\n"
        (folder / "prometheus.yml").write_text(CONFIG.format(targets=targets))
        self.prometheus = Prometheus(
            f"http://127.0.0.1:{self.port}",
            SystemClock(),
            timeout=2.0,
            discovery="http://127.0.0.1:9181/targets",
        )
        self.readings: list[Reading] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self.folder}/prometheus.yml",
                f"--storage.tsdb.path={self.folder}/tsdb",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self.prometheus.close()
        self.kill()
        for listening in self._listening.values():
            listening.close()

    @contextlib.asynccontextmanager
    async def exporting(self) -> AsyncIterator[None]:
        """The exporters answer."""
        async with contextlib.AsyncExitStack() as exits:
            for name, exporter in self.exporters.items():
                app = web.Application()
                app.router.add_get("/metrics", exporter.metrics)
                runner = web.AppRunner(app)
                await runner.setup()
                exits.push_async_callback(runner.cleanup)
                await web.SockSite(runner, self._listening[name]).start()
            yield

    async def read(self, query: MetricQuery) -> Reading:
        reading = (await self.prometheus.read([query]))[query.service]
        self.readings.append(reading)
        return reading

    async def until(self, query: MetricQuery, look: Callable[[Reading], bool]) -> Reading:
        limit = time.monotonic() + 15
        while time.monotonic() < limit:
            reading = await self.read(query)
            if look(reading):
                return reading
            await asyncio.sleep(0.3)
        raise AssertionError(f"never seen; last: {self.readings[-1]}")


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Kit]]:
    """Kits whose Prometheus is running, each started a test ahead: in its first 5 s it scrapes nothing."""
    ahead: list[Kit] = []

    def take() -> Kit:
        while len(ahead) < 2:
            ahead.append(Kit(tmp_path_factory.mktemp("prometheus")))
            ahead[-1].start()
        return ahead.pop(0)

    yield take
    for found in ahead:
        found.close()


@pytest.fixture
async def kit(kits: Callable[[], Kit]) -> AsyncIterator[Kit]:
    """One exporter for an instance of stable, one for an instance of the candidate; a scrape a second.

    Stable's has just changed its track: it is scraped under both, as in the seconds after a promotion.
    """
    found = kits()
    try:
        async with found.exporting():
            yield found
    finally:
        found.close()


def requests(total: int, errors: int | None = None, path: str = "/ping") -> str:
    """An exposition of client_golang's usual counter."""
    text = f'http_requests_total{{path="{path}",code="200"}} {total - (errors or 0)}\n'
    if errors is not None:
        text += f'http_requests_total{{path="{path}",code="503"}} {errors}\n'
    return text
