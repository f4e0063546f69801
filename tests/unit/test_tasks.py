"""Background work: what ends the daemon, and what is only started again."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable

import docker.errors
import pytest
import redis.exceptions
import requests.exceptions
from structlog.testing import capture_logs

from orchestrator.engine.tasks import (
    AT_ONCE,
    HOLDS,
    WAITS,
    WELL,
    Pace,
    courtesy,
    eternal,
    unless_cancelled,
    within,
)
from orchestrator.ports.faults import Away, Fault, Refused, Stale
from tests.simulation.loop import run


async def _raises(error: Exception) -> None:
    raise error


async def _cancelled_inside() -> None:
    inner = asyncio.get_running_loop().create_future()
    inner.cancel()
    await inner


def starts(work: Callable[[], Awaitable[object]], seconds: float) -> tuple[list[float], list[str]]:
    """When a courtesy was started within a time, and what was counted."""
    began: list[float] = []
    failed: list[str] = []

    async def story() -> None:
        loop = asyncio.get_running_loop()

        async def noted() -> None:
            began.append(loop.time())
            await work()

        task = asyncio.create_task(courtesy("told", noted, failed.append), name="told")
        await asyncio.sleep(seconds)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story())
    return began, failed


@pytest.mark.parametrize(
    ("work", "level", "says"),
    [
        (lambda: _raises(ZeroDivisionError()), "error", True),
        (lambda: _raises(ExceptionGroup("two", [ValueError(), KeyError()])), "error", True),
        (_cancelled_inside, "error", True),
        (lambda: asyncio.sleep(0), "error", None),
        (lambda: _raises(Fault("away")), "warning", None),
    ],
    ids=["a bug", "several bugs", "what it waited for is cancelled", "a return", "a fault"],
)
def test_however_a_courtesy_ends_it_is_logged_counted_and_started_again(
    work: Callable[[], Awaitable[object]], level: str, says: bool | None
) -> None:
    with capture_logs() as lines:
        began, failed = starts(work, 100.0)
    assert len(began) > 5
    assert failed == ["told"] * len(began)
    assert {(line["event"], line["task"], line["log_level"]) for line in lines} == {
        ("task_failed", "told", level)
    }
    assert {line.get("exc_info") for line in lines} == {says}


def test_the_pauses_of_a_courtesy_grow_up_to_a_bound() -> None:
    began, _ = starts(lambda: _raises(ZeroDivisionError()), 100.0)
    pauses = [after - before for before, after in itertools.pairwise(began)]
    for pause, most in zip(pauses, [1, 2, 4, 8, *[15] * 100], strict=False):
        assert 0.75 * most <= pause <= most + 0.001
    assert max(pauses) > 8


def test_a_courtesy_that_has_worked_well_for_a_while_is_started_again_at_once() -> None:
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        if len(tries) == 5:
            await asyncio.sleep(WELL)
        raise ZeroDivisionError

    began, _ = starts(work, 200.0)
    assert 8 * 0.75 <= began[4] - began[3] <= 8.001
    assert began[5] - began[4] <= WELL + 1.001
    assert began[6] - began[5] > 1.1


def test_a_courtesy_that_is_stale_stops() -> None:
    with pytest.raises(Stale, match="newer"):
        run(courtesy("told", lambda: _raises(Stale("newer"))))


def test_vital_work_whose_inside_is_cancelled_is_not_taken_for_one_that_was_stopped() -> None:
    """A task group leaves a cancelled child alone: nobody would hear of it."""

    async def story() -> None:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(eternal("lease", _cancelled_inside))

    with pytest.raises(ExceptionGroup) as ended:
        run(story())
    assert ended.group_contains(RuntimeError, match="was cancelled")


class Panic(BaseException):
    """As a Rust extension raises it."""


@pytest.mark.parametrize(
    "error",
    [
        Fault("no"),
        Away("not now"),
        Refused("never"),
        KeyError("Id"),
        ValueError("not a number"),
        AttributeError("'NoneType' object has no attribute 'attrs'"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        RecursionError("maximum recursion depth exceeded"),
        MemoryError(),
        OSError(28, "No space left on device"),
        TimeoutError(),
        asyncio.CancelledError(),
        docker.errors.APIError("500 Server Error"),
        redis.exceptions.ConnectionError("Connection closed by server."),
        requests.exceptions.ChunkedEncodingError("Connection broken"),
        ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
        BaseExceptionGroup("several", [SystemExit(1)]),
        SystemExit(2),
        KeyboardInterrupt(),
        Panic("called `Option::unwrap()` on a `None` value"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_whatever_work_raises_comes_out_as_what_a_guard_catches(error: BaseException) -> None:
    async def work() -> None:
        raise error

    for guarded in (unless_cancelled(work), within(60.0, work)):
        with pytest.raises(Exception) as raised:  # noqa: PT011  that it is an Exception is the point
            run(guarded)
        ours = isinstance(error, Exception)
        assert raised.value is error if ours else isinstance(raised.value, RuntimeError)


def test_work_that_hangs_is_given_up_and_a_time_out_of_its_own_is_no_fault() -> None:
    with pytest.raises(Away, match="no answer within 5 s"):
        run(within(5.0, lambda: asyncio.sleep(1e6)))

    async def late() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        run(within(5.0, late))


def test_work_that_is_stopped_while_it_is_waited_for_is_stopped() -> None:
    async def story() -> bool:
        task = asyncio.create_task(within(1e6, lambda: asyncio.sleep(1e6)))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert run(story())


def test_few_looks_are_at_work_at_once_and_one_that_waits_keeps_nobody_out() -> None:
    async def many() -> tuple[int, float]:
        pace, loop = Pace(), asyncio.get_running_loop()
        began, busy, most = loop.time(), 0, 0

        async def short() -> None:
            nonlocal busy, most
            async with pace.place():
                busy += 1
                most = max(most, busy)
                await asyncio.sleep(HOLDS / 4)
                busy -= 1

        async def long() -> None:
            async with pace.place():
                await asyncio.sleep(60)

        hanging = [asyncio.create_task(long()) for _ in range(2 * AT_ONCE)]
        await asyncio.sleep(0)
        await asyncio.gather(*(short() for _ in range(40)))
        took = loop.time() - began
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        await asyncio.gather(*(short() for _ in range(AT_ONCE)))
        return most, took

    most, took = run(many())
    assert most == AT_ONCE
    assert took == pytest.approx(2 * HOLDS + 40 / AT_ONCE * HOLDS / 4, rel=0.2)


def test_no_look_waits_long_for_its_turn() -> None:
    async def crowded() -> list[float]:
        pace, loop = Pace(), asyncio.get_running_loop()
        began, waited = loop.time(), list[float]()

        async def look() -> None:
            async with pace.place():
                waited.append(loop.time() - began)
                await asyncio.sleep(1.0)

        await asyncio.gather(*(look() for _ in range(1000)))
        async with contextlib.AsyncExitStack() as places:  # as many as there were
            for _ in range(AT_ONCE):
                await places.enter_async_context(pace.place())
            assert pace._places.locked()
        return waited

    waited = run(crowded())
    assert len(waited) == 1000
    assert max(waited) == pytest.approx(WAITS, abs=HOLDS)
