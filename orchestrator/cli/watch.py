"""`watch`: live on a terminal, one line an event in a pipe."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping

from rich.console import Group
from rich.live import Live
from rich.text import Text

from orchestrator.cli.session import Output, out
from orchestrator.cli.show import event_text, status_table, verdict_lines
from orchestrator.rollout.events import Event, GatesLooked, RouteConfirmed
from orchestrator.rollout.policy import Template
from orchestrator.store.codec import dump_event
from orchestrator.store.redis_store import RedisStore

REFRESH = 0.5
LINES = 12


async def watch_events(store: RedisStore, service: str, output: Output) -> None:
    """Print every event from now on, for ever."""
    async for _, event in store.events(await store.last_event_id()):
        if event is None or service not in ("", event.service):
            continue
        if output is Output.JSON:
            out.print(dump_event(event).decode(), markup=False)
        elif not isinstance(event, GatesLooked):
            out.print(line(event))


def line(event: Event) -> str:
    """An event with its time and release."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.at))
    return f"[dim]{clock}[/] {event.release or event.service:<12} {event_text(event)}"


async def watch_live(store: RedisStore, files: Mapping[str, Template | None], service: str) -> None:
    """Redraw status, verdicts and the last events, for ever; `files`: how each service is to be run."""
    names = [service] if service else sorted(files)
    recent: deque[str] = deque(maxlen=LINES)
    with Live(console=out, refresh_per_second=4, transient=False) as live:

        async def read() -> None:
            async for _, event in store.events(await store.last_event_id()):
                if (
                    event is not None
                    and event.service in names
                    and not isinstance(event, RouteConfirmed | GatesLooked)
                ):
                    recent.append(line(event))

        async def draw() -> None:
            while True:
                states = [(await store.load(name))[0] for name in names]
                parts = [status_table(states, time.time(), files)]  # noqa: TID251  for people
                verdicts = [v for s in states if s.rollout for v in verdict_lines(s.rollout)]
                live.update(Group(*parts, *verdicts, Text(), *map(Text.from_markup, recent)))
                await asyncio.sleep(REFRESH)

        async with asyncio.TaskGroup() as group:
            group.create_task(read(), name="watch events")
            group.create_task(draw(), name="watch status")
