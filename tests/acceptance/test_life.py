"""A service's life between its releases, on real parts: changed, restarted, taken down."""

import os
import signal
import socket

import pytest
import yaml

from examples.playground.load import Load
from orchestrator.cli import exits
from orchestrator.rollout.events import ConfigReloaded, ServiceRemoved
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


@pytest.mark.parametrize("killed", [False, True])
async def test_a_removed_service_leaves_nothing_and_its_next_release_begins_anew(
    stack: Stacks, images: Images, killed: bool
) -> None:
    s = await stack(deadlines={"drain": "2s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    code, text = await s.cli("remove", "api")
    assert code == 0, text
    assert "would stop    api-1-0" in text
    assert f"would remove  {s.root}/edge/api.conf" in text
    assert (await s.state()).removal is None
    if killed:
        await s.push("api", verb="remove", who="ann")

        async def begun() -> bool:
            return (await s.state()).removal is not None

        await s.until(begun, 10, "the removal has begun")
        await s.stop_daemon(signal.SIGKILL)
        await s.start_daemon()
    else:
        code, text = await s.cli("remove", "api", "--yes", "--wait", "--who", "ann")
        assert code == 0, text
        assert "removed by ann" in text

    async def removed() -> bool:
        return any(isinstance(e, ServiceRemoved) for e in await s.events())

    await s.until(removed, 40, "nothing is left of it")
    assert s.containers() == []
    assert list((s.root / "edge").rglob("*api*")) == [s.root / "edge" / "api.gone"]  # its tombstone
    with socket.socket() as port:
        assert port.connect_ex(("127.0.0.1", s.ports["api"])) != 0, "nginx serves it yet"
    code, text = await s.cli("remove", "api", "--yes")
    assert code == exits.REFUSED
    assert "was removed already, by ann" in text
    file = s.root / "services" / "api.yaml"
    kept = file.read_text()
    file.unlink()
    assert "api" not in (await s.cli("status"))[1]
    file.write_text(kept)
    await s.push("api", images("v2"))
    assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
    assert (await s.state()).route.share("api-2") == 1


async def test_a_reload_tells_what_changes_and_what_is_wrong(stack: Stacks) -> None:
    s = await stack(observe=False)
    s.change("api", keep_images=9)
    code, text = await s.cli("reload", "--who", "ann")
    assert (code, text.strip()) == (0, "api: keep_images with the next release")
    code, text = await s.cli("reload")
    assert (code, text.strip()) == (0, "nothing changes")
    file = s.root / "services" / "api.yaml"
    file.write_text(file.read_text() + "\nnonsense: 1\n")
    code, text = await s.cli("reload")
    assert code == exits.USAGE
    assert f"{file}: unknown key `nonsense`" in text
    s.write_config()
    told = [e for e in await s.events() if isinstance(e, ConfigReloaded)]
    assert [bool(e.problems) for e in told] == [False, False, True]
    assert told[0].actor == "ann"
    assert await s.store.waiting() == 0
