"""Three nginx: the daemon's own and two in network namespaces, of which one is cut off."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from examples.playground.lease import free_port
from examples.playground.redis import DURABLE
from examples.playground.service import service_file
from examples.playground.stack import NGINX, ROOT
from orchestrator.rollout.model import Outcome
from orchestrator.runtime.network import Network
from tests.acceptance.observer import Observer
from tests.conftest import Images
from tests.forks import ForkedStack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's")
TTL = 5.0
LADDER = {"steps": [20, 100], "first_hold": "2s", "bake": "2s", "min_requests": 0}
QUICK = {"strategy": LADDER, "gates": []}


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, timeout=10)


@dataclass
class Host:
    """A network namespace on the stack's Docker network, with an nginx and an edge process."""

    name: str
    stack: "Fleet"
    number: int
    process: asyncio.subprocess.Process | None = None
    root: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.stack.root / self.name
        self.space = f"{self.stack.owner}{self.name}"[-12:]
        self.address = str(ipaddress.ip_network(self.stack.subnet)[-10 - self.number])
        self.port = self.stack.ports["api"]

    def up(self) -> None:
        """Make the namespace and its nginx, on the addresses that the other hosts use too."""
        ip("netns", "add", self.space)
        ip("link", "add", f"{self.space}h", "type", "veth", "peer", "name", "eth0", "netns", self.space)
        ip("link", "set", f"{self.space}h", "master", self.stack.bridge)
        self.connect()
        within = ("netns", "exec", self.space, "ip")
        ip(*within, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip(*within, "link", "set", device, "up")
        for folder in (self.root, self.root / "edge", self.root / "tmp", self.root / "services"):
            folder.mkdir()
            folder.chmod(0o755)
        (self.root / "tmp").chmod(0o777)
        (self.root / "nginx.conf").write_text(NGINX.format(root=self.root, extra=""))
        settings = yaml.safe_load(self.stack.config.read_text())
        settings["state_dir"] = str(self.root / "state")
        settings["nginx"] |= {
            "directory": str(self.root / "edge"),
            "conf": str(self.root / "nginx.conf"),
            "pid_file": str(self.root / "nginx.pid"),
        }
        settings["edges"] |= {"name": self.name}
        (self.root / "orchestrator.yaml").write_text(yaml.safe_dump(settings))

    def connect(self) -> None:
        ip("link", "set", f"{self.space}h", "up")

    def cut_off(self) -> None:
        ip("link", "set", f"{self.space}h", "down")

    def run(self, *words: str) -> None:
        command = ["ip", "netns", "exec", self.space, *words]
        subprocess.run(command, check=True, timeout=30, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def prepare(self) -> None:
        """What nginx' service file does before it starts."""
        config = str(self.root / "orchestrator.yaml")
        self.run(sys.executable, "-m", "orchestrator", "edge", "--prepare", "--config", config)

    def start_nginx(self) -> None:
        self.run("nginx", "-c", str(self.root / "nginx.conf"))

    def stop_nginx(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.root / "nginx.pid").read_text()), signal.SIGTERM)

    async def start(self) -> None:
        command = [sys.executable, "-m", "orchestrator", "edge", "--config"]
        with (self.root / "edge.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", self.space, *command, str(self.root / "orchestrator.yaml")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            async with asyncio.timeout(10):
                assert await self.process.wait() == 0, (self.root / "edge.log").read_text()

    def down(self) -> None:
        self.stop_nginx()
        ip("link", "del", f"{self.space}h", check=False)
        ip("netns", "del", self.space, check=False)

    async def answers(self, number: int = 12) -> set[str]:
        """Which releases answer this host's users, over some requests. Its nginx listens on loopback."""
        url = f"http://127.0.0.1:{self.port}/ping"
        code = (
            "import urllib.request as r\n"
            f"print(*{{r.urlopen('{url}', timeout=5).headers['X-Release'] for _ in range({number})}})"
        )
        command = ["ip", "netns", "exec", self.space, sys.executable, "-c", code]
        done = await asyncio.to_thread(
            subprocess.run, command, check=True, capture_output=True, text=True, timeout=30
        )
        return set(done.stdout.split())


class Fleet(ForkedStack):
    """The stack with a Redis that namespaces reach, and hosts beside the daemon's own."""

    def __init__(self, on_failure: str, **service: Any) -> None:
        self._redis_port = free_port()
        super().__init__(
            lambda port: {"api": service_file("api", port("api"), **{**QUICK, **service})},
            {
                "edges": {"enabled": True, "ttl": f"{TTL:g}s", "on_failure": on_failure},
                "redis": {"url": "redis://x"},
            },
        )
        gateway = str(ipaddress.ip_network(self.subnet)[1])
        self._settings["redis"] = {"url": f"redis://{gateway}:{self._redis_port}/0"}
        self.write_config()
        Network(self.owner, self.subnet).ensure(self.docker)
        self.bridge = f"br-{str(self.docker.networks.get(self.owner).id)[:12]}"
        place = ["--port", str(self._redis_port), "--bind", gateway, "--protected-mode", "no"]
        command = ["redis-server", *place, "--dir", str(self.root), "--save", "", *DURABLE]
        self._redis_server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.hosts = [Host(name, self, number) for number, name in enumerate("bc")]

    def start_edges(self) -> None:
        for host in self.hosts:
            host.up()
            host.start_nginx()

    async def __aenter__(self) -> Self:
        self.start_edges()
        await super().__aenter__()
        for host in self.hosts:
            await host.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for host in self.hosts:
                await host.stop()
        finally:
            for host in self.hosts:
                host.down()
            await super().__aexit__()
            self._redis_server.kill()
            self._redis_server.wait()

    async def all_serve(self, release: str) -> None:
        """Every host's users are answered by one release."""
        for host in self.hosts:
            assert await host.answers() == {release}, host.name

    async def known(self, *names: str) -> None:
        async def look() -> bool:
            code, text = await self.cli("edges", "--output", "json")
            return code == 0 and all(f'"edge": "{name}"' in text for name in names)

        await self.until(look, 20, f"edges {names} are heard of")


@contextlib.asynccontextmanager
async def fleet(on_failure: str, **service: Any) -> AsyncIterator[Fleet]:
    async with Fleet(on_failure, **service) as found, Observer(found) as observer:
        yield found
        await observer.finish()


async def test_a_step_counts_when_every_edge_has_confirmed(images: Images) -> None:
    async with fleet("all_back") as s:
        await s.known("b", "c")
        await s.push("api", images("v1"))
        assert (await s.ended("api-1")).outcome is Outcome.PROMOTED
        await s.all_serve("api-1")
        await s.push("api", images("v2"))
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
        await s.all_serve("api-2")
        code, text = await s.cli("edges")
        assert code == 0, text
        assert "away" not in text
        code, text = await s.cli("rollback", "api", "--wait", "--who", "ann")
        assert code == 0, text
        await s.all_serve("api-1")


async def test_an_edge_that_cannot_follow_takes_all_back(images: Images) -> None:
    async with fleet("all_back") as s:
        await s.known("b", "c")
        await s.push("api", images("v1"))
        await s.ended("api-1")
        broken = s.hosts[0].root / "edge" / "zz-broken.conf"
        broken.write_text("this is not nginx;\n")
        await s.push("api", images("v2"))
        ended = await s.ended("api-2", 60)
        assert ended.outcome is Outcome.ROLLED_BACK
        assert ended.reason.startswith("edge b: ")
        assert "zz-broken.conf" in ended.reason
        broken.unlink()
        await s.all_serve("api-1")


async def test_an_edge_that_is_cut_off_is_left_behind_and_catches_up(images: Images) -> None:
    async with fleet("go_on") as s:
        await s.known("b", "c")
        await s.push("api", images("v1"))
        await s.ended("api-1")
        cut = s.hosts[1]
        cut.cut_off()
        await asyncio.sleep(TTL + 1)
        await s.push("api", images("v2"))
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
        assert await s.hosts[0].answers() == {"api-2"}
        _, text = await s.cli("edges")
        assert "away" in text
        cut.stop_nginx()  # its host starts again: nginx is given what is wanted before it serves
        await cut.stop()
        cut.connect()
        await asyncio.sleep(0.5)
        cut.prepare()
        cut.start_nginx()
        assert await cut.answers() == {"api-2"}
        await cut.start()
        await s.known("c")
        await s.push("api", images("v1"))
        assert (await s.ended("api-3")).outcome is Outcome.PROMOTED
        await s.all_serve("api-3")


async def test_an_edge_that_is_lost_in_mid_rollout_takes_all_back(images: Images) -> None:
    slow = {"strategy": {"steps": [50, 100], "first_hold": "60s", "bake": "60s", "min_requests": 0}}
    async with fleet("all_back", **slow) as s:
        await s.known("b", "c")
        await s.push("api", images("v1"))
        await s.ended("api-1")
        await s.push("api", images("v2"))

        async def shifting() -> bool:
            state = await s.state()
            return state.route.share("api-2") > 0 and state.confirmed == state.route.generation

        await s.until(shifting, 40, "all edges serve the step")
        assert await s.hosts[0].answers(30) == {"api-1", "api-2"}
        s.hosts[1].cut_off()
        ended = await s.ended("api-2", 60)
        assert (ended.outcome, ended.reason) == (Outcome.ROLLED_BACK, "edge c has not been heard of")
        assert await s.hosts[0].answers() == {"api-1"}
        s.hosts[1].connect()

        async def caught_up() -> bool:
            return await s.hosts[1].answers() == {"api-1"}

        await s.until(caught_up, 20, "the edge that is back has caught up")
