"""A running daemon and a file that goes wrong."""

import os
import signal

import aiohttp

from examples.playground.stack import Stack
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
