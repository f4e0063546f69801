"""`python -m bench.handover`: what a promote and a rollback cost the users, against what teams use today.

Four ways in one run, under the same load on the same images:

- this daemon, two instances for two, all at once;
- this daemon, two instances for two, by 5, 15, 40 and 100 %;
- a shell script, two instances for two: start the new containers, `sed` their addresses into nginx' upstream,
  `nginx -s reload`, stop the old ones; the same the other way to go back;
- Docker Swarm, one instance: `service update` (host ports, stop-first: what a plain host without IPVS can do)
  and its `rollback`.

Each number is one run; "seconds" is from the command to the moment when only the wanted version answers.
"""

import asyncio
import contextlib
import functools
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from rich.console import Console

from examples.playground import gin
from examples.playground.lease import free_port
from examples.playground.load import Load
from examples.playground.service import service_file
from examples.playground.stack import NGINX, Stack

INSTANCES = 2
LADDER = {"steps": [5, 15, 40, 100], "first_hold": "1s", "hold": "1s", "bake": "1s", "min_requests": 0}
AT_ONCE = {"kind": "blue-green", "bake": "0s"}
RATE = 200.0
ROUNDS = 3
SETTLE = 2.0
DEADLINE = 60.0
ROW = "{:24} {:10} {:>9} {:>6} {:>8} {:>7} "

out = Console(highlight=False, width=110)


