"""An nginx with users on one side and a stable and a candidate server on the other."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from examples.playground.lease import free_port
from examples.playground.stack import LUA, NGINX
from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route, Server
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions, ServerBlock
from orchestrator.traffic.process import HostNginx
from tests.builders import server
from tests.conftest import let_all_pass

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

GET = b"GET /a%2Fb HTTP/1.1\r\nHost: x\r\n"


@dataclass
class Site:
    """One edge, its users' port, and the ports of a stable and a candidate server."""

    edge: NginxEdge
    process: HostNginx
    folder: Path
    port: int
    backends: dict[str, int]
    dynamic: bool
    servers: dict[str, asyncio.Server]
    answered: Counter[str] = field(default_factory=Counter)
    got: list[tuple[str, str]] = field(default_factory=list)
    """Who was asked, and the head of the request."""

    def plan(
        self, generation: int, *releases: str, back: str = "", weights: Sequence[int] = (1, 1)
    ) -> RoutePlan:
        """A route with these releases, decided now, and where a rollback leads."""
        servers = {r: self._server(r) for r in self.backends}
        fallback = Route(generation=generation, servers=(servers[back],)) if back else None
        shared = (replace(servers[r], weight=w) for r, w in zip(releases, weights, strict=False))
        now = time.time()  # noqa: TID251  as files have it
        route = Route(generation=generation, servers=tuple(shared), changed_at=now)
        return RoutePlan(service="api", route=route, stable="api-1", fallback=fallback)

    def _server(self, release: str) -> Server:
        return server(release, f"127.0.0.1:{self.backends[release]}")

    async def request(self, more: bytes = b"", start: bytes = GET) -> tuple[str, str]:
        """Head and body of the answer on a fresh connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.closing(writer):
            writer.write(start + more + b"\r\n")
            async with asyncio.timeout(5):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
                body = "" if start.startswith(b"HEAD") else (await reader.readexactly(length)).decode()
        return head, body

    async def ask(self, more: bytes = b"") -> tuple[str, str]:
        """Who answers a fresh connection, and what becomes of the connection."""
        head, who = await self.request(more)
        self.answered[who] += 1
        return who, "close" if "Connection: close" in head else "keep-alive"

    async def who(self, more: bytes = b"") -> str:
        """Who answers a request with these headers."""
        return (await self.ask(more))[0]

    async def settled(self) -> None:
        """Wait until no old worker is left and all switches have been put away."""
        async with asyncio.timeout(5):
            while self.edge._switches.all("api"):
                await self.edge.observe("api")
                await asyncio.sleep(0.05)

    def change(self, **options: Any) -> None:
        """Serve otherwise from the next route on."""
        now = replace(self.edge._options("api"), **options)
        self.edge._options = lambda _: now

    async def answers(self) -> set[str]:
        """Who answers, over some requests."""
        return {(await self.ask())[0] for _ in range(8)}


def answering(release: str, got: list[tuple[str, str]]) -> Answer:
    """A server that tells its release, and whether something on the way has decoded the path."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            head = await reader.readuntil(b"\r\n\r\n")
            got.append((release, head.decode()))
            if b"X-Slow" in head:
                await asyncio.sleep(1.5)
            path = "" if head.startswith(b"GET /a%2Fb ") else " at another path"
            if b" /long " in head:
                path *= 100
            body = "" if head.startswith(b"HEAD") else f"{release}{path}"
            start = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{start}Connection: close\r\n\r\n{body}".encode())
            await writer.drain()
        writer.close()

    return serve


async def stop(server: asyncio.Server) -> None:
    """Close a server. What it has accepted is served to its end.

    asyncio leaves a connection open for ever that it has accepted in the round of its loop in which the
    server is closed, so it stops accepting one round earlier.
    """
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    await asyncio.sleep(0)
    server.close()
    await server.wait_closed()


@pytest.fixture(params=["reload", "dynamic"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    let_all_pass(tmp_path)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    conf = tmp_path / "nginx.conf"
    modules = LUA if request.param == "dynamic" else ""
    conf.write_text(modules + NGINX.format(root=tmp_path, extra=""))
    got: list[tuple[str, str]] = []
    releases = ("api-1", "api-2", "api-3")
    servers = {r: await asyncio.start_server(answering(r, got), "127.0.0.1", 0) for r in releases}
    port = free_port()
    options = EdgeOptions(server=ServerBlock(listen=f"127.0.0.1:{port}"))
    process = HostNginx(conf=str(conf), pid_file=tmp_path / "nginx.pid")
    edge = NginxEdge(
        process,
        tmp_path / "edge",
        lambda _: options,
        listen=f"127.0.0.1:{free_port()}",
        confirm_deadline=10.0,
        closing_wait=0.3,
    )
    old = os.umask(0o077)  # as in the systemd unit
    edge.prepare()
    os.umask(old)
    program = shutil.which("nginx") or "nginx"  # whole: what USR2 starts is not looked for
    subprocess.run([program, "-c", str(conf)], check=True, timeout=10)
    site = Site(
        edge,
        process,
        tmp_path / "edge",
        port,
        {r: s.sockets[0].getsockname()[1] for r, s in servers.items()},
        request.param == "dynamic",
        servers,
        got=got,
    )
    try:
        await edge.apply(site.plan(1, "api-1"), 1)
        await edge.apply(site.plan(2, "api-1", "api-2", back="api-1"), 1)
        yield site
    finally:
        await edge.close()
        with contextlib.suppress(Fault, ProcessLookupError):
            os.kill(process.master(), signal.SIGTERM)
        for server in servers.values():
            await stop(server)


@pytest.fixture
def full(site: Site) -> Iterator[None]:
    """nginx' folder on a disk that is full."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    folder, kept = str(site.folder), str(site.folder.parent / "kept")
    shutil.copytree(folder, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", folder], check=True)
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        with contextlib.suppress(OSError), (site.folder / "fill").open("wb", buffering=0) as fill:
            while True:
                fill.write(b"x" * 4096)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def read_only(site: Site) -> Iterator[None]:
    """nginx' folder on a file system that can't be written to."""
    if os.geteuid():
        pytest.skip("only root can mount")
    folder = str(site.folder)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
