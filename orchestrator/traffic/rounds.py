"""One reload for the changes of all services that wait for one."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.ports.herd import Herd
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.traffic.files import LOCK_INTERVAL, locked, matching, remove, text_of, to_the_end, uncut
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
    """A service that waits for its change to be served, or is being served.

    Attributes:
        waits: Called with whether it waits for others from then on.
        alone: It shares no reload.
    """

    service: str
    prepare: Callable[[], Awaitable[Change | None]]
    waits: Callable[[bool], None]
    urgent: bool
    alone: bool = False
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
    reload. Where nginx does not take them together, those that it names are told, and the others share the
    next; where it names none, each has a round of its own, in turn with what has come since. One that was
    refused in its own round has one again, until it is served.

    Args:
        process: The nginx.
        reloader: Its reloads.
        directory: The folder.
        patience: Seconds that another process may hold it.
        tidy: Called before each round, with the folder held.
    """

    def __init__(
        self,
        process: EdgeProcess,
        reloader: Reloader,
        directory: Path,
        patience: float,
        tidy: Callable[[], Awaitable[None]],
    ) -> None:
        self._process = process
        self._reloader = reloader
        self._dir = directory
        self._patience = patience
        self._tidy = tidy
        self._herd = Herd()
        self._lock = asyncio.Lock()
        self._waiting: list[_Turn] = []
        self._under_way: list[_Turn] = []
        self._round: asyncio.Task[None] | None = None
        self._refused: set[str] = set()
        self._shared = False

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
            for left in matching(self._dir, ".*.tmp"):  # by a process that was killed while it wrote
                with contextlib.suppress(Fault):
                    remove(left)
            await self._tidy()
            yield

    async def serve(
        self,
        service: str,
        prepare: Callable[[], Awaitable[Change | None]],
        *,
        waits: Callable[[bool], None] = lambda _: None,
        urgent: bool = False,
    ) -> None:
        """Let nginx serve a change in the next round.

        A round that is under way goes on without one that is given up, until all are.

        Args:
            service: Whose change it is; a service has one in a round.
            prepare: Called when a round begins; None where there is nothing to reload for.
            waits: Called with whether it waits for others from then on; what it shares is no time of its own.
            urgent: Before others that have rounds of their own.

        Raises:
            Fault: nginx does not take it, and what was there is back; or another process holds the folder.
        """
        turn = _Turn(service, prepare, waits, urgent)
        self._waiting.append(turn)
        self._begin()
        waits(True)
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
        finally:
            waits(False)
        await self._herd.go_on()
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
                await self._serve([turn for turn in turns if not (turn.done.done() or turn.given_up)])
        except Exception as error:  # noqa: BLE001  it is raised where it was waited for
            if not self._under_way:  # another process holds the folder
                self._under_way, self._waiting = self._waiting, []
            for turn in self._under_way:
                turn.end(error)
        finally:
            for turn in self._under_way:
                turn.done.cancel()
            self._under_way = []
        if self._waiting:
            await asyncio.sleep(2 * LOCK_INTERVAL)  # another process has its turn too

    def _next(self) -> list[_Turn]:
        """Take what waits, the first of each service: all that share a reload, or one that does not.

        These come in turn; what is urgent does not wait for those that are tried alone.
        """
        first: dict[str, _Turn] = {}
        for turn in self._waiting:
            first.setdefault(turn.service, turn)
        alone = [turn for turn in first.values() if turn.alone or turn.service in self._refused]
        taken = [turn for turn in first.values() if turn not in alone]
        urgent = any(turn.urgent for turn in taken)
        self._shared = bool(taken) and (urgent or not (alone and self._shared))
        if not self._shared:
            taken = sorted(alone, key=lambda turn: not turn.urgent)[:1]
        self._waiting = [turn for turn in self._waiting if turn not in taken]
        return taken

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
                await asyncio.sleep(0)  # see `Herd`

    @staticmethod
    async def _prepare(turn: _Turn) -> None:
        turn.waits(False)
        turn.change = await turn.prepare()
        if turn.change is None:
            turn.end()
        turn.waits(True)

    async def _serve(self, turns: list[_Turn]) -> None:
        """Write, test, reload, confirm; else put back what was there, and tell whoever is to blame."""
        if len(turns) == 1:
            turns[0].waits(False)
        self._reloader.asked = False
        try:
            await self._lay_down(turns)
            if not turns:
                return
            await self._process.test()
            calm = all(_change(turn).calm for turn in turns)
            async with self._reloader.reloaded(lambda: self._leave_out(turns), gently=calm) as before:
                shown = {turn: _change(turn).shown for turn in turns}
                wanted = [one for one in shown.values() if one is not None]
                late = await self._reloader.confirm(wanted, before)
                if late and len(late) == len(turns):
                    raise next(iter(late.values()))  # noqa: TRY301  as a reload that is refused
        except BaseException as error:
            why = "another change took its place" if isinstance(error, asyncio.CancelledError) else str(error)
            unsound = await self._put_back(turns, why or type(error).__name__)
            if not isinstance(error, Fault):
                raise
            await self._blame(turns, error, unsound)
            return
        left = {turn: late[s] for turn, s in shown.items() if s is not None and s in late}
        if left:
            await self._put_back(list(left), "; ".join(str(fault) for fault in left.values()))
        for turn, fault in left.items():
            self._refused.add(turn.service)
            turn.end(fault)
        await self._each([turn for turn in turns if turn not in left], self._keep)

    async def _lay_down(self, turns: list[_Turn]) -> None:
        """Write; one whose files can't be written is told alone, and leaves."""
        failed = await to_the_end(lambda: _tried(turns, lambda change: change.write()))
        for turn, error in failed.items():
            await self._put_back([turn], str(error))
            turn.end(error)
            turns.remove(turn)

    async def _leave_out(self, turns: list[_Turn]) -> None:
        """Let those leave that were given up before nginx has been asked."""
        given_up = [turn for turn in turns if turn.given_up]
        await self._put_back(given_up, "another change took its place")
        for turn in given_up:
            turns.remove(turn)

    async def _blame(self, turns: Sequence[_Turn], fault: Fault, unsound: Fault | None) -> None:
        """Tell those that nginx names, or all where it takes nothing else either; the rest waits again."""
        fault = await to_the_end(lambda: self._located(fault))
        guilty = [turn for turn in turns if self._names(fault, turn)]
        alone = not guilty
        if alone and len(turns) == 1:
            guilty = list(turns)
            self._refused.add(turns[0].service)
        elif alone and (unsound := unsound or await self._unsound()) is not None:
            fault, guilty = unsound, list(turns)
        for turn in guilty:
            turn.end(fault)
        rest = [turn for turn in turns if not (turn.done.done() or turn.given_up)]
        for turn in rest:
            turn.alone = alone
        self._waiting[:0] = rest
        self._under_way = [turn for turn in self._under_way if turn not in rest]

    def _located(self, fault: Fault) -> Fault:
        """With our files that name what it is about: of a certificate nginx tells no place. Blocks."""
        paths = re.findall(r'"(/[^"]+)"', str(fault))
        texts = {path: text_of(path) for path in sorted(matching(self._dir, "*.conf"))}
        found = [path for path, text in texts.items() if any(f" {named};" in text for named in paths)]
        if not found or any(str(path) in str(fault) for path in found):
            return fault
        places = ", ".join(f"{path}: {path.stem}" for path in found)
        return Fault(f"{fault} (named in {places}; until it is right nginx takes no change of any service)")

    @staticmethod
    def _names(fault: Fault, turn: _Turn) -> bool:
        """Whether it is about one of the service's files."""
        return bool(turn.service) and re.search(rf"/{turn.service}\.\w+:", str(fault)) is not None

    async def _keep(self, turn: _Turn) -> None:
        await _change(turn).keep()
        self._refused.discard(turn.service)
        turn.end()

    async def _put_back(self, turns: Sequence[_Turn], why: str) -> Fault | None:
        """Lay down what was there; an nginx that was asked to read the files is asked again.

        A cancellation waits for all of it. Returns why nginx does not take what was there either.
        """
        return await uncut(asyncio.create_task(self._restore(turns, why), name="put back"))

    async def _restore(self, turns: Sequence[_Turn], why: str) -> Fault | None:
        for turn in turns:
            log.warning("edge_restored", service=turn.service, reason=why)
        failed = await to_the_end(lambda: _tried(turns, lambda change: change.put_back()))
        for turn, error in failed.items():
            log.error("edge_not_restored", service=turn.service, reason=str(error))
            turn.end(Fault(f"{why}; what was there before is not back: {error}"))
        if self._reloader.asked:
            try:
                await self._reloader.put_back(gently=all(_change(turn).calm for turn in turns))
            except Fault as fault:
                return fault
        return None

    async def _unsound(self) -> Fault | None:
        """Why nginx does not take what was there before the round, if its test tells."""
        try:
            await self._process.test()
        except Fault as fault:
            return fault
        return None

    async def close(self) -> None:
        """Give up what is under way."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait({self._round})


def _change(turn: _Turn) -> Change:
    assert turn.change is not None
    return turn.change


def _tried(turns: Iterable[_Turn], work: Callable[[Change], None]) -> dict[_Turn, Exception]:
    """Do something for each, one after the other. Returns with whom it has failed, and how; blocks."""
    failed: dict[_Turn, Exception] = {}
    for turn in turns:
        try:
            work(_change(turn))
        except Exception as error:  # noqa: BLE001  it is raised where it was waited for
            failed[turn] = error
    return failed
