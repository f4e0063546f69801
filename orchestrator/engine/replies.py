"""What is said to requests that no conductor carries out, written for whoever reads those of all services."""

import asyncio
from collections.abc import Callable, Container, Coroutine, Mapping
from typing import Any

from orchestrator.engine.tasks import within
from orchestrator.ports.faults import Away
from orchestrator.ports.store import Store
from orchestrator.rollout.events import Event

PATIENCE = 0.25
"""Seconds that the reader of requests waits for one refusal; normally it takes a thousandth of that."""

DEADLINE = 10.0
"""Seconds after which a reply is given up."""


class Replies:
    """Refusals and answers, one at a time for each service; one that hangs keeps no other service waiting.

    Args:
        store: Where they are written.
        services: Those that are driven; what is said to all others goes one after the other.
    """

    def __init__(self, store: Store, services: Container[str]) -> None:
        self._store = store
        self._services = services
        self._writing: dict[str, asyncio.Task[None]] = {}

    async def refuse(self, entry: str, fields: Mapping[str, str], event: Event) -> None:
        """See `ports.Store`.

        Raises:
            Fault: It is not written, or not yet; the request stays pending, and is to be refused again.
        """
        await self._write(event.service, lambda: self._store.refuse(entry, fields, event), PATIENCE)

    async def answer(self, entry: str, event: Event) -> None:
        """See `ports.Store`; waits for as long as that may take.

        Raises:
            Fault: It may not be written; the request is to be answered again.
        """
        await self._write(event.service, lambda: self._store.answer(entry, event), None)

    async def _write(
        self, service: str, work: Callable[[], Coroutine[Any, Any, None]], patience: float | None
    ) -> None:
        lane = service if service in self._services else ""
        if lane in self._writing:
            raise Away(f"an earlier reply about {service!r} is still being written")
        task = asyncio.create_task(within(DEADLINE, work), name=f"reply {lane}")
        self._writing[lane] = task
        task.add_done_callback(lambda _: self._ended(lane))
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            raise Away(f"the reply about {service!r} is not written yet")
        task.result()

    def _ended(self, lane: str) -> None:
        task = self._writing.pop(lane)
        if not task.cancelled():
            task.exception()  # it is asked for again, and fails again where it has to be heard of
