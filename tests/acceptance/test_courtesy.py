"""Work that no release waits for, in a whole daemon."""

from pathlib import Path

import aiohttp
import pytest

from examples.playground.load import Load
from examples.playground.stack import Stack
from tests.acceptance.broken import TASKS
from tests.conftest import Images, Stacks


async def test_a_bug_in_all_that_no_release_waits_for_holds_no_release(
    stack: Stacks, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stack, "module", "tests.acceptance.broken")
    (tmp_path / "token").write_text("s3cret")
    jira = {"url": "http://127.0.0.1:9", "project": "OPS", "token_file": str(tmp_path / "token")}
    s = await stack(settings={"notify": [{"name": "issues", "jira": jira}]})
    await s.push("api", images("v1"))
    assert (await s.ended("api-1")).outcome == "promoted"
    async with Load(s.url("api"), 50) as load:
        await s.push("api", images("v2"))
        assert (await s.ended("api-2")).outcome == "promoted"
    assert load.seen.failed == 0, load.seen
    wanted = {f'orchestrator_task_failures_total{{task="{task}"}}' for task in TASKS}
    wanted.add('orchestrator_notifications_dropped_total{channel="issues"}')

    async def counted() -> bool:
        async with aiohttp.ClientSession() as session, session.get(s.api("/metrics")) as answer:
            text = await answer.text()
        return all(name in text for name in wanted)

    await s.until(counted, 60, "every bug was counted")
    assert s.daemon is not None
    assert s.daemon.returncode is None
    log = s.log.read_text()
    assert "ZeroDivisionError: a bug" in log
    assert "it returned, which it must never do" in log
