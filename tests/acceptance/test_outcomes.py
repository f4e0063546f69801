"""Every outcome of a release, on the whole daemon with real Redis, Docker, Gin, nginx and Prometheus."""

import asyncio
import json

from examples.playground.load import Load
from examples.playground.service import service_file
from orchestrator.rollout.events import InstanceDied, ReleaseEnded, ReleaseRetired
from orchestrator.rollout.model import Outcome
from tests.conftest import Images, Stacks

LADDER = {
    "steps": [5, 15, 40, 100],
    "first_hold": "3s",
    "hold": "2s",
    "bake": "2s",
    "min_requests": 5,
    "step_deadline": "25s",
}


async def test_a_good_release_is_promoted_and_loses_no_request(stack: Stacks, images: Images) -> None:
    s = await stack(strategy=LADDER, keep_previous="3s")
    await s.push("api", images("v1"))
    assert (await s.ended("api-1")).outcome is Outcome.PROMOTED
    async with Load(s.url("api"), 120) as load:
        await s.push("api", images("v2"))
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED

        async def retired() -> bool:
            return any(isinstance(e, ReleaseRetired) for e in await s.events())

        await s.until(retired, 20, "the previous release has retired")

        async def gone() -> bool:
            return {c.labels["io.release-orchestrator.release"] for c in s.containers()} == {"api-2"}

        await s.until(gone, 20, "its containers are gone")
    assert load.seen.failed == 0, load.seen
    assert load.seen.good["api-2"] > 0
    code, text = await s.cli("status")
    assert code == 0
    assert "api-2" in text
    code, text = await s.cli("history", "api", "--output", "json")
    assert [(r["release"], r["outcome"]) for r in json.loads(text)] == [
        ("api-2", "promoted"),
        ("api-1", "promoted"),
    ]


async def test_errors_roll_back_and_most_users_never_see_them(stack: Stacks, images: Images) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 120) as load:
        await s.push("api", images("v3", FAIL_RATE="0.3"), why="build 3")
        ended = await s.ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "error_rate" in ended.reason
    assert "limit 2.00 %" in ended.reason
    assert load.seen.errors["api-1"] == 0
    assert load.seen.lost + load.seen.bad_gateway == 0
    event = next(e for e in await s.events() if isinstance(e, ReleaseEnded) and e.release == "api-2")
    assert event.verdict is not None
    assert event.verdict.samples >= 10
    story = [line for line in s.lines() if line.get("release") == "api-2"]
    assert {"release_accepted", "phase_entered", "route_changed", "gate_judged", "release_ended"} <= {
        line["event"] for line in story
    }
    last = next(line for line in story if line["event"] == "release_ended")
    assert {"gate", "value", "limit", "baseline", "samples", "reason", "outcome"} <= last.keys()


async def test_a_slow_tail_rolls_back(stack: Stacks, images: Images) -> None:
    s = await stack(gates=service_file("api", 0)["gates"])
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 120):
        await s.push("api", images("v4", SLOW_RATE="0.1", SLOW_BY="400ms"))
        ended = await s.ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.reason.startswith("p99")


