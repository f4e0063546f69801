"""`python -m bench.traffic.faults`: what a candidate costs that dies, hangs or refuses connections at 10 %.

And what stable costs that dies, with the rest of the traffic. nginx alone, without a daemon that takes it
out: what users see until somebody does. Beside it a plain upstream as many write it, with nginx' own
defaults, on the same nginx and the same containers. GET is idempotent and may be tried again; POST is not.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from bench.traffic.stage import Heard, Stage, stage
from examples.playground.lease import free_port

out = Console(highlight=False, width=110)

WEIGHT = 10
READ_TIMEOUT = 1.0
"""Seconds; a service that answers within tens of milliseconds is given as long."""

LASTS = 12.0
"""Seconds that it lasts; the clients give a request up after ten."""


async def killed(on: Stage) -> None:
    """It dies, and its address answers no more."""
    await asyncio.to_thread(on.containers["v2"].kill)


async def stable_killed(on: Stage) -> None:
    """Stable dies, which has nearly all the traffic."""
    await asyncio.to_thread(on.containers["v1"].kill)


async def paused(on: Stage) -> None:
    """It hangs: the kernel still takes connections."""
    await asyncio.to_thread(on.containers["v2"].pause)


async def refuses(on: Stage) -> None:
    """It runs, and nobody listens."""
    on.addresses["v2"] = f"127.0.0.1:{free_port()}"
    await on.edge.apply(on.plan(WEIGHT), 1)
    plain(on)
    await on.edge.reload()


def plain(on: Stage) -> int:
    """A plain upstream with the same weights; returns its port."""
    first, second = on.addresses["v1"], on.addresses["v2"]
    port = on.port + 2
    (on.root / "edge" / "zz-plain.conf").write_text(
        f"upstream plain {{ server {first} weight={100 - WEIGHT}; server {second} weight={WEIGHT};"
        f" keepalive 32; }}\nserver {{ listen 127.0.0.1:{port}; location / {{ proxy_http_version 1.1;"
        ' proxy_set_header Connection ""; proxy_pass http://plain; } }\n'
    )
    return port


async def whole(on: Stage) -> None:
    """Both containers are up and have their weights."""
    for version, container in on.containers.items():
        await asyncio.to_thread(container.reload)
        if container.status == "paused":
            await asyncio.to_thread(container.unpause)
        elif container.status != "running":
            await asyncio.to_thread(container.start)
        on.addresses[version] = on.address(version)
    plain(on)
    await asyncio.sleep(1.0)
    await on.edge.apply(on.plan(WEIGHT), 1)
    await on.process.reload()
    await asyncio.sleep(1.0)


async def suffer(on: Stage, port: int, fault: Callable[[Stage], Awaitable[None]]) -> Heard:
    """What clients heard while a fault began and lasted."""
    await whole(on)
    async with on.clients("near", port) as heard:
        await fault(on)
        await asyncio.sleep(LASTS)
    return heard[0]


async def main() -> None:
    """Print the table."""
    table = Table(title=f"a candidate with {WEIGHT} %, for {LASTS:g} s, read timeout {READ_TIMEOUT:g} s")
    for column in ("it", "way", "requests", "GET lost", "POST lost", "slowest answer, s"):
        table.add_column(column, justify="left" if column in ("it", "way") else "right")
    for dynamic in (False, True):
        async with stage(dynamic=dynamic) as on:
            server = on.options.server
            assert server is not None
            on.options = replace(on.options, server=replace(server, read_timeout=READ_TIMEOUT))
            ways = {"this edge, by Lua": on.port} if dynamic else {"this edge": on.port, "plain": plain(on)}
            for way, port in ways.items():
                for fault in (killed, paused, refuses, stable_killed):
                    heard = await suffer(on, port, fault)
                    lost = [
                        sum(n for why, n in heard.lost.items() if why.startswith(method))
                        for method in ("GET", "POST")
                    ]
                    table.add_row(
                        fault.__name__, way, str(heard.sent), *map(str, lost), f"{heard.slowest:.2f}"
                    )
    out.print(table)


if __name__ == "__main__":
    asyncio.run(main())
