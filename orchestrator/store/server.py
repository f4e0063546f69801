"""The Redis server itself: a private one when none is configured, or the settings of a given one."""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from orchestrator.ports.faults import Fault
from orchestrator.store.redis_store import connect

log = structlog.get_logger()

REQUIRED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""Settings without which Redis may lose what it has acknowledged: on a full disk `everysec` lost a write,
and `allkeys-lru` evicted stream, state and lease alike."""


FULL = 8 * 1024 * 1024
"""Bytes that a disk must have left: below, Redis may not be able to write its file anew."""


def free_bytes(path: Path) -> int:
    """What this process may still write on the disk of a path; 0 too where no file can be made any more.

    Raises:
        OSError: The path is not there.
    """
    found = os.statvfs(path)
    if found.f_files and not found.f_favail:
        return 0
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def disk_full(path: Path) -> str:
    """That the disk of a path is full, in words; '' when it is not."""
    try:
        free = free_bytes(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"disk full at {path}: {free // 1024} KiB left" if free < FULL else ""


def private_socket(state_dir: Path) -> Path:
    """Where the private server listens."""
    return state_dir / "redis" / "redis.sock"


class PrivateRedis:
    """A redis-server of the daemon's own: Unix socket, data in the state folder, every write on the disk.

    It outlives a killed daemon and is found again by the next one. A clean stop ends it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / "redis"
        self.socket = private_socket(state_dir)
        self.url = f"unix://{self.socket}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, deadline: float = 15.0) -> None:
        """Find the server of an earlier daemon, or start one.

        Raises:
            Fault: There is no redis-server program, or it did not come up; the message has its words.
        """
        if await self._answers():
            log.info("private_redis_found", socket=str(self.socket))
            return
        program = shutil.which("redis-server")
        if program is None:
            raise Fault("redis-server is not installed: apt-get install redis-server, or set redis.url")
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._dir.chmod(0o700)
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "daemonize": "no",
            "logfile": str(self._dir / "redis.log"),
            "save": "",
            **REQUIRED,
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._process = process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(deadline):
                while not await self._answers():
                    if process.returncode is not None:
                        raise Fault(f"redis-server ended at once: {self._why_gone()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            process.kill()
            raise Fault(f"redis-server did not answer within {deadline:.0f} s") from None
        log.info("private_redis_started", socket=str(self.socket), pid=process.pid)

    async def keep(self) -> None:
        """Start it again whenever it is gone, for ever."""
        while True:
            await asyncio.sleep(1.0)
            if await self._answers():
                continue
            log.warning("private_redis_gone", socket=str(self.socket), reason=self._why_gone())
            with contextlib.suppress(Fault):
                await self.start()

    def _why_gone(self) -> str:
        """A full disk, or its last warning; it ends by itself when it can't keep what it has to."""
        file = self._dir / "redis.log"
        try:
            lines = file.read_text(encoding="utf-8", errors="replace")[-20_000:].splitlines()
        except OSError:
            lines = []
        warnings = [line.partition(" # ")[2] for line in lines if " # " in line]
        said = f"{warnings[-1]} ({file})" if warnings else f"see {file}"
        return "; ".join(filter(None, (disk_full(self._dir), said)))

    async def stop(self) -> None:
        """End the server; its data stays."""
        client = connect(self.url)
        with contextlib.suppress(RedisError, OSError):
            await client.shutdown(nosave=True)
        await client.aclose()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                if self._process is not None:
                    await self._process.wait()
                while await self._answers():
                    await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        client = connect(self.url, timeout=2.0)
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()


async def check_settings(redis: Redis) -> list[str]:
    """What a given server would have to change to keep what it acknowledges; empty when it does.

    Where CONFIG is not allowed, as on managed servers, INFO tells what it can; the rest can't be checked.

    Raises:
        Fault: It does not answer.
    """
    problems, unknown, why = [], [], ""
    try:
        for name, wanted in REQUIRED.items():
            try:
                found = dict(await redis.config_get(name)).get(name)
                mend = f"run CONFIG SET {name} {wanted} and CONFIG REWRITE"
            except ResponseError as error:
                why = str(error)
                found, mend = await _from_info(redis, name), "set it where the server is managed"
            if found is None:
                unknown.append(name)
            elif found != wanted:
                problems.append(f"{name} is {found!r}, not {wanted!r}: {mend}")
    except RedisError as error:
        raise Fault(f"Redis: {error}") from error
    if unknown:
        problems.append(
            f"{', '.join(unknown)} can't be checked, because CONFIG is not allowed ({why})"
            ": allow CONFIG GET to the daemon's user"
        )
    return problems


async def _from_info(redis: Redis, name: str) -> str | None:
    """A setting as INFO shows it; None when it does not."""
    try:
        info = await redis.info("everything")
    except ResponseError:
        return None
    if name == "appendonly" and "aof_enabled" in info:
        return "yes" if info["aof_enabled"] else "no"
    return info.get("maxmemory_policy") if name == "maxmemory-policy" else None
