"""A real nginx's master: who is signalled, an upgrade in place, and why it refuses a reload."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from examples.playground.lease import free_port
from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import Complaint, Workers
from orchestrator.traffic import process as processes
from orchestrator.traffic.error_log import ErrorLog, error_logs
from orchestrator.traffic.process import HostNginx, run
from tests.contract.conftest import Site

by_reload = pytest.mark.parametrize("site", ["reload"], indirect=True)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not nginx, and that a signal would end."""
    process = subprocess.Popen(["sleep", "600"])
    while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("verb", ["reload", "reopen"])
async def test_a_process_that_is_not_nginx_gets_no_signal(
    tmp_path: Path, bystander: subprocess.Popen[bytes], verb: str
) -> None:
    pid_file = tmp_path / "nginx.pid"
    pid_file.write_text(f"{bystander.pid}\n")
    process = HostNginx(pid_file=pid_file)
    with pytest.raises(Fault, match=rf"nginx\.pid names process {bystander.pid}, which is sleep"):
        await getattr(process, verb)()
    await asyncio.sleep(0.1)
    assert bystander.poll() is None
    assert await process.workers() == Workers()


async def test_a_pid_file_that_names_nobody_says_so(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "nginx.pid").write_text(f"{bystander.pid}\n")
    bystander.kill()
    bystander.wait()
    with pytest.raises(Fault, match=rf"nginx does not run: .*nginx\.pid names process {bystander.pid}"):
        await HostNginx(pid_file=tmp_path / "nginx.pid").reload()


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("soon\n", "'soon' is no process id")])
async def test_a_pid_file_without_a_pid_says_so(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "nginx.pid").write_text(text)
    with pytest.raises(Fault, match=rf"nginx does not run: {tmp_path}/nginx\.pid: {says}"):
        await HostNginx(pid_file=tmp_path / "nginx.pid").reload()


async def test_a_process_that_has_ended_and_that_nobody_has_waited_for_does_not_run(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "nginx.pid").write_text(f"{bystander.pid}\n")
    bystander.kill()
    os.waitid(os.P_PID, bystander.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(Fault, match="nginx does not run"):
        await HostNginx(pid_file=tmp_path / "nginx.pid", binary="sleep").reload()


async def test_a_command_ends_with_whoever_waits_for_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    waiting = asyncio.create_task(run(("sh", "-c", f"echo $$ > {marker}; exec sleep 60"), 60.0))
    async with asyncio.timeout(5):
        while not (marker.exists() and marker.read_text().endswith("\n")):
            await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not Path(f"/proc/{marker.read_text().strip()}").exists()


async def test_a_child_that_a_command_leaves_keeps_nobody_waiting(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    words = ("sh", "-c", f"setsid sh -c 'echo $$ > {marker}; exec sleep 60' & wait")
    with pytest.raises(Fault, match="no end after 0 s"):
        await asyncio.wait_for(run(words, 0.5), 5)
    os.kill(int(marker.read_text()), signal.SIGKILL)


async def test_a_command_that_can_not_be_killed_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's, by sudo; the double is the kill."""
    marker = tmp_path / "pid"
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda *_: None)
        patched.setattr(subprocess.Popen, "kill", lambda _: None)
        with pytest.raises(Fault, match="no end after 0 s"):
            await asyncio.wait_for(run(("sh", "-c", f"echo $$ > {marker}; exec sleep 60"), 0.5), 5)
    os.kill(int(marker.read_text()), signal.SIGKILL)
    async with asyncio.timeout(5):
        while Path(f"/proc/{marker.read_text().strip()}").exists():
            await asyncio.sleep(0.01)


@pytest.fixture
async def upgraded(site: Site) -> AsyncIterator[tuple[Site, int]]:
    """The site after USR2: a new master, and the old one, whose workers still accept."""
    old = site.process.master()
    os.kill(old, signal.SIGUSR2)
    try:
        async with asyncio.timeout(5):
            while not await _is_another(site.process, old):
                await asyncio.sleep(0.02)
        yield site, old
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGTERM)


