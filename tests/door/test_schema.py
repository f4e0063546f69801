"""schemathesis against the OpenAPI document, all its checks."""

import asyncio
import sys
from pathlib import Path

import pytest

from orchestrator.intake import answers
from tests.builders import submit
from tests.door.conftest import House


async def test_every_operation_answers_as_its_document_says(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The endless one is left out: a reader of it would wait for its end. It is tested in test_api.py."""
    monkeypatch.setattr(answers, "LONGEST_WAIT", 0.05)
    await house.commit(submit(1))
    secret = await house.secret("admin")
    words = ["run", f"{house.url}/openapi.json", "-H", f"Authorization: Bearer {secret}", "--checks", "all"]
    words += ["--max-examples", "15", "--exclude-path", "/v1/events", "--no-color"]
    st = Path(sys.executable).with_name("st")
    process = await asyncio.create_subprocess_exec(
        str(st), *words, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 170)
    assert process.returncode == 0, said.decode()[-4000:]
    assert b"Tested: 21" in said
