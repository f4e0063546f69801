"""The private redis-server: one for a folder, whatever happens to it and to those who look after it."""

import asyncio
import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor import _redis
from orchestrator.daemon.serve import Daemon
from orchestrator.daemon.settings import NginxSection, Settings
from orchestrator.observability.logs import LineWriter
from orchestrator.ports.faults import Fault
from orchestrator.ports.lock import holders
from orchestrator.store.redis_store import connect
from orchestrator.store.server import UNREACHABLE, PrivateRedis

Lines = list[Any]


def servers(folder: Path) -> list[int]:
    """The processes that work in a server's folder, also in one that was removed or moved away."""
    found, places = [], {str(folder / "redis"), str(folder / "redis.away")}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "cwd").readlink()).removesuffix(" (deleted)") in places:
                found.append(int(process.name))
    return found


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not met():
            await asyncio.sleep(0.02)


def told(lines: Lines, event: str) -> list[str]:
    return [line.get("reason", "") for line in lines if line["event"] == event]


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path
    for pid in servers(tmp_path):
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not servers(tmp_path))


@pytest.fixture
async def kept(folder: Path) -> AsyncIterator[PrivateRedis]:
    """One that is looked after."""
    server = PrivateRedis(folder)
    await server.start()
    task = asyncio.create_task(server.keep(), name="keep")
    yield server
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.stop()


async def test_a_server_that_is_alive_and_does_not_answer_is_waited_for_and_told_of_once(
    folder: Path, kept: PrivateRedis
) -> None:
    """As a stalled disk does to one that writes with every commit."""
    (pid,) = servers(folder)
    redis = connect(kept.url)
    await redis.set("written", "before")
    with capture_logs() as lines:
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: told(lines, "private_redis_silent"))
        with pytest.raises(
            Fault, match=rf"does not answer \(.+\); pid {pid} is alive: if it stays silent, kill -9 {pid}$"
        ):
            await PrivateRedis(folder).start(patience=1.0)
        assert servers(folder) == [pid]
        os.kill(pid, signal.SIGCONT)
        await until(lambda: told(lines, "private_redis_found"))
    (reason,) = told(lines, "private_redis_silent")
    assert reason.endswith(f"; pid {pid} is alive: if it stays silent, kill -9 {pid}")
    assert told(lines, "private_redis_gone") == []
    assert servers(folder) == [pid]
    assert await redis.get("written") == "before"
    await redis.aclose()


async def test_a_stalled_server_of_a_daemon_that_was_killed_is_waited_for_by_the_next_one(
    folder: Path,
) -> None:
    script = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from orchestrator.store.server import PrivateRedis\n"
        "asyncio.run(PrivateRedis(pathlib.Path(sys.argv[1])).start())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(folder), stdout=asyncio.subprocess.DEVNULL
    )
    assert await killed.wait() == -signal.SIGKILL
    (pid,) = servers(folder)
    os.kill(pid, signal.SIGSTOP)
    server = PrivateRedis(folder)
    with capture_logs() as lines:
        starting = asyncio.create_task(server.start(), name="start")
        await until(lambda: told(lines, "private_redis_silent"))
        assert servers(folder) == [pid]
        os.kill(pid, signal.SIGCONT)
        await starting
    assert f"; pid {pid} is alive: " in told(lines, "private_redis_silent")[0]
    assert [line["event"] for line in lines][-1] == "private_redis_found"
    assert servers(folder) == [pid]
    await server.stop()
    assert servers(folder) == []


def remove(folder: Path, what: str) -> None:
    """What a person removes, or moves away."""
    place = folder / "redis"
    if what == "socket":
        (place / "redis.sock").unlink()
    elif what == "contents":
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif what == "moved":
        place.rename(folder / "redis.away")
    else:
        shutil.rmtree(place)


