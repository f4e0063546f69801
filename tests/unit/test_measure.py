"""One look for all services: what is odd about one of them is its own trouble."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import pytest

from orchestrator.engine.measure import Measurer
from orchestrator.ports.metrics import MetricQuery, MetricSource
from orchestrator.rollout.observation import Reading
from tests.contract.fakes import FakeClock

SOURCE = MetricSource(requests="r", status_label="code", error_pattern="5..", latency="")


class Odd:
    """Raises whenever a look is about one service."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.looks = error, list[int]()

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        self.looks.append(len(queries))
        if any(q.service == "odd" for q in queries):
            raise self.error
        return {q.service: Reading(at=1.0) for q in queries}


@pytest.mark.parametrize("error", [KeyError, RecursionError, asyncio.CancelledError])
async def test_a_bug_about_one_service_is_told_to_that_one_alone(error: type[BaseException]) -> None:
    metrics, woken = Odd(error), list[str]()
    measurer = Measurer(metrics, FakeClock(), 0.01)
    for service in ("api", "odd", "web"):
        measurer.watch(MetricQuery(service=service, source=SOURCE), partial(woken.append, service))
    task = asyncio.create_task(measurer.run())
    async with asyncio.timeout(10):
        while {"api", "odd", "web"} - set(woken):
            await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    assert [measurer.latest(s).error for s in ("api", "web")] == ["", ""]  # type: ignore[union-attr]
    told = measurer.latest("odd")
    assert told is not None
    assert told.error.startswith("internal error, see the daemon's log: ")
    assert metrics.looks[:4] == [3, 1, 1, 1]


class Hanging:
    """Never answers a look that is about one service."""

    def __init__(self) -> None:
        self.looks: list[list[str]] = []

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        self.looks.append([q.service for q in queries])
        if any(q.service == "odd" for q in queries):
            await asyncio.Event().wait()
        return {q.service: Reading(at=1.0) for q in queries}


async def test_one_whose_look_hangs_holds_nobody_again_at_its_next_rollout() -> None:
    metrics, told, ticks = Hanging(), asyncio.Event(), asyncio.Semaphore(0)
    measurer = Measurer(metrics, FakeClock(), 0.01, deadline=0.1)
    odd = MetricQuery(service="odd", source=SOURCE)
    measurer.watch(odd, told.set)
    measurer.watch(MetricQuery(service="api", source=SOURCE), ticks.release)
    task = asyncio.create_task(measurer.run())
    async with asyncio.timeout(10):
        await told.wait()
        measurer.forget("odd")
        measurer.watch(odd, told.set)
        for _ in range(20):
            await ticks.acquire()
    task.cancel()
    assert [look for look in metrics.looks if len(look) > 1] == [["odd", "api"]]
