"""Files that are whole or not there, whatever happens."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from orchestrator.ports.faults import Fault
from orchestrator.ports.lock import try_lock

T = TypeVar("T")

OTHERS = 0o077
"""What a file's group and all others may do with it."""

LOCK_INTERVAL = 0.02
"""Seconds between tries to get a lock."""

_writers = ThreadPoolExecutor(4, thread_name_prefix="files")
"""Not the loop's own threads: those look up names too, and wait for whoever does not answer."""

_numbers = itertools.count()
"""Of temporary files: threads of one process may write one file at the same time."""


@contextlib.asynccontextmanager
async def locked(path: Path, deadline: float) -> AsyncIterator[None]:
    """Hold a lock file against every other process on this host.

    Raises:
        Fault: It can't be written or locked, or somebody else held it for the whole deadline (seconds).
    """
    try:
        file = path.open("w")
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error
    with file:
        _give(file.fileno(), path.parent)
        try:
            async with asyncio.timeout(deadline):
                while not try_lock(file.fileno(), path):
                    await asyncio.sleep(LOCK_INTERVAL)
        except TimeoutError:
            raise Fault(f"another process has held {path} for {deadline:.0f} s") from None
        yield


def _give(file: int, folder: Path) -> None:
    """What root makes by a person's command is the folder's owner's: the daemon has to work with it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(file, owner.st_uid, owner.st_gid)


async def to_the_end(work: Callable[[], T]) -> T:
    """Run blocking work in a thread; a cancellation waits for it, so that nothing is written afterwards."""
    return await uncut(asyncio.get_running_loop().run_in_executor(_writers, work))


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
    """A file's text; None when there is none: a folder may be in its place, or a file in its folder's."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error


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
        Fault: It could not be written; the old file is untouched.
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
    """Temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            _give(file.fileno(), path.parent)
            file.write(text)
            file.flush()
            if modified is not None:
                os.utime(file.fileno(), (modified, modified))
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