@pytest.mark.parametrize("mine", ["started", "found"])
@pytest.mark.parametrize("what", ["socket", "contents", "folder", "moved"])
async def test_a_server_that_nobody_can_reach_any_more_is_ended_and_another_one_started(
    folder: Path, what: str, mine: str
) -> None:
    """With what it had acknowledged where that is still there; whoever has it open learns that it is gone."""
    first = PrivateRedis(folder)
    await first.start()
    looks_after = first if mine == "started" else PrivateRedis(folder)
    await looks_after.start()
    (pid,) = servers(folder)
    redis = connect(first.url)
    await redis.set("written", "before")
    with capture_logs() as lines:
        task = asyncio.create_task(looks_after.keep(), name="keep")
        remove(folder, what)
        (check,) = await _redis(Config(folder, Settings(state_dir=folder), {}))
        assert (check.ok, f"pid {pid} is alive" in check.detail) == (what == "moved", what != "moved")
        await until(lambda: looks_after.trouble)
        await until(lambda: told(lines, "private_redis_started"))
        await until(lambda: not looks_after.trouble)
    assert not Path(f"/proc/{pid}/cwd").exists()
    assert len(servers(folder)) == 1
    (reason,) = told(lines, "private_redis_unreachable")
    gone = (
        f"{folder}/redis was removed" if what in ("folder", "moved") else f"nothing listens at {first.socket}"
    )
    assert reason == f"{gone}; redis-server, pid {pid}, is ended, and another one started"
    with contextlib.suppress(RedisError):  # the connection to the one that was ended
        await redis.ping()
    assert await redis.get("written") == ("before" if what == "socket" else None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await redis.aclose()
    await looks_after.stop()
    assert servers(folder) == []


@pytest.mark.parametrize("what", ["socket", "folder"])
async def test_daemons_that_share_a_server_agree_on_the_one_that_follows_it(folder: Path, what: str) -> None:
    several = [PrivateRedis(folder) for _ in range(3)]
    for server in several:
        await server.start()
    (pid,) = servers(folder)
    tasks = [asyncio.create_task(server.keep(), name="keep") for server in several]
    remove(folder, what)
    await until(lambda: servers(folder) not in ([], [pid]) and not any(s.trouble for s in several))
    (follows,) = servers(folder)
    await asyncio.gather(*(server.start() for server in several))
    assert servers(folder) == [follows]
    assert [task.done() for task in tasks] == [False] * 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for server in several:
        await server.stop()


@pytest.mark.parametrize("what", ["socket", "folder"])
async def test_a_daemon_that_starts_ends_what_nobody_can_reach_of_the_one_before(
    folder: Path, what: str
) -> None:
    await PrivateRedis(folder).start()
    (pid,) = servers(folder)
    remove(folder, what)
    os.kill(pid, signal.SIGSTOP)
    server = PrivateRedis(folder)
    await server.start()
    assert not Path(f"/proc/{pid}/cwd").exists()
    assert len(servers(folder)) == 1
    await server.stop()


@pytest.mark.parametrize("what", ["socket", "folder", "moved"])
async def test_a_stop_ends_a_server_that_can_not_be_reached(folder: Path, what: str) -> None:
    server = PrivateRedis(folder)
    await server.start()
    (pid,) = servers(folder)
    remove(folder, what)
    with capture_logs() as lines:
        await server.stop()
    assert told(lines, "private_redis_left") == []
    assert not Path(f"/proc/{pid}/cwd").exists()


async def test_a_server_whose_socket_was_removed_is_not_doubled(folder: Path) -> None:
    """Its folder is locked for as long as it lives, and what holds the lock is named."""
    server = PrivateRedis(folder)
    await server.start()
    running = servers(folder)
    server.socket.unlink()
    for other in (server, PrivateRedis(folder)):
        with pytest.raises(
            Fault, match=f"pid {running[0]} is alive: if it stays silent, kill -9 {running[0]}"
        ):
            await other.start(patience=0.2)
    assert servers(folder) == running
    await server.stop()


async def test_another_program_that_has_locked_the_folder_is_named_and_left_alone(folder: Path) -> None:
    (folder / "redis").mkdir()
    lock = folder / "redis" / "lock"
    other = await asyncio.create_subprocess_exec("flock", str(lock), "-c", "echo; exec sleep 60", stdout=-1)
    assert other.stdout is not None
    await other.stdout.readline()
    try:
        with pytest.raises(Fault, match=rf"{lock} is locked by pid \d+ \(\w+\): end it: kill \d+"):
            await PrivateRedis(folder).start(patience=UNREACHABLE + 1.0)
        assert other.returncode is None
    finally:
        other.kill()
        for pid in holders(lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await other.wait()


async def test_daemons_that_start_at_the_same_time_share_one_server(folder: Path) -> None:
    several = [PrivateRedis(folder) for _ in range(5)]
    await asyncio.gather(*(server.start() for server in several))
    assert len(servers(folder)) == 1
    await several[0].stop()


async def test_a_server_that_loads_its_data_is_waited_for_by_all(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PrivateRedis(folder)
    await first.start()
    redis = connect(first.url)
    await redis.config_set("appendfsync", "no")
    pipe = redis.pipeline(transaction=False)
    for number in range(12_000):
        pipe.set("x", number)
    await pipe.execute()
    await first.stop()
    slow = tmp_path_factory.mktemp("slow") / "redis-server"
    slow.write_text(f'#!/bin/sh\nexec {shutil.which("redis-server")} "$@" --key-load-delay 400\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    with capture_logs() as lines:
        starting = [asyncio.create_task(first.start(), name="first")]
        await until(first.socket.exists)
        starting.append(asyncio.create_task(PrivateRedis(folder).start(), name="second"))
        await asyncio.gather(*starting)
    assert len(servers(folder)) == 1
    assert "loading" in told(lines, "private_redis_silent")[0]
    assert await redis.get("x") == "11999"
    await redis.aclose()
    await first.stop()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, "killed by SIGKILL, see {file}"),
        (signal.SIGTERM, "Redis is now ready to exit, bye bye... ({file})"),
    ],
)
async def test_why_a_server_is_gone_is_told_in_its_own_words(
    folder: Path, kept: PrivateRedis, number: signal.Signals, says: str
) -> None:
    (pid,) = servers(folder)
    with capture_logs() as lines:
        os.kill(pid, number)
        await until(lambda: told(lines, "private_redis_started"))
    assert told(lines, "private_redis_gone") == [says.format(file=folder / "redis" / "redis.log")]


async def test_a_server_that_can_not_start_is_a_fault_in_its_own_words(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PrivateRedis(folder)
    await server.start()
    await server.stop()
    file = folder / "redis" / "redis.log"
    manifest = folder / "redis" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    with pytest.raises(Fault, match=rf"redis-server ended: Invalid AOF manifest file format \({file}\)"):
        await server.start()
    place = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    for last, says in (
        ("echo no such setting >&2; ", rf"no such setting \({file}\)"),
        ("", "exit status 1, see "),
    ):
        (place / "redis-server").write_text(f"#!/bin/sh\n{last}exit 1\n")
        (place / "redis-server").chmod(0o755)
        with pytest.raises(Fault, match=f"redis-server ended: {says}"):
            await server.start()
    file.unlink()
    file.mkdir()
    with pytest.raises(Fault, match=f"redis-server can't be started: {file}: Is a directory"):
        await server.start()
    shutil.rmtree(folder / "redis")
    (folder / "redis").write_text("")
    with pytest.raises(Fault, match=f"{folder}/redis: File exists"):
        await server.start()


async def test_the_daemon_is_not_ready_while_its_private_server_does_not_answer(folder: Path) -> None:
    settings = Settings(state_dir=folder, nginx=NginxSection(directory=folder / "nginx"))
    daemon = Daemon(Config(folder, settings, {}), LineWriter(io.StringIO()))
    daemon._unready = ""
    async with daemon._redis() as redis:
        assert daemon._why_unready() == ""
        remove(folder, "folder")
        await until(daemon._why_unready)
        assert "redis" in daemon._why_unready()
        await until(lambda: not daemon._why_unready())
        with contextlib.suppress(RedisError):
            await redis.ping()
        await redis.set("x", "1")
    assert servers(folder) == []


async def test_a_fork_that_fails_is_a_fault_and_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state_dir=folder, nginx=NginxSection(directory=folder / "nginx"))
    daemon = Daemon(Config(folder, settings, {}), LineWriter(io.StringIO()))
    spawn, failures = asyncio.create_subprocess_exec, [1, 1]

    async def fails(*args: Any, **options: Any) -> Any:
        if failures:
            failures.pop()
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await spawn(*args, **options)

    with capture_logs() as lines:
        async with daemon._redis() as redis:
            await redis.set("x", "1")
            monkeypatch.setattr(asyncio, "create_subprocess_exec", fails)
            os.kill(servers(folder)[0], signal.SIGKILL)
            async with asyncio.timeout(30):
                while failures or not servers(folder):
                    await asyncio.sleep(0.05)
                while True:
                    with contextlib.suppress(RedisError):
                        assert await redis.get("x") == "1"
                        break
                    await asyncio.sleep(0.05)
    says = "redis-server can't be started: Resource temporarily unavailable"
    assert told(lines, "task_failed") == [says, says]
    assert servers(folder) == []
