"""Locks between processes of a host: held by another is one thing, a file system that has none another."""

import asyncio
import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.store.keys import Keys
from orchestrator.store.lease import Lease
from orchestrator.store.redis_store import connect
from orchestrator.traffic.files import locked


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
