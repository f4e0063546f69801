"""A reload that no client notices, and how it is known that it has taken effect."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.traffic.files import to_the_end
from orchestrator.traffic.listener import Listener
from orchestrator.traffic.switch import Switches

SPACING = 0.025
"""Seconds between confirming requests where workers can't be seen. Old and new ones both accept for about
100 ms after a reload, so that the confirming run must be longer than that."""

WATCHING = 0.005
"""Seconds between looks at the workers."""

RUN, RUN_WATCHED = 8, 2
"""Fresh requests in a row that must show the generation; the second is for when no old worker accepts."""

TAKEN_UP = 1.0
"""Seconds in which a reload that nobody confirms has taken effect, or answers are closed no longer for it."""

TAKES_CONNECTIONS = 0.25
"""Seconds in which a server that runs takes a connection."""


class Reloader:
    """Reloads of one nginx.

    Args:
        process: The nginx.
        listener: Its private listener.
        switches: The files that it looks for.
        deadline: Seconds from the reload to the confirmation.
        closing_wait: Seconds before a gentle reload in which answers close their connections.

    Attributes:
        asked: Whether nginx may have been asked for the reload that was begun last.
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
        self.asked = False

    @contextlib.asynccontextmanager
    async def reloaded(self, *, gently: bool) -> AsyncIterator[frozenset[int]]:
        """Reload, and let answers keep their connections again when the block is left.

        Yields the workers that accepted before. A gentle one lets clients close their connections first.

        Raises:
            Fault: nginx could not be asked, or a master is there that does not hear of it.
        """
        self.asked = False
        before = await self._accepting()
        async with self._closing(gently=gently):
            self.asked = True
            await self._process.reload()
            yield before

    async def put_back(self, *, gently: bool) -> None:
        """Reload once more, after a reload that has come to nothing; nobody confirms this one.

        Raises:
            Fault: nginx could not be asked.
        """
        async with self._closing(gently=gently):
            before = (await self._process.workers()).accepting
            await self._process.reload()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKEN_UP):
                    while before & (await self._process.workers()).accepting:
                        await asyncio.sleep(WATCHING)

    @contextlib.asynccontextmanager
    async def _closing(self, *, gently: bool) -> AsyncIterator[None]:
        """Answers close their connections, for a while before the block if gently, and to its end."""
        try:
            if gently and self._closing_wait:
                await to_the_end(self._switches.close_connections)
                await asyncio.sleep(self._closing_wait)
            yield
        finally:
            self._switches.keep_connections()

    async def confirm(
        self, service: str, generation: int | None, before: frozenset[int] | None = None
    ) -> None:
        """Wait until fresh requests in a row all show it, and none of the workers `before` accepts.

        The generation None waits until nginx does not know the service. These workers accepted before the
        reload; None where there was none.

        Raises:
            Fault: They do not within the deadline, or nginx has refused the reload.
        """
        row = 0
        last = "workers from before the reload still accept"
        try:
            async with asyncio.timeout(self._deadline):
                await self._gone(before or frozenset())
                while True:
                    told = await self._listener.ask(service)
                    last = told.text
                    row = row + 1 if told.generation == generation else 0
                    if row == (RUN_WATCHED if before else RUN):
                        return
                    if row == 0 and before is not None:
                        await self._refused()
                    await asyncio.sleep(WATCHING if before else SPACING)
        except TimeoutError:
            what = "let go of it" if generation is None else f"show generation {generation}"
            late = f"nginx does not {what} within {self._deadline:.0f} s: {last}"
            raise await self._late(late, reloaded=before is not None) from None

    async def gone(self, before: frozenset[int]) -> None:
        """Wait until none of these workers accepts.

        Raises:
            Fault: One still does at the deadline, or nginx has refused the reload.
        """
        try:
            async with asyncio.timeout(self._deadline):
                await self._gone(before)
        except TimeoutError:
            what = f"workers from before the reload still accept after {self._deadline:.0f} s"
            raise await self._late(what, reloaded=True) from None

    async def _gone(self, before: frozenset[int]) -> None:
        while before & await self._accepting():
            await self._refused()
            await asyncio.sleep(WATCHING)

    async def _accepting(self) -> frozenset[int]:
        """The workers that accept. Raises `Fault` while some do that no reload reaches."""
        workers = await self._process.workers()
        if workers.outdated:
            pids = " ".join(str(pid) for pid in sorted(workers.outdated))
            raise Fault(
                f"an nginx master from before an upgrade still serves: pid {pids};"
                f" finish the upgrade with `kill -QUIT {pids}`"
            )
        return workers.accepting

    async def _refused(self) -> None:
        """Raise `Fault` once nginx has written that it does not take the reload."""
        complaint = await self._process.complaint()
        if complaint.final:
            raise Fault(f"nginx refuses the reload: {complaint.words}")

    async def _late(self, what: str, *, reloaded: bool) -> Fault:
        words = (await self._process.complaint()).words if reloaded else ""
        return Fault(f"{what}; its error log: {words}" if words else what)


async def takes_connections(address: str) -> bool:
    """Whether a server does: it runs, though it may hang. One that does not is passed over by nginx."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(TAKES_CONNECTIONS):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
