"""`python -m bench.services [NUMBER]`: one nginx with many services: what a change takes, and its memory."""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.footprint import rss
from examples.playground.lease import free_port
from examples.playground.stack import LUA, NGINX
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route, Server
from orchestrator.rollout.observation import OnDisk
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.process import HostNginx, run
from orchestrator.traffic.render import render

out = Console(highlight=False, width=110)

NUMBER = 1000
RELOADS = 100
LOOKS = (1, 25, 50, 75, 100)
"""Memory is looked at after so many reloads."""
CHANGES = 20


def plan(service: str, generation: int) -> RoutePlan:
    """Two releases with two instances each."""
    servers = tuple(
        Server(
            address=f"10.1.{n}.{generation % 200 + 1}:8080",
            weight=n,
            release=f"{service}-{n // 3 + 1}",
            instance=f"{service}-{n}",
            container="c",
            started_at="t",
        )
        for n in range(1, 5)
    )
    return RoutePlan(service=service, route=Route(generation=generation, servers=servers))


async def measured(number: int, *, dynamic: bool) -> list[str]:
    """A row: changes, and memory as reloads go by."""
    with tempfile.TemporaryDirectory(prefix="bench-services-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o777)
        conf = root / "nginx.conf"
        conf.write_text((LUA if dynamic else "") + NGINX.format(root=root, extra=""))
        listen = f"127.0.0.1:{free_port()}"
        process = HostNginx(conf=str(conf), pid_file=root / "nginx.pid")
        mode = "dynamic" if dynamic else "reload"
        options = EdgeOptions()
        edge = NginxEdge(
            process,
            root / "edge",
            lambda _: options,
            listen=listen,
            confirm_deadline=30.0,
            closing_wait=0.0,
            mode=mode,  # type: ignore[arg-type]
        )
        edge.prepare()
        secret = await edge._memory.secret()  # noqa: SLF001  files as the edge itself would write them
        for n in range(number):
            wanted = plan(f"s{n}", 1)
            text = render(
                wanted.service,
                OnDisk(route=wanted.route),
                options,
                token=1,
                listen=listen,
                folder=str(root / "edge"),
                secret=secret,
            )
            (root / "edge" / f"s{n}.conf").write_text(text)
        await run(["nginx", "-c", str(conf)], 60)
        try:
            took = []
            for generation in range(2, CHANGES + 2):
                began = time.monotonic()
                await edge.apply(plan("s0", generation), 1)
                took.append((time.monotonic() - began) * 1000)
            seen = []
            for reloads in range(1, RELOADS + 1):
                await edge.reload()
                if reloads in LOOKS:
                    workers = await settled(process)
                    seen.append((statistics.mean(map(rss, workers)), rss(process.master())))
        finally:
            await edge.close()
            await run(["nginx", "-c", str(conf), "-s", "stop"], 30)
    return [
        str(number),
        mode,
        f"{statistics.median(took):.0f}",
        f"{max(took):.0f}",
        *(" ".join(f"{mib:.0f}" for mib in looks) for looks in zip(*seen, strict=True)),
    ]


async def settled(process: HostNginx) -> frozenset[int]:
    """The workers, once none is left from before the last reload."""
    async with asyncio.timeout(60):
        while (workers := await process.workers()).retiring:
            await asyncio.sleep(0.1)
    return workers.accepting


async def main(number: int) -> None:
    """Print the table."""
    looks = ", ".join(map(str, LOOKS))
    table = Table(title=f"a change: render, nginx -t, reload, confirm; memory after {looks} reloads")
    for column in ("services", "mode", "median ms", "longest ms", "MiB a worker", "MiB of the master"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for services in (1, number):
        for dynamic in (False, True):
            table.add_row(*await measured(services, dynamic=dynamic))
    out.print(table)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else NUMBER))
