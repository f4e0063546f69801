"""What nginx' private listener says, by a server that says what a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from examples.playground.lease import free_port
from orchestrator.ports.faults import Fault
from orchestrator.traffic.listener import Listener
from orchestrator.traffic.memory import Memory
from orchestrator.traffic.process import HostNginx
from orchestrator.traffic.reload import Shown
from orchestrator.traffic.shared import Shared

GONE = Shown("api", None)


@asynccontextmanager
async def listener(answer: bytes | None) -> AsyncIterator[Listener]:
    """None: it takes connections and says nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            writer.write(answer)
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found = Listener(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield found
    finally:
        await found.close()
        server.close()


async def test_an_answer_that_is_no_text_is_no_answer_of_nginx() -> None:
    async with listener(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe\xfd\xfc") as found:
        assert (await found.ask("api")).generation is None


async def test_only_who_answers_or_does_not_listen_has_let_go_of_a_service() -> None:
    async with listener(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as found:
        assert GONE.by(await found.ask("api"))
    async with listener(None) as found:
        answer = await found.ask("api")
        assert (answer.answered, GONE.by(answer)) == (False, False)
    found = Listener(f"http://127.0.0.1:{free_port()}")
    answer = await found.ask("api")
    await found.close()
    assert (answer.answered, GONE.by(answer)) == (False, True)


async def test_whether_nginx_has_lua_is_asked_again_until_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says: list[bool | Fault] = [Fault("[emerg] in another file"), True]

    async def has_lua(_: HostNginx) -> bool:
        answer = says.pop(0)
        if isinstance(answer, Fault):
            raise answer
        return answer

    monkeypatch.setattr(HostNginx, "has_lua", has_lua)
    memory = Memory(HostNginx(), tmp_path, "auto", Shared(tmp_path))
    assert await memory.secret() == ""
    secret = await memory.secret()
    assert len(secret) == 32
    assert await memory.secret() == secret
