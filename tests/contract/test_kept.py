"""Clients that keep their connections, GET and POST, through a real nginx that is reloaded."""

import asyncio
import contextlib
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from examples.playground.lease import free_port
from orchestrator.ports.faults import Fault
from tests.contract.conftest import GET, Site, stop

pytestmark = pytest.mark.parametrize("site", ["reload"], indirect=True)

CLIENTS = 10
PAUSE = 0.02
"""Seconds between an answer and the next request."""

CLOSING_WAIT = 1.0
"""As by default. A client that asks nothing for as long may find its connection closed, and opens another."""

REQUESTS = (
    b"GET /a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /a%2Fb HTTP/1.1\r\nHost: x\r\nContent-Length: 64\r\n\r\n" + b"x" * 64,
)


@dataclass
class Load:
    """What clients with kept connections have seen.

    Attributes:
        lost: Requests that were written and not answered with 200.
        cut: Connections that ended although no answer had said that they would, and that were asked in time.
    """

    port: int
    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    async def client(self, number: int) -> None:
        """Ask for ever, on one connection as long as it lasts."""
        reader, writer, answered = None, None, 0.0
        try:
            while True:
                idle = time.monotonic() - answered  # a busy machine may stop us for longer than we pause
                if reader is not None and (reader.at_eof() or idle > CLOSING_WAIT / 2):
                    self.cut += idle < CLOSING_WAIT / 2
                    reader = None
                if reader is None or writer is None:
                    if writer is not None:
                        writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(REQUESTS[number % 2])
                if not await self._answer(reader, "POST" if number % 2 else "GET"):
                    reader = None
                number, answered = number + 1, time.monotonic()
                await asyncio.sleep(PAUSE)
        finally:
            if writer is not None:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, method: str) -> bool:
        """Count an answer. Whether the connection lasts."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await reader.readexactly(int(head.partition("Content-Length: ")[2].partition("\r\n")[0]))
        except (OSError, EOFError) as error:
            self.lost[f"{method} {type(error).__name__}"] += 1
            return False
        self.answered += 1
        if not head.startswith("HTTP/1.1 200 "):
            self.lost[f"{method} {head[9:12]}"] += 1
        return "Connection: close" not in head


@contextlib.asynccontextmanager
async def load(site: Site) -> AsyncIterator[Load]:
    """Clients while the block lasts."""
    site.edge._reloader._closing_wait = max(CLOSING_WAIT, site.edge._reloader._closing_wait)
    seen = Load(site.port)
    tasks = [asyncio.create_task(seen.client(n)) for n in range(CLIENTS)]
    await asyncio.sleep(0.2)
    yield seen
    await asyncio.sleep(0.3)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)


async def test_a_server_that_is_stopped_answers_what_it_has_accepted(site: Site) -> None:
    server = site.servers["api-3"]
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.setblocking(False)
        client.send(GET + b"\r\n")
        for _ in range(2):  # the loop has accepted it, and not begun to serve it
            await asyncio.sleep(0)
        await stop(server)
        async with asyncio.timeout(5):
            answer = await asyncio.get_running_loop().sock_recv(client, 4096)
    assert answer.endswith(b"api-3")


async def test_no_connection_is_cut_when_a_backup_leaves(site: Site) -> None:
    plan = site.plan(3, "api-2", "api-1", back="api-1")
    servers = (plan.route.servers[0], replace(plan.route.servers[1], backup=True))
    await site.edge.apply(replace(plan, route=replace(plan.route, servers=servers)), 1)
    async with load(site) as seen:
        await site.edge.apply(site.plan(4, "api-2"), 1)
    assert seen.answered > 100
    assert (seen.lost, seen.cut) == ({}, 0)


async def test_no_connection_is_cut_when_another_service_comes(site: Site) -> None:
    async with load(site) as seen:
        await site.edge.apply(replace(site.plan(1, "api-1"), service="web"), 1)
    assert (seen.lost, seen.cut) == ({}, 0)


async def test_no_connection_is_cut_when_one_of_several_instances_has_died(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-1", "api-2"), 1)
    await site.settled()
    async with load(site) as seen:
        await stop(site.servers["api-2"])
        await site.edge.apply(site.plan(4, "api-1"), 1)
    assert seen.answered > 100
    assert (seen.lost, seen.cut) == ({}, 0)


async def test_no_connection_is_cut_in_a_server_block_as_the_documentation_has_it(site: Site) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "nginx.md").read_text()
    block = re.search(r"^    server \{\n.*?^    \}\n", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    text = block[0].replace("/etc/nginx/orchestrator", str(site.folder))
    site.port = free_port()
    text = text.replace("server_name", f"listen 127.0.0.1:{site.port}; server_name")
    (site.folder / "zz-theirs.conf").write_text(text)
    await site.edge.reload()
    async with load(site) as seen:
        await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1", weights=(1, 2)), 1)
    assert seen.answered > 100
    assert (seen.lost, seen.cut) == ({}, 0)


async def test_no_connection_is_cut_when_a_change_is_given_up_before_its_reload(site: Site) -> None:
    site.edge._reloader._closing_wait = 60.0
    async with load(site) as seen:
        applying = asyncio.create_task(site.edge.apply(site.plan(3, "api-2", "api-1", back="api-1"), 1))
        await asyncio.sleep(0.3)
        applying.cancel()
        await asyncio.gather(applying, return_exceptions=True)
    assert (seen.lost, seen.cut) == ({}, 0)


async def test_no_connection_is_cut_when_a_change_is_given_up_after_its_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def never(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with load(site) as seen:
        with monkeypatch.context() as patched:
            patched.setattr(site.edge._reloader, "confirm", never)
            applying = asyncio.create_task(site.edge.apply(site.plan(3, "api-2", "api-1", back="api-1"), 1))
            await asked.wait()
        await asyncio.sleep(0.3)  # clients have opened new connections, to workers of after the reload
        while not applying.done():  # as long as it is not wanted, it is cancelled again and again
            applying.cancel()
            await asyncio.wait({applying}, timeout=0.1)
    assert seen.answered > 100
    assert (seen.lost, seen.cut) == ({}, 0)
    assert (await site.edge.observe("api")).served == 2


async def test_no_connection_is_cut_when_a_change_is_not_confirmed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unconfirmed(*_: object) -> None:
        raise Fault("nginx does not show it")

    async with load(site) as seen:
        monkeypatch.setattr(site.edge._reloader, "confirm", unconfirmed)
        with pytest.raises(Fault, match="does not show it"):
            await site.edge.apply(site.plan(3, "api-2", "api-1", back="api-1"), 1)
    assert seen.answered > 100
    assert (seen.lost, seen.cut) == ({}, 0)


async def test_no_connection_is_cut_when_a_change_is_given_up_that_nginx_still_tries(
    site: Site,
) -> None:
    """nginx tries for 2.5 s to listen at a port that another program has; then it is asked to go back."""
    options = site.edge._options("api")
    assert options.server is not None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        elsewhere = replace(options, server=replace(options.server, listen=listen))
        site.edge._options = lambda service: elsewhere if service == "web" else options
        async with load(site) as seen:
            applying = asyncio.create_task(site.edge.apply(replace(site.plan(1, "api-1"), service="web"), 1))
            async with asyncio.timeout(5):
                while not (await site.process.complaint()).words:
                    await asyncio.sleep(0.01)
            before = (await site.process.workers()).accepting
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)
            async with asyncio.timeout(10):
                while before & (await site.process.workers()).accepting:
                    await asyncio.sleep(0.01)
    assert seen.answered > 100
    assert (seen.lost, seen.cut) == ({}, 0)
    assert not (site.folder / "switch" / ".closing").exists()
