"""What is committed, and what readers see of it."""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState


class Store(Protocol):
    """What is committed."""

    async def load(self, service: str) -> tuple[ServiceState, int]:
        """The state of a service and its version; an empty state and 0 for a new one."""
        ...

    async def commit(
        self, state: ServiceState, version: int, events: Sequence[Event], acks: Sequence[str] = ()
    ) -> int:
        """Write state, events and acknowledgements in one step; returns the next version.

        Raises:
            Stale: The lease or the version is not ours any more; nothing was written.
        """
        ...

    async def refuse(self, entry: str, fields: Mapping[str, str], event: Event) -> None:
        """Move a request that can't be carried out to the dead letters, and tell it."""
        ...

    async def answer(self, entry: str, event: Event) -> None:
        """Tell what came of a request that changes no state, and acknowledge it."""
        ...

    @property
    def token(self) -> int:
        """The fencing token of the lease."""
        ...


class Journal(Protocol):
    """What readers see: states, and what happened. Each raises `Fault` when it can't be read."""

    async def load(self, service: str) -> tuple[ServiceState, int]:
        """The state of a service and its version."""
        ...

    async def last_event_id(self) -> str:
        """The id of the newest event."""
        ...

    async def events_after(self, after: str, limit: int = 100) -> list[tuple[str, Event]]:
        """Events after an id, oldest first."""
        ...

    async def told(self, release: str, since: float, until: float = math.inf) -> list[Event]:
        """The events of a release that began at `since`, told up to `until`."""
        ...


class Bookmarks(Protocol):
    """How far readers of the event stream have come. Each raises `Fault` when Redis does not answer."""

    async def bookmark(self, reader: str) -> str:
        """The id of the last event that a reader has dealt with; '' for a new one."""
        ...

    async def set_bookmark(self, reader: str, entry: str) -> None:
        """A reader has dealt with everything up to this event."""
        ...


class Tail(Protocol):
    """The event stream for many listeners at once."""

    def follow(self, after: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Event] | None]]:
        """Events after an id, for ever; None when there is none for a while. Ends where one is too slow."""
        ...
