"""What pipelines run, against the door; a test carries out what is asked as a daemon would."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest
import yaml

from orchestrator.rollout.command import Abort
from orchestrator.rollout.events import RequestRefused
from tests.builders import submit
from tests.door.conftest import House

CI = Path(__file__).parents[2] / "examples" / "ci"
IMAGE = "repo/api:1"


class Job:
    """A step of a pipeline that runs beside the test."""

    def __init__(self, house: House, *words: str, **env: str) -> None:
        self._house, self._words, self._env = house, words, env

    async def __aenter__(self) -> Self:
        secret = await self._house.secret("submitter")
        known = {
            "PATH": os.environ["PATH"],
            "ORCHESTRATOR_URL": self._house.url,
            "ORCHESTRATOR_TOKEN": secret,
        }
        self.process = await asyncio.create_subprocess_exec(
            *self._words,
            env={**known, **self._env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it has started
            await self.process.wait()

    async def asked(self) -> str:
        """The id of the request, once it is there."""
        async with asyncio.timeout(10):
            while not (found := await self._house.redis.xrange(self._house.keys.requests)):
                await asyncio.sleep(0.05)
        return str(found[-1][0])

    async def ended(self) -> tuple[int, str]:
        """Exit code and output."""
        said, _ = await asyncio.wait_for(self.process.communicate(), 20)
        return self.process.returncode or 0, said.decode()


def shell(house: House, **env: str) -> Job:
    words = (str(CI / "release.sh"), "api", IMAGE, "build-1", 'a "quoted" reason', "https://ci/1")
    return Job(house, *words, WHO="ann", **env)


async def test_the_script_pushes_waits_and_tells_the_outcome(house: House) -> None:
    async with shell(house) as job:
        entry = await job.asked()
        (asked,) = await house.asked()
        assert (asked["image"], asked["key"], asked["who"]) == (IMAGE, "build-1", "ann via the submitter")
        assert asked["why"] == 'a "quoted" reason'
        await house.commit(submit(1, request=entry))
        await asyncio.sleep(0.5)
        await house.commit(submit(2, request="2-0"))
        code, said = await job.ended()
    assert code == 12, said
    assert "api-1: superseded by ci: superseded by api-2" in said
    assert "rot_" not in said


async def test_the_script_tells_why_it_was_refused(house: House) -> None:
    async with shell(house) as job:
        entry = await job.asked()
        event = RequestRefused(
            service="api", at=1.0, verb="release", actor="ci", request=entry, reason="image: no"
        )
        state, _ = await house.store.load("api")
        await house.put(state, event)
        assert await job.ended() == (10, "refused: image: no\n")
    async with shell(house, ORCHESTRATOR_TOKEN="rot_x") as job:
        code, said = await job.ended()
    assert code == 10
    assert "not known" in said


async def test_the_token_is_in_no_command_line(house: House) -> None:
    async with shell(house) as job:
        seen = ""
        async with asyncio.timeout(10):
            while "/v1/requests" not in seen:
                seen = _command_lines(job.process.pid)
                await asyncio.sleep(0.05)
        assert "rot_" not in seen


def _command_lines(parent: int) -> str:
    """Of the processes that a process has started."""
    found = ""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{child}/cmdline").read_text() + _command_lines(int(child))
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """GitHub's expressions with their values; one that is not given is empty."""
    return re.sub(r"\${{ *([^} ]+) *}}", lambda m: values.get(m[1], ""), text)


async def test_the_github_action_fails_the_job_with_the_reason(house: House, tmp_path: Path) -> None:
    action = yaml.safe_load((CI / "github-action" / "action.yml").read_text())
    (step,) = action["runs"]["steps"]
    assert "${{" not in step["run"]
    shutil.copy(CI / "release.sh", tmp_path)
    secret = await house.secret("submitter")
    values = {
        "inputs.url": house.url,
        "inputs.token": secret,
        "inputs.timeout": "60",
        "inputs.service": "api",
        "inputs.image": IMAGE,
        "inputs.reason": "$(touch /tmp/injected) `id`",
        "github.actor": "ann",
        "github.run_id": "7",
        "github.server_url": "https://github.example.com",
        "github.repository": "team/api",
        "github.action_path": str(tmp_path),
    }
    env = {name: filled(str(value), values) for name, value in step["env"].items()}
    (tmp_path / "step.sh").write_text(f"cd {tmp_path}\n{step['run']}")
    words = ("bash", "--noprofile", "--norc", "-eo", "pipefail", str(tmp_path / "step.sh"))
    async with Job(house, *words, **env, GITHUB_STEP_SUMMARY=str(tmp_path / "summary")) as job:
        entry = await job.asked()
        await house.commit(submit(1, request=entry))
        await asyncio.sleep(0.3)
        await house.commit(Abort(request="2-0", actor="bob", reason="no, wait", release="api-1"))
        code, said = await job.ended()
    assert code == 13, said
    assert "::error title=api was not released::api-1: aborted by bob: no, wait" in said
    assert "aborted by bob" in (tmp_path / "summary").read_text()
    assert (await house.asked())[0]["why"] == "$(touch /tmp/injected) `id`"


@pytest.mark.parametrize("name", ["gitlab.yml", "Jenkinsfile"])
def test_the_other_templates_call_the_script_with_all_that_it_takes(name: str) -> None:
    text = (CI / name).read_text()
    assert re.search(r'ci/release\.sh "\$SERVICE" "\$IMAGE"\s+"[a-z]+-\$', text)
    if name.endswith(".yml"):
        assert yaml.safe_load(text)[".release-behind-nginx"]["script"]
