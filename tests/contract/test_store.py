"""`ports.Store`: the fake and Redis pass one suite."""

import asyncio
import contextlib
import io
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor import _redis
from orchestrator.daemon.serve import Daemon
from orchestrator.daemon.settings import RedisSection, Settings
from orchestrator.observability.logs import LineWriter
from orchestrator.ports.faults import Away, Conflict, Fault, Repeated, Stale
from orchestrator.ports.requests import Once
from orchestrator.rollout.command import handle
from orchestrator.rollout.events import ConfigReloaded, EdgeDrifted, RequestRefused
from orchestrator.rollout.model import ServiceState
from orchestrator.store.board import RedisBoard
from orchestrator.store.codec import dump_event
from orchestrator.store.keys import Keys
from orchestrator.store.lease import Lease
from orchestrator.store.redis_store import CONNECTIONS, Client, RedisStore, connect
from orchestrator.store.server import PrivateRedis, check_settings
from orchestrator.store.tokens import RedisTokens
from tests.builders import submit
from tests.contract.fakes import FakeStore


class RealStore:
    """Redis with what the suite needs to look in."""

    def __init__(self, redis: Any, keys: Keys) -> None:
        self.redis, self.keys = redis, keys
        self.store = RedisStore(redis, keys, 1)

    async def hold(self, token: int) -> None:
        if token:
            await self.redis.set(self.keys.lease, token)
        else:
            await self.redis.delete(self.keys.lease)

    async def deliver(self, fields: dict[str, str]) -> str:
        entry = await self.store.push(fields)
        await self.redis.xreadgroup(self.keys.group, "driver", {self.keys.requests: ">"}, count=10)
        return entry

    async def pending(self) -> set[str]:
        found = await self.redis.xpending_range(self.keys.requests, self.keys.group, "-", "+", 100)
        return {row["message_id"] for row in found}

    async def told(self) -> list[Any]:
        events: list[Any] = []
        async for _, event in self.store.events("0-0", block=0.01):
            if event is None:
                return events
            events.append(event)
        return events

    async def dead(self) -> list[dict[str, str]]:
        return [fields for _, fields in await self.redis.xrange(self.keys.dead)]


