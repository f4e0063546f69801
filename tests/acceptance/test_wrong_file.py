"""A running daemon and a file that goes wrong."""

import os
import signal

import aiohttp

from examples.playground.stack import Stack
from orchestrator.rollout.model import Outcome
from tests.conftest import Images, Stacks


async def _seen(s: Stack) -> tuple[int, list[str], str]:
    """What the daemon says of its files: status and problems of /readyz, and its metrics."""
    async with aiohttp.ClientSession() as session:
        async with session.get(s.api("/readyz")) as answer:
            body = await answer.json()
        async with session.get(s.api("/metrics")) as answer:
            return 200 if body["status"] == "ready" else 503, body["problems"], await answer.text()


async def test_a_wrong_file_stops_its_own_service_alone_and_is_told_everywhere(
    stack: Stacks, images: Images
) -> None:
    s = await stack(observe=False)
    wrong = s.root / "services" / "web.yaml"
    wrong.write_text("service: web\noops: 1\n")
    await s.stop_daemon()
    await s.start_daemon()
    status, problems, metrics = await _seen(s)
    assert status == 200
    assert f"{wrong}: unknown key `oops`" in "\n".join(problems)
    assert f'orchestrator_config_problems{{file="{wrong}"}} 3.0' in metrics
    assert any(x["event"] == "service_not_driven" and x["service"] == "web" for x in s.lines())
    code, text = await s.cli("release", "web", "gin-api:v1")
    assert code == 10
    assert "service: 'web' is not driven: " in text
    assert str(wrong) in text

    right = (s.root / "services" / "api.yaml").read_text()
    (s.root / "services" / "api.yaml").write_text(right + "\nnonsense: 1\n")
    assert s.daemon is not None
    os.kill(s.daemon.pid, signal.SIGHUP)

    async def told() -> bool:
        return any(x["event"] == "service_file_kept" and x["service"] == "api" for x in s.lines())

    await s.until(told, 10, "the service is driven as before")
    code, text = await s.cli("release", "api", images("v1"), "--wait", "--timeout", "60s")
    assert code == 0
    assert "warning" in text
    assert "promoted" in text
    code, text = await s.cli("status")
    assert code == 0
    assert "api-1" in text

    (s.root / "services" / "api.yaml").write_text(right)
    wrong.write_text("service: web\nimages: [web]\ncontainer: {port: 80}\n")
    os.kill(s.daemon.pid, signal.SIGHUP)

    async def clean() -> bool:
        return (await _seen(s))[1] == []

    await s.until(clean, 10, "nothing is wrong")
    assert "orchestrator_config_problems{" not in (await _seen(s))[2]


async def test_a_service_whose_file_goes_away_in_a_rollout_is_driven_to_the_end(
    stack: Stacks, images: Images
) -> None:
    s = await stack(strategy={"first_hold": "300s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    await s.push("api", images("v2"))

    async def shifting() -> bool:
        rollout = (await s.state()).rollout
        return rollout is not None and rollout.held_since is not None

    await s.until(shifting, 60, "api-2 has traffic")
    file = s.root / "services" / "api.yaml"
    text = file.read_text()
    file.unlink()
    assert s.daemon is not None
    os.kill(s.daemon.pid, signal.SIGHUP)

    async def told() -> bool:
        return any(x["event"] == "service_file_gone" for x in s.lines())

    await s.until(told, 10, "the file is gone")
    code, words = await s.cli("release", "api", images("v3"))
    assert (code, "put it back, or run orchestrator remove api" in words) == (10, True)
    await s.stop_daemon()
    await s.start_daemon()  # which knows the service by the copy that it keeps
    code, words = await s.cli("rollback", "api", "--wait", "--timeout", "60s")
    assert code == 0, words
    state = await s.state()
    assert (state.rollout, state.history[-1].outcome) == (None, Outcome.ROLLED_BACK)
    file.write_text("service: api\nnonsense: 1\n")
    await s.stop_daemon()
    await s.start_daemon()
    code, words = await s.cli("release", "api", images("v3"))
    assert any(x["event"] == "service_file_kept" for x in s.lines())
    assert "accepted" in words
    file.write_text(text)
