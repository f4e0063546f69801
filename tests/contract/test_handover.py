"""Connections that stay open while the route changes, through a real nginx: WebSockets above all."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from tests.contract.conftest import Site


@pytest.fixture
async def chat(site: Site) -> AsyncIterator[Site]:
    """The site with a server of WebSockets as its candidate."""

    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"api-2 heard {message.data}")
        return socket

    app = web.Application()
    app.router.add_get("/chat", talk)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    assert server._server is not None
    port = server._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    site.backends = {**site.backends, "api-2": port}
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    yield site
    await runner.cleanup()


async def test_a_websocket_outlives_every_change_until_it_is_closed(chat: Site) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{chat.port}/chat") as socket,
    ):
        await socket.send_str("one")
        assert await socket.receive_str(timeout=2) == "api-2 heard one"
        await chat.edge.apply(chat.plan(4, "api-1", "api-2", back="api-1"), 1)
        await chat.edge.apply(chat.plan(5, "api-1"), 1)
        assert await chat.answers() == {"api-1"}
        assert not (await chat.edge.observe("api")).drained
        await socket.send_str("two")
        assert await socket.receive_str(timeout=2) == "api-2 heard two"
    async with asyncio.timeout(5):
        while not (await chat.edge.observe("api")).drained:
            await asyncio.sleep(0.05)


async def test_an_ordinary_request_keeps_the_connection_to_its_server(site: Site) -> None:
    await site.edge.apply(replace(site.plan(3, "api-1"), fallback=None), 1)
    await site.ask()
    head = site.got[-1][1].lower()
    assert "upgrade:" not in head
    assert "connection:" not in head, "HTTP/1.1 without it is kept"
