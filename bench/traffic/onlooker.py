"""`python -m bench.traffic.onlooker HOST PORT PAUSE`: who answers a fresh connection, every PAUSE seconds.

Each answer is a line on standard output, `SECONDS WHO`: when the request was sent, by the clock that all
processes of a machine share, and its header X-Release, or `-` where there was no whole answer. Ends when
standard input does.
"""

import asyncio
import contextlib
import re
import sys
import time

DEADLINE = 2.0
GET = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
RELEASE = re.compile(rb"\r\nx-release: ([^\r]*)\r\n", re.IGNORECASE)


async def ask(host: str, port: int) -> str:
    """Who answers; `-` for nobody."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.closing(writer):
                writer.write(GET)
                found = RELEASE.search(await reader.read())
                return found[1].decode() if found else "-"
    return "-"


async def main(host: str, port: int, pause: float) -> None:
    """Ask at a steady pace, whoever has not been answered yet."""

    async def one() -> None:
        sent = time.monotonic()
        print(f"{sent:.6f} {await ask(host, port)}", flush=True)

    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    over = asyncio.create_task(stdin.read())
    due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while not over.done():
            group.create_task(one())
            due = max(due + pause, time.monotonic())
            await asyncio.sleep(due - time.monotonic())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
