"""What is kept of nginx' answers: nothing beyond the workers that gave them, nor beyond its silence."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from orchestrator.ports.herd import Herd
from orchestrator.ports.traffic import Workers
from orchestrator.traffic import sight
from orchestrator.traffic.listener import Answer
from orchestrator.traffic.sight import Sight

SOME, OTHERS = Workers(accepting=frozenset({1, 2})), Workers(frozenset({3, 4}), retiring=frozenset({1, 2}))


class Nginx:
    """Workers and what they say; both may take their time."""

    def __init__(self) -> None:
        self.now, self.generation, self.shape = SOME, 1, ""
        self.asked: list[str] = []
        self.looks = 0
        self.silent = False
        self.slow: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)

    async def workers(self) -> Workers:
        self.looks += 1
        seen = self.now
        await self.slow()
        return seen

    async def ask(self, service: str) -> Answer:
        self.asked.append(service)
        await asyncio.sleep(0)
        if self.silent:
            return Answer("no answer", answered=False)
        return Answer("", self.generation, shape=self.shape)


@pytest.fixture
def nginx(monkeypatch: pytest.MonkeyPatch) -> Nginx:
    monkeypatch.setattr(sight, "FRESH", 0.02)
    monkeypatch.setattr(sight, "HEARD", 1000.0)
    return Nginx()


def of(nginx: Nginx) -> Sight:
    return Sight(nginx, nginx)  # type: ignore[arg-type]


async def test_all_services_share_a_look_and_none_is_asked_twice_while_the_workers_are_the_same(
    nginx: Nginx,
) -> None:
    seen, names = of(nginx), [f"s{n}" for n in range(50)]
    for _ in range(3):
        found = await asyncio.gather(*map(seen.of, names))
        assert {answer.generation for answer, _ in found} == {1}
        await asyncio.sleep(0.03)
    assert sorted(nginx.asked) == sorted(names)
    assert nginx.looks < len(names)
    await seen.close()


async def test_after_a_reload_each_is_asked_anew(nginx: Nginx) -> None:
    seen = of(nginx)
    await seen.of("api")
    nginx.now, nginx.generation = OTHERS, 2
    await asyncio.sleep(0.03)
    answer, workers = await seen.of("api")
    assert (answer.generation, workers) == (2, OTHERS)
    nginx.now, nginx.generation = SOME, 3
    assert await seen.look() == SOME, "whoever looks himself has the newest"
    assert (await seen.of("api"))[0].generation == 3


@pytest.mark.parametrize("case", ["silence", "memory", "unseen", "old"])
async def test_what_does_not_last_is_not_kept(
    nginx: Nginx, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "old":
        monkeypatch.setattr(sight, "KEPT", 0.0)
    if case == "unseen":
        nginx.now = Workers()
    nginx.silent, nginx.shape = case == "silence", "x" * (case == "memory")
    seen = of(nginx)
    for _ in range(3):
        await seen.of("api")
    assert nginx.asked == ["api"] * 3


async def test_one_that_has_stopped_to_answer_is_noticed_for_all(
    nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = of(nginx)
    await asyncio.gather(seen.of("api"), seen.of("web"))
    monkeypatch.setattr(sight, "HEARD", 0.0)
    nginx.silent = True
    assert [(await seen.of(name))[0].answered for name in ("api", "web")] == [False, False]


async def test_a_look_that_began_earlier_and_ends_later_tells_nobody(nginx: Nginx) -> None:
    seen, held = of(nginx), asyncio.Event()
    nginx.slow = held.wait
    early = asyncio.create_task(seen.of("api"))
    await asyncio.sleep(0.01)
    nginx.now, nginx.slow = OTHERS, lambda: asyncio.sleep(0)
    await seen.look()
    held.set()
    assert (await early)[1] == OTHERS


async def test_the_workers_are_seen_when_the_answer_has_come(nginx: Nginx) -> None:
    seen = of(nginx)
    await seen.look()
    asked = nginx.ask

    async def ask(service: str) -> Answer:
        nginx.now, nginx.generation = OTHERS, 2  # a reload while it is asked
        return await asked(service)

    nginx.ask = ask  # type: ignore[method-assign]
    answer, workers = await seen.of("api")
    assert (answer.generation, workers) == (2, OTHERS)


async def test_a_look_that_fails_is_told_to_all_who_wait_and_tried_again(nginx: Nginx) -> None:
    seen = of(nginx)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise OSError("no /proc")

    nginx.slow = fail
    told = await asyncio.gather(seen.of("api"), seen.of("web"), return_exceptions=True)
    assert [str(error) for error in told] == ["no /proc"] * 2
    nginx.slow = lambda: asyncio.sleep(0)
    assert (await seen.of("api"))[0].generation == 1


async def test_what_wakes_together_goes_on_singly_and_other_work_comes_between() -> None:
    herd, order, begin = Herd(), list[Any](), asyncio.Event()

    async def one(number: int) -> None:
        await begin.wait()
        await herd.go_on()
        order.append(number)

    async def other() -> None:
        await begin.wait()
        for _ in range(200):
            await asyncio.sleep(0)
            order.append("other")

    await asyncio.gather(*map(one, range(50)), other(), asyncio.to_thread(lambda: None), _set(begin))
    assert [entry for entry in order if entry != "other"] == list(range(50))
    numbers = [index for index, entry in enumerate(order) if entry != "other"]
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(numbers))


async def _set(event: asyncio.Event) -> None:
    await asyncio.sleep(0.01)
    event.set()
