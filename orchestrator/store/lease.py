"""The lease: at most one daemon drives. Its token grows with every holder and fences all that is written."""

import asyncio
import contextlib
import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.lock import try_lock
from orchestrator.store.keys import Keys
from orchestrator.store.scripts import ACQUIRE, RELEASE, RENEW, RETAKE

log = structlog.get_logger()

RETRY = 0.5
"""Seconds between tries to renew while Redis does not answer."""


class Lease:
    """A lease in Redis with a lock file beside it.

    Args:
        floor: Tells the highest token that the resources know; a new one is above it, whatever Redis knows.
        ttl: Seconds after which Redis gives the lease of a silent holder to another.

    The file is locked for as long as this process lives. A new process on the same host that gets the lock
    therefore knows that the holder named in the file is dead, and need not wait for its lease to run out.
    """

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        state_dir: Path,
        ttl: float = 10.0,
        *,
        floor: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._path = state_dir / "lease"
        self._ttl = ttl
        self._floor = floor
        self._renewed = -math.inf
        self._file: IO[str] | None = None
        self.token = 0
        self._acquire = redis.register_script(ACQUIRE)
        self._renew = redis.register_script(RENEW)
        self._retake = redis.register_script(RETAKE)
        self._release = redis.register_script(RELEASE)

    async def acquire(self) -> int:
        """Wait until this daemon may drive; returns the token.

        Raises:
            Fault: The file beside it can't be written or locked.
        """
        try:
            return await self._acquire_when_free()
        except BaseException:
            self._close()
            raise

    async def _acquire_when_free(self) -> int:
        told = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+")
        except OSError as error:
            raise Fault(f"{self._path}: {error.strerror}") from error
        while not try_lock(self._file.fileno(), self._path):
            if not told:
                log.info("standby", reason=f"another daemon on this host holds {self._path}")
            told = True
            await asyncio.sleep(0.2)
        self._file.seek(0)
        dead = self._file.read().strip()
        known = int(dead) if dead.isdecimal() else 0
        while True:
            floor = max(known, await self._highest())
            self._renewed = asyncio.get_running_loop().time()
            try:
                token, ttl_ms = await self._acquire(
                    keys=[self._keys.lease, self._keys.epoch], args=[int(self._ttl * 1000), floor, dead]
                )
            except RedisError as error:
                log.warning("redis_unavailable", reason=str(error))
                await asyncio.sleep(0.5)
                continue
            if token:
                break
            if not told:
                log.info("standby", reason=f"another daemon drives; its lease ends in {ttl_ms} ms")
            told = True
            await asyncio.sleep(min(max(int(ttl_ms), 50) / 1000, 0.5))
        self.token = int(token)
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"{self.token}\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise Fault(f"{self._path}: {error.strerror}") from error
        return self.token

    async def _highest(self) -> int:
        return 0 if self._floor is None else await self._floor()

    def fresh(self) -> bool:
        """Whether less than half the time to live has passed since the last renewal was sent.

        Only then may anything be begun. What was begun may outlast the lease: a route or a stop may take
        minutes. It is harmless because of its token, which the resources refuse once they know a higher one.
        """
        return asyncio.get_running_loop().time() - self._renewed < self._ttl / 2

    async def keep(self, lost: Callable[[], None]) -> None:
        """Renew at a third of the time to live, for ever.

        Args:
            lost: Called when Redis had no lease any more and it was taken again: commits may be lost too.

        Raises:
            Stale: Another daemon holds the lease, or has held it since.
        """
        loop = asyncio.get_running_loop()
        pause = self._ttl / 3
        while True:
            await asyncio.sleep(pause)
            sent = loop.time()
            pause = self._ttl / 3
            try:
                keys, args = [self._keys.lease, self._keys.epoch], [self.token, int(self._ttl * 1000)]
                if not await self._renew(keys=keys[:1], args=args):
                    newer = await self._highest() > self.token
                    if newer or not await self._retake(keys=keys, args=args):
                        raise Stale("another daemon holds the lease")
                    log.warning("lease_retaken", token=self.token)
                    lost()
                self._renewed = sent
            except RedisError as error:
                pause = min(RETRY, pause)
                since = round(loop.time() - self._renewed, 1)
                log.warning("lease_not_renewed", reason=str(error), since_s=since)

    async def release(self) -> None:
        """Give the lease back, so that a standby takes over at once."""
        try:
            await self._release(keys=[self._keys.lease], args=[self.token])
        except RedisError as error:
            log.warning("lease_not_released", reason=str(error))
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # on a full disk what is buffered can't be written here either
                self._file.close()
            self._file = None
