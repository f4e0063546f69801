"""`python -m bench.traffic.kinds HOST:PORT`: clients of five kinds at once, which count true losses.

A request is lost when it was written on a connection that the server had not closed, and no answer came, the
connection was reset, the answer was cut short, or it was a 5xx. Ends on SIGTERM or after an hour, when what
is under way has been answered, with one JSON line: what was sent by kind, and each lost request.
"""

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.traffic.clients import GET, Client, CutShortError
from orchestrator.daemon.clock import SystemClock

CLOCK = SystemClock()
LIMIT = 3600.0
DEADLINE = 20.0
BODIES = (64, 4096, 65536)
PARTS = (4, 80)
"""Parts of a streamed answer, one every 50 ms: from 0.2 to 4 s."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of clients.

    Attributes:
        connections: How many clients there are.
        request: The next request, and how long its answer is at the least.
        pause: Seconds from an answer to the next request.
        kept: Whether the connection is used again.
    """

    connections: int
    request: Callable[[random.Random], tuple[bytes, int]]
    pause: Callable[[random.Random], float]
    kept: bool = True


def _get(_: random.Random) -> tuple[bytes, int]:
    return GET, 1


def _post(chance: random.Random) -> tuple[bytes, int]:
    size = chance.choice(BODIES)
    head = f"POST /echo HTTP/1.1\r\nHost: api\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + b"x" * size, size


def _stream(chance: random.Random) -> tuple[bytes, int]:
    parts = chance.randint(*PARTS)
    request = f"GET /events?parts={parts} HTTP/1.1\r\nHost: api\r\n\r\n"
    return request.encode(), parts * len("id: 1\ndata: tick\n\n")


KINDS = {
    "kept, busy": Kind(8, _get, lambda chance: chance.expovariate(1 / 0.05)),
    "kept, idle for 0.1 to 5 s": Kind(24, _get, lambda chance: chance.uniform(0.1, 5.0)),
    "fresh": Kind(4, _get, lambda chance: chance.expovariate(1 / 0.2), kept=False),
    "POST, kept": Kind(8, _post, lambda chance: chance.expovariate(1 / 0.2)),
    "streams of 0.2 to 4 s, kept": Kind(12, _stream, lambda chance: chance.expovariate(1 / 0.5)),
}


@dataclass(frozen=True, slots=True)
class Lost:
    """One request; seconds of the wall clock."""

    kind: str
    sent: float
    known: float
    why: str


class Clients:
    """All of them."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stopping = asyncio.Event()
        self.sent: Counter[str] = Counter()
        self.lost: list[Lost] = []

    def stop(self) -> None:
        """Let them end after the answers to what is under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Until told to stop."""
        await asyncio.gather(*self._clients())

    def _clients(self) -> Iterator[asyncio.Future[None]]:
        for name, kind in KINDS.items():
            for number in range(kind.connections):
                yield asyncio.ensure_future(self._one(name, kind, random.Random(f"{name} {number}")))

    async def _one(self, name: str, kind: Kind, chance: random.Random) -> None:
        client = Client(self._address)
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(kind.pause(chance)):
                    await self._stopping.wait()
                    break
            request, length = kind.request(chance)
            self.sent[name] += 1
            began = CLOCK.now()
            why = await self._ask(client, request, length)
            if why:
                self.lost.append(Lost(name, began, CLOCK.now(), why))
            if why or not kind.kept:
                await client.close()
        await client.close()

    @staticmethod
    async def _ask(client: Client, request: bytes, length: int) -> str:
        """Why it is lost; empty when it is not."""
        try:
            async with asyncio.timeout(DEADLINE):
                status, release, got = await client.ask(request)
        except CutShortError:
            return "cut short"
        except EOFError:
            return "closed without an answer"
        except TimeoutError:
            return f"no answer in {DEADLINE:g} s"
        except OSError as error:
            return error.strerror or type(error).__name__
        if status >= 500:
            return f"{status} by {'nginx' if release == '?' else 'the service'}"
        return "" if got >= length else "cut short"


async def main(address: str) -> None:
    """Ask until told to stop."""
    clients = Clients(address)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, clients.stop)
    asyncio.get_running_loop().call_later(LIMIT, clients.stop)
    await clients.run()
    lost = [[one.kind, one.sent, one.known, one.why] for one in clients.lost]
    print(json.dumps({"sent": clients.sent, "lost": lost}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
