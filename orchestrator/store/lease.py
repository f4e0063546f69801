"""The lease: at most one daemon drives. Its token grows with every holder and fences all that is written."""

import asyncio
import fcntl
import os
from pathlib import Path
from typing import IO

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from orchestrator.ports import Stale
from orchestrator.store.keys import Keys
from orchestrator.store.scripts import ACQUIRE, RELEASE, RENEW

log = structlog.get_logger()


class Lease:
    """A lease in Redis with a lock file beside it.

    The file is locked for as long as this process lives. A new process on the same host that gets the lock
    therefore knows that the holder named in the file is dead, and need not wait for its lease to run out.
    """

    def __init__(self, redis: Redis, keys: Keys, state_dir: Path, ttl: float = 10.0) -> None:
        self._redis = redis
        self._keys = keys
        self._path = state_dir / "lease"
        self._ttl = ttl
        self._file: IO[str] | None = None
        self.token = 0
        self._acquire = redis.register_script(ACQUIRE)
        self._renew = redis.register_script(RENEW)
        self._release = redis.register_script(RELEASE)

    async def acquire(self) -> int:
        """Wait until this daemon may drive; returns the token."""
        try:
            return await self._acquire_when_free()
        except BaseException:
            self._close()
            raise

    async def _acquire_when_free(self) -> int:
        told = False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+")
        while not self._lock():
            if not told:
                log.info("standby", reason=f"another daemon on this host holds {self._path}")
            told = True
            await asyncio.sleep(0.2)
        self._file.seek(0)
        dead = self._file.read().strip()
        floor = int(dead) if dead.isdecimal() else 0
        while True:
            try:
                token, ttl_ms = await self._acquire(
                    keys=[self._keys.lease, self._keys.epoch],
                    args=[int(self._ttl * 1000), floor, dead],
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
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{self.token}\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.token

    def _lock(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    async def keep(self) -> None:
        """Renew at a third of the time to live, for ever.

        Raises:
            Stale: Another daemon holds the lease, or Redis has not answered for the whole time to live.
        """
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self._ttl / 3)
            sent = loop.time()
            try:
                if not await self._renew(keys=[self._keys.lease], args=[self.token, int(self._ttl * 1000)]):
                    if not await self._retake():
                        raise Stale("another daemon holds the lease")
                    log.warning("lease_retaken", token=self.token)
                renewed = sent
            except RedisError as error:
                log.warning("lease_not_renewed", reason=str(error), since_s=round(loop.time() - renewed, 1))

    async def _retake(self) -> bool:
        """Take a lease that ran out while Redis was away, if nobody else has driven since."""
        current = await self._redis.get(self._keys.epoch)
        if current is not None and int(current) != self.token:
            return False
        return bool(await self._redis.set(self._keys.lease, self.token, px=int(self._ttl * 1000), nx=True))

    async def release(self) -> None:
        """Give the lease back, so that a standby takes over at once."""
        try:
            await self._release(keys=[self._keys.lease], args=[self.token])
        except RedisError as error:
            log.warning("lease_not_released", reason=str(error))
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
