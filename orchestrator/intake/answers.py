"""What became of a request."""

import asyncio
import contextlib
from collections.abc import Callable

from orchestrator.ports.store import Journal, Tail
from orchestrator.rollout.events import (
    CommandAccepted,
    ConfigReloaded,
    Event,
    ReleaseAccepted,
    ReleaseEnded,
    RequestRefused,
)

Answer = RequestRefused | CommandAccepted | ReleaseAccepted | ConfigReloaded

PAGE, PAGES = 1000, 20
"""Events that are read to find one: a page, and pages."""

RECENT = 60_000
"""Milliseconds of events in which an answer is looked for at the least."""

LONGEST_WAIT = 60.0
"""Seconds that anybody may wait; what lies between may cut longer ones."""


class Answers:
    """Finds events that have been told, or waits for them."""

    def __init__(self, journal: Journal, tail: Tail) -> None:
        self._journal = journal
        self._tail = tail

    async def to(self, request: str, wait: float) -> Answer | None:
        """The answer to a request, if it has come or comes within `wait` seconds."""

        def answers(event: Event) -> bool:
            return isinstance(event, Answer) and event.request == request

        newest = int((await self._journal.last_event_id()).partition("-")[0])
        # The answer may come in the same millisecond; an id that a producer has chosen may lie in the future.
        before = max(0, min(int(request.partition("-")[0]) - 1, newest - RECENT))
        found = await self._first(answers, f"{before}-0", wait)
        return found if isinstance(found, Answer) else None

    async def end(self, release: str, after: str, wait: float) -> None:
        """Return once a release has ended, if it does so after an id and within `wait` seconds."""

        def ends(event: Event) -> bool:
            return isinstance(event, ReleaseEnded) and event.release == release

        await self._first(ends, after, wait)

    async def _first(self, wanted: Callable[[Event], bool], after: str, wait: float) -> Event | None:
        for _ in range(PAGES):
            page = await self._journal.events_after(after, PAGE)
            for entry, event in page:
                after = entry
                if wanted(event):
                    return event
            if not page:
                break
        wait = min(wait, LONGEST_WAIT)
        if not wait:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait), self._tail.follow(after) as events:
                async for told in events:
                    if told is not None and wanted(told[1]):
                        return told[1]
        return None
