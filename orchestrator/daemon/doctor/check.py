"""What the doctor finds."""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

GET_FLAGS, FLAGS, IMMUTABLE, APPEND = 0x80086601, struct.Struct("l"), 0x10, 0x20
"""`FS_IOC_GETFLAGS` and two of its flags (ioctl_iflags(2))."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `mend`: what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def writable_by_us(folder: Path, place: Path) -> tuple[str, str]:
    """What keeps this process from writing to a folder, if that is known, and what lets it.

    Args:
        folder: What is to be written.
        place: It, or the nearest folder above it that there is.
    """
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        mend = f"mount -o remount,rw $(findmnt -no TARGET -T {place}); why it is so: dmesg, /etc/fstab"
        return "its file system is read-only", mend
    if kept := _attributes(place) & (IMMUTABLE | APPEND):
        return "it is immutable (chattr)", f"chattr -{'i' if kept & IMMUTABLE else 'a'} {place}"
    return "", f"mkdir -p {folder} && chown {os.getuid()} {folder}"


def _attributes(folder: Path) -> int:
    """Those of chattr(1); 0 where there are none."""
    try:
        with opened(folder) as file:
            return int(FLAGS.unpack(fcntl.ioctl(file, GET_FLAGS, bytes(FLAGS.size)))[0])
    except OSError:
        return 0


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A folder as a file descriptor. Raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield file
    finally:
        os.close(file)


def status(path: Path) -> os.stat_result | OSError:
    """What is known of a file, or why nothing is."""
    try:
        return path.stat()
    except OSError as error:
        return error


async def get(url: str, headers: dict[str, str] | None = None) -> str:
    """What an address answers; '' when nothing."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0), headers=headers) as session,
            session.get(url) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return ""
