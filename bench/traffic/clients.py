"""`python -m bench.traffic.clients HOST:PORT CONNECTIONS RATE LOG`: keepalive clients that count true losses.

Each connection sends a request, reads the answer, waits, and sends the next on the same connection, every
fourth with a body. Before each it looks whether the server has closed: then it connects anew, and nothing is
lost. A request is lost when it was written and no whole answer came, or a 5xx. LOG gets a line for each
request, `SECONDS RELEASE`: when it was sent, and who answered. Ends on SIGTERM or after ten minutes, with
one JSON line of totals.
"""

import asyncio
import contextlib
import json
import random
import select
import signal
import sys
import time
from collections import Counter
from pathlib import Path

LIMIT = 600.0
DEADLINE = 10.0
GET = b"GET /ping HTTP/1.1\r\nHost: api\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: api\r\nContent-Length: 64\r\n\r\n" + b"x" * 64


class CutShortError(EOFError):
    """The answer began and did not come whole."""


class Client:
    """One connection at a time."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await self.close()
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self._reader, self._writer

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    async def ask(self, request: bytes) -> tuple[int, str, int]:
        """Status, release and length of the answer; raises OSError or EOFError when the request is lost."""
        reader, writer = self._reader, self._writer
        if reader is None or writer is None or reader.at_eof() or _closed(writer):
            reader, writer = await self._connect()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
        length = int(fields.get("content-length", "0"))
        try:
            if fields.get("transfer-encoding") == "chunked":
                length = await _chunks(reader)
            else:
                await reader.readexactly(length)
        except (OSError, EOFError) as error:
            raise CutShortError from error
        if fields.get("connection") == "close":
            await self.close()
        return int(head[0].split(" ")[1]), fields.get("x-version", "?"), length


def _closed(writer: asyncio.StreamWriter) -> bool:
    """Whether the server's end has arrived, read by the loop or not."""
    number = writer.get_extra_info("socket").fileno()
    if number < 0:
        return True
    end = select.poll()
    end.register(number, select.POLLRDHUP)
    return bool(end.poll(0))


async def _chunks(reader: asyncio.StreamReader) -> int:
    """Read a body in chunks; its length."""
    length = 0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(size + 2)
        length += size
    await reader.readexactly(2)
    return length


class Clients:
    """All of them."""

    def __init__(self, address: str, connections: int, rate: float, log: str) -> None:
        self._clients = [Client(address) for _ in range(connections)]
        self._pause = connections / rate
        self._log = log
        self.sent = 0
        self.lost: Counter[str] = Counter()
        self.slowest = 0.0
        self._marks: list[tuple[float, str]] = []

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(*(self._one(c, random.Random(n)) for n, c in enumerate(self._clients)))

    async def _one(self, client: Client, chance: random.Random) -> None:
        await asyncio.sleep(chance.random() * self._pause)
        while True:
            method, request = ("POST", POST) if self.sent % 4 == 3 else ("GET", GET)
            self.sent += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(DEADLINE):
                    status, release, _ = await client.ask(request)
            except (OSError, EOFError, TimeoutError) as error:
                self.lost[f"{method} {type(error).__name__}"] += 1
                await client.close()
            else:
                if status >= 500:
                    self.lost[f"{method} {status}"] += 1
                self._marks.append((began, release))
                self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(chance.expovariate(1.0 / self._pause))

    def write(self) -> None:
        """Write the log."""
        with Path(self._log).open("w", encoding="ascii") as file:
            file.writelines(f"{began:.6f} {release}\n" for began, release in sorted(self._marks))


async def main(address: str, connections: int, rate: float, log: str) -> None:
    """Ask until told to stop."""
    clients = Clients(address, connections, rate, log)
    task = asyncio.create_task(clients.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        async with asyncio.timeout(LIMIT):
            await task
    clients.write()
    print(json.dumps({"sent": clients.sent, "lost": clients.lost, "slowest": clients.slowest}), flush=True)


if __name__ == "__main__":
    where, many, rate, log = sys.argv[1:]
    asyncio.run(main(where, int(many), float(rate), log))
