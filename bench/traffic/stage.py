"""The stage of the traffic benches: one nginx, two Gin containers, an edge over them, and clients."""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.models.containers import Container

from examples.playground import gin
from examples.playground.lease import free_port
from examples.playground.stack import LUA, NGINX, ROOT
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route, Server
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions, ServerBlock
from orchestrator.traffic.process import HostNginx, run

CONNECTIONS = 64
RATE = {"near": 1000.0, "10 ms": 500.0}
WEIGHTS = (5, 50)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the clients saw: totals, and for each request when it was sent and who answered."""

    sent: int
    lost: dict[str, int]
    marks: list[tuple[float, str]]
    slowest: float


class Stage:
    """nginx, two containers, and an edge over them."""

    def __init__(self, root: Path, containers: dict[str, Container], *, dynamic: bool) -> None:
        self.root, self.containers, self.dynamic = root, containers, dynamic
        self.addresses = {version: self.address(version) for version in containers}
        self.port, self.generation = free_port(), 0
        self.options = EdgeOptions(server=ServerBlock(listen=f"127.0.0.1:{self.port}"))
        self.process = HostNginx(conf=str(root / "nginx.conf"), pid_file=root / "nginx.pid")
        self.edge = self.make_edge(1.0)

    def make_edge(self, closing_wait: float) -> NginxEdge:
        """Another edge on the same folder."""
        listen = f"127.0.0.1:{self.port + 1}"
        return NginxEdge(
            self.process,
            self.root / "edge",
            lambda _: self.options,
            listen=listen,
            closing_wait=closing_wait,
        )

    def address(self, version: str) -> str:
        """Where a container answers now."""
        container = self.containers[version]
        container.reload()
        (network,) = container.attrs["NetworkSettings"]["Networks"].values()
        return f"{network['IPAddress']}:8080"

    def plan(self, weight: int) -> RoutePlan:
        """The candidate has `weight` percent."""
        self.generation += 1
        shares = {"v1": 100 - weight, "v2": weight}
        servers = tuple(
            Server(
                address=self.addresses[v], weight=w, release=v, instance=f"{v}-0", container=v, started_at="t"
            )
            for v, w in shares.items()
        )
        fallback = Route(generation=self.generation, servers=servers[:1])
        return RoutePlan(
            service="api", route=Route(generation=self.generation, servers=servers), fallback=fallback
        )

    async def script(self, weight: int) -> None:
        """What a deploy script does: write the weights, reload, hope."""
        file = self.root / "edge" / "api.conf"
        text = file.read_text()
        old = WEIGHTS[1] if weight == WEIGHTS[0] else WEIGHTS[0]
        text = text.replace(f"weight={100 - old} ", f"weight={100 - weight} ")
        file.write_text(text.replace(f"weight={old} ", f"weight={weight} "))
        await run(["nginx", "-c", str(self.root / "nginx.conf"), "-t", "-q"], 10)
        await run(["nginx", "-c", str(self.root / "nginx.conf"), "-s", "reload"], 10)

    @contextlib.asynccontextmanager
    async def clients(self, network: str, port: int = 0) -> AsyncIterator[list[Heard]]:
        """Load; what was heard is in the list at the end."""
        heard: list[Heard] = []
        relay, port = None, port or self.port
        if network != "near":
            behind, port = port, free_port()
            target = ["bench.traffic.relay", str(port), f"127.0.0.1:{behind}", "5"]
            relay = subprocess.Popen([sys.executable, "-m", *target], cwd=ROOT)  # noqa: ASYNC220  returns at once
            await asyncio.sleep(1.0)
        log = self.root / "clients.log"
        what = ["bench.traffic.clients", f"127.0.0.1:{port}", str(CONNECTIONS), str(RATE[network]), str(log)]
        load = subprocess.Popen([sys.executable, "-m", *what], cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
        try:
            await asyncio.sleep(2.0)
            yield heard
            await asyncio.sleep(1.0)
        finally:
            load.terminate()
            said, _ = await asyncio.to_thread(load.communicate, timeout=30)
            if relay is not None:
                relay.kill()
                relay.wait()
        total = json.loads(said)
        marks = [(float(at), who) for at, who in (line.split() for line in log.read_text().splitlines())]
        heard.append(Heard(total["sent"], total["lost"], marks, total["slowest"]))


@contextlib.asynccontextmanager
async def stage(*, dynamic: bool) -> AsyncIterator[Stage]:
    """Everything up, with weights in nginx' memory or not; and gone afterwards."""
    client = docker.from_env()
    images = {v: gin.build(client, v) for v in ("v1", "v2")}
    with tempfile.TemporaryDirectory(prefix="bench-traffic-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "edge").mkdir()
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o777)
        network = client.networks.create(root.name)
        started = [client.containers.run(i, detach=True, network=root.name) for i in images.values()]
        (root / "nginx.conf").write_text((LUA if dynamic else "") + NGINX.format(root=root, extra=""))
        try:
            found = Stage(root, dict(zip(images, started, strict=True)), dynamic=dynamic)
            await run(["nginx", "-c", str(root / "nginx.conf")], 10)
            found.edge.prepare()
            await asyncio.sleep(1.0)
            await found.edge.apply(found.plan(WEIGHTS[0]), 1)
            yield found
            await found.edge.close()
        finally:
            with contextlib.suppress(Exception):
                await run(["nginx", "-c", str(root / "nginx.conf"), "-s", "stop"], 10)
            for container in started:
                container.remove(force=True)
            network.remove()
            client.close()
