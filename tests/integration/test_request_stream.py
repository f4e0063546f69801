"""The request stream on a real Redis: nothing that was delivered to anybody is forgotten."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestrator.engine.tasks import eternal
from orchestrator.intake.stream import RequestStream
from orchestrator.ports.faults import Fault
from orchestrator.ports.requests import Request
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import RedisStore, connect
from orchestrator.store.server import PrivateRedis
from tests.contract.fakes import FakeClock, FakeStore

FIELDS: dict[Any, Any] = {"service": "api", "image": "repo/api:1", "who": "ci"}


@dataclass
class Kit:
    redis: Any
    store: FakeStore = field(default_factory=FakeStore)
    taken: list[str] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)
    again: bool = False

    async def until(self, count: int) -> None:
        """Run the stream until so many requests were handed over."""

        async def dispatch(request: Request, _: Mapping[str, str]) -> None:
            self.taken.append(request.id)

        stream = RequestStream(
            self.redis,
            "t:requests",
            "g",
            self.store.refuse,
            FakeClock(),
            dispatch,
            RedisStore(self.redis, Keys("t")).acknowledged,
            lambda: self.lost.append(True),
        )
        again = eternal("stream", stream.run, pause=0.01) if self.again else stream.run()
        task = asyncio.create_task(again, name="stream")
        async with asyncio.timeout(10):
            while len(set(self.taken) if self.again else self.taken) < count and not task.done():
                await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    server = PrivateRedis(tmp_path)
    await server.start()
    redis = connect(server.url)
    yield Kit(redis)
    await redis.aclose()
    await server.stop()


async def test_what_came_before_the_group_is_read(kit: Kit) -> None:
    entries = [await kit.redis.xadd("t:requests", FIELDS) for _ in range(120)]
    await kit.until(120)
    assert kit.taken == entries


async def test_entries_that_do_not_come_in_time_are_read_in_fewer_at_once(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(name: str) -> None:
        real = getattr(kit.redis, name)

        async def call(*args: Any, count: int, **more: Any) -> Any:
            if count > 2:  # Redis gives them away, and they do not come
                await real(*args, count=count, **more)
                raise RedisTimeoutError("no answer within 2.5 s")
            return await real(*args, count=count, **more)

        monkeypatch.setattr(kit.redis, name, call)

    entries = [await kit.redis.xadd("t:requests", FIELDS) for _ in range(120)]
    for name in ("xreadgroup", "xautoclaim"):
        slowly(name)
    kit.again = True
    await kit.until(120)
    assert sorted(set(kit.taken), key=entries.index) == entries


async def test_a_group_that_was_destroyed_begins_behind_what_was_acknowledged(kit: Kit) -> None:
    entries = [await kit.redis.xadd("t:requests", FIELDS) for _ in range(30)]
    await kit.until(len(entries))
    await kit.redis.xadd("t:acknowledged", {"group": "g"}, id=entries[19])
    await kit.redis.xgroup_destroy("t:requests", "g")
    kit.taken.clear()
    await kit.until(10)
    assert kit.taken == entries[20:]
    assert [g["name"] for g in await kit.redis.xinfo_groups("t:requests")] == ["g"]


async def test_a_redis_that_tells_nothing_of_its_streams_is_read_all_the_same(kit: Kit) -> None:
    """An access rule may forbid XINFO; it is needed where the group has to be made alone."""
    entry = await kit.redis.xadd("t:requests", FIELDS)
    await kit.redis.execute_command("ACL", "SETUSER", "default", "-xinfo")
    with pytest.raises(Fault, match="xinfo"):
        await kit.until(1)
    await kit.redis.xgroup_create("t:requests", "g", id="0")
    await kit.until(1)
    assert kit.taken == [entry]


async def test_another_stream_of_the_name_is_read_from_its_beginning(kit: Kit) -> None:
    await kit.redis.xadd("t:acknowledged", {"group": "g"}, id="9000000000000-1")
    entry = await kit.redis.xadd("t:requests", FIELDS)
    await kit.until(1)
    assert kit.taken == [entry]


async def test_what_is_not_acknowledged_is_delivered_again_in_order(kit: Kit) -> None:
    entries = [await kit.redis.xadd("t:requests", FIELDS) for _ in range(3)]
    await kit.until(3)
    await kit.redis.xack("t:requests", "g", entries[1])
    kit.taken.clear()
    entries.append(await kit.redis.xadd("t:requests", FIELDS))
    await kit.until(3)
    assert kit.taken == [entries[0], entries[2], entries[3]]


async def test_what_a_dead_consumer_had_is_taken_over(kit: Kit) -> None:
    await kit.redis.xgroup_create("t:requests", "g", id="0", mkstream=True)
    entries = [await kit.redis.xadd("t:requests", FIELDS) for _ in range(70)]
    await kit.redis.xreadgroup("g", "somebody else", {"t:requests": ">"}, count=100)
    await kit.until(70)
    assert kit.taken == entries
    assert not kit.lost


async def test_what_was_trimmed_before_it_was_carried_out_is_told(kit: Kit) -> None:
    entries = [await kit.redis.xadd("t:requests", FIELDS) for _ in range(3)]
    await kit.until(3)
    await kit.redis.xdel("t:requests", entries[0], entries[2])
    kit.taken.clear()
    await kit.until(1)
    assert kit.taken == [entries[1]]
    assert len(kit.lost) == 2
    assert (await kit.redis.xpending("t:requests", "g"))["pending"] == 1


async def test_what_is_no_request_goes_to_the_dead_letters_and_the_next_is_read(kit: Kit) -> None:
    await kit.redis.xadd("t:requests", {"service": "api", "image": "x;}server{listen 1;"})
    good = await kit.redis.xadd("t:requests", FIELDS)
    await kit.until(1)
    assert kit.taken == [good]
    assert "is not an image reference" in kit.store.dead[0]["error"]


async def test_pushing_from_python_is_the_same(kit: Kit) -> None:
    entry = await RedisStore(kit.redis, Keys("t")).push({"service": "api", "image": "repo/api:1"})
    await kit.until(1)
    assert kit.taken == [entry]
