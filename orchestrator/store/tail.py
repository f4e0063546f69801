"""One reader of the event stream for many listeners."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from orchestrator.ports.store import Journal
from orchestrator.rollout.events import Event
from orchestrator.store.redis_store import RedisStore

Entry = tuple[str, Event]

BEHIND = 500
"""Events that a listener may lie behind before it is let go; it can come again with the last id it saw."""

QUIET = 10.0
"""Seconds without an event after which a listener is told that there is none."""


def position(entry: str) -> tuple[int, int]:
    """The place of a stream id."""
    ms, _, number = entry.partition("-")
    return int(ms), int(number or 0)


class EventTail:
    """`ports.Tail`; `run` has to run beside the listeners."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._listeners: set[asyncio.Queue[Entry | None]] = set()

    async def run(self) -> None:
        """Read for ever.

        Raises:
            Fault: Redis did not answer; listeners are let go, so that none misses anything.
        """
        newest = await self._store.last_event_id()
        for queue in tuple(self._listeners):  # they may have missed what came before
            self._let_go(queue)
        try:
            async for entry, event in self._store.events(newest):
                if event is not None:
                    for queue in tuple(self._listeners):
                        self._put(queue, (entry, event))
        finally:
            for queue in tuple(self._listeners):
                self._let_go(queue)

    def _put(self, queue: "asyncio.Queue[Entry | None]", entry: Entry) -> None:
        if queue.qsize() >= BEHIND:
            self._let_go(queue)
        else:
            queue.put_nowait(entry)

    def _let_go(self, queue: "asyncio.Queue[Entry | None]") -> None:
        self._listeners.discard(queue)
        queue.put_nowait(None)

    @contextlib.asynccontextmanager
    async def follow(self, after: str) -> AsyncIterator[AsyncIterator[Entry | None]]:
        """See `ports.Tail`."""
        queue: asyncio.Queue[Entry | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield self._listen(queue, self._store, after)
        finally:
            self._listeners.discard(queue)

    async def _listen(
        self, queue: "asyncio.Queue[Entry | None]", journal: Journal, after: str
    ) -> AsyncIterator[Entry | None]:
        while page := await journal.events_after(after):  # what was told before we listened
            for entry in page:
                after = entry[0]
                yield entry
        while True:
            try:
                async with asyncio.timeout(QUIET):
                    news = await queue.get()
            except TimeoutError:
                yield None
                continue
            if news is None:
                return
            if position(news[0]) > position(after):
                after = news[0]
                yield news