@dataclass(frozen=True, slots=True)
class Cost:
    """One change under load."""

    seconds: float
    sent: int
    lost: int
    why: Counter[str]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of releasing: where users go, and how to go forward and back."""

    url: str
    forward: Callable[[], Awaitable[None]]
    back: Callable[[], Awaitable[None]]


async def sh(*command: str) -> str:
    """Run a command off the loop."""
    done = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, timeout=DEADLINE
    )
    return str(done.stdout).strip()


async def measure(way: Way, change: Callable[[], Awaitable[None]], version: str) -> Cost:
    """Make a change under load; it is over when 50 answers in a row come from `version`."""
    async with Load(way.url, RATE) as load:
        await asyncio.sleep(1.0)
        began = time.monotonic()
        await change()
        seconds = time.monotonic() - began
        await asyncio.sleep(SETTLE)
        await only(way.url, version)
    return Cost(seconds, load.seen.total, load.seen.failed, load.seen.reasons)


async def only(url: str, version: str) -> None:
    """Fail unless the next answers all come from one version."""
    for _ in range(20):
        code = ["curl", "-s", "-o", "/dev/null", "-D", "-", url]
        headers = await sh(*code)
        assert f"X-Version: {version}" in headers.title(), headers


@contextlib.asynccontextmanager
async def daemon(images: dict[str, str], strategy: dict[str, Any]) -> AsyncIterator[Way]:
    """This daemon without gates: the change alone, as the others have no gates either."""
    quick = {"strategy": strategy, "gates": [], "deadlines": {"drain": "5s"}}

    async with Stack(lambda port: {"api": service_file("api", port("api"), **quick)}) as stack:
        await stack.push("api", images["v1"])
        await stack.ended("api-1")
        number = 1

        async def forward() -> None:
            nonlocal number
            number += 1
            await stack.push("api", images["v2"])
            await stack.ended(f"api-{number}")

        async def back() -> None:
            before = len((await stack.state()).history)
            await stack.push("api", verb="rollback")

            async def done() -> bool:
                return len((await stack.state()).history) > before

            await stack.until(done, DEADLINE, "it is back")

        yield Way(stack.url("api"), forward, back)


@contextlib.asynccontextmanager
async def script(images: dict[str, str]) -> AsyncIterator[Way]:
    """`sed` and `nginx -s reload`, as in many a deploy.sh: wait for the port, switch, stop the old."""
    with tempfile.TemporaryDirectory(prefix="bench-script-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "edge").mkdir()
        (root / "tmp").mkdir(mode=0o777)
        (root / "tmp").chmod(0o777)
        port, network = free_port(), f"bench-{root.name}"
        await sh("docker", "network", "create", network)
        upstream = root / "edge" / "api.conf"
        started: list[str] = []

        async def start(version: str) -> tuple[str, str]:
            container = await sh("docker", "run", "-d", "--network", network, images[version])
            started.append(container)
            form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
            address = await sh("docker", "inspect", "-f", form, container)
            while True:
                with contextlib.suppress(subprocess.CalledProcessError):
                    await sh("curl", "-sf", "-o", "/dev/null", f"http://{address}:8080/health")
                    return container, address
                await asyncio.sleep(0.1)

        running = [await start("v1") for _ in range(INSTANCES)]
        servers = " ".join(f"server {address}:8080;" for _, address in running)
        upstream.write_text(
            f"upstream api {{ {servers} keepalive 32; }}\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_http_version 1.1;"
            ' proxy_set_header Connection ""; proxy_pass http://api; } }\n'
        )
        conf = root / "nginx.conf"
        conf.write_text(NGINX.format(root=root, extra=""))
        await sh("nginx", "-c", str(conf))

        async def switch(version: str) -> None:
            nonlocal running
            old, running = running, [await start(version) for _ in range(INSTANCES)]
            for (_, before), (_, after) in zip(old, running, strict=True):
                await sh("sed", "-i", f"s/{before}:/{after}:/", str(upstream))
            await sh("nginx", "-c", str(conf), "-s", "reload")
            await sh("docker", "stop", "-t", "10", *(container for container, _ in old))

        try:
            yield Way(f"http://127.0.0.1:{port}/ping", lambda: switch("v2"), lambda: switch("v1"))
        finally:
            await sh("nginx", "-c", str(conf), "-s", "stop")
            for container in started:
                await sh("docker", "rm", "-f", container)
            await sh("docker", "network", "rm", network)


@contextlib.asynccontextmanager
async def swarm(images: dict[str, str]) -> AsyncIterator[Way]:
    """`docker service update` and `--rollback`: host mode, because overlay ports need IPVS."""
    client = docker.from_env()
    active = (client.info().get("Swarm") or {}).get("LocalNodeState") == "active"
    client.close()
    if not active:
        await sh("docker", "swarm", "init", "--advertise-addr", "127.0.0.1")
    port, name = free_port(), f"bench-api-{free_port()}"
    url = f"http://127.0.0.1:{port}/ping"
    try:
        await sh(
            *("docker", "service", "create", "--name", name, "--replicas", "1", "--no-resolve-image"),
            *("--publish", f"mode=host,target=8080,published={port}", "--stop-grace-period", "10s"),
            images["v1"],
        )
        yield Way(
            url,
            lambda: _quiet("update", "--no-resolve-image", "--image", images["v2"], name),
            lambda: _quiet("rollback", name),
        )
    finally:
        with contextlib.suppress(subprocess.SubprocessError):  # it was not made
            await sh("docker", "service", "rm", name)
        if not active:
            await sh("docker", "swarm", "leave", "--force")


async def _quiet(*words: str) -> None:
    await sh("docker", "service", *words)


async def main() -> None:
    """Measure all ways; each is printed as soon as it is known, and another's that fails is told."""
    client = docker.from_env()
    images = {version: gin.build(client, version) for version in ("v1", "v2")}
    client.close()
    ways: dict[str, Callable[[dict[str, str]], contextlib.AbstractAsyncContextManager[Way]]] = {
        "this daemon": functools.partial(daemon, strategy=AT_ONCE),
        "this daemon, by steps": functools.partial(daemon, strategy=LADDER),
        "sed + nginx -s reload": script,
        "Docker Swarm": swarm,
    }
    out.print(
        f"{ROUNDS} promotes and {ROUNDS} rollbacks at {RATE:.0f} requests/s; sums, and medians of seconds"
    )
    out.print(ROW.format("way", "change", "requests", "lost", "seconds", "/ ours"), "what was lost")
    ours: dict[str, float] = {}
    for name, make in ways.items():
        try:
            costs = await measured(make, images)
        except subprocess.SubprocessError as error:
            if not ours:
                raise
            out.print(f"{name:24} not measured: {error}; {getattr(error, 'stderr', '') or ''}".strip())
            continue
        for change, runs in costs.items():
            seconds, lost = _median(runs), sum((c.why for c in runs), Counter[str]())
            ours.setdefault(change, seconds)
            sent, missed = sum(c.sent for c in runs), sum(c.lost for c in runs)
            figures = ROW.format(
                name, change, sent, missed, f"{seconds:.2f}", f"{seconds / ours[change]:.1f}"
            )
            out.print(figures, ", ".join(f"{number} {why}" for why, number in lost.items()), soft_wrap=True)


async def measured(
    make: Callable[[dict[str, str]], contextlib.AbstractAsyncContextManager[Way]], images: dict[str, str]
) -> dict[str, list[Cost]]:
    """What the changes of one way cost."""
    costs: dict[str, list[Cost]] = {"promote": [], "rollback": []}
    async with make(images) as way:
        for _ in range(ROUNDS):
            costs["promote"].append(await measure(way, way.forward, "V2"))
            costs["rollback"].append(await measure(way, way.back, "V1"))
    return costs


def _median(costs: list[Cost]) -> float:
    return sorted(c.seconds for c in costs)[len(costs) // 2]


if __name__ == "__main__":
    asyncio.run(main())
