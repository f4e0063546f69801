"""Redis is gone, silent, or has forgotten everything: traffic stays, bad candidates still go back."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from examples.playground.load import Load
from examples.playground.redis import RedisServer
from examples.playground.stack import Stack
from orchestrator.rollout.events import ServiceAdopted, StateRestored
from orchestrator.rollout.model import Outcome
from orchestrator.traffic.render import read_header
from tests.conftest import Images, Stacks

LONG_HOLD = {"steps": [20, 100], "first_hold": "12s", "bake": "1s", "min_requests": 5, "step_deadline": "60s"}


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    await asyncio.sleep(0.5)
    yield server
    server.signal(signal.SIGCONT)
    server.kill()


async def _shifting(s: Stack, release: str) -> None:
    async def look() -> bool:
        state = await s.state()
        return bool(state.rollout and state.rollout.held_since and state.route.share(release) > 0)

    await s.until(look, 30, f"{release} holds traffic")


def _weighted(s: Stack) -> set[str]:
    header = read_header((s.root / "edge" / "api.conf").read_text())
    assert header is not None
    assert header.on_disk is not None
    return {x.release for x in header.on_disk.route.servers if not x.backup}


@pytest.mark.parametrize("how", ["silent", "dead"])
async def test_rolling_back_on_the_host_without_redis(
    redis_server: RedisServer, stack: Stacks, images: Images, how: str
) -> None:
    s = await stack({"redis": {"url": redis_server.url, "lease_ttl": "4s"}}, strategy=LONG_HOLD)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        if how == "dead":
            redis_server.kill()
        else:
            redis_server.signal(signal.SIGSTOP)
        code, text = await s.cli("rollback", "api")
        assert code == 1
        assert "--local" in text
        code, text = await s.cli("rollback", "api", "--local", "--who", "ann", "--reason", "it burns")
        assert code == 0, text
        assert "nginx sends all traffic to api-1" in text
        assert _weighted(s) == {"api-1"}
        code, text = await s.cli("rollback", "api", "--local", "--who", "bob")
        assert code == 0, text
        assert "ann has gone back to api-1 already: it burns" in " ".join(text.split())
        before = load.seen.good["api-2"]
        await asyncio.sleep(3)
        assert load.seen.good["api-2"] == before
        if how == "dead":
            redis_server.start()
        else:
            redis_server.signal(signal.SIGCONT)
        ended = await s.ended("api-2")
    assert (ended.outcome, ended.actor, ended.reason) == (Outcome.ROLLED_BACK, "ann", "it burns")
    assert load.seen.failed == 0, load.seen


async def test_a_candidate_that_dies_without_redis_loses_its_traffic(
    redis_server: RedisServer, stack: Stacks, images: Images
) -> None:
    s = await stack({"redis": {"url": redis_server.url, "lease_ttl": "4s"}}, strategy=LONG_HOLD)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        redis_server.kill()
        await asyncio.sleep(1)
        for container in s.containers():
            if container.labels["io.release-orchestrator.release"] == "api-2":
                await asyncio.to_thread(container.kill)

        async def gone_back() -> bool:
            return _weighted(s) == {"api-1"}

        await s.until(gone_back, 6, "the traffic is taken back")
        redis_server.start()
        ended = await s.ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "died" in ended.reason
    assert load.seen.failed == 0, load.seen


async def test_redis_that_forgets_everything_is_told_again_what_was(stack: Stacks, images: Images) -> None:
    s = await stack({"redis": {"lease_ttl": "3s"}}, observe=False, strategy={**LONG_HOLD, "first_hold": "8s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        file = (s.root / "edge" / "api.conf").read_text()
        await s.redis.flushall()

        async def restored() -> bool:
            return any(isinstance(e, StateRestored) for e in await s.events())

        await s.until(restored, 10, "the state is restored")
        assert (s.root / "edge" / "api.conf").read_text() == file
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
        assert len((await s.state()).history) == 2
        await s.push("api", images("v1"))
        await s.ended("api-3")
    assert load.seen.failed == 0, load.seen


async def test_a_daemon_that_finds_redis_empty_takes_up_what_runs(stack: Stacks, images: Images) -> None:
    s = await stack(observe=False, strategy={**LONG_HOLD, "first_hold": "5s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        assert s.daemon is not None
        s.daemon.kill()
        await s.daemon.wait()
        shares = (await s.state()).route.servers
        await s.redis.flushall()
        started = {c.id for c in s.containers()}
        await s.start_daemon()

        async def adopted() -> bool:
            return any(isinstance(e, ServiceAdopted) for e in await s.events())

        await s.until(adopted, 10, "the service is taken up")
        state = await s.state()
        assert state.route.servers == shares
        assert state.rollout is not None
        assert state.rollout.release.id == "api-2"
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
        assert {c.id for c in s.containers()} == started
        await s.push("api", images("v1"))
        assert (await s.ended("api-3")).outcome is Outcome.PROMOTED
    assert load.seen.failed == 0, load.seen


async def test_a_daemon_that_slept_longer_than_its_lease_is_refused(
    redis_server: RedisServer, stack: Stacks, images: Images
) -> None:
    """Two daemons with state folders of their own, so that only the lease and the resources are shared."""
    settings = {"redis": {"url": redis_server.url, "lease_ttl": "3s"}}
    s = await stack(settings, strategy=LONG_HOLD)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    first = s.daemon
    assert first is not None
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        first.send_signal(signal.SIGSTOP)
        other = s.config_of_another()
        s.config.write_text(other.replace(str(s.root / "state"), str(s.root / "state2")))
        await s.launch()

        async def drives() -> bool:
            return len([x for x in s.lines() if x["event"] == "ready"]) == 2

        await s.until(drives, 15, "the second daemon drives")
        first.send_signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            assert await first.wait() == 75
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
    assert load.seen.failed == 0, load.seen
    assert any(x["event"] == "superseded" for x in s.lines())


@pytest.mark.parametrize("what", ["redis", "redis/redis.sock"])
async def test_a_private_redis_that_can_not_be_reached_any_more_is_started_anew_and_told_again_what_was(
    stack: Stacks, images: Images, what: str
) -> None:
    s = await stack(
        {"redis": {"lease_ttl": "3s"}}, observe=False, strategy={**LONG_HOLD, "first_hold": "60s"}
    )
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        place = s.root / "state" / what
        shutil.rmtree(place) if place.is_dir() else place.unlink()

        async def anew() -> bool:
            return [line["event"] for line in s.lines()].count("private_redis_started") == 2

        await s.until(anew, 30, "another server is started")
        code, text = await s.cli("rollback", "api", "--wait", "--timeout", "30s")
        assert code == 0, text
        assert _weighted(s) == {"api-1"}
    events = [line["event"] for line in s.lines()]
    assert "private_redis_unreachable" in events
    assert ("store_lost_commits" in events) == (what == "redis")
    assert load.seen.failed == 0, load.seen
    code, text = await s.cli("history", "api")
    assert "api-2" in text
