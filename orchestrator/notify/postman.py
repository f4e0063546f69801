"""Delivery: each channel reads the event stream at its own pace, and no message is lost.

A channel remembers the last event that it has dealt with, so that what happened while it was down, or while
no daemon ran, is told afterwards. A message may come twice when the daemon dies right after sending it. One
that its channel refuses is dropped, so that it does not hold those that come after it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import stamina
import structlog

from orchestrator.notify.text import Language, Message, message
from orchestrator.ports.clock import Clock
from orchestrator.ports.faults import Away, Fault, Refused, Stale
from orchestrator.ports.store import Bookmarks, Journal
from orchestrator.rollout.events import Event, ReleaseEnded
from orchestrator.rollout.model import Outcome

log = structlog.get_logger()

LOOK = 1.0
"""Seconds between looks when there is nothing new."""

SEND_DEADLINE = 30.0
TOO_OLD = 86400.0
"""Seconds after which nobody wants to hear of an event any more."""

LONGEST_PAUSE = 60.0

BUGS = 5
"""Tries after which an event is dropped that its reader trips over; most bugs do not pass by waiting."""


class Channel(Protocol):
    """Where messages go."""

    async def send(self, event: Event, text: Message) -> None:
        """Deliver a message. Raises `Refused` when it is not taken, another `Fault` to be asked again."""
        ...


class Reader(Protocol):
    """Somebody who deals with events."""

    @property
    def name(self) -> str:
        """Unique; its place in the stream is kept under it."""
        ...

    def wants(self, event: Event) -> bool:
        """Whether an event is for it."""
        ...

    async def take(self, event: Event) -> None:
        """Deal with it. Raises `Refused` when that is not possible, another `Fault` to be asked again."""
        ...


@dataclass(frozen=True, slots=True)
class Subscription:
    """A channel, and what it is told.

    Attributes:
        services: Empty is all of them.
        kinds: Of events.
        outcomes: Of releases that ended.
    """

    name: str
    channel: Channel
    language: Language
    kinds: frozenset[str]
    outcomes: frozenset[Outcome]
    services: frozenset[str] = frozenset()

    def wants(self, event: Event) -> bool:
        """See `Reader`."""
        if event.kind not in self.kinds or (self.services and event.service not in self.services):
            return False
        return not isinstance(event, ReleaseEnded) or event.outcome in self.outcomes

    async def take(self, event: Event) -> None:
        """See `Reader`."""
        text = message(event, self.language)
        if text is not None:
            await self.channel.send(event, text)


class Postman:
    """Reads the stream for one reader.

    Args:
        dropped: Called with the reader's name when it does not get an event that is for it.
    """

    def __init__(
        self,
        reader: Reader,
        journal: Journal,
        bookmarks: Bookmarks,
        clock: Clock,
        dropped: Callable[[str], object] = lambda _reader: None,
    ) -> None:
        self._to = reader
        self._journal = journal
        self._bookmarks = bookmarks
        self._clock = clock
        self._dropped = dropped
        self._after = ""

    async def run(self) -> None:
        """Deliver, for ever. A channel that is new begins with what happens from now on.

        Raises:
            Stale: Another daemon has taken over.
            Fault: Redis did not answer. Run it again: it goes on where it was.
        """
        self._after = self._after or await self._bookmarks.bookmark(self._to.name)
        if not self._after:
            self._after = await self._journal.last_event_id()
            await self._bookmarks.set_bookmark(self._to.name, self._after)
        while True:
            page = await self._journal.events_after(self._after)
            for entry, event in page:
                if self._to.wants(event):
                    await self._deliver(event)
                    self._after = entry
                    await self._bookmarks.set_bookmark(self._to.name, entry)
                self._after = entry
            if page:
                await self._bookmarks.set_bookmark(self._to.name, self._after)
            else:
                await asyncio.sleep(LOOK)

    async def _deliver(self, event: Event) -> None:
        left = TOO_OLD - (self._clock.now() - event.at)
        bugs = 0

        def again(error: BaseException) -> bool:  # cancellations come by here too
            nonlocal bugs
            bugs += not isinstance(error, Fault)
            return isinstance(error, Exception) and not isinstance(error, Refused | Stale) and bugs < BUGS

        try:
            async for attempt in stamina.retry_context(
                on=again, attempts=None, timeout=max(left, 1.0), wait_initial=1.0, wait_max=LONGEST_PAUSE
            ):
                with attempt:
                    await self._try(event)
        except Stale:
            raise
        except Exception as error:  # noqa: BLE001  it has been logged, and the next event must not wait for it
            self._dropped(self._to.name)
            log.error(
                "notification_dropped",
                channel=self._to.name,
                kind=event.kind,
                service=event.service,
                release=event.release,
                reason=str(error) or type(error).__name__,
            )

    async def _try(self, event: Event) -> None:
        try:
            async with asyncio.timeout(SEND_DEADLINE):
                await self._to.take(event)
        except TimeoutError:
            raise Away(f"{self._to.name} did not take it within {SEND_DEADLINE:.0f} s") from None
        except (Refused, Stale):
            raise
        except Fault as error:
            log.warning("notification_failed", channel=self._to.name, reason=str(error))
            raise
        except Exception:
            log.exception("notification_failed", channel=self._to.name)
            raise
