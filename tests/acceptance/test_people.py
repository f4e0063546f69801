"""What people and CI do: the command line, bare Redis, going back, pausing, freezing."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from examples.playground.load import Load
from examples.playground.stack import Stack
from orchestrator.cli import exits
from orchestrator.cli.app import app
from orchestrator.rollout.model import Outcome
from orchestrator.store.server import private_socket
from tests.conftest import QUICK, Images, Stacks


async def test_rolling_back_a_promoted_release(stack: Stacks, images: Images) -> None:
    """Warm: one flip. Gone: deployed again on the fast path. And back again."""
    s = await stack(keep_previous="10s", deadlines={"drain": "2s"})  # a command may need seconds to start
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await s.ended("api-2")
        started = {c.id for c in s.containers()}
        code, text = await s.cli(
            "rollback", "api", "--wait", "--who", "ann", "--reason", "checkout is broken"
        )
        assert code == 0, text
        state = await s.state()
        assert state.stable is not None
        assert state.stable.id == "api-1"
        assert {c.id for c in s.containers()} == started

        async def cold() -> bool:
            return {c.labels["io.release-orchestrator.release"] for c in s.containers()} == {"api-1"}

        await s.until(cold, 60, "the other release has gone")
        code, text = await s.cli("rollback", "api", "--wait")
        assert (code, "rolled back from api-2" in text) == (exits.REFUSED, True), text
        code, text = await s.cli("rollback", "api", "--to", "api-2", "--wait")
        assert code == 0, text
        state = await s.state()
        assert state.stable is not None
        assert state.stable.id == "api-2"
    assert load.seen.failed == 0, load.seen
    reverts = [e for e in state.history if e.kind == "revert"]
    assert next((e.release.id, e.actor, e.outcome) for e in reverts) == ("api-1", "ann", Outcome.PROMOTED)


async def test_pause_resume_and_rollback_of_a_running_rollout(stack: Stacks, images: Images) -> None:
    slow = {**QUICK["strategy"], "bake": "40s"}  # a command takes seconds to start on a busy machine
    s = await stack(strategy=slow)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100):
        await s.push("api", images("v2"))

        async def shifting() -> bool:
            return (await s.state()).route.share("api-2") > 0

        await s.until(shifting, 30, "the candidate has traffic")
        assert (await s.cli("pause", "api", "--reason", "lunch"))[0] == 0
        await s.until(lambda: _still(s), 12, "it stands still")
        code, text = await s.cli("pause", "api")
        assert code == exits.REFUSED
        assert "already paused" in text
        assert (await s.cli("resume", "api"))[0] == 0
        code, text = await s.cli("rollback", "api", "--wait", "--who", "ann")
        assert code == exits.OK, text
    ended = await s.ended("api-2")
    assert (ended.outcome, ended.actor) == (Outcome.ROLLED_BACK, "ann")


async def _still(s: Stack) -> bool:
    before = (await s.state()).rollout
    await asyncio.sleep(5)
    after = (await s.state()).rollout
    return bool(before and after and before.mark and after.mark and before.step == after.step)


async def test_a_frozen_service_queues(stack: Stacks, images: Images) -> None:
    s = await stack()
    assert (await s.cli("freeze", "api", "--reason", "holidays"))[0] == 0
    await s.push("api", images("v1"))

    async def queued() -> bool:
        return [r.id for r in (await s.state()).queue] == ["api-1"]

    await s.until(queued, 10, "it is queued")
    _, text = await s.cli("status")
    assert "frozen by" in text
    assert "holidays" in text
    assert (await s.cli("unfreeze", "api"))[0] == 0
    assert (await s.ended("api-1")).outcome is Outcome.PROMOTED


async def test_release_wait_tells_the_outcome_by_its_exit_code(stack: Stacks, images: Images) -> None:
    lasting = {**QUICK["strategy"], "first_hold": "120s", "step_deadline": "150s"}  # until it is aborted
    s = await stack(on_new_release="reject", strategy=lasting)
    code, text = await s.cli("release", "api", images("v1"), "--wait", "--key", "build-1")
    assert code == 0, text
    assert "promoted" in text
    code, text = await s.cli("release", "api", images("v1"), "--wait", "--key", "build-1")
    assert code == 0, text
    assert (await s.state()).released == 1
    code, text = await s.cli("release", "api", images("bad", FAIL_RATE="many"), "--wait", "--output", "json")
    assert code == exits.OUTCOMES[Outcome.FAILED], text
    assert json.loads(text.splitlines()[-1])["outcome"] == "failed"
    code, text = await s.cli("release", "api", "evil/api:1", "--wait")
    assert code == exits.REFUSED
    assert "is not allowed for api; allowed: gin-api" in text
    code, text = await s.cli("release", "nope", images("v1"))
    assert code == exits.REFUSED
    assert "there are: api" in text
    code, text = await s.cli("release", "api", images("v2"), "--wait", "--timeout", "2s")
    assert code == exits.TIMED_OUT, text
    code, text = await s.cli("release", "api", images("v3"), "--wait")
    assert code == exits.OUTCOMES[Outcome.REJECTED], text
    code, text = await s.cli("abort", "api")
    assert code == 0, text


async def test_release_wait_goes_on_through_a_restart_of_the_daemon_and_its_redis(
    stack: Stacks, images: Images
) -> None:
    s = await stack(strategy={**QUICK["strategy"], "bake": "15s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100):
        waiting = asyncio.create_task(s.cli("release", "api", images("v2"), "--wait", deadline=120.0))

        async def shifting() -> bool:
            return (await s.state()).route.share("api-2") > 0

        await s.until(shifting, 60, "the candidate has traffic")
        await s.stop_daemon()
        await s.start_daemon()
        code, text = await waiting
    assert code == exits.OK, text
    assert "Redis answers again" in text
    assert text.count("accepted gin-api") == 1


async def test_bare_redis_cli_pushes_and_bad_input_goes_to_the_dead_letters(
    stack: Stacks, images: Images
) -> None:
    s = await stack()
    socket = str(private_socket(s.root / "state"))

    def xadd(*fields: str) -> str:
        command = ["redis-cli", "-s", socket, "XADD", "orchestrator:requests", "*", *fields]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    bad = [
        xadd("nonsense", "1"),
        xadd("service", "api", "image", "x;}server{listen 1;"),
        xadd("service", "nope", "image", "gin-api:1"),
        xadd("service", "api", "image", "gin-api:1", "why", "x" * 100_000),
        xadd("service", "api", "image", "gin-api:1", "privileged", "true"),
    ]
    raw = ["redis-cli", "-s", socket, "-x", "XADD", "orchestrator:requests", "*", "service"]
    subprocess.run(raw, input=b"\xff\xfe\x00", check=True, capture_output=True, timeout=10)
    xadd("service", "api", "image", images("v1"), "who", "ci", "why", "build 17")
    assert (await s.ended("api-1")).outcome is Outcome.PROMOTED
    dead = await s.redis.xrange("orchestrator:dead")
    reasons = {fields["entry"]: fields["error"] for _, fields in dead}
    assert len(dead) == 6
    assert all(reasons[entry] for entry in bad)
    assert "is not known; there are: api" in reasons[bad[2]]
    assert "privileged" in reasons[bad[4]]
    assert await s.store.waiting() == 0


async def test_doctor_and_config_check(stack: Stacks) -> None:
    s = await stack(observe=False)
    code, text = await s.cli("config", "check")
    assert code == 0
    assert "1 services (api)" in text

    async def healthy() -> bool:
        return (await s.cli("doctor"))[0] == 0

    await s.until(healthy, 30, "the doctor finds nothing")
    s.stop_prometheus()
    code, text = await s.cli("doctor", "--output", "json")
    assert code == 1
    found = {row["check"]: row for row in json.loads(text)}
    assert not found["prometheus"]["ok"]
    assert found["prometheus"]["mend"]


async def test_watch_in_a_pipe_is_one_json_line_an_event(stack: Stacks, images: Images) -> None:
    s = await stack()
    watching = asyncio.create_task(s.cli("watch", "--output", "json", deadline=8.0), name="watch")
    await asyncio.sleep(2.0)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    with pytest.raises(TimeoutError):
        await watching


def test_init_writes_examples_and_never_over_them(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    first = CliRunner().invoke(app, ["init", str(folder)])
    assert first.exit_code == 0
    (folder / "orchestrator.yaml").write_text("# mine\n")
    second = CliRunner().invoke(app, ["init", str(folder)])
    assert second.exit_code == 0
    assert "kept" in second.output
    assert (folder / "orchestrator.yaml").read_text() == "# mine\n"
    checked = CliRunner().invoke(app, ["config", "schema"])
    assert json.loads(checked.output)["title"] == "ServiceFile"