async def _is_another(process: HostNginx, old: int) -> bool:
    try:
        return process.master() != old and len((await process.workers()).accepting) == 4
    except Fault:  # between the two, nobody has written the file
        return False


async def test_no_change_is_confirmed_while_a_master_from_before_an_upgrade_serves(
    upgraded: tuple[Site, int],
) -> None:
    site, old = upgraded
    assert (await site.process.workers()).outdated == {old}
    with pytest.raises(Fault, match=rf"before an upgrade still serves: pid {old}.*kill -QUIT {old}"):
        await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    seen = await site.edge.observe("api")
    assert seen.confirmed == 2
    assert f"kill -QUIT {old}" in seen.error
    os.kill(old, signal.SIGQUIT)
    async with asyncio.timeout(5):
        while (await site.process.workers()).outdated:
            await asyncio.sleep(0.05)
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    assert (await site.edge.observe("api")).confirmed == 3
    assert await site.answers() == {"api-2"}


async def test_a_rollback_takes_effect_in_the_midst_of_an_upgrade(upgraded: tuple[Site, int]) -> None:
    site, _ = upgraded
    with pytest.raises(Fault, match="before an upgrade"):
        await site.edge.apply(site.plan(3, "api-1"), 1)
    await asyncio.sleep(0.1)
    assert await site.answers() == {"api-1"}


@by_reload
async def test_an_upgrade_during_a_reload_is_not_taken_for_its_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload, old = site.process.reload, site.process.master()

    async def upgrade_and_reload() -> None:
        os.kill(old, signal.SIGUSR2)
        async with asyncio.timeout(5):
            while not await _is_another(site.process, old):
                await asyncio.sleep(0.02)
        await reload()

    with monkeypatch.context() as patched:
        patched.setattr(site.process, "reload", upgrade_and_reload)
        with pytest.raises(Fault, match="before an upgrade"):
            await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    os.kill(old, signal.SIGTERM)


@by_reload
async def test_an_old_master_whose_workers_have_been_asked_to_leave_holds_nothing_up(
    upgraded: tuple[Site, int],
) -> None:
    site, old = upgraded
    os.kill(old, signal.SIGWINCH)
    async with asyncio.timeout(5):
        while (await site.process.workers()).outdated:
            await asyncio.sleep(0.05)
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-2"}


async def refused_reload(site: Site) -> str:
    """What is told of a change; fails the test when it was waited for to the deadline."""
    site.edge._reloader._deadline = 60.0
    began = time.monotonic()
    with pytest.raises(Fault) as refused:
        await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    assert time.monotonic() - began < 30
    assert await site.answers() == {"api-1", "api-2"}
    return str(refused.value)


@by_reload
async def test_a_taken_port_is_told_in_nginx_own_words(site: Site) -> None:
    port = free_port()
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    (site.folder / "zz.conf").write_text(f"server {{ listen 127.0.0.1:{port}; }}\n")
    said = await refused_reload(site)
    assert f"bind() to 127.0.0.1:{port} failed (98: Address already in use)" in said
    assert said.count("bind()") == 2, "each line once: the five tries, and that it gave up"
    taken.close()
    await taken.wait_closed()


@by_reload
async def test_a_port_that_becomes_free_while_nginx_tries_is_no_refusal(site: Site) -> None:
    port = free_port()
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    (site.folder / "zz.conf").write_text(f"server {{ listen 127.0.0.1:{port}; }}\n")
    site.edge._reloader._deadline = 60.0
    applying = asyncio.create_task(site.edge.apply(site.plan(3, "api-2", back="api-1"), 1))
    while "bind()" not in (site.folder.parent / "nginx.error.log").read_text():
        await asyncio.sleep(0.02)
    taken.close()
    await taken.wait_closed()
    await applying
    assert await site.answers() == {"api-2"}


