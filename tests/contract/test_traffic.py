"""`ports.Traffic`: the fake, nginx on this host, with Lua, and in a container pass one suite."""

import asyncio
import contextlib
import os
import random
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from examples.playground.lease import free_port
from examples.playground.stack import LUA, NGINX
from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route
from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.nginx_container import ContainerNginx
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.files import write
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.process import HostNginx
from tests.builders import server
from tests.conftest import let_all_pass
from tests.contract.fakes import FakeTraffic
from tests.nginx_image import NGINX_IMAGE, nginx_image


class Kit:
    """An edge with the handles that the suite needs."""

    def __init__(self, traffic: Any, folder: Path, process: Any = None, pid: int = 0) -> None:
        self.traffic, self.folder, self.process, self.pid = traffic, folder, process, pid

    @property
    def real(self) -> bool:
        return self.process is not None


@pytest.fixture(params=["fake", "host", "lua", "container"])
async def kit(
    request: pytest.FixtureRequest, tmp_path: Path, docker_client: docker.DockerClient
) -> AsyncIterator[Kit]:
    if request.param == "fake":
        yield Kit(FakeTraffic(), tmp_path)
        return
    folder = tmp_path / "edge"
    folder.mkdir()
    let_all_pass(tmp_path)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    listen = f"127.0.0.1:{free_port()}"
    conf = tmp_path / "nginx.conf"
    lua = LUA if request.param == "lua" else ""
    conf.write_text(lua + NGINX.format(root=tmp_path, extra=""))
    if request.param in ("host", "lua"):
        subprocess.run(["nginx", "-c", str(conf)], check=True, timeout=10)
        process: Any = HostNginx(conf=str(conf), pid_file=tmp_path / "nginx.pid")
        edge = NginxEdge(
            process, folder, lambda _: EdgeOptions(), listen=listen, confirm_deadline=3.0, closing_wait=0.2
        )
        edge.prepare()
        yield Kit(edge, folder, process, process.master())
        await edge.close()
        with contextlib.suppress(Fault, ProcessLookupError):
            os.kill(process.master(), signal.SIGTERM)
        return
    nginx_image(docker_client)
    name = f"edge-{random.randrange(16**8):08x}"
    conf.write_text(conf.read_text().replace("daemon on;", "daemon off;"))
    container = docker_client.containers.run(
        NGINX_IMAGE,
        ["/usr/sbin/nginx", "-c", "/etc/nginx/nginx.conf"],
        name=name,
        detach=True,
        network_mode="host",
        volumes={
            str(conf): {"bind": "/etc/nginx/nginx.conf", "mode": "ro"},
            str(tmp_path): {"bind": str(tmp_path), "mode": "rw"},
        },
    )
    client = DockerClient()
    process = ContainerNginx(client, name)
    edge = NginxEdge(
        process, folder, lambda _: EdgeOptions(), listen=listen, confirm_deadline=3.0, closing_wait=0.2
    )
    edge.prepare()
    await asyncio.sleep(0.5)
    yield Kit(edge, folder, process)
    await edge.close()
    container.remove(force=True)
    client.close()


def plan(generation: int, weight: int = 1, fallback: bool = False) -> RoutePlan:
    servers = tuple(
        server("api-1", f"10.255.0.{n}:8080", instance=f"api-1-{n}", weight=weight) for n in (1, 2)
    )
    route = Route(generation=generation, servers=servers)
    return RoutePlan(service="api", route=route, fallback=route if fallback else None)


async def test_what_is_applied_is_served_and_seen(kit: Kit) -> None:
    before = await kit.traffic.observe("api")
    assert (before.served, before.confirmed, before.file) == (None, 0, "ours")
    await kit.traffic.apply(plan(1), 1)
    await kit.traffic.apply(plan(2, weight=3), 1)
    after = await kit.traffic.observe("api")
    assert (after.served, after.confirmed, after.file, after.error, after.floor) == (2, 2, "ours", "", 2)


