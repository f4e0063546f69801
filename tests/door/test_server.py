"""What the server logs, and what it answers when an answer fails half-way."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from examples.playground.lease import free_port
from orchestrator.daemon.clock import SystemClock
from orchestrator.daemon.config import Config
from orchestrator.daemon.serve import Daemon
from orchestrator.daemon.settings import HttpSection, Settings
from orchestrator.intake import server
from orchestrator.intake.door import SESSION, Guard
from orchestrator.intake.server import Server
from orchestrator.observability.logs import LineWriter
from orchestrator.ports.faults import Fault
from tests.conftest import LogLines
from tests.door.conftest import House


async def late(request: web.Request) -> web.StreamResponse:
    """Fails when it has said something."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    await answer.write(b"one")
    raise {
        "bug": ZeroDivisionError("late"),
        "fault": Fault("Redis: away"),
        "problem": web.HTTPNotFound(),
    }[request.query["how"]]


async def wrong(_: web.Request) -> Any:
    """No answer at all: aiohttp itself trips over it."""
    return None


@pytest.fixture
async def port() -> AsyncIterator[int]:
    found = free_port()
    guard = Guard(None, SystemClock(), rate=1, burst=1)  # type: ignore[arg-type]
    server = Server(guard, [], [web.get("/late", late), web.get("/wrong", wrong)], f"127.0.0.1:{found}")
    await server.start()
    yield found
    await server.close()


@pytest.mark.parametrize(
    ("how", "events"),
    [
        ("bug", ["door_failed", "answer_cut_off"]),
        ("fault", ["door_unavailable", "answer_cut_off"]),
        ("problem", ["answer_cut_off"]),
    ],
)
async def test_an_answer_that_fails_half_way_is_logged_and_cut_off(
    port: int, log_lines: LogLines, how: str, events: list[str]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /late?how={how} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.endswith(b"3\r\none\r\n"), "nothing comes after what was said, not even an end"
    assert answer.count(b"HTTP/1.1") == 1
    assert [line["event"] for line in log_lines()] == events


async def test_a_failure_of_the_server_itself_is_logged_with_its_traceback(
    port: int, log_lines: LogLines
) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/wrong") as answer:
        assert answer.status == 500
    assert any("Traceback" in line.get("exception", "") for line in log_lines()), log_lines()


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: x\r\nX:\x00y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 20_000 + b"\r\n\r\n",
    ],
    ids=["nonsense", "TLS", "a control character", "a long header"],
)
async def test_what_is_no_http_gets_a_400_and_no_line(port: int, log_lines: LogLines, raw: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    async with asyncio.timeout(5):
        assert b" 400 " in await reader.readline()
    writer.close()
    assert log_lines() == []


async def test_the_metrics_wait_for_no_head_and_log_none_that_is_odd(
    tmp_path: Path, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE", 0.5)
    listen = f"127.0.0.1:{free_port()}"
    settings = Settings(state_dir=tmp_path, http=HttpSection(listen=listen))
    daemon = Daemon(Config(tmp_path, settings, {}), LineWriter(io.StringIO()))
    async with daemon._http(), asyncio.timeout(10):
        half, writer = await asyncio.open_connection("127.0.0.1", settings.http.listen.rpartition(":")[2])
        writer.write(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        long, other = await asyncio.open_connection("127.0.0.1", settings.http.listen.rpartition(":")[2])
        other.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 20_000 + b"\r\n\r\n")
        assert b" 400 " in await long.readline()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await half.readexactly(1)
        for each in (writer, other):
            each.close()
        async with aiohttp.ClientSession() as session, session.get(f"http://{listen}/healthz") as answer:
            assert answer.status == 200
    assert log_lines() == []


RAW = [
    "GET /v1/services/{} HTTP/1.1",
    "GET /v1/releases/{}-1 HTTP/1.1",
    "GET /v1/releases/api-1?wait={} HTTP/1.1",
    "GET /v1/services?{}=1 HTTP/1.1",
    "GET /v1/requests/{} HTTP/1.1",
    "GET /v1/events?after={} HTTP/1.1",
    "GET /{} HTTP/1.1",
    "POST /v1/services/{}/rollback HTTP/1.1",
    "DELETE /v1/tokens/{} HTTP/1.1",
    "GET /services/{} HTTP/1.1",
    "GET /releases/{}-1/live HTTP/1.1",
    "GET /static/{} HTTP/1.1",
    "POST /hooks/request?{} HTTP/1.1",
    "GET /v1/events HTTP/1.1\r\nLast-Event-ID: {}",
    "GET /v1/me HTTP/1.1\r\nX-Requested-By: {}",
    "POST /v1/services/api/releases HTTP/1.1\r\nIdempotency-Key: {}",
    "POST /v1/services/api/releases HTTP/1.1\r\nContent-Type: {}",
    "POST /hooks/github HTTP/1.1\r\nX-Hub-Signature-256: {}",
    "POST /hooks/gitlab HTTP/1.1\r\nX-Gitlab-Token: {}",
    "POST /hooks/gitlab HTTP/1.1\r\nX-Gitlab-Event: {}",
    "POST /hooks/slack/command HTTP/1.1\r\nX-Slack-Signature: {}\r\nX-Slack-Request-Timestamp: {}",
    "POST /login HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded; charset={}",
]
"""Requests with a place for what nobody expects."""


@pytest.mark.parametrize("raw", RAW)
async def test_whatever_comes_in_place_of_text_is_the_callers_mistake(
    house: House, raw: str, log_lines: LogLines
) -> None:
    """Bytes that are no UTF-8, and more than anybody wants to read again."""
    secrets = [await house.secret("admin"), await house.secret("admin", "web")]
    session = await house.tokens.open_session((await house.tokens.tokens())[0], 60.0)
    who = [f"Authorization: Bearer {s}" for s in (*secrets, "rot_\udcff_\udc80")]
    who += [f"Cookie: {SESSION}={s}" for s in (session, "\udcff\udc80")]
    for odd in ("\udcff\udc80", "%ff%00", "%ED%A0%80", "é", "a" * 7000):
        for header in who:
            request = f"{raw.format(*[odd] * raw.count('{}'))}\r\nHost: x\r\n{header}"
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(f"{request}\r\nConnection: close\r\n\r\n".encode("utf-8", "surrogateescape"))
            async with asyncio.timeout(5):
                status = int((await reader.readline()).split()[1])
                answer = b"" if status == 200 and "/events" in raw else await reader.read()
            writer.close()
            assert status < 500, (request[:200], answer)
            assert "aa" * 3000 not in answer.decode() or status == 200, answer
    assert not [line for line in log_lines() if line["level"] not in ("info", "debug")]


async def test_a_form_in_an_odd_charset_is_no_bug(house: House) -> None:
    for charset in (
        "unicode_escape",
        "raw_unicode_escape",
        "utf-7",
        "idna",
        "utf-16",
        "hex",
        "rot13",
        "none",
    ):
        headers = {"Content-Type": f"application/x-www-form-urlencoded; charset={charset}"}
        body = rb"token=rot_\ud800_%5Cud800"
        async with house.session.post(f"{house.url}/login", data=body, headers=headers) as answer:
            assert 400 <= answer.status < 500, charset
