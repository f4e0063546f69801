"""Record what the daemon does in each story; then kill it there, and again while it recovers."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from examples.playground.load import Load
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.rollout.model import Ended, Outcome
from tests.acceptance.observer import DEATH_LIMIT, Observer

SERVICE = {
    "container": {"port": 8080, "memory": "64MiB", "stop_grace": "3s", "probe": {"successes": 2}},
    "strategy": {"steps": [20, 100], "first_hold": "600ms", "bake": "300ms", "min_requests": 0},
    "gates": [],
    "keep_previous": "500ms",
    "deadlines": {"drain": "1s", "confirm": "30s", "start": "30s"},
}
RECOVERY = 15.0
"""Seconds within which a daemon that is started again must drive."""


RESTART = 5.0
"""Seconds for one of the two starts of a daemon that may lie between a death and its end of traffic."""


class Forked:
    """A daemon that `tests.crash.daemon` has forked, with what it says of its end."""

    def __init__(self, pid: int, says: asyncio.StreamReader) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = asyncio.create_task(self._read(says), name="exit code")

    async def _read(self, says: asyncio.StreamReader) -> int:
        self.returncode = int(await says.readline())
        return self.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._end)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class CrashStack(Stack):
    """The stack whose daemon can be told where to die; each is forked from one process."""

    module = "tests.crash.daemon"
    _parent: asyncio.subprocess.Process | None = None

    async def launch(self, **env: str) -> None:
        if self._parent is None:
            self._parent = await self.serve({}, asyncio.subprocess.PIPE, asyncio.subprocess.PIPE)
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{json.dumps(env)}\n".encode())
        self.daemon = Forked(int(await self._parent.stdout.readline()), self._parent.stdout)

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        if self._parent is not None:
            assert self._parent.stdin is not None
            self._parent.stdin.close()
            await self._parent.wait()


@dataclass(slots=True)
class Teller:
    """Tells the stories on one stack; every story begins and ends with a stable release and nothing to do."""

    stack: CrashStack
    image: Callable[..., str]
    releases: int = 0
    pushed: int = 0

    def good(self) -> str:
        self.releases += 1
        return self.image(f"v{self.releases % 2 + 1}")

    async def push(self, image: str = "", **fields: str) -> str:
        """Push as CI does: with a key, again and again until Redis has it."""
        self.pushed += 1

        async def look() -> str:
            return await self.stack.push("api", image, key=f"k{self.pushed}", **fields)

        entry: str = await self.stack.until(look, 20, "Redis takes a request")
        return entry

    async def ended(self, request: str) -> Ended:
        async def look() -> Ended | None:
            state = await self.stack.state()
            return next((e for e in reversed(state.history) if e.release.request == request), None)

        found: Ended = await self.stack.until(look, 60, f"the release of request {request} has ended")
        return found

    async def idle(self) -> None:
        async def look() -> bool:
            state = await self.stack.state()
            names = {c.labels["io.release-orchestrator.release"] for c in self.stack.containers()}
            done = not (state.rollout or state.queue or state.retiring or state.previous)
            served = state.confirmed == state.route.generation
            return done and served and state.stable is not None and names == {state.stable.id}

        await self.stack.until(look, 60, "nothing is left to do")

    async def promote(self) -> None:
        """A good release takes over, the old one goes."""
        request = await self.push(self.good())
        ended = await self.ended(request)
        assert ended.outcome is Outcome.PROMOTED, (ended.outcome, ended.reason)
        await self.idle()

    async def take_back(self) -> None:
        """A person pauses a release that has traffic, goes on, and takes it back. Another one is refused."""
        request = await self.push(self.good())

        async def shifting() -> bool:
            state = await self.stack.state()
            ended = any(e.release.request == request for e in state.history)
            return ended or any(not s.backup and s.weight for s in state.route.servers[1:])

        await self.stack.until(shifting, 60, "the candidate has traffic")
        for verb in ("pause", "resume"):
            await self.push(verb=verb)
        await self.push(verb="rollback", why="no")
        await self.push("elsewhere:1")
        assert (await self.ended(request)).outcome in (Outcome.ROLLED_BACK, Outcome.PROMOTED)
        await self.idle()

    async def die(self) -> None:
        """A release that dies while it has traffic goes back by itself."""
        request = await self.push(self.image("v3", DIE_AFTER="300ms"))
        assert (await self.ended(request)).outcome in (Outcome.ROLLED_BACK, Outcome.FAILED)
        await self.idle()

    @property
    def stories(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        return {"promote": self.promote, "take back": self.take_back, "die": self.die}


@dataclass(slots=True)
class Report:
    """What was killed where. `recovery`: seconds from each start to driving again."""

    points: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    doubles: int = 0
    recovery: list[float] = field(default_factory=list)
    lost: int = 0
    requests: int = 0


async def run(moment: str, image: Callable[..., str], mode: str = "reload") -> Report:
    """The whole matrix for `before` or `after`; raises if an invariant is violated.

    `mode`: how weights change, `reload` or `dynamic`.
    """
    settings = {"nginx": {"mode": mode}}
    stack = CrashStack(lambda port: {"api": service_file("api", port("api"), **SERVICE)}, settings)
    report = Report()
    async with stack, Observer(stack, limit=DEATH_LIMIT + 2 * RESTART) as observer:
        teller = Teller(stack, image)
        await teller.push(teller.good())
        await teller.idle()
        points = await _record(teller)
        async with Load(stack.url("api"), 40) as load:
            for number, (story, point) in enumerate(points):
                await _kill(teller, story, f"{point}:{moment}", 1 + number % 7, report)
        report.lost, report.requests = load.seen.lost + load.seen.bad_gateway, load.seen.total
        await observer.finish()
    return report


async def _record(teller: Teller) -> list[tuple[str, str]]:
    """Each effect that a story is the first to have: (story, effect)."""
    stack, seen = teller.stack, set[str]()
    points = []
    for story, tell in teller.stories.items():
        log = stack.root / f"effects {story}"
        await stack.stop_daemon()
        await stack.start_daemon(CRASH_LOG=str(log))
        await tell()
        await stack.stop_daemon()
        for effect in dict.fromkeys(log.read_text().splitlines()):
            if effect not in seen:
                points.append((story, effect))
            seen.add(effect)
    await stack.start_daemon()
    return points


async def _kill(teller: Teller, story: str, point: str, again: int, report: Report) -> None:
    """Kill at a point of a story, kill what recovers at its n-th effect, and let the third one finish."""
    stack = teller.stack
    await stack.stop_daemon()
    await stack.launch(CRASH_AT=point)
    stopping = point.startswith(("lease release", "remove"))
    telling = asyncio.create_task(teller.stories[story](), name=f"story {story}")
    first = await _died(stack, telling, stopping=stopping)
    (report.points if first else report.unreached).append(f"{story}: {point}")
    if first:
        await stack.launch(CRASH_AT=f"any {again}:{point.rpartition(':')[2]}")
        if await _died(stack, telling, stopping=False):
            report.doubles += 1
            began = asyncio.get_running_loop().time()
            await stack.start_daemon(deadline=RECOVERY)
            report.recovery.append(asyncio.get_running_loop().time() - began)
    await telling


async def _died(stack: Stack, telling: "asyncio.Task[None]", *, stopping: bool) -> bool:
    """Whether the daemon is killed before the story is over; each wait of a story has a deadline."""
    assert stack.daemon is not None
    death = asyncio.create_task(stack.daemon.wait(), name="death")
    await asyncio.wait({death, telling}, return_when=asyncio.FIRST_COMPLETED)
    if telling.done() and stopping and not death.done():
        stack.daemon.terminate()
        await asyncio.wait({death}, timeout=20.0)
    if death.done():
        return death.result() == -9
    death.cancel()
    await asyncio.gather(death, return_exceptions=True)
    return False
