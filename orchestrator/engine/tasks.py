"""Background work that can't be lost sight of."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import structlog

from orchestrator.ports.addresses import masked
from orchestrator.ports.faults import Away, Fault, Stale

log = structlog.get_logger()

T = TypeVar("T")

JITTER = 0.25
"""The share of a pause that is left to chance, so that what failed together is not tried together again."""

WELL = 60.0
"""Seconds of work after which a failure counts as the first one again."""

AT_ONCE = 4
"""Looks that may be under way at once, as far as they are short."""

HOLDS = 0.02
"""Seconds for which a look keeps others from beginning; one that waits longer is no work of this process."""

WAITS = 0.25
"""Seconds for which a look waits for its turn, at the most: with very many services they are only spread."""

JOB_DEADLINE = 180.0
"""Seconds that a job may take; more than any part of ours needs until it gives up by itself."""

OFTEN = 4
"""Failures in a row with which people are told of a job that nothing else tells of."""


async def eternal(name: str, work: Callable[[], Awaitable[object]], pause: float = 1.0) -> None:
    """Run vital work, which must not end: a `Fault` is logged and it is started again.

    Any other exception, and a return, end the daemon: both are bugs.

    Raises:
        Stale: Another daemon has taken over.
        RuntimeError: It returned.
    """
    while True:
        try:
            await unless_cancelled(work)
        except Stale:
            raise
        except Fault as error:
            log.warning("task_failed", task=name, reason=str(error))
            await asyncio.sleep(pause)
            continue
        raise RuntimeError(f"task {name} returned, which it must never do")


async def courtesy(
    name: str,
    work: Callable[[], Awaitable[object]],
    failed: Callable[[str], object] = lambda _name: None,
    *,
    first_pause: float = 1.0,
    longest_pause: float = 15.0,
) -> None:
    """Run work that no release waits for: however it ends, that is logged and it is started again.

    Args:
        name: Of the task.
        work: Must not end either.
        failed: Called with the name whenever it has ended.
        first_pause: Seconds after the first failure; doubled with each further one until it works for `WELL`.
        longest_pause: The most seconds between two tries.

    Raises:
        Stale: Another daemon has taken over.
    """
    loop, pause = asyncio.get_running_loop(), first_pause
    while True:
        began = loop.time()
        try:
            await unless_cancelled(work)
            log.error("task_failed", task=name, reason="it returned, which it must never do")
        except Stale:
            raise
        except Fault as error:
            log.warning("task_failed", task=name, reason=str(error))
        except Exception:
            log.exception("task_failed", task=name)
        failed(name)
        if loop.time() - began >= WELL:
            pause = first_pause
        jitter = random.uniform(1 - JITTER, 1)  # noqa: S311  it spreads load, it hides nothing
        await asyncio.sleep(pause * jitter)
        pause = min(pause * 2, longest_pause)


async def unless_cancelled(work: Callable[[], Awaitable[T]]) -> T:
    """Await work. A cancellation that nobody asked for must not pass for one that somebody did.

    Nor may a library end the process: `sys.exit`, or a panic of a Rust extension, is a bug like any other.

    Raises:
        RuntimeError: Something that the work waited for was cancelled, and the task was not; or the work
            raised what is no `Exception`.
    """
    try:
        return await work()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("what it waited for was cancelled") from error
    except BaseException as error:
        if isinstance(error, Exception | GeneratorExit):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


async def within(seconds: float, work: Callable[[], Awaitable[T]]) -> T:
    """Await work `unless_cancelled`, and no longer than some seconds: no wait is left to a part's manners.

    Raises:
        Away: It has not ended by then, and was cancelled.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            return await unless_cancelled(work)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Away(f"no answer within {seconds:g} s") from error


class Pace:
    """Lets few looks be at work at once: what is urgent never finds the event loop full of them."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places, left at the end or after `HOLDS` seconds; after `WAITS` seconds, none."""
        leave = contextlib.ExitStack()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAITS):
                await self._places.acquire()
                leave.callback(self._places.release)
        timer = asyncio.get_running_loop().call_later(HOLDS, leave.close)
        try:
            yield
        finally:
            timer.cancel()
            leave.close()


def bug(error: Exception) -> str:
    """An exception that no part of ours ought to raise, as people are told of it."""
    return masked(f"internal error, see the daemon's log: {type(error).__name__}: {error}"[:300])