async def test_a_death_under_traffic_rolls_back_with_the_last_words(stack: Stacks, images: Images) -> None:
    s = await stack(strategy={**LADDER, "first_hold": "15s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 120) as load:
        await s.push("api", images("v5", DIE_AFTER="3s"))
        ended = await s.ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "died: exit code 3" in ended.reason
    event = next(e for e in await s.events() if isinstance(e, ReleaseEnded) and e.release == "api-2")
    assert "planned death" in event.logs
    assert load.seen.failed == 0, load.seen


async def test_starts_that_fail_never_get_traffic(stack: Stacks, images: Images) -> None:
    s = await stack(deadlines={"start": "6s", "drain": "2s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    await s.push("api", images("bad", FAIL_RATE="many"))
    exits = await s.ended("api-2")
    assert exits.outcome is Outcome.FAILED
    assert "exited with code 1 while starting" in exits.reason
    event = next(e for e in await s.events() if isinstance(e, ReleaseEnded) and e.release == "api-2")
    assert "is not a share from 0 to 1" in event.logs
    code, text = await s.cli("explain", "api-2")
    assert (code, "is not a share from 0 to 1" in text) == (0, True), text
    assert "no gate was looked at: it had no traffic" in text
    await s.push("api", images("unready", UNREADY="yes"))
    unready = await s.ended("api-3")
    assert "0 of 2 instances were ready" in unready.reason
    assert "/health answers 503" in unready.reason
    await s.push("api", "gin-api:no-such-tag")
    missing = await s.ended("api-4")
    assert missing.outcome is Outcome.FAILED
    assert "image gin-api:no-such-tag" in missing.reason

    async def clean() -> bool:
        return {c.labels["io.release-orchestrator.release"] for c in s.containers()} == {"api-1"}

    await s.until(clean, 20, "what failed to start is gone")


async def test_without_prometheus_nothing_advances_until_it_is_back(stack: Stacks, images: Images) -> None:
    s = await stack(no_data={"after": "4s", "do": "rollback"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 50):
        await s.push("api", images("v2"))

        async def shifting() -> bool:
            return (await s.state()).route.share("api-2") > 0

        await s.until(shifting, 30, "the candidate has traffic")
        s.stop_prometheus()

        async def held() -> bool:
            rollout = (await s.state()).rollout
            return rollout is not None and rollout.blind_since is not None

        await s.until(held, 30, "it is seen that Prometheus is away")
        step = (await s.state()).rollout
        await asyncio.sleep(8)
        rollout = (await s.state()).rollout
        assert step is not None
        assert rollout is not None
        assert (rollout.phase, rollout.step) == (step.phase, step.step)
        s.start_prometheus()
        ended = await s.ended("api-2")
    assert ended.outcome is Outcome.PROMOTED


async def test_prometheus_that_does_not_come_back_ends_a_release(stack: Stacks, images: Images) -> None:
    s = await stack(deadlines={"start": "15s", "pause": "6s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    s.stop_prometheus()
    await s.push("api", images("v2"))
    ended = await s.ended("api-2")
    assert ended.outcome is Outcome.FAILED
    assert ended.reason.startswith("Prometheus did not answer for ")


async def test_a_newer_release_supersedes_and_others_queue_or_are_rejected(
    stack: Stacks, images: Images
) -> None:
    s = await stack(strategy={**LADDER, "first_hold": "20s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")

    async def shifting() -> bool:
        return (await s.state()).route.share("api-2") > 0

    async with Load(s.url("api"), 50) as load:
        await s.push("api", images("v2"))
        await s.until(shifting, 30, "api-2 has traffic")
        await s.push("api", images("v3"))
        assert (await s.ended("api-2")).outcome is Outcome.SUPERSEDED
        code, text = await s.cli("abort", "api")
        assert code == 0, text
        assert (await s.ended("api-3")).outcome is Outcome.ABORTED
    assert load.seen.failed == 0, load.seen


async def test_a_killed_stable_instance_is_started_again_and_users_do_not_notice(
    stack: Stacks, images: Images
) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        victim = next(c for c in s.containers() if c.labels["io.release-orchestrator.instance"] == "api-1-0")
        victim.kill()

        async def back() -> bool:
            state = await s.state()
            ids = {x.container for x in state.route.servers}
            return len(ids) == 2 and victim.id not in ids and state.confirmed == state.route.generation

        await s.until(back, 30, "both instances have traffic again")
    died = [e for e in await s.events() if isinstance(e, InstanceDied)]
    assert [e.instance for e in died] == ["api-1-0"]
    assert load.seen.failed == 0, load.seen


async def test_blue_green_with_a_preview_switches_at_once(stack: Stacks, images: Images) -> None:
    s = await stack(strategy={"kind": "blue-green", "bake": "3s", "preview": {"hold": "1s", "approve": True}})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))

        async def waiting() -> bool:
            state = await s.state()
            return bool(
                state.rollout and state.rollout.mark and state.rollout.mark.kind == "awaiting_approval"
            )

        await s.until(waiting, 40, "the preview waits for approval")
        assert "upstream api_preview" in (s.root / "edge" / "api.conf").read_text()
        assert load.seen.good["api-2"] == 0
        code, text = await s.cli("approve", "api", "--who", "ann")
        assert code == 0, text
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
    assert load.seen.failed == 0, load.seen
    weights = [line["weight"] for line in s.lines() if line["event"] == "phase_entered" and line["weight"]]
    assert weights == [100, 100]
