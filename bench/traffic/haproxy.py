"""HAProxy before the same containers: weights by its runtime API."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable

from bench.traffic.stage import Stage
from examples.playground.lease import free_port

CONFIG = """\
global
    stats socket {root}/haproxy.sock mode 600 level admin
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
listen api
    bind 127.0.0.1:{port}
    server v1 {v1} weight 100
    server v2 {v2} weight 0
"""


def installed() -> bool:
    """Whether it can be measured here."""
    return shutil.which("haproxy") is not None


@contextlib.asynccontextmanager
async def haproxy(on: Stage) -> AsyncIterator[tuple[int, Callable[[str], Awaitable[None]]]]:
    """Its port, and what sends all traffic to one of the versions."""
    port = free_port()
    config = on.root / "haproxy.cfg"
    config.write_text(CONFIG.format(root=on.root, port=port, **on.addresses))
    process = await asyncio.create_subprocess_exec("haproxy", "-f", str(config), "-db")

    async def change(to: str) -> None:
        other = "v1" if to == "v2" else "v2"
        reader, writer = await asyncio.open_unix_connection(str(on.root / "haproxy.sock"))
        writer.write(f"set weight api/{to} 100;set weight api/{other} 0\n".encode())
        answer = (await reader.read()).decode().strip()
        writer.close()
        assert not answer, answer

    await asyncio.sleep(1.0)
    try:
        yield port, change
    finally:
        process.terminate()
        await process.wait()
