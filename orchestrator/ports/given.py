"""Files that others write, or may have put something in the place of."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST = 256 * 1024
"""Bytes that an operator's file may have; what people write by hand has a hundredth of that."""


def open_given(path: Path, buffering: int = -1) -> BinaryIO:
    """A file to be read, without a wait.

    Raises:
        OSError: It can't be read, or is something that is waited for or never ends.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return os.fdopen(file, "rb", buffering)
    os.close(file)
    raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_given(path: Path, largest: int = LARGEST) -> bytes:
    """What a file says, of so many bytes at the most.

    Raises:
        OSError: It can't be read, is too large, or is something that is waited for or never ends.
    """
    with open_given(path) as file:
        found = file.read(largest + 1)
    if len(found) > largest:
        raise OSError(errno.EFBIG, f"has more than {largest // 1024} KiB", str(path))
    return found
