"""Hooks on real programs and real HTTP."""

import asyncio
import hashlib
import hmac
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from examples.playground.lease import free_port
from orchestrator.hooks.runner import HookRunner
from orchestrator.rollout.hooks import HookCall, HookResult
from orchestrator.rollout.policy import Hook
from tests.builders import release


def program(*words: str, **more: Any) -> Hook:
    return Hook(
        name="h", at="preflight", kind="command", command=words, **{"retries": 0, "timeout": 5.0, **more}
    )


async def ask(hook: Hook, **changes: Any) -> HookResult:
    call = HookCall(key="api-7:preflight:-1:h", hook=hook, release=release(7, **changes))
    return await HookRunner().ask(call)


async def test_a_program_is_told_by_arguments_environment_and_input(tmp_path: Path) -> None:
    (tmp_path / "hook.sh").write_text('echo "$1 $RELEASE_PHASE $RELEASE_ID"; cat\n')
    result = await ask(program("sh", str(tmp_path / "hook.sh"), "{image}"), reason='"; touch /tmp/x #')
    assert result.passed
    line, _, body = result.text.partition("\n")
    assert line == "repo/api:7 preflight api-7:preflight:-1:h"
    told = json.loads(body)
    assert (told["service"], told["release"], told["digest"]) == ("api", "api-7", "sha256:7")
    assert told["reason"] == '"; touch /tmp/x #'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may go before others")
async def test_a_program_does_not_go_before_others_as_the_daemon_does() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    for own, its in ((-5, 0), (before, before)):
        os.setpriority(os.PRIO_PROCESS, 0, own)
        try:
            result = await ask(program("sh", "-c", "sleep 0.3; nice"))
        finally:
            os.setpriority(os.PRIO_PROCESS, 0, before)
        assert (result.passed, result.text) == (True, f"{its}")


async def test_what_is_filled_in_is_not_looked_at_again() -> None:
    result = await ask(
        program("printf", "%s|", "{reason}", "{author}", "{image}/{nothing}", "{{service}}", "{}"),
        reason="{digest} {author}",
        author="{reason}",
    )
    assert result.text == "{digest} {author}|{reason}|repo/api:7/{nothing}|{api}|{}|"


async def test_a_hook_that_cannot_even_be_asked_is_no_and_never_an_error() -> None:
    result = await ask(program("printf", "\0"))
    assert not result.passed
    assert result.text == "ValueError: embedded null byte"
    assert (await ask(program("printf", "\0", required=False))).passed
    assert not (await ask(program("printf", "{reason}"), reason="\ud800")).passed


async def test_its_exit_code_decides_and_its_last_words_are_kept() -> None:
    result = await ask(program("sh", "-c", "yes noise | head -100000; echo CVE-2026-1; exit 3"))
    assert not result.passed
    assert result.text.startswith("exit code 3: ")
    assert result.text.endswith("CVE-2026-1")
    assert len(result.text) < 2100


async def test_a_failure_that_does_not_matter_passes_and_says_so() -> None:
    assert await ask(program("false", required=False)) == HookResult(
        passed=True, text="exit code 1 (not required)"
    )


async def test_a_program_that_is_not_there_or_hangs_is_no_answer(tmp_path: Path) -> None:
    missing = await ask(program("/no/such/program"))
    assert not missing.passed
    assert "FileNotFoundError" in missing.text
    marker = tmp_path / "pid"
    hung = await ask(program("sh", "-c", f"sleep 60 & echo $! > {marker}; wait", timeout=0.5))
    assert hung == HookResult(passed=False, text="no answer within 0.5 s")
    await asyncio.sleep(0.2)
    status = Path(f"/proc/{marker.read_text().strip()}/status")
    assert not status.exists() or "zombie" in status.read_text()