class Fake:
    """The fake behind the same handle."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.number = 0

    async def hold(self, token: int) -> None:
        self.store.holder = token

    async def deliver(self, fields: dict[str, str]) -> str:
        self.number += 1
        self.store.pending.add(f"{self.number}-0")
        return f"{self.number}-0"

    async def pending(self) -> set[str]:
        return set(self.store.pending)

    async def told(self) -> list[Any]:
        return await self.store.told()

    async def dead(self) -> list[dict[str, str]]:
        return self.store.dead


@pytest.fixture
async def private(tmp_path: Path) -> AsyncIterator[PrivateRedis]:
    server = PrivateRedis(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=["fake", "redis"])
async def kit(request: pytest.FixtureRequest, private: PrivateRedis) -> AsyncIterator[Any]:
    if request.param == "fake":
        yield Fake()
        return
    redis = connect(private.url)
    real = RealStore(redis, Keys("t"))
    await redis.xgroup_create("t:requests", real.keys.group, id="0", mkstream=True)
    await real.hold(1)
    yield real
    await redis.aclose()


@pytest.fixture
async def private_kit(private: PrivateRedis) -> AsyncIterator[Any]:
    redis = connect(private.url)
    yield redis
    await redis.aclose()


async def test_a_new_service_is_empty(kit: Any) -> None:
    assert await kit.store.load("api") == (ServiceState(service="api"), 0)


async def test_a_commit_writes_state_events_and_acknowledgement_together(kit: Any) -> None:
    entry = await kit.deliver({"service": "api"})
    assert await kit.pending() == {entry}
    state, events = handle(ServiceState(service="api"), submit(1), 1000.0)
    version = await kit.store.commit(state, 0, events, [entry])
    assert await kit.store.load("api") == (state, version)
    assert tuple(await kit.told()) == events
    assert await kit.pending() == set()


async def test_nothing_is_trimmed(kit: Any) -> None:
    state, events = handle(ServiceState(service="api"), submit(1), 1000.0)
    version = await kit.store.commit(state, 0, events)
    for _ in range(300):
        version = await kit.store.commit(state, version, events[:1])
    assert len(await kit.told()) == 300 + len(events)


async def test_a_commit_without_a_lease_or_ahead_of_the_store_is_tried_again(kit: Any) -> None:
    """Neither says that somebody else drives: the lease may have run out, the store may have lost data."""
    state, events = handle(ServiceState(service="api"), submit(1), 1000.0)
    for prepare, version in ((kit.hold(0), 0), (kit.hold(1), 5)):
        await prepare
        with pytest.raises(Fault) as refused:
            await kit.store.commit(state, version, events)
        assert not isinstance(refused.value, Stale)
    assert await kit.told() == []


async def test_a_commit_on_an_old_version_writes_nothing(kit: Any) -> None:
    state, events = handle(ServiceState(service="api"), submit(1), 1000.0)
    await kit.store.commit(state, 0, events)
    entry = await kit.deliver({"service": "api"})
    newer, more = handle(state, submit(2), 1001.0)
    with pytest.raises(Stale):
        await kit.store.commit(newer, 0, more, [entry])
    assert (await kit.store.load("api"))[0] == state
    assert len(await kit.told()) == len(events)
    assert await kit.pending() == {entry}


async def test_a_commit_without_the_lease_writes_nothing(kit: Any) -> None:
    await kit.hold(2)
    state, events = handle(ServiceState(service="api"), submit(1), 1000.0)
    with pytest.raises(Stale):
        await kit.store.commit(state, 0, events)
    assert (await kit.store.load("api"))[1] == 0
    assert await kit.told() == []


async def test_a_refusal_is_a_dead_letter_an_event_and_an_acknowledgement(kit: Any) -> None:
    entry = await kit.deliver({"service": "nope"})
    event = RequestRefused(
        service="nope", at=1.0, verb="release", actor="ci", request=entry, reason="unknown"
    )
    await kit.store.refuse(entry, {"service": "nope", "error": "unknown"}, event)
    assert await kit.dead() == [{"entry": entry, "service": "nope", "error": "unknown"}]
    assert await kit.told() == [event]
    assert await kit.pending() == set()
    await kit.hold(2)
    with pytest.raises(Stale):
        await kit.store.refuse(entry, {"error": "x"}, event)


async def test_an_answer_is_an_event_and_an_acknowledgement(kit: Any) -> None:
    entry = await kit.deliver({"verb": "reload"})
    event = ConfigReloaded(service="", at=1.0, actor="ann", request=entry, changes=("api: is new",))
    await kit.store.answer(entry, event)
    assert await kit.dead() == []
    assert await kit.told() == [event]
    assert await kit.pending() == set()
    await kit.hold(2)
    with pytest.raises(Stale):
        await kit.store.answer(entry, event)


async def test_a_refusal_that_is_told_again_as_its_reply_was_lost_changes_nothing(kit: Any) -> None:
    entry = await kit.deliver({"service": "nope"})
    event = RequestRefused(
        service="nope", at=1.0, verb="release", actor="ci", request=entry, reason="unknown"
    )
    for _ in range(2):
        await kit.store.refuse(entry, {"error": "unknown"}, event)
    assert (len(await kit.dead()), await kit.told()) == (1, [event])


async def test_an_answer_that_is_told_again_as_its_reply_was_lost_changes_nothing(kit: Any) -> None:
    entry = await kit.deliver({"verb": "reload"})
    event = ConfigReloaded(service="", at=1.0, actor="ann", request=entry)
    for _ in range(2):
        await kit.store.answer(entry, event)
    assert await kit.told() == [event]


async def test_the_highest_id_that_was_acknowledged_outlives_the_group(private_kit: Any) -> None:
    keys = Keys("t")
    store = RedisStore(private_kit, keys, 1)
    await private_kit.set(keys.lease, 1)
    entries = [await store.push({"service": "api"}) for _ in range(4)]
    await private_kit.xgroup_create(keys.requests, keys.group, id="0")
    await private_kit.xreadgroup(keys.group, "driver", {keys.requests: ">"})
    assert await store.acknowledged() == "0-0"
    state, _ = handle(ServiceState(service="api"), submit(1), 1000.0)
    refused = RequestRefused(service="api", at=1.0, verb="release", actor="ci", request="", reason="no")
    await store.commit(state, 0, [], [entries[1]])
    assert await store.acknowledged() == entries[1]
    await store.refuse(entries[2], {"error": "no"}, refused)
    assert await store.acknowledged() == entries[2]
    await store.answer(entries[0], refused)
    assert await store.acknowledged() == entries[2]
    await store.answer(entries[3], refused)
    await private_kit.xgroup_destroy(keys.requests, keys.group)
    assert await store.acknowledged() == entries[3]


@pytest.mark.parametrize("name", ["dead", "events", "requests", "services", "wanted", "acknowledged"])
async def test_a_key_of_another_type_is_seen_before_anything_is_written(private_kit: Any, name: str) -> None:
    """Redis does not undo a script that fails half-way."""
    keys = Keys("t")
    store, board = RedisStore(private_kit, keys, 1), RedisBoard(private_kit, keys, 10.0, 1)
    await private_kit.set(keys.lease, 1)
    entry = await store.push({"service": "api"})
    await private_kit.xgroup_create(keys.requests, keys.group, id="0")
    await private_kit.xreadgroup(keys.group, "driver", {keys.requests: ">"})
    if name == "requests":
        await private_kit.delete(keys.requests)
    await private_kit.set(getattr(keys, name), "no")
    refused = RequestRefused(service="api", at=1.0, verb="release", actor="ci", request=entry, reason="no")
    state, events = handle(ServiceState(service="api"), submit(1), 1000.0)
    calls: dict[str, list[Callable[[], Awaitable[object]]]] = {
        "commit": [lambda: store.commit(state, 0, events)],
        "refuse": [lambda: store.refuse(entry, {"error": "no"}, refused)],
        "want": [lambda: board.want("api", "text")],
        "push": [
            lambda: store.push({"service": "api"}),
            lambda: store.push({"service": "api", "key": "a"}, Once("nonce", 60.0)),
        ],
    }
    touches = {
        "dead": ["refuse"],
        "events": ["commit", "refuse"],
        "requests": ["commit", "refuse", "push"],
        "services": ["commit"],
        "wanted": ["want"],
        "acknowledged": ["commit", "refuse"],
    }
    before = await _all(private_kit)
    for call in (c for verb in touches[name] for c in calls[verb]):
        with pytest.raises(Fault, match="WRONGTYPE"):
            await call()
    assert await _all(private_kit) == before


async def _all(redis: Any) -> dict[str, Any]:
    """Everything that Redis holds."""
    return {key: await redis.dump(key) for key in await redis.keys()}


async def test_a_request_that_is_to_come_once_is_appended_once_also_when_its_reply_was_lost(
    private_kit: Any,
) -> None:
    store = RedisStore(private_kit, Keys("t"))
    once = Once("nonce", 0.5)
    entry = await store.push({"service": "api"}, once)
    with pytest.raises(Repeated) as repeated:
        await store.push({"service": "web", "key": "a"}, once)
    assert repeated.value.request == entry
    assert await private_kit.xlen("t:requests") == 1
    await private_kit.delete(*await private_kit.keys("t:nonce:*"))
    await store.push({"service": "api", "key": "a"}, once)
    with pytest.raises(Conflict):
        await store.push({"service": "api", "key": "a", "image": "b"}, Once("other", 60.0))
    await store.push({"service": "api", "key": "b"}, Once("other", 60.0))
    assert 0 < await private_kit.pttl((await private_kit.keys("t:nonce:*"))[0]) <= 60_000


async def test_damaged_state_is_not_guessed_at(private_kit: Any) -> None:
    store = RedisStore(private_kit, Keys("t"))
    for data in ("{", "[]", '{"service": 1}', '{"service": "api", "released": "many"}'):
        await private_kit.hset("t:state:api", mapping={"data": data, "version": 3})
        with pytest.raises(Fault, match="stored state is damaged"):
            await store.load("api")


async def test_an_event_that_nobody_can_read_holds_no_reader(private_kit: Any) -> None:
    store = RedisStore(private_kit, Keys("t"))
    good = EdgeDrifted(service="api", at=1.0, release="api-1", file="changed")
    broken = [{"data": "{"}, {"data": '{"kind": "of tomorrow"}', "release": "api-1"}, {"else": "x"}] * 40
    for fields in [{"data": dump_event(good), "release": "api-1"}, *broken]:
        await private_kit.xadd("t:events", fields)
    last = await private_kit.xadd("t:events", {"data": dump_event(good), "release": "api-1"})
    first, *others = await store.events_after("0-0", limit=10)
    assert (first[1], others) == (good, [])
    assert await store.events_after(first[0], limit=10) == [(last, good)]
    assert await store.told("api-1", 0.0) == [good, good]
    async for entry, event in store.events(first[0]):
        assert (entry, event) == (last, good)
        break


async def test_the_private_server_keeps_what_it_acknowledges(private: PrivateRedis, private_kit: Any) -> None:
    assert await check_settings(private_kit) == []
    assert (await private_kit.config_get("port"))["port"] == "0"
    assert oct(private.socket.parent.stat().st_mode & 0o777) == "0o700"
    await private_kit.set("x", "1")
    await private.stop()
    await private.start()
    assert await private_kit.get("x") == "1"


async def test_settings_that_lose_writes_are_named(private_kit: Any) -> None:
    await private_kit.config_set("maxmemory-policy", "allkeys-lru")
    (problem,) = await check_settings(private_kit)
    assert "CONFIG SET maxmemory-policy noeviction" in problem


@contextlib.asynccontextmanager
async def managed(folder: Path, *settings: str) -> AsyncIterator[Client]:
    """A server as providers rent it out."""
    socket = folder / "managed.sock"
    program = shutil.which("redis-server")
    assert program is not None
    keeps = ["appendonly yes", "appendfsync always", "maxmemory-policy noeviction"]
    where = ["port 0", f"unixsocket {socket}", f"dir {folder}", 'save ""']
    (folder / "managed.conf").write_text("\n".join([*where, *keeps, *settings]))
    process = await asyncio.create_subprocess_exec(
        program, str(folder / "managed.conf"), stdout=asyncio.subprocess.DEVNULL
    )
    redis = connect(f"unix://{socket}")
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(RedisError):
                    await redis.ping()
                    break
                await asyncio.sleep(0.05)
        yield redis
    finally:
        await redis.aclose()
        process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (['rename-command CONFIG ""'], "unknown command 'CONFIG'"),
        (["user default on nopass ~* &* +@all -config"], "no permissions to run the 'config"),
    ],
)
async def test_a_server_that_does_not_allow_config_is_asked_by_info_and_the_rest_is_named(
    tmp_path: Path, settings: list[str], why: str
) -> None:
    async with managed(tmp_path, *settings) as redis:
        (problem,) = await check_settings(redis)
        assert problem.startswith("appendfsync can't be checked, because CONFIG is not allowed")
        assert why in problem
        assert problem.endswith(": allow CONFIG GET to the daemon's user")
    async with managed(tmp_path, *settings, "appendonly no") as redis:
        wrong, _ = await check_settings(redis)
        assert wrong == "appendonly is 'no', not 'yes': set it where the server is managed"


async def test_a_server_that_allows_neither_config_nor_info_is_no_fault(tmp_path: Path) -> None:
    async with managed(tmp_path, "user default on nopass ~* &* +@all -config -info") as redis:
        (problem,) = await check_settings(redis)
        assert problem.startswith("appendonly, appendfsync, maxmemory-policy can't be checked")


@pytest.mark.parametrize("durability", ["strict", "relaxed"])
async def test_strict_refuses_what_cannot_be_checked_and_relaxed_starts(
    tmp_path: Path, durability: Any
) -> None:
    redis_section = RedisSection(url=f"unix://{tmp_path}/managed.sock", durability=durability)
    config = Config(tmp_path, Settings(redis=redis_section), {})
    async with managed(tmp_path, 'rename-command CONFIG ""') as redis:
        daemon = Daemon(config, LineWriter(io.StringIO()))
        if durability == "strict":
            with pytest.raises(Fault, match=r"appendfsync can't be checked.*relaxed"):
                await daemon._check_redis(redis)
        else:
            await daemon._check_redis(redis)
        (check,) = await _redis(config)
        assert check.ok == (durability == "relaxed")
        assert check.mend == "allow CONFIG GET to the daemon's user, or set redis/durability to relaxed"


async def test_the_token_of_the_lease_grows_and_a_dead_holder_is_not_waited_for(
    private_kit: Any, tmp_path: Path
) -> None:
    keys = Keys("t")
    first = Lease(private_kit, keys, tmp_path / "host-a", ttl=3.0)
    token = await first.acquire()
    assert token > int((await private_kit.time())[0]) - 60
    other_host = Lease(private_kit, keys, tmp_path / "host-b", ttl=3.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await other_host.acquire()
    assert first._file is not None
    first._file.close()  # the process died: its lock is gone, its lease is not
    again = Lease(private_kit, keys, tmp_path / "host-a", ttl=3.0)
    async with asyncio.timeout(0.5):
        assert await again.acquire() == token + 1
    await again.release()
    async with asyncio.timeout(1.0):
        assert await other_host.acquire() == token + 2
    await other_host.release()


async def test_a_lease_that_somebody_else_holds_ends_the_daemon(private_kit: Any, tmp_path: Path) -> None:
    lease = Lease(private_kit, Keys("t"), tmp_path, ttl=0.3)
    other = await lease.acquire() + 1
    await private_kit.set("t:epoch", other)
    await private_kit.set("t:lease", other)
    with pytest.raises(Stale):
        async with asyncio.timeout(3):
            await lease.keep(lambda: None)
    await lease.release()
    assert await private_kit.get("t:lease") == str(other)


async def test_a_lease_that_ran_out_is_taken_again_if_nobody_drove(private_kit: Any, tmp_path: Path) -> None:
    lease = Lease(private_kit, Keys("t"), tmp_path, ttl=0.6)
    token = await lease.acquire()
    await private_kit.delete("t:lease")
    keeping = asyncio.create_task(lease.keep(lambda: None), name="keep")
    await asyncio.sleep(0.5)
    assert await private_kit.get("t:lease") == str(token)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await lease.release()


async def test_a_lease_is_not_taken_again_by_whom_somebody_has_followed(
    private_kit: Any, tmp_path: Path
) -> None:
    lease = Lease(private_kit, Keys("t"), tmp_path, ttl=0.3)
    token = await lease.acquire()
    await private_kit.delete("t:lease")
    await private_kit.set("t:epoch", token + 1)
    with pytest.raises(Stale):
        async with asyncio.timeout(3):
            await lease.keep(lambda: None)
    await lease.release()


async def test_a_lease_is_above_what_the_resources_know_and_is_not_taken_again_below(
    private_kit: Any, tmp_path: Path
) -> None:
    known = 10**11

    async def floor() -> int:
        return known

    lost: list[bool] = []
    lease = Lease(private_kit, Keys("t"), tmp_path, ttl=0.3, floor=floor)
    assert await lease.acquire() == 10**11 + 1
    await private_kit.flushall()
    keeping = asyncio.create_task(lease.keep(lambda: lost.append(True)), name="keep")
    await asyncio.sleep(0.25)
    both = [await private_kit.get("t:lease"), await private_kit.get("t:epoch")]
    assert (both, lost) == ([str(10**11 + 1)] * 2, [True])
    known = 10**11 + 2
    await private_kit.flushall()
    with pytest.raises(Stale):
        async with asyncio.timeout(3):
            await keeping
    await lease.release()


async def test_a_store_that_was_emptied_gives_no_token_out_twice(private_kit: Any, tmp_path: Path) -> None:
    """Also when nothing outside has seen the first one."""
    first = Lease(private_kit, Keys("t"), tmp_path / "host-a")
    token = await first.acquire()
    await asyncio.sleep(1.1)
    await private_kit.flushall()
    other = Lease(private_kit, Keys("t"), tmp_path / "host-b")
    assert await other.acquire() > token
    await first.release()
    await other.release()


async def test_a_lease_is_fresh_for_half_its_time(private_kit: Any, tmp_path: Path) -> None:
    lease = Lease(private_kit, Keys("t"), tmp_path, ttl=0.4)
    assert not lease.fresh()
    await lease.acquire()
    assert lease.fresh()
    await asyncio.sleep(0.25)
    assert not lease.fresh()
    await lease.release()


async def test_hundreds_of_conductors_wait_for_a_connection_and_none_fails(private: PrivateRedis) -> None:
    redis = connect(private.url)
    store = RedisStore(redis, Keys("t"), 1)
    found = await asyncio.gather(*(store.load(f"s{n}") for n in range(400)))
    assert [state.service for state, _ in found] == [f"s{n}" for n in range(400)]
    assert len(await redis.client_list()) <= CONNECTIONS
    await redis.aclose()


async def test_who_finds_no_connection_in_time_is_told(private: PrivateRedis) -> None:
    redis = connect(private.url, timeout=0.2, connections=1)
    held = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    with pytest.raises(Fault, match="Redis: No connection available"):
        await RedisStore(redis, Keys("t")).load("api")
    await redis.connection_pool.release(held)
    assert (await RedisStore(redis, Keys("t")).load("api"))[1] == 0
    await redis.aclose()


@pytest.mark.parametrize(
    "call",
    [lambda redis: redis.get("x"), lambda redis: redis.pipeline().get("x").execute()],
    ids=["a call", "a pipeline"],
)
async def test_a_redis_that_hangs_is_away_after_the_deadline_of_a_call(
    private: PrivateRedis, call: Callable[[Client], Awaitable[Any]]
) -> None:
    redis = connect(private.url, timeout=0.3)
    await redis.ping()
    (pid,) = {int(found["process_id"]) for found in [await redis.info("server")]}
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(RedisError, match=r"no answer within 0\.3 s"):
            await call(redis)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await redis.get("x") is None, "on a connection that has nothing of the call before"
    await redis.aclose()


async def test_the_lease_is_renewed_while_hundreds_of_conductors_load(
    private: PrivateRedis, tmp_path: Path
) -> None:
    redis = connect(private.url, timeout=60.0)
    store = RedisStore(redis, Keys("t"), 1)

    async def read() -> None:
        await redis.xread({"t:none": "$"}, block=50_000)

    reading = [asyncio.create_task(read(), name="reader") for _ in range(CONNECTIONS)]  # not one is left
    lease = Lease(redis.apart(), Keys("t"), tmp_path, ttl=1.5)
    await lease.acquire()
    keeping = asyncio.create_task(lease.keep(lambda: None), name="keep")
    loads = [asyncio.create_task(store.load(f"s{n}"), name="load") for n in range(400)]
    renewed = {lease._renewed}
    async with asyncio.timeout(40):
        while len(renewed) < 3:
            await asyncio.sleep(0.05)
            renewed.add(lease._renewed)
    assert not any(load.done() for load in loads)
    for task in (keeping, *reading):
        task.cancel()
    await asyncio.gather(keeping, *reading, return_exceptions=True)
    assert len(await asyncio.gather(*loads)) == 400
    await lease.release()
    await redis.aclose()


@pytest.mark.parametrize("what", ["one call", "several calls at once"])
async def test_calls_that_are_cancelled_end_and_leave_their_connections_to_others(
    private: PrivateRedis, what: str
) -> None:
    redis = connect(private.url, timeout=2.0, connections=4)
    store, board = RedisStore(redis, Keys("t")), RedisBoard(redis, Keys("t"), 60.0)

    async def call_for_ever() -> None:
        while True:
            await (store.load("api") if what == "one call" else board.report("a", {"api": "text"}))

    chance = random.Random(7)
    for _ in range(60):
        tasks = [asyncio.create_task(call_for_ever(), name="call") for _ in range(12)]
        await asyncio.sleep(chance.uniform(0, 0.01))
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(2.0):
            await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(store.load(f"s{n}") for n in range(40)))
    await redis.aclose()


async def test_a_key_is_for_one_request(private_kit: Any) -> None:
    store = RedisStore(private_kit, Keys("t"))
    asked = {"service": "api", "image": "repo/api:1", "key": "build 7", "who": "ci"}
    await store.push(asked)
    await store.push({**asked, "who": "ann", "verb": "release"})
    with pytest.raises(Conflict, match="use a new key"):
        await store.push({**asked, "image": "repo/api:2"})
    await store.push({**asked, "service": "web"})
    assert await private_kit.xlen("t:requests") == 3


async def test_a_server_that_is_gone_is_away_for_every_call(tmp_path: Path) -> None:
    """Nobody knows whether what was asked is done; a server that refuses has not done it."""
    redis = connect(f"unix://{tmp_path}/none.sock")
    store, board = RedisStore(redis, Keys("t")), RedisBoard(redis, Keys("t"), 60.0)
    told = RequestRefused(service="api", at=1.0, verb="release", actor="ci", request="1-0", reason="")
    for call in (
        store.load("api"),
        store.commit(ServiceState(service="api"), 0, ()),
        store.refuse("1-0", {}, told),
        store.answer("1-0", told),
        store.push({"a": "b"}),
        store.services(),
        store.last_event_id(),
        store.waiting(),
        board.want("api", "text"),
        board.news("0"),
        board.report("a", {}),
        board.reports(),
        board.known(),
        board.forget("a"),
        RedisTokens(redis, Keys("t")).tokens(),
        check_settings(redis),
    ):
        with pytest.raises(Away, match=r"^Redis: "):
            await call
    await redis.aclose()


async def test_a_server_that_refuses_a_write_is_not_away(private_kit: Any) -> None:
    await private_kit.set(Keys("t").lease, 1)
    await private_kit.config_set("maxmemory", "1")
    with pytest.raises(Fault, match=r"^Redis: command not allowed when used memory") as refused:
        await RedisStore(private_kit, Keys("t"), 1).commit(ServiceState(service="api"), 0, ())
    assert not isinstance(refused.value, Away)
    await private_kit.config_set("maxmemory", "0")


async def test_redis_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Fault, match="apt-get install redis-server"):
        await PrivateRedis(tmp_path).start()


async def test_whether_a_daemon_drives_is_told_by_the_lease(private_kit: Any) -> None:
    store = RedisStore(private_kit, Keys("t"))
    assert not await store.driven()
    await private_kit.set(Keys("t").lease, 1)
    assert await store.driven()
