"""nginx in the simulation: the process and its listener are doubles, `NginxEdge` and its files are real.

What users get is told by the files that were there at the last reload which the double took, and by the
rollback switch, which nginx looks for at each request.
"""

import asyncio
import contextlib
import contextvars
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import Complaint, Workers
from orchestrator.rollout.model import Server
from orchestrator.rollout.observation import OnDisk
from orchestrator.traffic import files
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.listener import Answer
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.render import Header, read_header
from orchestrator.traffic.switch import A_PERSONS

if TYPE_CHECKING:
    from tests.simulation.world import Host, World

RAM = "/dev/shm"
"""Where the files lie: a run makes thousands of them whole."""

MARK = re.compile(r'return 200 "\S+ \d+ \d+ (\S+)";')
"""What a file shows of itself at the private listener."""

PROCESS: contextvars.ContextVar["Host"] = contextvars.ContextVar("process")
"""Whose process runs: a lock is left by one that is killed."""


@dataclass(slots=True)
class SimNginx:
    """What one nginx has loaded, and how it fails.

    Attributes:
        refuses: Why it refuses every configuration, for no fault of ours; empty when it does not.
        ignores: A reload returns and is not taken, as with a listen port that is taken.
        dead: It does not run; when it starts it reads the files.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="simulation-", dir=RAM)))
    loaded: dict[str, Header] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    refuses: str = ""
    ignores: bool = False
    dead: bool = False
    holder: "Host | None" = None
    _path: str = ""

    def __post_init__(self) -> None:
        self._path = str(self.folder)

    @property
    def takes_changes(self) -> bool:
        return not (self.dead or self.refuses or self.ignores)

    def load(self) -> None:
        if not self.takes_changes:
            return
        texts = {path.stem: path.read_text() for path in self.folder.glob("[a-z]*.conf")}
        found = {service: read_header(text) for service, text in texts.items()}
        self.loaded = {service: header for service, header in found.items() if header is not None}
        self.marks = {service: MARK.findall(texts[service])[-1] for service in self.loaded}

    def start(self) -> None:
        """Start where it is dead; with a configuration that it refuses it stays so."""
        if self.dead and not self.refuses and not self.ignores:
            self.dead = False
            self.load()

    def mend(self) -> None:
        self.refuses, self.ignores = "", False
        self.start()

    def told(self, service: str) -> OnDisk | None:
        """What it serves."""
        header = self.loaded.get(service)
        return header.on_disk if header is not None and not self.dead else None

    def is_written(self, service: str, release: str) -> bool:
        """Whether its file names a release that has traffic there, whatever it has read."""
        path = self.folder / f"{service}.conf"
        header = read_header(path.read_text()) if path.is_file() else None
        servers = header.on_disk.route.servers if header is not None and header.on_disk else ()
        return any(server.release == release and not server.backup for server in servers)

    def switch(self, service: str) -> Path:
        return self.folder / "switch" / service

    def is_on(self, service: str, to: str) -> bool:
        """Whether a file is there that takes users back, where a rollback leads to a release."""
        own = f"{self._path}/switch/{service}"
        return os.path.exists(own) or os.path.exists(f"{own}.to.{to}")  # noqa: PTH110  at every instant

    def by_hand(self, service: str) -> bool:
        """Whether a person has turned a switch on, of whose word no generation speaks."""
        return any(path.stat().st_mtime >= A_PERSONS for path in self.switches(service))

    def switches(self, service: str) -> list[Path]:
        folder = f"{self._path}/switch"
        with contextlib.suppress(FileNotFoundError):
            found = os.listdir(folder)  # noqa: PTH208  at every instant
            return [
                Path(folder, name) for name in found if name == service or name.startswith(f"{service}.to.")
            ]
        return []

    def weighted(self, service: str) -> tuple[Server, ...]:
        """The servers that have users' traffic."""
        disk = self.told(service)
        if disk is None:
            return ()
        servers = disk.route.servers
        if disk.back and self.is_on(service, disk.back[0].release):
            servers = disk.back
        return tuple(s for s in servers if not s.backup)

    def named(self, service: str) -> tuple[Server, ...]:
        """The servers that it may ask, backups and those behind the switch included."""
        disk = self.told(service)
        return (*disk.route.servers, *disk.back) if disk is not None else ()

    def close(self) -> None:
        shutil.rmtree(self.folder)


class SimProcess:
    """`ports.EdgeProcess`: how one daemon, or a person, acts on nginx."""

    def __init__(
        self, nginx: SimNginx, act: Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]]
    ) -> None:
        self._nginx, self._act = nginx, act

    async def test(self) -> None:
        async def work() -> None:
            if self._nginx.refuses:
                raise Fault(self._nginx.refuses)

        await self._act("nginx -t", work)

    async def reload(self) -> None:
        async def work() -> None:
            if self._nginx.dead:
                raise Fault("nginx does not run")
            self._nginx.load()

        await self._act("reload", work)

    async def reopen(self) -> None:
        """Nothing is logged here, so there is nothing to open again."""
        if self._nginx.dead:
            raise Fault("nginx does not run")

    async def has_lua(self) -> bool:
        return False

    async def workers(self) -> Workers:
        return Workers()

    async def complaint(self) -> Complaint:
        return Complaint()


class SimListener:
    """What the private listener answers."""

    def __init__(self, nginx: SimNginx, alive: Callable[[], Awaitable[None]]) -> None:
        self._nginx, self._alive = nginx, alive

    async def ask(self, service: str) -> Answer:
        await self._alive()
        if self._nginx.dead:
            return Answer("connection refused")
        header = self._nginx.loaded.get(service)
        if header is None:
            return Answer("404")
        return Answer(f"{service} {header.generation}", header.generation, self._nginx.marks[service])


def edge_of(world: "World", host: "Host") -> NginxEdge:
    """The edge as a process on nginx' host has it."""

    async def act(name: str, work: Callable[[], Awaitable[None]]) -> None:
        if host.person:
            await work()
        else:
            await world.effect(host, name, work)

    process = SimProcess(world.nginx, act)
    edge = NginxEdge(process, world.nginx.folder, lambda _: EdgeOptions(), mode="reload")
    listener = SimListener(world.nginx, lambda: world.alive(host))
    edge._listener = edge._reloader._listener = edge._sight._listener = listener  # type: ignore[assignment]
    edge.prepare()
    return edge


@contextlib.contextmanager
def virtual_files(nginx: SimNginx, answers: Callable[[str], bool]) -> Iterator[None]:
    """Let the edge wait for its lock in virtual time, and write its files without waiting for a disk.

    Whether a server takes connections is said by `answers`, given its address.
    """

    async def takes_connections(address: str) -> bool:
        return answers(address)

    @contextlib.asynccontextmanager
    async def locked(path: Path, deadline: float) -> AsyncIterator[None]:
        me = PROCESS.get()
        try:
            async with asyncio.timeout(deadline):
                while nginx.holder is not None and not nginx.holder.dead:
                    await asyncio.sleep(files.LOCK_INTERVAL)
        except TimeoutError:
            raise Fault(f"another process has held {path} for {deadline:.0f} s") from None
        nginx.holder = me
        try:
            yield
        finally:
            nginx.holder = None

    with contextlib.ExitStack() as stack:
        stack.callback(nginx.close)
        for place, double in {
            "rounds.locked": locked,
            "edge.takes_connections": takes_connections,
            "edge.changed_at": lambda _: 0.0,  # within a tick of the kernel's clock times have no order
            "files.os.fsync": lambda _: None,
        }.items():
            stack.enter_context(mock.patch(f"orchestrator.traffic.{place}", double))
        yield
