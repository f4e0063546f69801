"""Shares of the processor as systemd gives them: a control group with a weight, and a priority in it.

A priority alone would do nothing here: the kernel's autogroups (`man 7 sched`) make it count among the
processes of one session only, and systemd's services have a control group instead.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from examples.playground.stack import ROOT

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def of_unit(setting: str) -> int:
    """What `systemd/orchestrator.service` says."""
    text = (ROOT / "systemd" / "orchestrator.service").read_text()
    found = re.search(rf"^{setting}=(\S+)$", text, re.MULTILINE)
    assert found is not None, setting
    return int(found[1])


@contextlib.contextmanager
def group(name: str, weight: int, nice: int) -> Iterator["Group"]:
    """A control group; at the end what still runs in it is moved out, and it is removed."""
    second = (CONTROL_GROUPS / "cgroup.controllers").exists()
    above = CONTROL_GROUPS if second else CONTROL_GROUPS / "cpu"
    if second:
        (above / "cgroup.subtree_control").write_text("+cpu")
    path = above / name
    path.mkdir()
    try:
        if second:
            (path / "cpu.weight").write_text(str(weight))
        else:
            (path / "cpu.shares").write_text(str(weight * 1024 // 100))
        yield Group(path, nice)
    finally:
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (above / "cgroup.procs").write_text(pid)
        path.rmdir()


class Group:
    """One that is there."""

    def __init__(self, path: Path, nice: int) -> None:
        self._path = path
        self._nice = nice

    def take(self, pids: Iterable[int]) -> None:
        """Let processes be in it; what they start will be too."""
        for pid in pids:
            (self._path / "cgroup.procs").write_text(str(pid))
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), self._nice)
