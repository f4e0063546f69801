"""`python -m bench.traffic.crowd [SERVICES [ROLLBACKS]] [MODE]`: a rollback while many services step at once.

The daemon with Redis and Docker, on real parts: each service has a stable and a candidate container and
climbs a ladder of steps of one second. nginx' test takes a second longer than it does. There are three edges:
the daemon's own; one on a host of its own (a network namespace) that is well; and one whose nginx is stopped
(SIGSTOP), so that it takes connections and never answers, while its agent runs. The daemon and its Redis, and
each agent, have the share of the processor that their systemd unit gives them, each container has the usual
one (see the Makefile). What measures has that of a unit: else it would show its own delays.

A rollback is asked for in turns by XADD and by POST, and timed from before it is sent until the first request
from which on stable answers all, as a process of its own sees it that asks every few milliseconds. Beside it
in the same minutes: the same for a file that is renamed to where nginx looks for it at each request.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Self

import aiohttp
import docker
from rich.console import Console
from rich.table import Table

from bench.recovery import percentile
from bench.traffic.weights import group, of_unit
from examples.playground import gin
from examples.playground.lease import free_port
from examples.playground.service import service_file
from examples.playground.stack import LUA, NGINX, ROOT
from orchestrator.rollout.events import ReleaseEnded, RouteChanged, RouteConfirmed
from orchestrator.rollout.model import Outcome, ServiceState
from orchestrator.store.board import RedisBoard
from orchestrator.store.keys import Keys
from orchestrator.traffic.process import children
from tests.acceptance.test_edges import Fleet, Host

out = Console(highlight=False, width=110)

SERVICES, ROLLBACKS, EDGES = 50, 40, 3
TEST_TAKES = 1.0
"""Seconds that nginx' test takes longer."""

PAUSE = 0.004
"""Seconds between two requests of an onlooker."""

WATCHED = 1.0
"""Seconds after a rollback in which nobody but stable may answer, from when it has had its effect."""

CROWD = {
    "container": {"port": 8080, "memory": "64MiB", "stop_grace": "1s", "probe": {"successes": 2}},
    "strategy": {
        "steps": list(range(50, 101)),
        "first_hold": "1s",
        "hold": "1s",
        "bake": "1s",
        "min_requests": 0,
    },
    "gates": [],
    "deadlines": {"drain": "1s"},
    "keep_previous": "1s",
}

SLOW_TEST = """\
#!/bin/sh
case " $* " in *" -t "*|*" -T "*) sleep {seconds};; esac
exec {nginx} "$@"
"""

BASE = """\
server {{
    listen 127.0.0.1:{port};
    open_file_cache off;
    location / {{
        add_header X-Release $release_bench always;
        set $release_bench candidate;
        if (-f {file}) {{ set $release_bench stable; }}
        return 200;
    }}
}}
"""


class Crowd(Fleet):
    """Many services on three edges."""

    def __init__(self, services: int, mode: str) -> None:
        super().__init__("go_on")
        names = ["api", *(f"s{n:02}" for n in range(1, services))]
        self._services = {name: service_file(name, self._port(name), **CROWD) for name in names}
        self.names, self.mode = names, mode
        self._groups = contextlib.ExitStack()
        self._scrape = "15s"  # no gate waits for it
        self.base_port, self.base_file = free_port(), self.root / "base"
        slow = self.root / "nginx"
        slow.write_text(SLOW_TEST.format(seconds=TEST_TAKES, nginx=shutil.which("nginx") or "nginx"))
        slow.chmod(0o755)
        for name, value in {"mode": mode, "closing_wait": "1s", "binary": str(slow)}.items():
            self._settings.setdefault("nginx", {})[name] = value
        self._settings["tick"] = "1s"
        self.write_config()

    async def __aenter__(self) -> Self:
        found = await super().__aenter__()
        assert self.daemon is not None
        units = {"a": [self.daemon.pid, self._redis_server.pid]}
        units |= {host.name: [host.process.pid] for host in self.hosts if host.process is not None}
        weight, nice = of_unit("CPUWeight"), of_unit("Nice")
        for name, pids in units.items():
            self._groups.enter_context(group(f"{self.owner}-{name}", weight, nice)).take(pids)
        self.stop_nginx()
        self.start_nginx(BASE.format(port=self.base_port, file=self.base_file))
        return found

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        self._groups.close()

    def start_edges(self) -> None:
        """See `Fleet`; their nginx has the module that the daemon's own has."""
        for host in self.hosts:
            host.up()
            if self.mode == "dynamic":
                (host.root / "nginx.conf").write_text(LUA + NGINX.format(root=host.root, extra=""))
            host.start_nginx()

    def hang(self, host: Host, number: int = signal.SIGSTOP) -> None:
        """Stop an edge's nginx where it is, or let it go on."""
        master = int((host.root / "nginx.pid").read_text())
        for pid in (master, *children(master)):
            os.kill(pid, number)

    async def climbing(self, service: str) -> ServiceState | None:
        """The state of a service whose candidate has confirmed traffic."""
        state = await self.state(service)
        rollout = state.rollout
        here = rollout is not None and rollout.retreat is None and rollout.exposed_since is not None
        return state if here and rollout and state.route.share(rollout.release.id) > 0 else None

    async def keep_climbing(self, images: list[str]) -> None:
        """Release again wherever nothing is rolled out, for ever."""
        while True:
            for service in self.names:
                state = await self.state(service)
                if state.rollout is None and not state.queue:
                    await self.push(service, images[state.released % 2], key=f"{service} {state.released}")
            await asyncio.sleep(1.0)


