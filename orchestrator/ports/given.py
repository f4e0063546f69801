"""Files that an operator gives us."""

import errno
import os
import stat
from pathlib import Path

LARGEST = 256 * 1024
"""Bytes that a file may have; what people write by hand has a hundredth of that."""


def read_given(path: Path) -> bytes:
    """What a file says.

    Raises:
        OSError: It can't be read, is too large, or is something that is waited for or never ends.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise OSError(errno.EFBIG, f"has more than {LARGEST // 1024} KiB", str(path))
    return found
