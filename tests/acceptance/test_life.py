"""A service's life between its releases, on real parts: changed, restarted."""

import os
import signal

import yaml

from examples.playground.load import Load
from orchestrator.rollout.model import Outcome
from tests.conftest import Images, Stacks


async def test_a_restart_brings_todays_file_through_the_ladder(stack: Stacks, images: Images) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    before = await s.state()
    assert before.stable is not None
    container = yaml.safe_load((s.root / "services" / "api.yaml").read_text())["container"]
    s.change("api", container={**container, "instances": 3, "env": {"COLOUR": "green"}})
    _, text = await s.cli("status", "api")
    assert "stable differs from its file: instances, env" in text
    assert s.daemon is not None
    os.kill(s.daemon.pid, signal.SIGHUP)
    async with Load(s.url("api"), 100) as load:
        code, text = await s.cli("restart", "api", "--wait", "--who", "ann")
        assert code == 0, text
        assert "configuration changed: instances, env" in text
    assert load.seen.failed == 0, load.seen
    state = await s.state()
    assert state.stable is not None
    assert (state.stable.id, state.stable.digest) == ("api-2", before.stable.digest)
    assert (state.history[-1].outcome, state.stable.author) == (Outcome.PROMOTED, "ann")
    _, text = await s.cli("status", "api")
    assert "differs" not in text
    mine = [c for c in s.containers() if c.labels["io.release-orchestrator.release"] == "api-2"]
    assert len(mine) == 3
    assert all("COLOUR=green" in c.attrs["Config"]["Env"] for c in mine)


async def test_a_release_of_the_image_that_stable_runs_says_that_nothing_changes(
    stack: Stacks, images: Images
) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100):
        code, text = await s.cli("release", "api", images("v1"), "--wait")
    assert code == 0, text
    assert "it is the image that stable runs; nothing changes" in text