@contextlib.asynccontextmanager
async def onlooker(port: int, space: str = "") -> AsyncIterator[list[tuple[float, str]]]:
    """Who answers at a port, on this host or in a namespace; known when the block is left."""
    seen: list[tuple[float, str]] = []
    within = ["ip", "netns", "exec", space] if space else []
    command = [*within, sys.executable, "-m", "bench.traffic.onlooker", "127.0.0.1", str(port), str(PAUSE)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    first = await process.stdout.readline()
    try:
        yield seen
    finally:
        process.stdin.close()
        text, _ = await process.communicate()
        lines = (line.split() for line in (first + text).decode().splitlines())
        seen.extend(sorted((float(at), who) for at, who in lines))


def effect(seen: list[tuple[float, str]], began: float, stable: str) -> float:
    """Seconds until the first request from which on `stable` answers all; nobody else may be asked then."""
    later = [(at, who) for at, who in seen if at >= began]
    others = [n for n, (_, who) in enumerate(later) if who != stable]
    return later[min(others[-1] + 1 if others else 0, len(later) - 1)][0] - began


class Measured:
    """What the rounds have shown, in seconds."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {}
        self.unanswered = Counter[str]()

    def note(self, what: str, seen: list[tuple[float, str]], began: float, stable: str) -> None:
        """Add one."""
        self.took.setdefault(what, []).append(effect(seen, began, stable))
        self.unanswered.update(who for _, who in seen if who.startswith("-"))


async def base(on: Crowd, measured: Measured) -> None:
    """A file that is renamed to where nginx looks for it."""
    on.base_file.unlink(missing_ok=True)
    async with onlooker(on.base_port) as seen:
        await asyncio.sleep(0.2)
        fresh = on.base_file.with_suffix(".new")
        fresh.touch()
        began = time.monotonic()
        fresh.rename(on.base_file)
        await asyncio.sleep(0.5)
    measured.note("base: a file is renamed", seen, began, "stable")


async def rollback(
    on: Crowd, service: str, door: str, session: aiohttp.ClientSession, measured: Measured
) -> None:
    """One, seen at the daemon's own edge and at the other that is well."""
    state = await on.until(lambda: on.climbing(service), 120, f"{service} climbs")
    well = on.hosts[0]
    port = on.ports[service]
    async with onlooker(port) as here, onlooker(port, well.space) as there:
        await asyncio.sleep(0.3)
        began = time.monotonic()
        if door == "XADD":
            await on.redis.xadd(Keys().requests, {"verb": "rollback", "service": service, "who": "bench"})
        else:
            url = f"http://127.0.0.1:{on.door}/v1/services/{service}/rollback"
            async with session.post(url, json={}) as answer:
                assert answer.status == 202, await answer.text()
        await asyncio.sleep(WATCHED)
    measured.note(f"rollback by {door}, the daemon's own edge", here, began, state.stable.id)
    measured.note(f"rollback by {door}, the other edge", there, began, state.stable.id)


async def steps(on: Crowd, since: float) -> tuple[list[float], dict[str, int]]:
    """Seconds from each commit of a route to its confirmation, and how releases have ended."""
    changed: dict[tuple[str, int], float] = {}
    took, ended = [], dict[str, int]()
    for event in await on.events():
        if event.at < since:
            continue
        if isinstance(event, RouteChanged):
            changed[event.service, event.generation] = event.at
        elif isinstance(event, RouteConfirmed) and (event.service, event.generation) in changed:
            took.append(event.at - changed[event.service, event.generation])
        elif isinstance(event, ReleaseEnded):
            why = (
                event.outcome
                if event.outcome is not Outcome.ROLLED_BACK
                else f"{event.outcome}: {event.reason}"
            )
            ended[why] = ended.get(why, 0) + 1
    return took, ended


async def _heard(board: RedisBoard) -> bool:
    return len(await board.known()) == EDGES - 1


async def crowd(services: int, rollbacks: int, mode: str, images: list[str]) -> None:
    """Print one mode's figures."""
    measured = Measured()
    async with Crowd(services, mode) as on, contextlib.AsyncExitStack() as stacked:
        board = RedisBoard(on.redis, Keys(), 5.0) if on.store else None
        assert board is not None
        await on.until(lambda: _heard(board), 120, "the edges are heard of")
        _, said = await on.cli("token", "create", "bench", "--role", "operator")
        token = next(line for line in said.splitlines() if line.startswith("rot_"))
        headers = {"Authorization": f"Bearer {token}"}
        session = await stacked.enter_async_context(aiohttp.ClientSession(headers=headers))
        climbing = asyncio.create_task(on.keep_climbing(images))
        stacked.callback(climbing.cancel)
        began = time.monotonic()

        async def many() -> bool:
            states = [await on.climbing(name) for name in on.names]
            return sum(state is not None for state in states) >= 0.9 * len(states)

        await on.until(many, 1200, "nine in ten services climb")
        out.print(f"{mode}: nine in ten of {services} services climb after {time.monotonic() - began:.0f} s")
        stacked.enter_context(group(f"{on.owner}-bench", of_unit("CPUWeight"), 0)).take([os.getpid()])
        on.hang(on.hosts[1])
        stacked.callback(on.hang, on.hosts[1], signal.SIGCONT)
        since, crowded = time.time(), []  # noqa: TID251  as events have it
        for n in range(rollbacks):
            states = [await on.climbing(name) for name in on.names]
            crowded.append(sum(state is not None for state in states))
            await base(on, measured)
            await rollback(on, on.names[n % services], ("XADD", "POST")[n % 2], session, measured)
        took, ended = await steps(on, since)
    table = Table(
        title=f"{mode}: {rollbacks} rollbacks, a median of {statistics.median(crowded):.0f} climb, ms"
    )
    for column in ("", "n", "p50", "p99", "max", "p99 / base"):
        table.add_column(column, justify="right" if column else "left")
    bare = percentile(measured.took["base: a file is renamed"], 0.99)
    for what, values in measured.took.items():
        shown = (f"{v * 1000:.1f}" for v in (percentile(values, 0.5), percentile(values, 0.99), max(values)))
        table.add_row(what, str(len(values)), *shown, f"{percentile(values, 0.99) / bare:.1f}")
    out.print(table)
    if took:
        p50, p99, longest = percentile(took, 0.5), percentile(took, 0.99), max(took)
        how = f"p50 {p50:.1f} s, p99 {p99:.1f} s, max {longest:.1f} s"
        out.print(f"{len(took)} routes from commit to confirmation: {how}")
    out.print(f"without an answer: {dict(measured.unanswered) or 0}; ends: {ended}")


async def main(services: int, rollbacks: int, modes: list[str]) -> None:
    """Both ways of changing weights."""
    client = docker.from_env()
    images = [gin.build(client, v) for v in ("v1", "v2")]
    client.close()
    for mode in modes:
        await crowd(services, rollbacks, mode, images)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    chosen = [word for word in sys.argv[1:] if not word.isdecimal()] or ["reload", "dynamic"]
    services, rollbacks = numbers + [SERVICES, ROLLBACKS][len(numbers) :]
    asyncio.run(main(services, rollbacks, chosen))
