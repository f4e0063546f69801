"""Send a request, read its answer, follow a release to its end."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from orchestrator.cli.exits import OK, OUTCOMES, REFUSED, TIMED_OUT
from orchestrator.cli.session import Output, err, out
from orchestrator.cli.show import event_text
from orchestrator.rollout.events import (
    CommandAccepted,
    ConfigReloaded,
    Event,
    GatesLooked,
    ReleaseAccepted,
    ReleaseEnded,
    RequestRefused,
    ServiceRemoved,
)
from orchestrator.store.codec import dump_event
from orchestrator.store.redis_store import RedisStore

Answer = ReleaseAccepted | CommandAccepted | RequestRefused | ConfigReloaded

ANSWER = 10.0
"""Seconds that a running daemon gets to answer a request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An answered request: the event, and the event id up to which the stream has been read."""

    answer: Answer | None
    seen: str


async def ask(store: RedisStore, fields: Mapping[str, str]) -> Asked:
    """Append a request and wait for its answer; None when no daemon answers in time."""
    after = await store.last_event_id()
    request = await store.push({k: v for k, v in fields.items() if v})
    try:
        async with asyncio.timeout(ANSWER):
            async for seen, event in store.events(after):
                after = seen
                if isinstance(event, Answer) and event.request == request:
                    return Asked(event, seen)
    except TimeoutError:
        pass
    return Asked(None, after)


def report(asked: Asked, output: Output) -> int:
    """Print the answer; returns the exit code so far."""
    answer = asked.answer
    if answer is None:
        err.print(
            f"[yellow]queued[/]: no daemon has answered within {ANSWER:.0f} s; it is kept until one does"
        )
        return TIMED_OUT
    if output is Output.JSON:
        out.print(dump_event(answer).decode(), markup=False)
    else:
        (err if isinstance(answer, RequestRefused) else out).print(
            f"{answer.release:<12} {event_text(answer)}"
        )
    return REFUSED if isinstance(answer, RequestRefused) else OK


async def follow(
    store: RedisStore, service: str, release: str, after: str, timeout: float, output: Output
) -> int:
    """Print a release's events until it has ended; returns the exit code of its outcome.

    An empty `release` waits for the next end of any journey of the service, or of the service itself. After
    `timeout` seconds (0 is none) the exit code is that of a time-out, while the release goes on.
    """
    try:
        async with asyncio.timeout(timeout or None):
            async for event in story(store, service, release, after):
                if output is Output.JSON:
                    out.print(dump_event(event).decode(), markup=False)
                elif not isinstance(event, GatesLooked):
                    out.print(f"{event.release:<12} {event_text(event)}")
                if isinstance(event, ReleaseEnded):
                    return OUTCOMES[event.outcome]
                if isinstance(event, ServiceRemoved):
                    return OK
    except TimeoutError:
        err.print(f"[yellow]timed out[/] after {timeout:.0f} s; {release or service} goes on")
    return TIMED_OUT


async def story(store: RedisStore, service: str, release: str, after: str) -> AsyncIterator[Event]:
    """The events of one release, or of a service when `release` is empty."""
    async for _, event in store.events(after):
        if event is None or event.service != service:
            continue
        if release in ("", event.release):
            yield event
