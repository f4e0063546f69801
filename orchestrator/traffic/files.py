"""Files that are whole or not there, whatever happens."""

import asyncio
import contextlib
import itertools
import os
import stat
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from orchestrator.ports.faults import Fault
from orchestrator.ports.given import read_given
from orchestrator.ports.lock import try_lock

T = TypeVar("T")

LARGEST = 4 * 1024**2
"""Bytes that a file of ours may have; a service of a hundred instances has a hundredth of that."""

OTHERS = 0o077
"""What a file's group and all others may do with it."""

LOCK_INTERVAL = 0.02
"""Seconds between tries to get a lock."""

_writers = ThreadPoolExecutor(4, thread_name_prefix="files")
"""Not the loop's own threads: those look up names too, and wait for whoever does not answer."""

_urgent = ThreadPoolExecutor(4, thread_name_prefix="urgent files")
"""For what may not wait until other files are written: a slow disk keeps all of `_writers` busy."""

_numbers = itertools.count()
"""Of temporary files: threads of one process may write one file at the same time."""


@contextlib.asynccontextmanager
async def locked(path: Path, deadline: float) -> AsyncIterator[None]:
    """Hold a lock file against every other process on this host.

    Raises:
        Fault: It can't be written or locked, or somebody else held it for the whole deadline (seconds).
    """
    try:  # never by a link, for root may be at work in another account's folder, and never with a wait
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error
    try:
        _give(file, path.parent)
        try:
            async with asyncio.timeout(deadline):
                while not try_lock(file, path):
                    await asyncio.sleep(LOCK_INTERVAL)
        except TimeoutError:
            raise Fault(f"another process has held {path} for {deadline:.0f} s") from None
        yield
    finally:
        os.close(file)


def _give(file: int, folder: Path) -> None:
    """What root makes by a person's command is the folder's owner's: the daemon has to work with it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(file, owner.st_uid, owner.st_gid)


async def to_the_end(work: Callable[[], T], *, urgent: bool = False) -> T:
    """Run blocking work in a thread; a cancellation waits for it, so that nothing is written afterwards."""
    threads = _urgent if urgent else _writers
    return await uncut(asyncio.get_running_loop().run_in_executor(threads, work))


async def uncut(work: "asyncio.Future[T]") -> T:
    """Await what has begun; a cancellation waits for its end, however often it is asked for."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return work.result()
    if not work.cancelled():
        work.exception()  # nobody is left to be told
    raise cancelled


def read(path: Path) -> str | None:
    """A file's text, without a wait; None when there is none, or something else in its or its folder's place.

    Raises:
        Fault: This account may not read it, or the disk fails.
    """
    try:
        return read_given(path, LARGEST).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if in_the_way(path):
            return None
        whose = f" for uid {os.geteuid()}: the owner of {path.parent} has to read it"
        raise Fault(f"{path}: {error.strerror}{whose * isinstance(error, PermissionError)}") from error


def text_of(path: Path) -> str:
    """A file's text; '' where there is none, or none that this account may read."""
    try:
        return read(path) or ""
    except Fault:
        return ""


def in_the_way(path: Path, largest: float = LARGEST) -> str:
    """Why what lies there can't be a file of ours: a folder, a pipe, a loop of links; '' if it can."""
    try:
        found = path.stat()
    except OSError as error:
        return f"is a link: {error.strerror}" if os.path.islink(path) else ""  # noqa: PTH114  never raises
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    return f"has {found.st_size} bytes" if found.st_size > largest else ""


def names_in(folder: Path) -> list[str]:
    """The names of what lies in a folder; none where this account may not look."""
    try:
        return os.listdir(folder)  # noqa: PTH208  at every look
    except OSError:
        return []


def matching(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder by a pattern; nothing where this account may not look."""
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def is_private(path: Path) -> bool:
    """Whether a file can be read by its owner and root alone; one that is not there has nothing to read."""
    try:
        return path.stat().st_mode & OTHERS == 0
    except OSError:
        return False


def write(path: Path, text: str, *, private: bool = False, modified: int | None = None) -> None:
    """Replace a file so that a reader, a crash or a full disk finds the old one or the new one, whole.

    A private one can be read by its owner and root alone. `modified`: what the file is to give as the time of
    its last change, in seconds.

    Raises:
        Fault: It could not be written; the old file is untouched. Or what has no text is there, and the disk
            may lose it again.
    """
    try:
        replace(path, text, private=private, modified=modified)
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error


def remove(path: Path) -> None:
    """Remove a file; one that is not there is fine.

    Raises:
        Fault: It could not be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error


def replace(path: Path, text: str, *, private: bool = False, modified: int | None = None) -> None:
    """Temporary file, fsync, rename, fsync of the folder.

    One without a text has its effect by being there: nothing of it can be found half written, and a slow disk
    delays no switch.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x", encoding="utf-8") as file:  # whatever somebody has laid there
            if private:
                os.fchmod(file.fileno(), 0o600)
            _give(file.fileno(), path.parent)
            file.write(text)
            file.flush()
            if modified is not None:
                os.utime(file.fileno(), (modified, modified))
            if text:
                os.fsync(file.fileno())
            temporary.replace(path)
            if not text:
                os.fsync(file.fileno())
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
