"""The Redis server itself: a private one when none is configured, or the settings of a given one."""

import asyncio
import contextlib
import math
import os
import re
import select
import shutil
import signal
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from orchestrator.ports.faults import Fault
from orchestrator.ports.lock import holders, try_lock
from orchestrator.store.redis_store import connect, fault

log = structlog.get_logger()

REQUIRED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""Settings without which Redis may lose what it has acknowledged: on a full disk `everysec` lost a write,
and `allkeys-lru` evicted stream, state and lease alike."""

STARTS = 15.0
"""Seconds that a server may need until it answers, beside what it loads."""

LOADS = 4 * 1024 * 1024
"""Bytes of its file that a server loads in a second at the least; from memory it loaded 290 MB."""

SILENCE = 2.0
"""Seconds after which a server that is alive and does not answer is told of."""

UNREACHABLE = 5.0
"""Seconds that one which is alive may have until it listens: it does as soon as it has read its settings."""

ENDS = 5.0
"""Seconds that one may need to end when it is told to, and again when it is killed."""

PROGRAM = "redis-server"

PEER = struct.Struct("iII")
"""`struct ucred`: pid, uid, gid (unix(7))."""

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

    A server inherits a lock on its folder and holds it for as long as it lives, so there is never a second
    one: two of them would write one file, and each would acknowledge what the other does not know.
    One that nobody can reach any more, because its socket or its folder was removed, is ended, and another
    one is started: whoever has a connection to it would commit what nobody else can see.

    Attributes:
        trouble: Why it does not answer; '' while it does.
    """

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / "redis"
        self._lock_file = self._dir / "lock"
        self._log_file = self._dir / "redis.log"
        self._log_begins = 0
        self.socket = private_socket(state_dir)
        self.url = f"unix://{self.socket}"
        self.trouble = ""
        self._process: asyncio.subprocess.Process | None = None
        self._known: tuple[int, int] | None = None

    async def start(self, patience: float | None = None) -> None:
        """Wait for the server that there is, or start one.

        Args:
            patience: Seconds until it has to answer; by default what it needs at most to load its data.

        Raises:
            Fault: There is no redis-server program, it can't be started, it has ended, or it does not answer
                in time; the message has its words. A server that is alive and listens is left alone.
        """
        loop = asyncio.get_running_loop()
        since, started, told = loop.time(), False, False
        listened = since
        patience = self._patience() if patience is None else patience
        while silence := await self._silence():
            with contextlib.ExitStack() as closing:
                if lock := self._lock():
                    closing.enter_context(lock)
                    lost = await self._servers()
                    if started and not lost:
                        raise Fault(f"redis-server ended: {await self._why_gone()}")
                    await _end(lost)
                    await self._spawn(lock)
                    since, started = loop.time(), True
                    listened = since
                elif not self._unreachable():
                    listened = loop.time()
                elif loop.time() - listened > UNREACHABLE:
                    await _end(await self._servers())
                    listened = loop.time()
            if loop.time() - since > patience:
                raise Fault(await self._words(silence))
            if loop.time() - since > SILENCE and not told:
                reason = await self._words(silence)
                log.warning("private_redis_silent", socket=str(self.socket), reason=reason)
                told = True
            await asyncio.sleep(0.05)
        found = "private_redis_started" if started else "private_redis_found"
        pid = self._pid()
        self._know(pid)
        self.trouble = ""
        log.info(found, socket=str(self.socket), pid=pid)

    async def keep(self) -> None:
        """Start it again whenever it is gone, or can't be reached, for ever; wait for one that is silent.

        Raises:
            Fault: It can't be started.
        """
        while True:
            await asyncio.sleep(1.0)
            if not (silence := await self._silence()):
                self.trouble = ""
                continue
            self.trouble = f"the private Redis does not answer: {silence}"
            unreachable = self._unreachable()
            if not self._alive():
                log.warning("private_redis_gone", socket=str(self.socket), reason=await self._why_gone())
            elif unreachable and (lost := await self._servers()):
                pids = " and ".join(map(str, sorted(lost)))
                self.trouble = f"{unreachable}; redis-server, pid {pids}, is ended, and another one started"
                log.error("private_redis_unreachable", socket=str(self.socket), reason=self.trouble)
            await self.start(math.inf)

    async def wrong(self) -> str:
        """What is wrong with the one that runs; '' where it answers, or none runs. Changes nothing."""
        silence = await self._silence()
        unreachable = self._unreachable()
        if not silence or (unreachable and not await self._servers()):
            return ""
        return "; ".join(filter(None, (unreachable, await self._words(silence))))

    async def stop(self) -> None:
        """End the server; its data stays."""
        try:
            if self._unreachable():
                await _end(await self._servers())
            client = connect(self.url)
            with contextlib.suppress(RedisError, OSError):
                await client.shutdown(nosave=True)
            await client.aclose()
            async with asyncio.timeout(ENDS):
                while self._alive():
                    await asyncio.sleep(0.05)
                if self._process is not None:
                    await self._process.wait()
        except TimeoutError:
            log.warning("private_redis_left", socket=str(self.socket), reason=await self._who())
        except Fault as error:
            log.warning("private_redis_left", socket=str(self.socket), reason=str(error))
        self._know(0)

    def _lock(self) -> IO[str] | None:
        """The lock of the folder; None while a server lives there.

        Raises:
            Fault: It can't be written or locked.
        """
        with contextlib.ExitStack() as closing:
            try:
                self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._dir.chmod(0o700)
                file = closing.enter_context(self._lock_file.open("a"))
            except OSError as error:
                raise Fault(f"{error.filename}: {error.strerror}") from error
            if not try_lock(file.fileno(), self._lock_file):
                return None
            closing.pop_all()
            return file

    def _alive(self) -> bool:
        if self._known is not None and not _ended(self._known[1]):
            return True
        if not self._lock_file.exists():
            return False
        lock = self._lock()
        if lock is not None:
            lock.close()
        return lock is None

    async def _spawn(self, lock: IO[str]) -> None:
        """Start a server that takes the lock over."""
        program = shutil.which(PROGRAM)
        if program is None:
            raise Fault("redis-server is not installed: apt-get install redis-server, or set redis.url")
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "daemonize": "no",
            "logfile": str(self._log_file),
            "save": "",
            **REQUIRED,
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        try:
            with self._log_file.open("a") as said:  # what it says before it has read its settings
                self._log_begins = said.tell()
                self._process = await asyncio.create_subprocess_exec(
                    program,
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
        except OSError as error:
            why = ": ".join(filter(None, (error.filename, error.strerror)))
            raise Fault(f"redis-server can't be started: {why}") from error
        self._know(self._process.pid)

    async def _why_gone(self) -> str:
        """A full disk, how it ended, or its last words; it ends by itself when it can't keep what it has to.

        Its earlier warnings are about something else.
        """
        file = self._log_file
        code = None
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                code = await asyncio.wait_for(self._process.wait(), ENDS)
        self._process = None
        try:
            with file.open("rb") as whole:
                whole.seek(max(self._log_begins, file.stat().st_size - 20_000))
                lines = whole.read().decode(errors="replace").split("\n")
        except OSError:
            lines = []
        last = next((line for line in reversed(lines) if line.strip()), "")
        words = re.sub(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [.*#-] ", "", last)
        if code is None:
            how = f"the last line of {file}: {words}"
        elif code < 0:
            how = f"killed by {signal.Signals(-code).name}, see {file}"
        else:
            how = f"{words} ({file})" if words else f"exit status {code}, see {file}"
        return "; ".join(filter(None, (disk_full(self._dir), how)))

    def _patience(self) -> float:
        size = 0
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in (self._dir / "appendonlydir").iterdir())
        return STARTS + size / LOADS

    def _pid(self) -> int:
        """Of the server that listens at the socket, from the kernel; 0 where none does."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            connection.connect(str(self.socket))
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
            return int(PEER.unpack(peer)[0])
        return 0

    def _unreachable(self) -> str:
        """That nobody listens at the socket, and why; '' where somebody does, who may be silent."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.setblocking(False)
                connection.connect(str(self.socket))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            gone = not self._log_file.parent.is_dir()
            return f"{self._dir} was removed" if gone else f"nothing listens at {self.socket}"
        except OSError:  # as with more connections than it has taken yet
            pass
        return ""

    def _know(self, pid: int) -> None:
        """Remember a server, so that no later process with its pid is taken for it; 0 for none."""
        if self._known is not None:
            os.close(self._known[1])
        self._known = None
        with contextlib.suppress(ProcessLookupError):
            self._known = (pid, os.pidfd_open(pid)) if pid else None

    async def _servers(self) -> set[int]:
        """Those that live: the one that is known, and whoever has the lock, or one that was removed."""
        found = await asyncio.to_thread(holders, self._lock_file)
        pids = {pid for pid, name in found.items() if name == PROGRAM}
        if self._known is not None and not _ended(self._known[1]):
            pids.add(self._known[0])
        return pids

    async def _words(self, silence: str) -> str:
        return f"redis-server does not answer ({silence}); {await self._who()}"

    async def _who(self) -> str:
        """Who is alive, and what a person can do."""
        if pid := min(await self._servers(), default=self._pid()):
            return f"pid {pid} is alive: if it stays silent, kill -9 {pid}"
        for pid, name in (await asyncio.to_thread(holders, self._lock_file)).items():
            return f"{self._lock_file} is locked by pid {pid} ({name}): end it: kill {pid}"
        find = f"fuser -v {self._lock_file}"
        return f"{self._lock_file} is locked by a process of another account: end it, as root ({find})"

    async def _silence(self) -> str:
        """Why it does not answer; '' where it does."""
        client = connect(self.url, timeout=2.0)
        try:
            await client.ping()
        except (RedisError, OSError) as error:
            return str(error) or type(error).__name__
        else:
            return ""
        finally:
            await client.aclose()


def _ended(process: int) -> bool:
    """Whether a process has ended, by its pidfd (pidfd_open(2))."""
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    return bool(waiting.poll(0))


async def _end(pids: Iterable[int]) -> None:
    """End servers, by force if need be; what they have acknowledged is on the disk.

    Raises:
        Fault: One does not end, or may not be ended by this account.
    """
    loop = asyncio.get_running_loop()
    for pid in pids:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                until = loop.time() + ENDS
                while loop.time() < until and not _ended(process):
                    await asyncio.sleep(0.02)
            if not _ended(process):
                raise Fault(f"redis-server, pid {pid}, does not end: its disk may hang")
        except ProcessLookupError:
            pass
        except OSError as error:
            raise Fault(
                f"redis-server, pid {pid}, can't be ended: {error.strerror}: kill -9 {pid}"
            ) from error
        finally:
            os.close(process)


async def check_settings(redis: Redis) -> list[str]:
    """What a given server would have to change to keep what it acknowledges; empty when it does.

    Where CONFIG is not allowed, as on managed servers, INFO tells what it can; the rest can't be checked.

    Raises:
        Away: It does not answer.
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
        raise fault(error) from error
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
