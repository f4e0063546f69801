"""`python -m examples.demo`."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import APIError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.playground import gin
from examples.playground.engine import engine
from examples.playground.load import Load, Seen
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.cli.show import COLOURS, event_text
from orchestrator.rollout.events import GateJudged, GatesLooked, ReleaseEnded, RouteConfirmed
from orchestrator.rollout.model import Outcome, Result

RATE = 200
DEADLINE = 100.0

JUDGED: dict[str, Any] = {
    "gates": [
        {"metric": "error_rate"},
        {"metric": "latency", "quantile": 0.95, "warm_up": "5s"},
        {"metric": "latency", "quantile": 0.99, "warm_up": "5s"},
        {"metric": "error_rate", "max": "20%", "for": "3s", "window": "8s", "min_requests": 10},
    ],
    "strategy": {"steps": [5, 15, 40, 100], "min_step": "4s", "bake": "5s", "step_deadline": "60s"},
}
"""The gates of production with times for a demo: scrapes come every second here."""

out = Console(highlight=False, soft_wrap=True)
wide = Console(highlight=False, width=max(out.width, 110))


@dataclass(frozen=True, slots=True)
class Act:
    """One release of the demo: what is wrong with it, and how it must end."""

    version: str
    story: str
    misbehave: dict[str, str]
    outcome: Outcome


ACTS = (
    Act("v1", "the first release", {}, Outcome.PROMOTED),
    Act("v2", "good", {}, Outcome.PROMOTED),
    Act("v3", "answers 5 % of requests with 500", {"FAIL_RATE": "0.05"}, Outcome.ROLLED_BACK),
    Act("v4", "one request in ten is slow", {"SLOW_RATE": "0.1", "SLOW_BY": "400ms"}, Outcome.ROLLED_BACK),
    Act("v5", "dies while it holds traffic", {"DIE_AFTER": "6s"}, Outcome.ROLLED_BACK),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of one release."""

    act: Act
    release: str
    ended: ReleaseEnded
    users: Seen


@contextlib.contextmanager
def _images() -> Iterator[dict[str, str]]:
    """The images by version; those that were not there before go away again."""
    out.rule("[bold]building the Gin service in five versions")
    client = docker.from_env()
    names = {act.version: gin.reference(act.version, act.misbehave) for act in ACTS}
    ours = [name for name in names.values() if not gin.there(client, name)]
    try:
        for act in ACTS:
            out.print(f"  {gin.build(client, act.version, act.misbehave)}  {act.story}")
        yield names
    finally:
        for name in ours:
            with contextlib.suppress(APIError):
                client.images.remove(name)
        client.close()


async def play(images: dict[str, str]) -> list[Row]:
    """Start, release one after another."""
    rows = []
    async with _stack() as stack:
        first, *later = ACTS
        out.rule(f"[bold]api {first.version}: {first.story}")
        rows.append(Row(first, "api-1", await _release(stack, "api-1", images[first.version], first), Seen()))
        out.rule(f"[bold]{RATE} requests/s to {stack.url('api')} from now on")
        async with Load(stack.url("api"), RATE) as load:
            for number, act in enumerate(later, 2):
                out.rule(f"[bold]api {act.version}: {act.story}")
                before = load.seen.copy()
                ended = await _release(stack, f"api-{number}", images[act.version], act)
                await asyncio.sleep(1.0)
                rows.append(Row(act, f"api-{number}", ended, load.seen.copy().since(before)))
    return rows


@contextlib.asynccontextmanager
async def _stack() -> AsyncIterator[Stack]:
    out.rule("[bold]starting Redis, Prometheus, nginx and the daemon, privately")
    async with Stack(lambda port: {"api": service_file("api", port("api"), **JUDGED)}) as stack:
        try:
            out.print(f"  folder            {stack.root}")
            out.print(f"  daemon            {stack.api('/metrics')}")
            out.print(f"  prometheus        http://127.0.0.1:{stack.prometheus}")
            yield stack
        finally:
            out.print("[dim]taking everything down[/]")


async def _release(stack: Stack, release: str, image: str, act: Act) -> ReleaseEnded:
    """Push one release and tell its story; returns its end."""
    after = await stack.store.last_event_id()
    await stack.push("api", image, who="demo", why=act.story)
    async with asyncio.timeout(DEADLINE):
        async for _, event in stack.store.events(after):
            if event is None or event.release != release:
                continue
            quiet = isinstance(event, RouteConfirmed | GatesLooked) or (
                isinstance(event, GateJudged) and event.verdict.result is Result.INCONCLUSIVE
            )
            if not quiet:
                out.print(f"  [dim]{time.strftime('%H:%M:%S')}[/] {release}  {event_text(event)}")
            if isinstance(event, ReleaseEnded):
                return event
    raise TimeoutError(f"{release} did not end within {DEADLINE:.0f} s")


def table(rows: list[Row]) -> Table:
    """What happened, and what the users saw of it."""
    found = Table(title="what happened, and what the users saw", title_style="bold")
    found.add_column("release")
    found.add_column("outcome")
    found.add_column("reason", overflow="fold", max_width=44)
    for column in ("seconds", "requests", "by this release", "failed", "of which by it"):
        found.add_column(column, justify="right")
    for row in rows:
        users = row.users
        mine = users.good[row.release] + users.errors[row.release]
        found.add_row(
            f"{row.act.version} ({row.release})",
            f"[{COLOURS[row.ended.outcome]}]{row.ended.outcome}[/]",
            escape(row.ended.reason),
            f"{row.ended.seconds:.1f}",
            str(users.total),
            str(mine),
            str(users.failed),
            str(users.errors[row.release]),
        )
    return found


async def main() -> int:
    """Play; 0 when every release ended as it should."""
    began = time.monotonic()
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    interrupted: list[int] = []

    def interrupt(number: int) -> None:
        if not interrupted and task is not None:  # a second one must not break the clean-up
            task.cancel()
        interrupted.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        with _images() as images:
            rows = await play(images)
    except (asyncio.CancelledError, subprocess.CalledProcessError) as error:
        child = isinstance(error, subprocess.CalledProcessError) and error.returncode == -signal.SIGINT
        if not interrupted and not child:
            raise
        out.print("interrupted; nothing is left behind")
        return 130
    out.print()
    wide.print(table(rows))
    wrong = [r for r in rows if r.ended.outcome is not r.act.outcome]
    for row in wrong:
        out.print(f"[red]{row.act.version} should have been {row.act.outcome}[/]")
    why = sum((r.users.reasons for r in rows), Counter[str]())
    lost = str(why.total()) + "".join(f", {number} {name}" for name, number in why.items())
    out.print(f"requests without an answer from any release: {lost}; {time.monotonic() - began:.0f} s in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    with engine():
        code = asyncio.run(main())
    sys.exit(code)
