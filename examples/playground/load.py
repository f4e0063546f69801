"""A steady load through nginx, and what its users saw."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import aiohttp


@dataclass(slots=True)
class Seen:
    """Answers by release: good, answered with an error, and requests that got no answer at all."""

    good: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    slow: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    bad_gateway: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All requests."""
        return self.good.total() + self.errors.total() + self.lost + self.bad_gateway

    @property
    def failed(self) -> int:
        """Requests that a user would complain about."""
        return self.errors.total() + self.lost + self.bad_gateway

    def copy(self) -> "Seen":
        """A snapshot."""
        return Seen(
            self.good.copy(),
            self.errors.copy(),
            self.slow.copy(),
            self.lost,
            self.bad_gateway,
            self.reasons.copy(),
        )

    def since(self, before: "Seen") -> "Seen":
        """What came after a snapshot."""
        return Seen(
            self.good - before.good,
            self.errors - before.errors,
            self.slow - before.slow,
            self.lost - before.lost,
            self.bad_gateway - before.bad_gateway,
            self.reasons - before.reasons,
        )


class Load:
    """`rate` GET requests a second, each on a fresh connection, for as long as the context is open.

    Args:
        url: A loopback URL.
        rate: Requests a second.
        slow: Seconds above which an answer counts as slow.
        limit: Seconds after which the load ends by itself.
    """

    def __init__(self, url: str, rate: float, slow: float = 0.25, limit: float = 900.0) -> None:
        self._url = url
        self._rate = rate
        self._slow = slow
        self._limit = limit
        self._task: asyncio.Task[None] | None = None
        self.seen = Seen()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="load")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=10.0)
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            began, sent = time.monotonic(), 0
            running: set[asyncio.Task[None]] = set()
            try:
                while (now := time.monotonic()) - began < self._limit:
                    due = int((now - began) * self._rate)
                    while sent < due:
                        task = asyncio.create_task(self._one(session), name="request")
                        running.add(task)
                        task.add_done_callback(running.discard)
                        sent += 1
                    await asyncio.sleep(min(1 / self._rate, 0.01))
            finally:
                if running:
                    await asyncio.wait(running, timeout=10.0)

    async def _one(self, session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        try:
            async with session.get(self._url) as answer:
                await answer.read()
                release = answer.headers.get("X-Release", "")
                if answer.status < 400:
                    self.seen.good[release] += 1
                elif release:
                    self.seen.errors[release] += 1
                else:
                    self.seen.bad_gateway += 1
                    self.seen.reasons[str(answer.status)] += 1
                if time.monotonic() - began > self._slow:
                    self.seen.slow[release] += 1
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.seen.lost += 1
            self.seen.reasons[type(error).__name__] += 1
