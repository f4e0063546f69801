"""The rollback switch and the gentle end of connections, on a real nginx with two real servers behind it."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.playground.stack import NGINX, free_port
from orchestrator.ports import Fault, RoutePlan
from orchestrator.rollout.model import Route, Server
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.process import HostNginx
from orchestrator.traffic.render import EdgeOptions, ServerBlock

GET = b"GET /a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Kit:
    """One edge, its users' port, and the ports of a stable and a candidate server."""

    edge: NginxEdge
    process: HostNginx
    folder: Path
    port: int
    backends: dict[str, int]

    def plan(self, generation: int, *releases: str, back: str = "") -> RoutePlan:
        """A route with these releases, and where a rollback leads."""
        servers = {r: self._server(r) for r in self.backends}
        fallback = Route(generation=generation, servers=(servers[back],)) if back else None
        route = Route(generation=generation, servers=tuple(servers[r] for r in releases))
        return RoutePlan(service="api", route=route, stable="api-1", fallback=fallback)

    def _server(self, release: str) -> Server:
        address = f"127.0.0.1:{self.backends[release]}"
        return Server(
            address=address,
            weight=1,
            release=release,
            instance=f"{release}-0",
            container="c",
            started_at="t",
        )

    async def ask(self) -> tuple[str, str]:
        """Who answers a fresh connection, and what becomes of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(GET)
        async with asyncio.timeout(5):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            who = (await reader.readexactly(length)).decode()
        writer.close()
        return who, "close" if "Connection: close" in head else "keep-alive"

    async def answers(self) -> set[str]:
        """Who answers, over some requests."""
        return {(await self.ask())[0] for _ in range(8)}


def answering(release: str) -> object:
    """A server that tells its release, and whether something on the way has decoded the path."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = "" if head.startswith(b"GET /a%2Fb ") else " at another path"
            body = f"{release}{path}"
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            await writer.drain()
        writer.close()

    return serve


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    for part in (tmp_path, *tmp_path.parents[:3]):
        part.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    conf = tmp_path / "nginx.conf"
    conf.write_text(NGINX.format(root=tmp_path, extra=""))
    servers = {r: await asyncio.start_server(answering(r), "127.0.0.1", 0) for r in ("api-1", "api-2")}  # type: ignore[arg-type]
    port = free_port()
    options = EdgeOptions(server=ServerBlock(listen=f"127.0.0.1:{port}"))
    process = HostNginx(conf=str(conf), pid_file=tmp_path / "nginx.pid")
    edge = NginxEdge(
        process,
        tmp_path / "edge",
        lambda _: options,
        listen=f"127.0.0.1:{free_port()}",
        confirm_deadline=3.0,
        closing_wait=0.3,
    )
    old = os.umask(0o077)  # as in the systemd unit
    edge.prepare()
    os.umask(old)
    subprocess.run(["nginx", "-c", str(conf)], check=True, timeout=10)
    kit = Kit(
        edge,
        process,
        tmp_path / "edge",
        port,
        {r: s.sockets[0].getsockname()[1] for r, s in servers.items()},
    )
    await edge.apply(kit.plan(1, "api-1"), 1)
    await edge.apply(kit.plan(2, "api-1", "api-2", back="api-1"), 1)
    yield kit
    await edge.close()
    with contextlib.suppress(Fault, ProcessLookupError):
        os.kill(process.master(), signal.SIGTERM)
    for server in servers.values():
        server.close()


async def drained(kit: Kit) -> None:
    """Wait until no old worker is left and the switch has been put away."""
    async with asyncio.timeout(5):
        while (await kit.edge.observe("api")).switched_to:
            await asyncio.sleep(0.05)


async def test_an_empty_file_takes_the_traffic_back_without_a_daemon(kit: Kit) -> None:
    assert await kit.answers() == {"api-1", "api-2"}
    switch = kit.folder / "switch" / "api"
    switch.touch()
    assert await kit.answers() == {"api-1"}
    assert (await kit.edge._ask("api")).endswith(" back")
    assert (await kit.edge.observe("api")).switched_to == "api-1"
    switch.unlink()
    assert await kit.answers() == {"api-1", "api-2"}


async def test_no_step_goes_on_over_a_switch_that_a_person_has_turned(kit: Kit) -> None:
    (kit.folder / "switch" / "api").touch()
    with pytest.raises(Fault, match="switch/api is there"):
        await kit.edge.apply(kit.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert await kit.answers() == {"api-1"}
    assert (await kit.edge.retreat("api", "host", "followed", 1)).to == "api-1"
    assert (await kit.edge.observe("api")).on_disk.local.reason == "followed"  # type: ignore[union-attr]
    await drained(kit)
    assert not (kit.folder / "switch" / "api").exists()
    assert await kit.answers() == {"api-1"}


async def test_a_rollback_takes_effect_before_its_reload(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse() -> None:
        raise Fault("no reload today")

    with monkeypatch.context() as patched:
        patched.setattr(kit.process, "reload", refuse)
        with pytest.raises(Fault, match="no reload today"):
            await kit.edge.apply(kit.plan(3, "api-1"), 1)
        assert await kit.answers() == {"api-1"}
    await kit.edge.apply(kit.plan(3, "api-1"), 1)  # the second try goes on from there
    await drained(kit)
    assert await kit.answers() == {"api-1"}
    await kit.edge.apply(kit.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert await kit.answers() == {"api-1", "api-2"}


async def test_a_switch_that_is_left_over_does_not_hold_the_next_release_back(kit: Kit) -> None:
    await kit.edge.apply(kit.plan(3, "api-1"), 1)
    assert (kit.folder / "switch" / "api").read_text() == "api-1"
    await kit.edge.apply(kit.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert not (kit.folder / "switch" / "api").exists()
    assert await kit.answers() == {"api-1", "api-2"}


async def test_going_back_to_the_previous_release_is_a_switch_too(kit: Kit) -> None:
    await kit.edge.apply(kit.plan(3, "api-2", back="api-1"), 1)
    (kit.folder / "switch" / "api").touch()
    assert await kit.answers() == {"api-1"}
    seen = await kit.edge.observe("api")
    assert seen.switched_to == "api-1"  # still there: it says something that nobody has followed
    assert (await kit.edge.retreat("api", "host", "back", 1)).to == "api-1"
    await drained(kit)
    assert await kit.answers() == {"api-1"}


async def test_connections_are_closed_by_an_answer_before_a_reload(kit: Kit) -> None:
    assert (await kit.ask())[1] == "keep-alive"
    seen: set[str] = set()
    applying = asyncio.create_task(kit.edge.apply(kit.plan(3, "api-1", "api-2", back="api-1"), 1))
    while not applying.done():
        seen.add((await kit.ask())[1])
    await applying
    assert "close" in seen
    assert (await kit.ask())[1] == "keep-alive"


async def test_a_server_that_is_gone_is_not_waited_for(kit: Kit) -> None:
    kit.edge._closing_wait = 60.0
    async with asyncio.timeout(5):
        await kit.edge.apply(kit.plan(3, "api-2"), 1)
    assert await kit.answers() == {"api-2"}


async def test_a_reload_that_fails_or_a_crash_leaves_connections_as_they_were(kit: Kit) -> None:
    (kit.folder / "zz.conf").write_text("this is not nginx;\n")
    with pytest.raises(Fault):
        await kit.edge.apply(kit.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert (await kit.ask())[1] == "keep-alive"
    kit.edge._closing.touch()
    assert (await kit.ask())[1] == "close"
    kit.edge.prepare()
    assert (await kit.ask())[1] == "keep-alive"