async def test_a_child_that_has_left_the_group_keeps_nobody_waiting(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    words = f"setsid sh -c 'echo $$ > {marker}; exec sleep 60' & wait"
    hung = await asyncio.wait_for(ask(program("sh", "-c", words, timeout=0.5)), 5)
    assert hung == HookResult(passed=False, text="no answer within 0.5 s")
    os.kill(int(marker.read_text()), signal.SIGKILL)


class Service:
    """Answers as a test says."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.answer: Callable[[int], tuple[int, Any]] = lambda _: (200, {})
        self.got: list[tuple[bytes, dict[str, str]]] = []


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    found = Service()

    async def take(request: web.Request) -> web.Response:
        found.got.append((await request.read(), dict(request.headers)))
        status, body = found.answer(len(found.got))
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", found.port).start()
    yield found
    await runner.cleanup()


class Pieces:
    """Answers in pieces that reach the one who asks apart."""

    def __init__(self) -> None:
        self.port = free_port()
        self.said: list[bytes] = []

    def hook(self, kind: Any) -> Hook:
        return Hook(name="h", at="before_step", kind=kind, url=f"http://127.0.0.1:{self.port}/hook")


@pytest.fixture
async def pieces() -> AsyncIterator[Pieces]:
    found = Pieces()

    async def take(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        for piece in found.said:
            await answer.write(piece)
            await asyncio.sleep(0.05)
        return answer

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", found.port).start()
    yield found
    await runner.cleanup()


def called(service: Service, kind: Any = "http", **more: Any) -> Hook:
    return Hook(name="h", at="before_step", kind=kind, url=service.url, **more)


@pytest.mark.parametrize(
    ("status", "passes"), [(200, True), (202, True), (204, False), (302, False), (404, False)]
)
async def test_the_status_decides_and_a_clear_no_is_not_asked_again(
    service: Service, status: int, passes: bool
) -> None:
    service.answer = lambda _: (status, {"why": "freeze"})
    result = await ask(called(service))
    assert result.passed is passes
    assert len(service.got) == 1


async def test_what_is_no_answer_is_asked_for_again_so_often(service: Service) -> None:
    service.answer = lambda n: (503 if n < 3 else 200, {})
    assert (await ask(called(service, retries=2))).passed
    assert len(service.got) == 3
    assert len({body for body, _ in service.got}) == 1
    service.answer = lambda _: (503, {"error": "down"})
    result = await ask(called(service, retries=1))
    assert not result.passed
    assert "status 503" in result.text


async def test_the_body_is_signed(service: Service, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    assert (await ask(called(service, secret_file=str(tmp_path / "secret")))).passed
    body, headers = service.got[0]
    assert headers["X-Release-Signature"] == "v1=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert json.loads(body)["phase"] == "before_step"


async def test_what_a_program_or_a_service_says_can_be_written_whatever_it_is(service: Service) -> None:
    result = await ask(program("printf", r"\355\240\275 \377"))
    assert (result.passed, result.text) == (True, "\ufffd\ufffd\ufffd \ufffd")
    for status, start in ((200, ""), (403, "status 403: ")):
        service.answer = lambda _, status=status: (status, {"why": "\ud83d"})  # type: ignore[misc]
        assert (await ask(called(service))).text == start + r'{"why": "\ud83d"}'


@pytest.mark.parametrize(
    ("answer", "passes", "says"),
    [
        ({"result": True}, True, "policy"),
        ({"result": False}, False, "policy"),
        ({}, False, "policy is undefined"),
        ({"result": {"allow": True}}, True, "policy"),
        ({"result": {"allow": False, "reasons": ["no Friday", "no owner"]}}, False, "no Friday; no owner"),
        ({"result": {"allow": "true"}}, False, "policy"),
        ({"result": "true"}, False, "policy"),
        ([], False, "not an answer of OPA: []"),
        ({"result": {"allow": False, "reasons": ["bad \ud83d"]}}, False, "bad ?"),
        ({"result": {"allow": True, "deny": "\ude00"}}, True, "?"),
    ],
    ids=ascii,
)
async def test_a_policy_of_opa_decides(service: Service, answer: Any, passes: bool, says: str) -> None:
    service.answer = lambda _: (200, answer)
    assert await ask(called(service, "opa")) == HookResult(passed=passes, text=says)
    assert json.loads(service.got[0][0])["input"]["release"] == "api-7"


async def test_an_answer_that_comes_in_pieces_is_read_to_its_end(pieces: Pieces) -> None:
    text = json.dumps({"result": {"allow": True, "padding": "x" * 20_000}})
    pieces.said = [text[:10].encode(), text[10:9_000].encode(), text[9_000:].encode()]
    assert (await ask(pieces.hook("opa"))) == HookResult(passed=True, text="policy")
    pieces.said = [b"no ", b"owner"]
    assert (await ask(pieces.hook("http"))).text == "no owner"


async def test_of_an_answer_that_does_not_end_so_much_is_read_as_is_needed(pieces: Pieces) -> None:
    pieces.said = [b'{"result": true', *[b" " * 100_000] * 11, b"}"]
    refused = HookResult(passed=False, text="the answer is longer than 1000 kB")
    assert await ask(pieces.hook("opa")) == refused
    result = await ask(pieces.hook("http"))
    assert (result.passed, len(result.text)) == (True, 2000)
