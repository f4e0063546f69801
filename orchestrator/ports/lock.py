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
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    for pid in set(pids) - {os.getpid()}:
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look into
            if any(_leads_to(link, place) for link in Path(f"/proc/{pid}/fd").iterdir()):
                found[pid] = Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    return found


def _leads_to(link: Path, place: str) -> bool:
    """Whether an open file is the one at a place, or one that was removed from there."""
    try:
        target = str(link.readlink())
        return target == f"{place} (deleted)" or (target == place and link.samefile(place))
    except OSError:  # closed since
        return False
