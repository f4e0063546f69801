"""Locks between the processes of a host: flock(2), which ends with the last process that has it open."""

import contextlib
import fcntl
import os
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


def holders(path: Path) -> dict[int, str]:
    """The names of the other processes that have a lock's file open, by pid.

    Also of those that have one open which was removed from there. `/proc/locks` (proc(5)) has the pid of
    whoever took the lock, who may have died since and left it to its child. Whom a process of another
    account belongs to can be seen by root alone.
    """
    place, found = str(path.resolve()), dict[int, str]()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        pid = int(link.parts[2])
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look into
            target = str(link.readlink())
            if pid != os.getpid() and (
                target == f"{place} (deleted)" or (target == place and link.samefile(place))
            ):
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found