@contextlib.asynccontextmanager
async def beside(
    works: Mapping[str, Callable[[], Awaitable[object]]],
    run: Callable[[str, Callable[[], Awaitable[object]]], Coroutine[Any, Any, None]] = eternal,
) -> AsyncIterator[None]:
    """Run vital work beside a block; if one of it ends, the block is cancelled and that is raised.

    Args:
        works: The work, by name.
        run: `courtesy` where it is not vital.
    """
    owner, ended = asyncio.current_task(), list[asyncio.Task[None]]()

    def note(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and owner is not None:
            ended.append(task)
            owner.cancel()

    tasks = [asyncio.create_task(run(name, work), name=name) for name, work in works.items()]
    for task in tasks:
        task.add_done_callback(note)
    try:
        yield
    except asyncio.CancelledError:
        if not ended:
            raise
        ended[0].result()  # it has not been cancelled, and eternal work does not return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Jobs:
    """Named background jobs of one conductor, one at a time per name, with growing pauses after failures.

    Args:
        wake: Called when a job ends.
        first_pause: Seconds until a job of the same name may begin again; doubled with each further failure.
        longest_pause: The most seconds between two tries.

    Attributes:
        errors: Why jobs failed last, by name, until they succeed.
        bugs: Those of them that no part of ours ought to raise.
        lasting: Those that have failed `OFTEN` times in a row, with the name of the job.
        stale: Set when a job was refused as `Stale`: whoever owns the jobs has to stop.
    """

    def __init__(
        self, wake: Callable[[], None], first_pause: float = 0.5, longest_pause: float = 15.0
    ) -> None:
        self._wake = wake
        self._first = first_pause
        self._longest = longest_pause
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[str] = set()
        self._pauses: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self.errors: dict[str, Fault] = {}
        self.bugs: dict[str, str] = {}
        self.lasting: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self.stale: Stale | None = None

    def start(
        self, name: str, work: Callable[[], Coroutine[Any, Any, object]], deadline: float = JOB_DEADLINE
    ) -> None:
        """Start a job unless one of this name runs, or has failed too recently.

        One that has not ended after `deadline` seconds is cancelled, and has failed.
        """
        loop = asyncio.get_running_loop()
        self._wanted.add(name)
        if name in self._running or loop.time() < self._not_before.get(name, 0.0):
            return
        task = asyncio.create_task(self._run(name, work, deadline), name=name)
        self._running[name] = task
        task.add_done_callback(lambda _: self._ended(name))  # also of one that is cancelled before it begins

    def pause_no_more(self, name: str) -> None:
        """Let a job be started at once: what made it fail may be over."""
        self._not_before.pop(name, None)

    def keep(self, name: str) -> None:
        """Remember how a job went, though it is not to be started yet."""
        self._wanted.add(name)

    def _ended(self, name: str) -> None:
        del self._running[name]
        self._wake()

    async def _run(self, name: str, work: Callable[[], Coroutine[Any, Any, object]], deadline: float) -> None:
        try:
            await within(deadline, work)
        except Stale as error:
            self.stale = error
        except Fault as error:
            self._failed(name, error)
            log.warning("job_failed", job=name, reason=str(error), next_try_s=self._pauses[name])
        except Exception as error:
            self.bugs[name] = said = bug(error)
            self._failed(name, Fault(said))
            log.exception("job_failed", job=name, next_try_s=self._pauses[name])
        else:
            self._drop(lambda job: job == name)
            # what a job has done may not be seen yet: it is not done again and again meanwhile
            self._not_before[name] = asyncio.get_running_loop().time() + self._first

    def _failed(self, name: str, error: Fault) -> None:
        pause = min(self._pauses.get(name, self._first / 2) * 2, self._longest)
        self._pauses[name] = pause
        jitter = random.uniform(1 - JITTER, 1)  # noqa: S311  it spreads load, it hides nothing
        self._not_before[name] = asyncio.get_running_loop().time() + pause * jitter
        self.errors[name] = error
        self._tries[name] = self._tries.get(name, 0) + 1
        if self._tries[name] >= OFTEN:
            self.lasting[name] = f"{name}: {error}"

    def cancel(self, unwanted: Callable[[str], bool]) -> None:
        """Cancel the jobs whose purpose is gone."""
        for name, task in self._running.items():
            if unwanted(name):
                task.cancel()

    def forget_others(self) -> None:
        """Drop the memory of jobs that nobody has wanted to start since the last call."""
        self._drop(lambda name: name not in self._wanted)
        self._wanted.clear()

    def _drop(self, gone: Callable[[str], bool]) -> None:
        for memory in (self._pauses, self._not_before, self.errors, self.bugs, self.lasting, self._tries):
            for name in [n for n in memory if gone(n)]:
                del memory[name]

    async def stop(self) -> None:
        """Cancel what runs and wait for it."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
