"""Record what the daemon does in each story; then kill it there, and again while it recovers.

A kill is independent of the others, and most of its time is waiting: there are several stacks side by side.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from examples.playground.load import Load
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.rollout.model import Ended, Outcome
from tests.acceptance.observer import DEATH_LIMIT, Observer
from tests.forks import ForkedStack

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
LANES = 2
"""Stacks side by side, each of which takes the next kill when it is done with one."""


class CrashStack(ForkedStack):
    """The stack whose daemon can be told where to die."""

    module = "tests.crash.daemon"


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
            done = not (state.rollout or state.queue or state.retiring or state.previous)
            served = state.confirmed == state.route.generation
            if not done or not served or state.stable is None:
                return False
            running = await asyncio.to_thread(self.stack.containers)
            return {c.labels["io.release-orchestrator.release"] for c in running} == {state.stable.id}

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
    report = Report()
    recorded: asyncio.Future[Iterator[tuple[int, tuple[str, str]]]] = (
        asyncio.get_running_loop().create_future()
    )

    async def lane(number: int) -> None:
        async with _teller(image, mode) as teller:
            if number == 0:
                recorded.set_result(enumerate(await _record(teller)))
            points = await recorded
            async with Load(teller.stack.url("api"), 40) as load:
                for index, (story, point) in points:
                    await _kill(teller, story, f"{point}:{moment}", 1 + index % 7, report)
            report.lost += load.seen.lost + load.seen.bad_gateway
            report.requests += load.seen.total

    async with asyncio.TaskGroup() as lanes:
        for number in range(LANES):
            lanes.create_task(lane(number), name=f"lane {number}")
    return report


@contextlib.asynccontextmanager
async def _teller(image: Callable[..., str], mode: str) -> AsyncIterator[Teller]:
    """A stack of its own with a stable release, observed to its end."""
    settings = {"nginx": {"mode": mode}}
    stack = CrashStack(lambda port: {"api": service_file("api", port("api"), **SERVICE)}, settings)
    async with stack, Observer(stack, limit=DEATH_LIMIT + 2 * RESTART) as observer:
        teller = Teller(stack, image)
        await teller.push(teller.good())
        await teller.idle()
        yield teller
        await observer.finish()


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
