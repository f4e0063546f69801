"""A reload that no client notices, and how it is known that it has taken effect."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from orchestrator.ports.faults import Fault
from orchestrator.ports.herd import Herd
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.traffic.files import to_the_end
from orchestrator.traffic.listener import Answer, Listener
from orchestrator.traffic.switch import Switches

SPACING = 0.025
"""Seconds between confirming requests where workers can't be seen. Old and new ones both accept for about
100 ms after a reload, so that the confirming run must be longer than that."""

WATCHING, SLOWEST_WATCHING = 0.005, 0.04
"""Seconds between looks at the workers, at first and in the end."""

SLOWEST_ASKING = 0.1
"""Seconds between confirming requests in the end, while none shows what is wanted."""

RUN, RUN_WATCHED = 8, 2
"""Fresh requests in a row that must show what is wanted; the second is for when no old worker accepts."""

TAKEN_UP = 4.0
"""Seconds in which nginx has taken a reload up or has refused it: it tries for 2.5 s to listen at a port that
somebody else has. Then answers are closed no longer for it, and the next may be asked for."""

TAKES_CONNECTIONS = 0.25
"""Seconds in which a server that runs takes a connection."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What nginx shows of a service when it serves what is wanted.

    Attributes:
        generation: None when it does not know the service.
        mark: Of the whole file, see `render.mark_of`.
    """

    service: str
    generation: int | None
    mark: str = ""

    def __str__(self) -> str:
        return "let go of it" if self.generation is None else f"show generation {self.generation}"

    def by(self, answer: Answer) -> bool:
        """Whether an answer shows it."""
        if self.generation is None:
            return answer.generation is None and (answer.answered or answer.refused)
        return (answer.generation, answer.mark) == (self.generation, self.mark)


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
        self._herd = Herd()
        self._before = frozenset[int]()
        self._until = 0.0
        self.asked = False

    @property
    def longest(self) -> float:
        """Seconds for a gentle reload that is not confirmed and the one after it that puts back."""
        return max(self._deadline, TAKEN_UP) + TAKEN_UP + 2 * self._closing_wait

    @contextlib.asynccontextmanager
    async def reloaded(
        self, first: Callable[[], Awaitable[None]], *, gently: bool
    ) -> AsyncIterator[frozenset[int]]:
        """Reload, and let answers keep their connections again when the block is left.

        Yields the workers that accepted before. A gentle one lets clients close their connections; `first` is
        done when they have, while nothing has been asked for. Where the block fails after nginx may have been
        asked, answers go on closing connections, until `put_back` has done what is left to do.

        Raises:
            Fault: nginx could not be asked, or a master is there that does not hear of it.
        """
        self.asked = False
        await self._accepting()
        try:
            await self._close_connections(gently=gently)
            await first()
            self.asked = True
            await self._ask()
            yield self._before
        except BaseException:
            if not self.asked:
                self._switches.keep_connections()
            raise
        self._switches.keep_connections()

    async def put_back(self, *, gently: bool) -> None:
        """Reload once more, after a reload that has come to nothing; nobody confirms this one.

        Raises:
            Fault: nginx could not be asked, or has refused it.
        """
        try:
            await self._close_connections(gently=gently)
            await self._ask()
            if not await self._is_over():
                await self._refused()
        finally:
            self._switches.keep_connections()

    async def _close_connections(self, *, gently: bool) -> None:
        """Let answers close their connections for a while, if gently."""
        if gently and self._closing_wait:
            await to_the_end(self._switches.close_connections)
            await asyncio.sleep(self._closing_wait)

    async def _ask(self) -> None:
        """Ask for a reload when the one before is over: what is seen from then on is of this one.

        Raises:
            Fault: nginx could not be asked.
        """
        await self._is_over()
        self._before = (await self._process.workers()).accepting
        self._until = asyncio.get_running_loop().time() + TAKEN_UP
        try:
            await self._process.reload()
        except Fault:
            self._before = frozenset()
            raise

    async def _is_over(self) -> bool:
        """Wait for nginx to take up the reload that was asked for last. False where it did not in time."""
        pause = WATCHING
        while self._before & (await self._process.workers()).accepting:
            if asyncio.get_running_loop().time() >= self._until or (await self._process.complaint()).final:
                return False
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, SLOWEST_WATCHING)
        return True

    async def confirm(
        self, wanted: Sequence[Shown], before: frozenset[int] | None = None
    ) -> dict[Shown, Fault]:
        """Wait until fresh requests in a row show each of these, and none of the workers `before` accepts.

        These workers accepted before the reload; None where there was none. Returns what is not shown at the
        deadline, and why.

        Raises:
            Fault: Workers from before still accept then, or nginx has refused the reload.
        """
        rows, last = dict.fromkeys(wanted, 0), dict[Shown, str]()
        gone, first = False, WATCHING if before else SPACING
        pause = first
        try:
            async with asyncio.timeout(self._deadline):
                await self._gone(before or frozenset())
                gone = True
                while rows:
                    answers = await asyncio.gather(*(self._ask_of(one.service) for one in rows))
                    for one, answer in zip(tuple(rows), answers, strict=True):
                        last[one] = answer.text
                        rows[one] = rows[one] + 1 if one.by(answer) else 0
                        if rows[one] == (RUN_WATCHED if before else RUN):
                            del rows[one]
                    if len(rows) == len(wanted) and not any(rows.values()) and before is not None:
                        await self._refused()
                    pause = first if any(rows.values()) else min(1.5 * pause, SLOWEST_ASKING)
                    if rows:
                        await asyncio.sleep(pause)
        except TimeoutError:
            if not gone:
                what = f"workers from before the reload still accept after {self._deadline:.0f} s"
                raise await self._late(what, reloaded=before is not None) from None
        late = {
            one: f"nginx does not {one} within {self._deadline:.0f} s: {last.get(one, 'not asked yet')}"
            for one in rows
        }
        return {one: await self._late(what, reloaded=before is not None) for one, what in late.items()}

    async def _ask_of(self, service: str) -> Answer:
        await self._herd.go_on()
        return await self._listener.ask(service)

    async def _gone(self, before: frozenset[int]) -> None:
        pause = WATCHING
        while before & await self._accepting():
            await self._refused()
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, SLOWEST_WATCHING)

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
