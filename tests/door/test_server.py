"""What the server logs, and what it answers when an answer fails half-way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from examples.playground.lease import free_port
from orchestrator.intake.server import Server
from orchestrator.ports.faults import Fault
from tests.conftest import LogLines


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
    server = Server(None, [], [web.get("/late", late), web.get("/wrong", wrong)], f"127.0.0.1:{found}")  # type: ignore[arg-type]
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
