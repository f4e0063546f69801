"""`python -m bench.intake [SECONDS]`: how fast requests are taken durably, and that kills lose none.

First producers push at a steady rate and every push is timed until Redis has it on the disk, beside a bare
XADD on the same server. Then ten thousand release requests are pushed while the daemon is killed every two
seconds; in the end each must have been answered exactly once.
"""

import asyncio
import sys
import time
from collections import Counter

import docker
from rich.console import Console
from rich.table import Table

from bench.recovery import percentile
from examples.playground import gin
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.rollout.events import ReleaseAccepted, ReleaseEnded, RequestRefused

RATE = 500
MANY = 10_000
out = Console(highlight=False, width=100)


async def steady(stack: Stack, seconds: float, *, bare: bool) -> tuple[float, list[float]]:
    """Push at `RATE` a second; returns the rate that was held and the seconds of each push."""
    took: list[float] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        if bare:
            await stack.redis.xadd("bench:bare", {"service": "nobody", "image": "x:1", "who": "bench"})
        else:
            await stack.push("nobody", "x:1", key=f"{began}-{number}")
        took.append(time.monotonic() - began)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * seconds)):
            due = began + number / RATE
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            group.create_task(one(number))
    return len(took) / (time.monotonic() - began), took


async def with_kills(stack: Stack, image: str) -> dict[str, int]:
    """Push `MANY` requests under kills; what became of them."""
    pushed: list[str] = []

    async def produce() -> None:
        for _ in range(MANY):
            pushed.append(await stack.push("api", image))
            await asyncio.sleep(0.002)

    producing = asyncio.create_task(produce())
    kills = 0
    while not producing.done():
        await asyncio.sleep(2.0)
        assert stack.daemon is not None
        stack.daemon.kill()
        await stack.daemon.wait()
        kills += 1
        await stack.start_daemon()
    await producing

    async def all_answered() -> bool:
        return await stack.store.waiting() == 0 and not (await stack.state()).queue

    await stack.until(all_answered, 900, "every request is answered")
    await stack.until(lambda: _idle(stack), 120, "the last release has ended")
    events = await stack.events()
    accepted = Counter(e.request for e in events if isinstance(e, ReleaseAccepted))
    refused = Counter(e.request for e in events if isinstance(e, RequestRefused))
    ended = Counter(e.request for e in events if isinstance(e, ReleaseEnded) and e.journey == "release")
    return {
        "kills": kills,
        "acknowledged": len(pushed),
        "answered": sum(1 for p in pushed if accepted[p] + refused[p]),
        "lost": sum(1 for p in pushed if accepted[p] + refused[p] == 0),
        "duplicated": sum(1 for p in pushed if accepted[p] + refused[p] > 1 or ended[p] > 1),
        "accepted, not ended": sum(1 for p in pushed if accepted[p] and not ended[p]),
    }


async def _idle(stack: Stack) -> bool:
    state = await stack.state()
    return state.rollout is None and not state.queue


async def main(seconds: float) -> None:
    client = docker.from_env()
    image = gin.build(client, "v1")
    quick = {"steps": [100], "bake": "500ms", "min_requests": 0}
    stack = Stack(
        lambda port: {
            "api": service_file(
                "api", port("api"), strategy=quick, gates=[], on_new_release="reject", keep_previous="1s"
            )
        }
    )
    async with stack:
        table = Table(title=f"{RATE} pushes a second for {seconds:.0f} s, each on the disk when it returns")
        for column in ("", "held", "median", "p99", "worst"):
            table.add_column(column, justify="left" if not column else "right")
        for what, bare in (("bare XADD, daemon idle", True), ("push with a key, daemon answering", False)):
            held, took = await steady(stack, seconds, bare=bare)
            shown = [percentile(took, 0.5), percentile(took, 0.99), max(took)]
            table.add_row(what, f"{held:.0f}/s", *(f"{v * 1000:.1f} ms" for v in shown))
        out.print(table)
        found = await with_kills(stack, image)
        out.print(", ".join(f"{name}: {number}" for name, number in found.items()))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
