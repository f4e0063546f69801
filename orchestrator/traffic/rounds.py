"""One reload for the changes of all services that wait for one."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.traffic.files import locked, remove, to_the_end
from orchestrator.traffic.reload import Reloader, Shown

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one service wants of a reload.

    Attributes:
        write: Lays its files down; blocks.
        put_back: Lays down what was there before; blocks.
        keep: Remembers that nginx serves them.
        shown: How nginx shows that it does; None where nothing of ours has changed.
        calm: Whether the reload may wait until clients have closed their connections.
    """

    write: Callable[[], None]
    put_back: Callable[[], None]
    keep: Callable[[], Awaitable[None]]
    shown: Shown | None = None
    calm: bool = True


@dataclass(slots=True, eq=False)
class _Turn:
    """A service that waits for its change to be served, or is being served."""

    service: str
    prepare: Callable[[], Awaitable[Change | None]]
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    change: Change | None = None
    given_up: bool = False

    def end(self, error: Exception | None = None) -> None:
        """Let it be told, unless it has been."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Rounds:
    """Changes of one folder, a round of them at a time, in this process and among all on this host.

    What comes while a round is under way waits for the next, and all that wait share it: one test and one
    reload. Where nginx does not take them together, those that it does not take are found, and told alone.

    Args:
        process: The nginx.
        reloader: Its reloads.
        directory: The folder.
        patience: Seconds that another process may hold it.
    """

    def __init__(self, process: EdgeProcess, reloader: Reloader, directory: Path, patience: float) -> None:
        self._process = process
        self._reloader = reloader
        self._dir = directory
        self._patience = patience
        self._lock = asyncio.Lock()
        self._waiting: list[_Turn] = []
        self._under_way: list[_Turn] = []
        self._round: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether what comes has to wait."""
        return self._lock.locked() or self._round is not None

    def changing(self, service: str) -> bool:
        """Whether a service's files are being replaced."""
        return any(turn.service == service and not turn.done.done() for turn in self._under_way)

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold the folder while no round is under way.

        Raises:
            Fault: Another process has held it for too long.
        """
        async with self._lock, locked(self._dir / ".lock", self._patience):
            for left in self._dir.glob(".*.tmp"):  # by a process that was killed while it wrote
                with contextlib.suppress(Fault):
                    remove(left)
            yield

    async def serve(self, service: str, prepare: Callable[[], Awaitable[Change | None]]) -> None:
        """Let nginx serve a change in the next round.

        A round that is under way goes on without one that is given up, until all are.

        Args:
            service: Whose change it is; a service has one in a round.
            prepare: Called when the round begins; None where there is nothing to reload for.

        Raises:
            Fault: nginx does not take it, and what was there is back; or another process holds the folder.
        """
        turn = _Turn(service, prepare)
        self._waiting.append(turn)
        self._begin()
        try:
            await asyncio.wait({turn.done})
        except asyncio.CancelledError:
            self._give_up(turn)
            while not turn.done.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({turn.done})
            if not turn.done.cancelled():
                turn.done.exception()  # nobody is left to be told
            raise
        turn.done.result()

    def _begin(self) -> None:
        if self._round is None and self._waiting:
            self._round = asyncio.create_task(self._run(), name="reload")
            self._round.add_done_callback(self._over)

    def _over(self, _: asyncio.Task[None]) -> None:
        self._round = None
        self._begin()

    def _give_up(self, turn: _Turn) -> None:
        turn.given_up = True
        if turn in self._waiting:
            self._waiting.remove(turn)
            turn.done.cancel()
        elif (
            self._round is not None
            and turn in self._under_way
            and all(t.given_up or t.done.done() for t in self._under_way)
        ):
            self._round.cancel()

    async def _run(self) -> None:
        """One round; nothing that fails in it ends the next."""
        try:
            async with self.alone():
                turns = self._under_way = self._next()
                await self._each(turns, self._prepare)
                await self._serve([turn for turn in turns if not turn.done.done()])
        except Exception as error:  # noqa: BLE001  it is raised where it was waited for
            for turn in self._under_way or self._next():
                turn.end(error)
        finally:
            for turn in self._under_way:
                turn.done.cancel()
            self._under_way = []

    def _next(self) -> list[_Turn]:
        """Take what waits: the first of each service."""
        first: dict[str, _Turn] = {}
        for turn in self._waiting:
            first.setdefault(turn.service, turn)
        self._waiting = [turn for turn in self._waiting if first[turn.service] is not turn]
        return list(first.values())

    @staticmethod
    async def _each(turns: Sequence[_Turn], work: Callable[[_Turn], Awaitable[None]]) -> None:
        """Do something for each at the same time; one that fails is told alone."""

        async def one(turn: _Turn) -> None:
            try:
                await work(turn)
            except Exception as error:  # noqa: BLE001  it is raised where it was waited for
                turn.end(error)

        async with asyncio.TaskGroup() as group:
            for turn in turns:
                group.create_task(one(turn), name=f"change {turn.service}")

    @staticmethod
    async def _prepare(turn: _Turn) -> None:
        turn.change = await turn.prepare()
        if turn.change is None:
            turn.end()

    async def _serve(self, turns: list[_Turn]) -> None:
        """Serve these; where nginx does not take them, find those that it does not take.

        It may name their files; else, where it takes what was there before, each half is tried by itself.
        """
        if not turns:
            return
        fault = await self._attempt(turns)
        if fault is None:
            return
        guilty = turns if len(turns) == 1 else [t for t in turns if self._names(fault, t)]
        if not guilty:
            unsound = await self._unsound()
            fault, guilty = unsound or fault, turns if unsound else []
        for turn in guilty:
            turn.end(fault)
        rest = [turn for turn in turns if turn not in guilty]
        if guilty:
            await self._serve(rest)
        else:
            middle = len(rest) // 2
            await self._serve(rest[:middle])
            await self._serve(rest[middle:])

    @staticmethod
    def _names(fault: Fault, turn: _Turn) -> bool:
        """Whether it is about one of the service's files."""
        return bool(turn.service) and re.search(rf"/{turn.service}\.\w+:", str(fault)) is not None

    async def _attempt(self, turns: Sequence[_Turn]) -> Fault | None:
        """Write, test, reload, confirm; else put back what was there. Returns why nginx takes none."""
        changes = {turn: turn.change for turn in turns if turn.change is not None}
        self._reloader.asked = False
        try:
            await to_the_end(lambda: _write(changes.values()))
            await self._process.test()
            async with self._reloader.reloaded(gently=all(c.calm for c in changes.values())) as before:
                shown = [change.shown for change in changes.values() if change.shown is not None]
                late = await self._reloader.confirm(shown, before)
                if late and len(late) == len(changes):
                    raise next(iter(late.values()))  # noqa: TRY301  as a reload that is refused
        except BaseException as error:
            why = "another change took its place" if isinstance(error, asyncio.CancelledError) else str(error)
            await self._put_back(turns, why or type(error).__name__)
            if isinstance(error, Fault):
                return error
            raise
        left = {turn: late[c.shown] for turn, c in changes.items() if c.shown is not None and c.shown in late}
        if left:
            await self._put_back(list(left), "; ".join(str(fault) for fault in left.values()))
        for turn, fault in left.items():
            turn.end(fault)
        await self._each([turn for turn in turns if turn not in left], self._keep)
        return None

    @staticmethod
    async def _keep(turn: _Turn) -> None:
        assert turn.change is not None
        await turn.change.keep()
        turn.end()

    async def _put_back(self, turns: Sequence[_Turn], why: str) -> None:
        """Lay down what was there; an nginx that was asked to read the files is asked again."""
        for turn in turns:
            assert turn.change is not None
            log.warning("edge_restored", service=turn.service, reason=why)
            turn.change.put_back()
        if self._reloader.asked:
            with contextlib.suppress(Fault):
                calm = all(turn.change is not None and turn.change.calm for turn in turns)
                await self._reloader.put_back(gently=calm)

    async def _unsound(self) -> Fault | None:
        """Why nginx does not take what was there before the round, if it does not."""
        try:
            if not self._reloader.asked:
                await self._process.test()
                return None
            async with self._reloader.reloaded(gently=False) as before:
                await self._reloader.confirm([], before)
        except Fault as fault:
            return fault
        return None

    async def close(self) -> None:
        """Give up what is under way."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait({self._round})


def _write(changes: Iterable[Change]) -> None:
    for change in changes:
        change.write()
