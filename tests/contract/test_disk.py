"""A full disk below the state folder is named wherever somebody looks."""

import asyncio
import contextlib
import io
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor.files import folders
from orchestrator.daemon.serve import Daemon
from orchestrator.daemon.settings import NginxSection, Settings
from orchestrator.engine.tasks import courtesy
from orchestrator.observability.logs import LineWriter
from orchestrator.ports.faults import Fault
from orchestrator.store.keys import Keys
from orchestrator.store.lease import Lease
from orchestrator.store.redis_store import RedisStore, connect
from orchestrator.store.server import FULL, PrivateRedis, check_settings, disk_full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    subprocess.run(mount, check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.fixture
async def server(disk: Path) -> AsyncIterator[PrivateRedis]:
    server = PrivateRedis(disk)
    await server.start()
    yield server
    await server.stop()


async def test_a_private_server_that_ends_on_a_full_disk_says_so_and_comes_back(
    disk: Path, server: PrivateRedis
) -> None:
    redis = connect(server.url)
    store = RedisStore(redis, Keys("t"))
    await store.push({"a": "kept"})
    fill(disk)
    with capture_logs() as logs:
        keeping = asyncio.create_task(courtesy("keep", server.keep, longest_pause=2.0), name="keep")
        async with asyncio.timeout(20):
            while not any(line["event"] == "private_redis_gone" for line in logs):
                with contextlib.suppress(Fault):
                    await store.push({"a": "x" * 5000})
                await asyncio.sleep(0.1)
    (gone, *_) = [line for line in logs if line["event"] == "private_redis_gone"]
    assert gone["reason"].startswith(f"disk full at {disk}/redis: 0 KiB left; Can't recover from AOF write")
    (disk / "fill").unlink()
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Fault):
                await store.push({"a": "again"})
                break
            await asyncio.sleep(0.1)
    found: Any = await redis.xrange("t:requests")
    kept = [fields["a"] for _, fields in found]
    assert (kept[0], kept[-1]) == ("kept", "again")
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await redis.aclose()


async def test_a_server_that_can_not_write_tells_a_commit_why(disk: Path, server: PrivateRedis) -> None:
    """One that goes on without its disk, as `appendfsync everysec` does."""
    redis = connect(server.url)
    await redis.config_set("appendfsync", "everysec")
    assert len(await check_settings(redis)) == 1
    store = RedisStore(redis, Keys("t"))
    fill(disk)

    async def push_for_ever() -> None:
        while True:
            await store.push({"a": "x" * 5000})

    with pytest.raises(Fault, match=r"Redis: MISCONF .*No space left on device"):
        await asyncio.wait_for(push_for_ever(), 20)
    (disk / "fill").unlink()
    await redis.aclose()


async def test_a_lease_that_can_not_be_written_down_is_a_fault_with_its_path(
    disk: Path, tmp_path: Path
) -> None:
    server = PrivateRedis(tmp_path)
    await server.start()
    redis = connect(server.url)
    fill(disk)
    lease = Lease(redis, Keys("t"), disk)
    with pytest.raises(Fault, match=f"{disk}/lease: No space left on device"):
        await lease.acquire()
    await redis.aclose()
    await server.stop()


async def test_a_full_disk_is_in_the_log_the_metrics_the_readiness_and_the_doctors_words(
    disk: Path, tmp_path: Path
) -> None:
    settings = Settings(state_dir=disk, nginx=NginxSection(directory=tmp_path))
    config = Config(tmp_path, settings, {})
    fill(disk)
    (found,) = [c for c in await folders(config) if not c.ok and c.detail.startswith(f"{disk}: 0.0 MiB of ")]
    assert "; wanted: 200.0 MiB and 5%" in found.detail
    daemon = Daemon(config, LineWriter(io.StringIO()))
    daemon._unready = ""
    with capture_logs() as logs:
        watching = asyncio.create_task(daemon._watch.disks(), name="disks")
        async with asyncio.timeout(5):
            while not daemon._why_unready():
                await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert daemon._why_unready() == f"disk full at {disk}: 0 KiB left"
    assert [line["reason"] for line in logs] == [f"disk full at {disk}: 0 KiB left"]
    assert f'orchestrator_disk_free_bytes{{path="{disk}"}} 0.0' in daemon._metrics.render().decode()


SHUT = {
    "read-only": ("mount --bind {0} {0} && mount -o remount,ro,bind {0}", "umount -l {0}"),
    "immutable": ("chattr +i {0}", "chattr -i {0}"),
    "gone": ("mv {0} {0}.gone", "mv {0}.gone {0}"),
}
"""What keeps everybody from writing to a folder, and what undoes it."""


@contextlib.contextmanager
def shut(folder: Path, how: str) -> Iterator[None]:
    """A folder that nobody can write to."""
    if os.geteuid():
        pytest.skip("only root can mount, and make a folder immutable")
    shuts, opens = (command.format(folder) for command in SHUT[how])
    subprocess.run(["sh", "-c", shuts], check=True)
    try:
        yield
    finally:
        subprocess.run(["sh", "-c", opens], check=True)


async def unwritten(daemon: Daemon) -> str:
    """Why a daemon that drives is not ready, after a look."""
    looking = asyncio.create_task(daemon._watch.disks(), name="disks")
    await asyncio.wait({looking}, timeout=0.5)  # then it waits for the next one
    looking.cancel()
    await asyncio.wait({looking})
    return daemon._why_unready()


@pytest.mark.parametrize(
    ("folder", "how"),
    [
        *((name, how) for name in ("state", "nginx") for how in SHUT),
        *(("nginx/switch", how) for how in SHUT if how != "gone"),  # the next look makes it anew
    ],
)
async def test_a_folder_that_can_not_be_written_is_in_the_log_the_readiness_and_the_doctors_words(
    tmp_path: Path, folder: str, how: str
) -> None:
    (tmp_path / "nginx" / "switch").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    nginx = NginxSection(directory=tmp_path / "nginx")
    config = Config(tmp_path, Settings(state_dir=tmp_path / "state", nginx=nginx), {})
    daemon = Daemon(config, LineWriter(io.StringIO()))
    daemon._unready = ""
    assert await unwritten(daemon) == ""
    with shut(tmp_path / folder, how), capture_logs() as logs:
        reason = await unwritten(daemon)
        checks = await folders(config)
    found = [c.detail for c in checks if "can't be written" in c.detail and c.mend]
    made = [c.detail for c in checks if c.detail == f"{tmp_path / folder} is made at the first start"]
    assert bool(made) == (how == "gone")
    why = "No such file" if how == "gone" else f"can't be written by uid {os.getuid()}"
    assert reason.startswith(f"{tmp_path / folder}: {why}")
    assert [line["reason"] for line in logs if line["event"] == "can_not_write"] == [reason]
    words = {
        "read-only": ["its file system is read-only"],
        "immutable": ["it is immutable (chattr)"],
        "gone": [],  # the daemon makes it
    }
    assert found == [f"{tmp_path / folder} can't be written by uid {os.getuid()}: {w}" for w in words[how]]
    assert await unwritten(daemon) == ""


def test_a_disk_with_room_is_not_full(tmp_path: Path) -> None:
    assert disk_full(tmp_path) == ""
    assert FULL < 16 * 1024**2
    assert disk_full(tmp_path / "none").endswith("No such file or directory")
