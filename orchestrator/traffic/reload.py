"""A reload that no client notices, and how it is known that it has taken effect."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.traffic.listener import Listener
from orchestrator.traffic.switch import Switches

SPACING = 0.025
"""Seconds between confirming requests where workers can't be seen. Old and new ones both accept for about
100 ms after a reload, so that the confirming run must be longer than that."""

WATCHING = 0.005
"""Seconds between looks at the workers."""

RUN, RUN_WATCHED = 8, 2
"""Fresh requests in a row that must show the generation; the second is for when no old worker accepts."""


class Reloader:
    """Reloads of one nginx.

    Args:
        process: The nginx.
        listener: Its private listener.
        switches: The files that it looks for.
        deadline: Seconds from the reload to the confirmation.
        closing_wait: Seconds before a gentle reload in which answers close their connections.
    """

    def __init__(
        self,
        process: EdgeProcess,
        listener: Listener,
        switches: Switches,
        *,
        deadline: float,
        closing_wait: float,
    ) -> None:
        self._process = process
        self._listener = listener
        self._switches = switches
        self._deadline = deadline
        self._closing_wait = closing_wait

    @contextlib.asynccontextmanager
    async def reloaded(self, *, gently: bool) -> AsyncIterator[frozenset[int]]:
        """Reload, and let answers keep their connections again when the block is left.

        Yields the workers that accepted before. A gentle one lets clients close their connections first.
        """
        before = (await self._process.workers()).accepting
        try:
            if gently and self._closing_wait:
                self._switches.close_connections()
                await asyncio.sleep(self._closing_wait)
            await self._process.reload()
            yield before
        finally:
            self._switches.keep_connections()

    async def confirm(
        self, service: str, generation: int | None, before: frozenset[int] = frozenset()
    ) -> None:
        """Wait until fresh requests in a row all show it, and none of the workers `before` accepts.

        None waits until nginx does not know the service.

        Raises:
            Fault: They do not within the deadline.
        """
        row = 0
        last = "workers from before the reload still accept"
        try:
            async with asyncio.timeout(self._deadline):
                await self._gone(before)
                while True:
                    told = await self._listener.ask(service)
                    last = told.text
                    row = row + 1 if told.generation == generation else 0
                    if row == (RUN_WATCHED if before else RUN):
                        return
                    await asyncio.sleep(WATCHING if before else SPACING)
        except TimeoutError:
            what = "let go of it" if generation is None else f"show generation {generation}"
            raise Fault(f"nginx does not {what} within {self._deadline:.0f} s: {last}") from None

    async def gone(self, before: frozenset[int]) -> None:
        """Wait until none of these workers accepts.

        Raises:
            Fault: One still does at the deadline.
        """
        try:
            async with asyncio.timeout(self._deadline):
                await self._gone(before)
        except TimeoutError:
            raise Fault(f"workers from before the reload still accept after {self._deadline:.0f} s") from None

    async def _gone(self, before: frozenset[int]) -> None:
        while before & (await self._process.workers()).accepting:
            await asyncio.sleep(WATCHING)
