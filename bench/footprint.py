"""`python -m bench.footprint`: what the daemon costs when nothing is released.

Start-up time, memory and CPU over a minute, with one service and with twenty, beside a bare Python process
that has imported asyncio and aiohttp and sleeps.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import docker
from rich.console import Console
from rich.table import Table

from examples.playground import gin
from examples.playground.service import service_file
from examples.playground.stack import Stack

MINUTE = 60.0
TICKS = os.sysconf("SC_CLK_TCK")

out = Console(highlight=False, width=100)


def rss(pid: int) -> float:
    """Resident memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu(pid: int) -> float:
    """CPU seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def bare() -> tuple[float, float, float]:
    """Start-up, memory and CPU share of a process that only imports and sleeps."""
    began = time.monotonic()
    code = "import asyncio, aiohttp; print('up', flush=True); asyncio.run(asyncio.sleep(120))"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=pipe)
    assert process.stdout is not None
    await process.stdout.readline()
    started = time.monotonic() - began
    before = cpu(process.pid)
    await asyncio.sleep(5.0)
    found = (started, rss(process.pid), (cpu(process.pid) - before) / 5.0)
    process.kill()
    await process.wait()
    return found


async def daemon(services: int, image: str) -> tuple[float, float, float, float]:
    """The same of the daemon, idle, with this many services that have a stable release each.

    The fourth number is the seconds from `kill -9` until a new daemon drives again.
    """
    idle = {
        "container": {"port": 8080, "memory": "32MiB", "probe": {"successes": 2}},
        "gates": [],
    }
    names = [f"s{n}" for n in range(services)]
    stack = Stack(
        lambda port: {n: service_file(n, port(n), **idle) for n in names},
        {"tick": "1s"},
    )
    async with stack:
        for name in names:
            await stack.push(name, image)
        for name in names:
            await stack.ended(f"{name}-1", 180)
        await stack.stop_daemon()
        began = time.monotonic()
        await stack.start_daemon()
        started = time.monotonic() - began
        assert stack.daemon is not None
        await asyncio.sleep(3.0)
        before = cpu(stack.daemon.pid)
        await asyncio.sleep(MINUTE)
        memory, share = rss(stack.daemon.pid), (cpu(stack.daemon.pid) - before) / MINUTE
        stack.daemon.kill()
        began = time.monotonic()
        await stack.daemon.wait()
        await stack.start_daemon()
        return started, memory, share, time.monotonic() - began


async def main() -> None:
    """Measure and print."""
    client = docker.from_env()
    image = gin.build(client, "v1")
    client.close()
    base = await bare()
    table = Table(title="idle, over one minute")
    for column in (
        "process",
        "start-up s",
        "RSS MiB",
        "CPU % of a core",
        "RSS / bare",
        "kill -9 to driving s",
    ):
        table.add_column(column, justify="left" if column == "process" else "right")
    rows: dict[str, tuple[float, ...]] = {"bare asyncio + aiohttp": base}
    for services in (1, 20):
        rows[f"daemon, {services} service{'s' * (services > 1)}"] = await daemon(services, image)
    for name, (started, memory, share, *again) in rows.items():
        figures = [f"{started:.2f}", f"{memory:.0f}", f"{share * 100:.2f}", f"{memory / base[1]:.1f}"]
        table.add_row(name, *figures, *(f"{seconds:.2f}" for seconds in again))
    out.print(table)


if __name__ == "__main__":
    asyncio.run(main())
