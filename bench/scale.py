"""`python -m bench.scale [NUMBERS]`: what the daemon costs with 10, 100 and 1,000 services.

Real Redis, nginx and Prometheus; containers of a double of the Docker Engine (`tests/doubles/engine.py`).
A row is printed as soon as it is known. Each number has a stack of its own, which goes through this:

- idle: each service has a stable release of one instance; a minute with a tick of a second;
- a fifth rolls out, at most 200 at once, with three gates, by reload;
- `kill -9` to driving again.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import docker
from rich.console import Console

from bench.footprint import cpu, rss
from bench.recovery import percentile
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.rollout.events import ReleaseEnded, RouteChanged, RouteConfirmed
from tests.doubles.engine import double

out = Console(highlight=False, width=110)

NUMBERS = 10, 100, 1000
IDLE = 60.0
ROLLING = 200
"""Services that roll out at once, at the most; a fifth of all."""

SUBNET = "127.128.0.0/16"
IMAGES = "gin-api:v1", "gin-api:v2"
RATE = 20.0
"""Requests a second of each container, as its counters tell."""

SHORT = {"for": "1s", "window": "8s", "min_requests": 10}

SERVICE: dict[str, Any] = {
    "container": {"port": 8080, "instances": 1, "memory": "32MiB", "probe": {"path": "/health"}},
    "strategy": {"steps": [20, 60, 100], "first_hold": "15s", "hold": "5s", "bake": "5s", "min_requests": 10},
    "gates": [
        {"metric": "error_rate", "max": "2%", **SHORT},
        {
            "metric": "latency",
            "quantile": 0.99,
            "max": "250ms",
            "for": "1s",
            "window": "8s",
            "min_requests": 10,
        },
        {
            "metric": "latency",
            "quantile": 0.5,
            "max": "100ms",
            "for": "1s",
            "window": "8s",
            "min_requests": 10,
        },
    ],
    "deadlines": {"start": "120s", "drain": "1s", "confirm": "60s"},
    "keep_previous": "1s",
}

STATUS = "server {{ listen 127.0.0.1:{port}; location / {{ stub_status; }} }}"


class Many(Stack):
    """A stack with this many services on the double."""

    def __init__(self, number: int, url: str) -> None:
        self._url = url
        names = [f"s{n:04}" for n in range(number)]
        super().__init__(
            lambda port: {name: service_file(name, port(name), **SERVICE) for name in names},
            {"tick": "1s", "docker": {"url": url, "subnet": SUBNET}},
        )
        self.names = names
        self.docker.close()
        self.docker = docker.DockerClient(url)
        self.status = self.port_for_status()

    def port_for_status(self) -> int:
        """Where nginx tells how many requests it has taken."""
        return self._port("status of nginx")

    def start_nginx(self, extra: str = "") -> None:
        """See `Stack`."""
        super().start_nginx(extra + STATUS.format(port=self.status))

    async def asked(self) -> Counter[str]:
        """How often the Engine, nginx and Prometheus were asked so far."""
        socket = self._url.removeprefix("unix://")
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session,
            session.get("http://double/asked") as answer,
        ):
            engine = sum((await answer.json()).values())
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{self.status}/") as answer:
                nginx = int((await answer.text()).splitlines()[2].split()[2])
            async with session.get(f"http://127.0.0.1:{self.prometheus}/metrics") as answer:
                lines = (await answer.text()).splitlines()
        asked = 'prometheus_http_requests_total{code="200",handler="/api/v1/query'
        queries = sum(float(line.split()[-1]) for line in lines if line.startswith(asked))
        return Counter({"Docker": engine, "nginx": nginx, "Prometheus": int(queries)})

    async def all_ended(self, names: Sequence[str], release: int, deadline: float = 1200.0) -> None:
        """Wait until each of these services has had this many releases, and none is rolled out."""

        async def look() -> bool:
            await asyncio.sleep(1.0)
            states = [await self.state(name) for name in names]
            return all(s.rollout is None and s.released >= release for s in states)

        await self.until(look, deadline, f"release {release} of all has ended")


class Usage:
    """CPU, memory and calls over some time."""

    def __init__(self, stack: Many) -> None:
        self._stack = stack

    async def begin(self) -> None:
        """From here on."""
        assert self._stack.daemon is not None
        self._asked = await self._stack.asked()
        self._cpu, self._began = cpu(self._stack.daemon.pid), time.monotonic()

    async def end(self) -> list[str]:
        """Percent of a core, MiB, and calls a second to Docker, nginx and Prometheus."""
        assert self._stack.daemon is not None
        took = time.monotonic() - self._began
        share = (cpu(self._stack.daemon.pid) - self._cpu) / took
        calls = await self._stack.asked()
        calls.subtract(self._asked)
        rates = (f"{calls[part] / took:.1f}" for part in ("Docker", "nginx", "Prometheus"))
        return [f"{share * 100:.1f}", f"{rss(self._stack.daemon.pid):.0f}", *rates]


def say(number: int, what: str, *figures: str) -> None:
    """A row, as soon as it is known."""
    out.print(f"{number:5} services  {what:28}", "  ".join(f"{f:>9}" for f in figures))


async def measured(number: int) -> None:
    """One number's rows."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        socket = Path(folder) / "docker.sock"
        async with double(socket, *IMAGES, rate=RATE) as url, Many(number, url) as stack:
            began = time.monotonic()
            for name in stack.names:
                await stack.push(name, IMAGES[0])
            await stack.all_ended(stack.names, 1)
            say(number, "first releases, s", f"{time.monotonic() - began:.0f}")
            await asyncio.sleep(10.0)
            usage = Usage(stack)
            await usage.begin()
            await asyncio.sleep(IDLE)
            say(number, "idle", *await usage.end())
            await rolling(stack, number, usage)
            assert stack.daemon is not None
            began = time.monotonic()
            stack.daemon.kill()
            await stack.daemon.wait()
            await stack.start_daemon(120.0)
            say(number, "kill -9 to driving, s", f"{time.monotonic() - began:.2f}")


async def rolling(stack: Many, number: int, usage: Usage) -> None:
    """A fifth of the services at once."""
    chosen = stack.names[: min(max(number // 5, 1), ROLLING)]
    since = time.time()  # noqa: TID251  as events have it
    await usage.begin()
    for name in chosen:
        await stack.push(name, IMAGES[1])
    await stack.all_ended(chosen, 2)
    figures = await usage.end()
    changed: dict[tuple[str, int], float] = {}
    took, ended = [], Counter[str]()
    for event in await stack.events():
        if event.at < since:
            continue
        if isinstance(event, RouteChanged):
            changed[event.service, event.generation] = event.at
        elif isinstance(event, RouteConfirmed):
            took.append(event.at - changed[event.service, event.generation])
        elif isinstance(event, ReleaseEnded):
            ended[event.outcome] += 1
    say(number, f"{len(chosen)} roll out", *figures)
    say(number, "step to confirmed, s", f"{percentile(took, 0.5):.1f}", f"{percentile(took, 0.99):.1f}")
    say(number, "ends", json.dumps(ended))


async def main(numbers: list[int]) -> None:
    """Print the rows."""
    columns = ("CPU %", "RSS MiB", "Docker/s", "nginx/s", "Prom/s")
    out.print(f"{'':14}  {'':28}", "  ".join(f"{column:>9}" for column in columns))
    for number in numbers:
        await measured(number)


if __name__ == "__main__":
    asyncio.run(main([int(word) for word in sys.argv[1:]] or list(NUMBERS)))
