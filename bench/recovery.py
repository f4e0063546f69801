"""`python -m bench.recovery [ROUNDS]`: how long until somebody drives again, and how long a rollback takes.

The bare numbers beside it, in the same run: a Python process that imports the daemon and exits, and one
reload of the same nginx with nobody to confirm it.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import docker
from rich.console import Console
from rich.table import Table

from examples.playground import gin
from examples.playground.load import Load
from examples.playground.redis import RedisServer
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.traffic.render import probe_host

out = Console(highlight=False, width=100)

SERVICE = {
    "container": {"port": 8080, "memory": "64MiB", "stop_grace": "3s", "probe": {"successes": 2}},
    "strategy": {"steps": [20, 100], "first_hold": "60s", "bake": "1s", "min_requests": 0},
    "gates": [],
    "deadlines": {"drain": "1s"},
    "keep_previous": "1s",
}


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


class Bench:
    """One stack with a Redis of its own that can be stopped, and what is measured on it."""

    def __init__(self, folder: Path, image: Callable[[str], str]) -> None:
        self.folder, self.image = folder, image
        self.redis = RedisServer(folder)
        self.stack = Stack(
            lambda port: {"api": service_file("api", port("api"), **SERVICE)},
            {"redis": {"url": self.redis.url}},
        )
        self.results: dict[str, list[float]] = {}
        self.stalls: list[float] = []

    def note(self, what: str, began: float) -> None:
        """Remember the seconds since a moment."""
        self.results.setdefault(what, []).append(time.monotonic() - began)

    async def generation(self) -> str:
        """What nginx shows now."""
        url = f"http://127.0.0.1:{self.stack.generation}/generation"
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with (
                aiohttp.ClientSession() as session,
                session.get(url, headers={"Host": probe_host("api")}) as answer,
            ):
                return await answer.text()
        return ""

    async def canary(self) -> str:
        """A release that holds traffic; returns its id."""
        number = (await self.stack.state()).released + 1
        await self.stack.push("api", self.image(f"v{number % 2 + 1}"))

        async def shifting() -> bool:
            state = await self.stack.state()
            return bool(state.rollout and state.rollout.held_since and state.route.share(f"api-{number}"))

        await self.stack.until(shifting, 40, "the candidate has traffic")
        return f"api-{number}"

    async def kills(self, rounds: int) -> None:
        """`kill -9`, started again at once, until it drives."""
        for _ in range(rounds):
            assert self.stack.daemon is not None
            self.stalls.append(await self.stall())
            began = time.monotonic()
            self.stack.daemon.kill()
            await self.stack.daemon.wait()
            await self.stack.start_daemon()
            self.note("kill -9 to driving", began)

    async def rollbacks(self, rounds: int) -> None:
        """From the request in Redis to the confirmed generation in the state."""
        for _ in range(rounds):
            release = await self.canary()
            began = time.monotonic()
            await self.stack.push("api", verb="rollback")
            while True:
                state = await self.stack.state()
                gone = state.route.share(release) == 0 and state.confirmed == state.route.generation
                if gone:
                    break
                await asyncio.sleep(0.005)
            self.note("rollback command to confirmed", began)
            await self.stack.ended(release)

    async def without_redis(self, rounds: int) -> None:
        """`orchestrator rollback --local`, the start of the command line included."""
        for _ in range(rounds):
            release = await self.canary()
            self.redis.kill()
            began = time.monotonic()
            code, text = await self.stack.cli("rollback", "api", "--local")
            assert code == 0, text
            self.note("rollback --local, Redis dead", began)
            self.redis.start()
            await self.stack.ended(release)

    async def standby(self, rounds: int) -> None:
        """A daemon with a state folder of its own takes over after a kill, and after a stop."""
        stack = self.stack
        text = stack.config.read_text()
        for number in range(rounds * 2):
            driving = stack.daemon
            assert driving is not None
            seen = len([x for x in stack.lines() if x["event"] == "ready"])
            stack.config.write_text(text)
            changed = stack.config_of_another()
            stack.config.write_text(
                changed.replace(str(stack.root / "state"), str(stack.root / f"state{number}"))
            )
            await stack.launch()
            await asyncio.sleep(3.0)
            killed = number % 2 == 0
            began = time.monotonic()
            driving.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
            while len([x for x in stack.lines() if x["event"] == "ready"]) == seen:
                await asyncio.sleep(0.01)
            self.note(f"standby takes over after a {'kill' if killed else 'stop'}", began)
            await driving.wait()

    async def stall(self) -> float:
        """The longest stall of the daemon's loop in the last minute."""
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with (
                aiohttp.ClientSession() as session,
                session.get(self.stack.api("/metrics")) as answer,
            ):
                for line in (await answer.text()).splitlines():
                    if line.startswith("orchestrator_loop_stall_seconds "):
                        return float(line.split()[1])
        return 0.0

    async def bare(self, rounds: int) -> None:
        """What it is compared with."""
        for _ in range(rounds):
            began = time.monotonic()
            code = "import orchestrator.__main__"
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
            await process.wait()
            self.note("bare: Python imports the daemon and exits", began)
        for number in range(rounds):
            conf = self.stack.root / "edge" / "zz-bench.conf"
            url = f"http://127.0.0.1:{self.stack.generation}/bench"
            conf.write_text(
                f"server {{ listen 127.0.0.1:{self.stack.generation}; server_name bench.internal;"
                f' location / {{ return 200 "{number}"; }} }}\n'
            )
            pid = self.stack.nginx_pid()
            assert pid is not None
            began = time.monotonic()
            os.kill(pid, signal.SIGHUP)
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
                while True:
                    async with session.get(url, headers={"Host": "bench.internal"}) as answer:
                        if await answer.text() == str(number):
                            break
            self.note("bare: nginx reload to its first new answer", began)
            conf.unlink()


async def main(rounds: int) -> None:
    client = docker.from_env()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), lambda version: gin.build(client, version))
        bench.redis.start()
        try:
            async with bench.stack as stack:
                await stack.push("api", bench.image("v1"))
                await stack.ended("api-1")
                async with Load(stack.url("api"), 100) as load:
                    await bench.kills(rounds)
                    await bench.rollbacks(rounds)
                    await bench.without_redis(max(rounds // 3, 1))
                    bench.stalls.append(await bench.stall())
                    await bench.standby(max(rounds // 6, 1))
                    await bench.bare(max(rounds // 3, 1))
        finally:
            bench.redis.kill()
    table = Table(title=f"{rounds} rounds, 100 requests a second all the time")
    for column in ("", "n", "median", "p99", "worst"):
        table.add_column(column, justify="left" if not column else "right")
    for what, values in bench.results.items():
        shown = [percentile(values, 0.5), percentile(values, 0.99), max(values)]
        table.add_row(what, str(len(values)), *(f"{v:.2f} s" for v in shown))
    out.print(table)
    out.print(f"longest stall of the daemon's loop: {max(bench.stalls) * 1000:.0f} ms")
    out.print(f"requests lost: {load.seen.failed} of {load.seen.total}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