@by_reload
async def test_a_zone_that_has_changed_its_key_is_told_in_nginx_own_words(site: Site) -> None:
    zone = site.folder / "zz.conf"
    zone.write_text("limit_req_zone $binary_remote_addr zone=z:1m rate=1r/s;\n")
    await site.edge.apply(site.plan(2, "api-1", "api-2", back="api-1"), 1)
    await site.edge.reload()
    zone.write_text("limit_req_zone $request_uri zone=z:1m rate=1r/s;\n")
    said = await refused_reload(site)
    assert 'limit_req "z" uses the "$request_uri" key while previously it used' in said


@by_reload
async def test_what_nginx_t_refuses_begins_with_its_reason(site: Site) -> None:
    (site.folder / "zz.conf").write_text("upstream api { server 127.0.0.1:1; }\n")
    with pytest.raises(Fault, match=r'^nginx: \[emerg\] duplicate upstream "api" in .*zz\.conf:1 \(nginx '):
        await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)


DUMP = """\
nginx: [warn] conflicting server name
# configuration file /etc/nginx/nginx.conf:
user www-data; error_log /var/log/nginx/error.log warn; # error_log /no;
error_log "logs/own.log"; error_log stderr; error_log syslog:server=h;
http {
    log_format odd '{ "$status" error_log /neither;';
    error_log /var/log/nginx/http.log;
    include conf.d/*.conf;
}

# configuration file /etc/nginx/conf.d/a.conf:
server { error_log /var/log/nginx/a.log; }
"""


def test_the_error_logs_are_those_of_the_main_context() -> None:
    assert error_logs(DUMP) == (
        "/var/log/nginx/error.log",
        "logs/own.log",
        "stderr",
        "syslog:server=h",
    )
    assert error_logs("") == ()


async def test_a_process_that_does_not_tell_its_name_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells, title = threading.Event(), processes.title

    def late(pid: int) -> str:
        if pid != os.getpid():
            return title(pid)
        return "nginx: master process nginx" if tells.wait(20) else ""

    monkeypatch.setattr(processes, "title", late)
    (tmp_path / "nginx.pid").write_text(f"{os.getpid()}\n")
    seeing = asyncio.create_task(HostNginx(pid_file=tmp_path / "nginx.pid").workers())
    try:
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not seeing.done()
    finally:
        tells.set()
    assert isinstance(await seeing, Workers)


def line(pid: int, words: str, level: str = "emerg") -> str:
    return f"2026/01/02 03:04:05 [{level}] {pid}#{pid}: {words}\n"


def test_only_what_the_master_has_written_since_counts(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.write_text(line(7, "old"))
    log = ErrorLog((path,), 7)
    assert log.look() == Complaint()
    with path.open("a") as file:
        file.write(line(8, "of another") + line(7, "no matter", "alert") + line(7, "cut off")[:20])
    assert log.look() == Complaint("no matter")
    with path.open("a") as file:
        file.write(line(7, "cut off")[20:])
    assert log.look() == Complaint("no matter; cut off", final=True)


def test_a_log_that_is_rotated_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.write_text(line(7, "old") * 5)
    log = ErrorLog((path, tmp_path / "not-there.log"), 7)
    path.rename(tmp_path / "error.log.1")
    assert log.look() == Complaint()
    path.write_text(line(7, "new"))
    assert log.look() == Complaint("new", final=True)


def test_a_log_that_grows_fast_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.touch()
    log = ErrorLog((path,), 7)
    with path.open("a") as file:
        file.write(line(9, "x" * 100, "error") * 3000 + line(7, "at last"))
    looks = 1
    while not log.look().final:
        looks += 1
    assert 2 < looks < 20


def test_a_worker_that_ends_while_it_is_looked_at_has_lost_no_master(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        processes, "title", lambda pid: "nginx: worker process" if pid == os.getpid() else "/sbin/init"
    )
    assert processes.orphans() == {os.getpid()}
    monkeypatch.setattr(processes, "parent", lambda _: 0)
    assert processes.orphans() == frozenset()
