"""Locks between processes of a host: held by another is one thing, a file system that has none another."""

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.ports.lock import holders
from orchestrator.store.keys import Keys
from orchestrator.store.lease import Lease
from orchestrator.store.redis_store import connect
from orchestrator.traffic.files import locked
from orchestrator.traffic.process import parent


def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)


async def test_a_lease_whose_file_can_not_be_locked_is_a_fault_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockless(monkeypatch)
    redis = connect(f"unix://{tmp_path}/none.sock")
    async with asyncio.timeout(20):
        with pytest.raises(Fault, match=f"{tmp_path}/lease: can't be locked: No locks available"):
            await Lease(redis, Keys("t"), tmp_path).acquire()
    await redis.aclose()


async def test_a_folder_that_can_not_be_locked_is_a_fault_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockless(monkeypatch)
    with pytest.raises(Fault, match=f"{tmp_path}/lock: can't be locked: No locks available"):
        async with locked(tmp_path / "lock", 1.0):
            pass


async def test_a_file_that_another_has_locked_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    async with locked(path, 1.0):
        with pytest.raises(Fault, match=f"another process has held {path} for 0 s"):
            async with locked(path, 0.1):
                pass
    async with locked(path, 0.1):
        pass


def test_a_process_that_ends_while_it_is_looked_into_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ended = tmp_path / "lock", list[str]()

    def ending(look: Callable[..., Any], folder: Any = ".") -> Any:
        """As a look is when the process ends right before it."""
        if str(folder) == f"/proc/{going.pid}/fd":
            ended.append(str(folder))
            going.kill()
            going.wait()
        return look(folder)

    with path.open("w") as file, holding(file) as going, holding(file) as stays:
        assert holders(path) == {going.pid: "sleep", stays.pid: "sleep"}
        for look in ("scandir", "listdir"):  # pathlib uses the one or the other
            monkeypatch.setattr(os, look, functools.partial(ending, getattr(os, look)))
        assert holders(path) == {stays.pid: "sleep"}
        assert ended


def test_a_holder_may_be_called_anything(tmp_path: Path) -> None:
    path, odd = tmp_path / "lock", tmp_path / os.fsdecode(b"odd\xff)")
    odd.write_bytes(Path("/bin/sleep").read_bytes())
    odd.chmod(0o755)
    with path.open("w") as file, holding(file, odd) as process:
        assert holders(path) == {process.pid: "odd\ufffd)"}
        assert parent(process.pid) == os.getpid()


@contextlib.contextmanager
def holding(file: IO[str], program: str | Path = "/bin/sleep") -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has a file open."""
    process = subprocess.Popen([program, "60"], pass_fds=(file.fileno(),))
    try:
        yield process
    finally:
        process.kill()
        process.wait()
