"""Locks between the processes of a host: flock(2), which ends with the last process that has it open."""

import fcntl
from pathlib import Path

from orchestrator.ports.faults import Fault


def try_lock(file: int, path: Path) -> bool:
    """Lock an open file against everybody else; False while another has it locked.

    Raises:
        Fault: It can't be locked at all, as on a file system without locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Fault(f"{path}: can't be locked: {error.strerror}") from error
    return True