async def test_applying_the_same_twice_is_nothing_new(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    await kit.traffic.apply(plan(1), 1)
    assert (await kit.traffic.observe("api")).confirmed == 1


def nothing(generation: int) -> RoutePlan:
    return RoutePlan(service="api", route=Route(generation=generation, gone=True))


async def test_what_is_to_be_gone_is_gone_and_can_come_again(kit: Kit) -> None:
    await kit.traffic.apply(plan(1, fallback=True), 1)
    for _ in range(2):
        await kit.traffic.apply(nothing(2), 1)
        after = await kit.traffic.observe("api")
        assert (after.served, after.confirmed, after.file, after.error) == (None, 2, "ours", "")
        assert after.on_disk is not None
        assert (after.floor, after.on_disk.route.gone, after.fallback) == (2, True, ())
    if kit.real:
        assert [p.name for p in kit.folder.rglob("*api*") if p.name != "proxy.conf"] == ["api.gone"]
    await kit.traffic.apply(plan(3), 1)
    assert (await kit.traffic.observe("api")).served == 3
    if kit.real:
        assert not (kit.folder / "api.gone").exists()


async def test_a_stale_daemon_brings_back_nothing_that_was_removed(kit: Kit) -> None:
    await kit.traffic.apply(plan(1, fallback=True), 1)
    await kit.traffic.apply(nothing(3), 2)
    for late in (plan(2), plan(4), nothing(4)):
        with pytest.raises(Stale):
            await kit.traffic.apply(late, 1)
    with pytest.raises(Fault):
        await kit.traffic.apply(plan(2), 2)
    with pytest.raises(Fault):
        await kit.traffic.retreat("api", "orchestrator", "what it saw before", 1)
    assert (await kit.traffic.observe("api")).served is None
    if kit.real:
        assert not (kit.folder / "api.conf").exists()
        assert kit.traffic.highest_token() == 2
        with pytest.raises(Stale):
            await kit.traffic.put_down(plan(4), 1)
    await kit.traffic.apply(plan(4), 2)
    assert (await kit.traffic.observe("api")).served == 4


async def test_a_removal_tells_which_numbers_of_releases_were_given_out(kit: Kit) -> None:
    await kit.traffic.apply(replace(plan(1), released=7), 1)
    served = (await kit.traffic.observe("api")).on_disk
    await kit.traffic.apply(replace(nothing(2), released=9), 1)
    gone = (await kit.traffic.observe("api")).on_disk
    assert [disk and disk.released for disk in (served, gone)] == [7, 9]


async def test_a_stale_daemon_takes_nothing_away(kit: Kit) -> None:
    await kit.traffic.apply(plan(5), 3)
    with pytest.raises(Stale):
        await kit.traffic.apply(nothing(6), 2)
    assert (await kit.traffic.observe("api")).served == 5


async def test_what_nginx_needs_yet_stays_until_it_does_not(kit: Kit) -> None:
    if not kit.real:
        return
    await kit.traffic.apply(plan(1), 1)
    theirs = kit.folder / "theirs.conf"
    socket = f"unix:{kit.folder}/theirs.sock"
    theirs.write_text(f"server {{ listen {socket}; location / {{ proxy_pass http://api; }} }}\n")
    with pytest.raises(Fault, match='host not found in upstream "api"'):
        await kit.traffic.apply(nothing(2), 1)
    await kit.process.test()
    seen = await kit.traffic.observe("api")
    assert (seen.served, seen.file, seen.floor) == (1, "ours", 1)
    theirs.unlink()
    await kit.traffic.apply(nothing(2), 1)
    assert (await kit.traffic.observe("api")).served is None


async def test_a_server_block_is_not_taken_from_under_its_guests(kit: Kit) -> None:
    if not kit.real:
        return
    await kit.traffic.apply(plan(1), 1)
    guest = kit.folder / "locations" / "api" / "web.conf"
    guest.parent.mkdir(parents=True)
    guest.write_text("")
    with pytest.raises(Fault, match="web at a path of the server block of api: remove that first"):
        await kit.traffic.apply(nothing(2), 1)
    assert (await kit.traffic.observe("api")).served == 1


async def test_an_older_generation_or_token_is_refused(kit: Kit) -> None:
    await kit.traffic.apply(plan(5), 3)
    with pytest.raises(Stale):
        await kit.traffic.apply(plan(6), 2)
    with pytest.raises(Fault) as refused:
        await kit.traffic.apply(plan(4), 3)
    assert not isinstance(refused.value, Stale)
    assert (await kit.traffic.observe("api")).served == 5
    await kit.traffic.apply(plan(6), 4)
    assert (await kit.traffic.observe("api")).served == 6


@pytest.mark.parametrize("kit", ["fake", "host", "container"], indirect=True)  # with Lua nothing is reloaded
async def test_a_refused_change_leaves_the_last_good_one(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    broken = kit.folder / "zz.conf"
    if kit.real:
        text = (kit.folder / "api.conf").read_text()
        broken.write_text("this is not nginx;\n")
    else:
        kit.traffic.refuses = "nginx -t: this is not nginx"
    with pytest.raises(Fault, match="this"):
        await kit.traffic.apply(plan(2), 1)
    seen = await kit.traffic.observe("api")
    assert (seen.served, seen.confirmed, seen.file) == (1, 1, "ours")
    assert "this" in seen.error
    if kit.real:
        assert (kit.folder / "api.conf").read_text() == text
        broken.unlink()
    else:
        kit.traffic.refuses = ""
    await kit.traffic.apply(plan(2), 1)
    assert (await kit.traffic.observe("api")).confirmed == 2


@pytest.mark.parametrize("kit", ["host", "container"], indirect=True)
async def test_an_edit_is_seen_and_kept_aside(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    file = kit.folder / "api.conf"
    file.write_text(file.read_text() + "# mine\n")
    assert (await kit.traffic.observe("api")).file == "edited"
    await kit.traffic.apply(plan(1), 1)
    assert (await kit.traffic.observe("api")).file == "ours"
    assert "# mine" in file.with_suffix(".edited").read_text()
    file.unlink()
    assert (await kit.traffic.observe("api")).file == "missing"


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_a_new_daemon_knows_an_edited_file_by_its_header(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    fresh = NginxEdge(kit.process, kit.folder, lambda _: EdgeOptions(), probe=kit.traffic._listener._url)
    seen = await fresh.observe("api")
    assert (seen.file, seen.floor, seen.served) == ("ours", 1, 1)
    file = kit.folder / "api.conf"
    file.write_text(file.read_text().replace("weight=1", "weight=7"))
    assert (await fresh.observe("api")).file == "edited"
    await fresh.close()


@pytest.mark.parametrize("kit", ["host", "lua"], indirect=True)
async def test_a_folder_from_an_earlier_time_is_seen_and_the_next_generation_goes_over_it(kit: Kit) -> None:
    await kit.traffic.apply(plan(3), 3)
    file = kit.folder / "api.conf"
    old = file.read_text()
    await kit.traffic.apply(plan(5), 3)
    file.write_text(old)
    fresh = NginxEdge(kit.process, kit.folder, lambda _: EdgeOptions(), listen=kit.traffic._listen)
    seen = await fresh.observe("api")
    assert (seen.served, seen.floor, seen.highest, seen.file) == (5, 3, 5, "ours")
    await fresh.apply(plan(6), 3)
    assert (await fresh.observe("api")).confirmed == 6
    await fresh.close()


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_a_reload_that_returns_and_is_not_applied_is_not_a_success(kit: Kit) -> None:
    """A listen port that is taken: `nginx -t` and the reload both return 0, and the old config serves on."""
    await kit.traffic.apply(plan(1), 1)
    port = free_port()
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    kit.traffic._options = lambda _: EdgeOptions()
    (kit.folder / "zz.conf").write_text(f"server {{ listen 127.0.0.1:{port}; }}\n")
    began = time.monotonic()
    with pytest.raises(Fault, match=r"does not show generation 2|in use"):
        await kit.traffic.apply(plan(2), 1)
    assert time.monotonic() - began < 10
    assert (await kit.traffic.observe("api")).served == 1
    taken.close()
    await taken.wait_closed()
    (kit.folder / "zz.conf").unlink()
    await kit.traffic.apply(plan(2), 1)


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_nginx_that_does_not_run_is_a_fault_and_the_file_is_put_back(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    text = (kit.folder / "api.conf").read_text()
    os.kill(kit.pid, signal.SIGTERM)
    while Path(f"/proc/{kit.pid}").exists():
        await asyncio.sleep(0.05)
    with pytest.raises(Fault, match="nginx does not run"):
        await kit.traffic.apply(plan(2), 1)
    assert (kit.folder / "api.conf").read_text() == text
    assert (await kit.traffic.observe("api")).served is None


@pytest.mark.parametrize("kit", ["host", "lua", "container"], indirect=True)
async def test_an_nginx_that_includes_our_files_no_more_is_told_while_idle(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    assert (await kit.traffic.observe("api")).silence == ""
    conf = kit.folder.parent / "nginx.conf"
    kept = conf.read_text()
    conf.write_text(kept.replace(f"include {kit.folder}/*.conf;", ""))
    await kit.process.reload()
    await _told(
        kit, rf"nginx runs and does not serve api: is `include {kit.folder}/\*\.conf;` in its http {{}}\?"
    )
    seen = await kit.traffic.observe("api")
    assert (seen.served, seen.confirmed, seen.error) == (None, 1, "")
    conf.write_text(kept)
    await kit.process.reload()
    await _told(kit, "")


@pytest.mark.parametrize("kit", ["host", "lua"], indirect=True)
async def test_an_nginx_that_is_gone_is_told_while_idle(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    assert (await kit.traffic.observe("api")).silence == ""
    os.kill(kit.pid, signal.SIGTERM)
    await _told(kit, r"nginx does not answer: (nothing listens on )?http://127\.0\.0\.1:")
    seen = await kit.traffic.observe("api")
    assert (seen.served, seen.confirmed, seen.error) == (None, 1, "")
    trying = asyncio.create_task(kit.traffic.apply(plan(2), 1))
    while not kit.traffic._rounds.changing("api"):
        await asyncio.sleep(0)
    assert (await kit.traffic.observe("api")).silence == seen.silence, "while a change is tried"
    with pytest.raises(Fault):
        await trying


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_workers_that_hang_are_no_missing_include(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    workers = (await kit.process.workers()).accepting
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        await _told(kit, r"nginx does not answer: http://127\.0\.0\.1:\d+: TimeoutError$")
        seen = await kit.traffic.observe("api")
        assert (seen.served, seen.confirmed, seen.error) == (None, 1, "")
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    await _told(kit, "")
    assert (await kit.traffic.observe("api")).served == 1


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_an_nginx_that_serves_other_services_and_not_this_one_is_told(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    await kit.traffic.apply(replace(plan(1), service="web"), 1)
    (kit.folder / "web.conf").rename(kit.folder / "web.away")
    await kit.process.reload()
    async with asyncio.timeout(5):
        while (await kit.traffic._listener.ask("web")).generation is not None:
            await asyncio.sleep(0.05)
    (kit.folder / "web.away").rename(kit.folder / "web.conf")
    async with asyncio.timeout(5):  # an old worker may still answer one look or another
        while not (silence := (await kit.traffic.observe("web")).silence):
            await asyncio.sleep(0.05)
    assert silence.startswith("nginx runs and does not serve web: ")
    assert (await kit.traffic.observe("api")).silence == ""


async def _told(kit: Kit, pattern: str) -> None:
    """Wait until it is told so."""
    async with asyncio.timeout(5):
        while not re.match(pattern + ("" if pattern else "$"), (await kit.traffic.observe("api")).silence):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kit", ["host", "lua"], indirect=True)
async def test_a_file_that_is_put_back_can_be_read_by_whoever_could_before(kit: Kit) -> None:
    await kit.traffic.apply(plan(1), 1)
    file = kit.folder / "api.conf"
    before = stat.S_IMODE(file.stat().st_mode)
    kit.traffic._options = lambda _: EdgeOptions(keepalive=8)
    (kit.folder / "zz.conf").write_text("this is not nginx;\n")
    with pytest.raises(Fault, match="this"):
        await kit.traffic.apply(plan(2), 1)
    assert stat.S_IMODE(file.stat().st_mode) == before


def canary(generation: int, *, fallback: bool = True) -> RoutePlan:
    """Stable and a candidate have traffic; the fallback is stable alone."""
    servers = plan(generation).route.servers
    candidate = replace(servers[1], release="api-2", instance="api-2-0")
    back = Route(generation=generation, servers=servers[:1]) if fallback else None
    route = Route(generation=generation, servers=(servers[0], candidate))
    return RoutePlan(service="api", route=route, stable="api-1", fallback=back)


async def test_a_rollback_on_the_host_needs_no_plan_and_is_not_overwritten(kit: Kit) -> None:
    await kit.traffic.apply(canary(4), 3)
    before = await kit.traffic.observe("api")
    assert before.on_disk.stable == "api-1"
    assert before.on_disk.route == canary(4).route
    assert before.fallback == canary(4).route.servers[:1]
    with pytest.raises(Stale):
        await kit.traffic.retreat("api", "old daemon", "no", 2)
    assert (await kit.traffic.retreat("api", "ann", "it burns", 3)).to == "api-1"
    after = await kit.traffic.observe("api")
    assert (after.served, after.floor) == (5, 5)
    assert (after.on_disk.local.actor, after.on_disk.local.reason) == ("ann", "it burns")
    assert [s.instance for s in after.on_disk.route.servers] == ["api-1-1"]
    for refused in (canary(4), canary(5)):
        with pytest.raises(Fault):
            await kit.traffic.apply(refused, 3)
    assert (await kit.traffic.retreat("api", "bob", "again")).actor == "ann"  # who has done it already
    await kit.traffic.apply(plan(6), 3)
    assert (await kit.traffic.observe("api")).on_disk.local is None


async def test_a_service_may_have_many_instances(kit: Kit) -> None:
    servers = tuple(
        replace(s, instance=f"api-1-{n}", address=f"10.255.1.{n}:8080", container="c" * 64)
        for n in range(1, 61)
        for s in plan(1).route.servers[:1]
    )
    route = Route(generation=1, servers=servers)
    await kit.traffic.apply(RoutePlan(service="api", route=route, fallback=route), 1)
    seen = await kit.traffic.observe("api")
    assert (seen.confirmed, seen.on_disk.route, seen.fallback) == (1, route, servers)


async def test_without_a_fallback_there_is_nothing_to_go_back_to(kit: Kit) -> None:
    await kit.traffic.apply(canary(1), 1)
    await kit.traffic.apply(canary(2, fallback=False), 1)
    assert (await kit.traffic.observe("api")).fallback == ()
    with pytest.raises(Fault, match="nothing to go back to"):
        await kit.traffic.retreat("api", "ann", "")


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_the_fallback_put_in_place_by_hand_is_a_rollback_on_the_host(kit: Kit) -> None:
    await kit.traffic.apply(canary(1), 1)
    (kit.folder / "api.conf").write_text((kit.folder / "api.rollback").read_text())
    await kit.process.reload()
    found = await kit.traffic.observe("api")
    assert found.on_disk.local.to == "api-1"
    assert found.on_disk.local.reason == "api.rollback was put in place by hand"


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_a_crash_before_the_confirmation_restores_what_was_confirmed(kit: Kit) -> None:
    """A file that no daemon has confirmed is not what is put back when the next change fails."""
    await kit.traffic.apply(plan(1), 1)
    good = (kit.folder / "api.conf").read_text()
    await kit.traffic.apply(plan(2, weight=7), 1)
    never_confirmed = (kit.folder / "api.conf").read_text()
    (kit.folder / "api.good").write_text(good)
    later = NginxEdge(kit.process, kit.folder, lambda _: EdgeOptions(), listen=kit.traffic._listen)
    (kit.folder / "zz.conf").write_text("this is not nginx;")
    with pytest.raises(Fault, match="unknown directive"):
        await later.apply(plan(3), 2)
    await later.close()
    assert never_confirmed != good
    assert (kit.folder / "api.conf").read_text() == good


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_two_processes_change_the_folder_one_after_the_other(kit: Kit) -> None:
    await kit.traffic.apply(canary(1), 1)
    other = NginxEdge(kit.process, kit.folder, lambda _: EdgeOptions(), listen=kit.traffic._listen)
    results = await asyncio.gather(
        kit.traffic.apply(plan(2), 1), other.retreat("api", "ann", ""), return_exceptions=True
    )
    await other.close()
    served = (await kit.traffic.observe("api")).served
    lost = [r for r in results if isinstance(r, Fault)]
    assert (served, len(lost)) in ((2, 1), (3, 0)), results


@pytest.mark.parametrize("kit", ["host"], indirect=True)
async def test_a_worker_with_a_request_under_way_is_not_drained(kit: Kit) -> None:
    port = free_port()
    slow = await asyncio.start_server(_slowly, "127.0.0.1", 0)
    backend = slow.sockets[0].getsockname()[1]
    (kit.folder / "zz.conf").write_text(
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{backend}; }} }}\n"
    )
    await kit.traffic.apply(plan(1), 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.3)
    await kit.traffic.apply(plan(2), 1)
    assert not (await kit.traffic.observe("api")).drained
    answer = await reader.read()
    assert b"200 OK" in answer
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        while not (await kit.traffic.observe("api")).drained:
            await asyncio.sleep(0.1)
    slow.close()
    await slow.wait_closed()


async def _slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(2.0)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    await writer.drain()
    writer.close()


async def test_a_full_disk_leaves_the_live_file_whole(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        file = disk / "api.conf"
        write(file, "good\n")
        with pytest.raises(Fault, match="No space left"):
            write(file, "x" * 200_000)
        assert file.read_text() == "good\n"
        assert [p.name for p in disk.iterdir()] == ["api.conf"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_root_writes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    """`rollback --local` by root leaves files that a daemon without root reads and replaces."""
    os.chown(tmp_path, 65534, 65534)
    for private, mode in ((True, 0o600), (False, 0o644)):
        file = tmp_path / "api.conf"
        write(file, "text\n", private=private)
        found = file.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, mode)


def test_threads_that_write_one_file_at_the_same_time_each_write_it_whole(tmp_path: Path) -> None:
    path, texts = tmp_path / "a", [letter * 5000 for letter in "abcd"]
    together = threading.Barrier(len(texts))

    def work(text: str) -> None:
        together.wait()
        for _ in range(50):
            write(path, text)

    with ThreadPoolExecutor(len(texts)) as pool:
        for done in [pool.submit(work, text) for text in texts]:
            done.result()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
