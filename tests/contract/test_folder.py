"""What is lost of the edge's folder, or lies in its place, stops no rollback and no release."""

import asyncio
import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor.check import Check
from orchestrator.daemon.doctor.nginx import nginx
from orchestrator.daemon.settings import NginxSection, Settings
from orchestrator.ports.faults import Fault
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.process import orphans
from orchestrator.traffic.render import balancer_path
from tests.contract.conftest import Site

OURS = (
    ".lock",
    "_http.conf",
    "snippets",
    "snippets/proxy.conf",
    "snippets/api.conf",
    "switch",
    "log",
    "log/requests.log",
    "api.conf",
    "api.good",
    "api.rollback",
)
"""All that the edge has in its folder while a candidate has traffic."""

FOLDERS = ("snippets", "switch", "log")

LUAS = ("_lua.conf", "lua", balancer_path("").lstrip("/"), "secret")
"""What it has beside that where routes change in nginx' memory."""


def lose(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def take_the_place_of(path: Path) -> None:
    """Put a folder that is not empty where a file is, and a file where a folder is."""
    folder = path.is_dir()
    lose(path)
    if folder:
        path.write_text("not ours")
    else:
        path.mkdir()
        (path / "theirs").write_text("not ours")


def pipe(path: Path) -> None:
    """Whoever opens it waits for the other end, which never comes."""
    lose(path)
    os.mkfifo(path)


def door(path: Path) -> None:
    """A socket, which can't be opened."""
    lose(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def loop(path: Path) -> None:
    """A link to itself."""
    lose(path)
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    """A link to what is not there."""
    lose(path)
    path.symlink_to("gone")


def huge(path: Path) -> None:
    """Nothing of ours has a thousandth of it."""
    lose(path)
    path.touch()
    os.truncate(path, 1024**3)


HARMS = (take_the_place_of, pipe, door, loop, nowhere, huge)


async def restarted(site: Site) -> None:
    """Another nginx in place of the one that runs."""
    master = site.process.master()
    os.kill(master, signal.SIGTERM)
    async with asyncio.timeout(5):
        while Path(f"/proc/{master}/stat").exists() and " Z " not in Path(f"/proc/{master}/stat").read_text():
            await asyncio.sleep(0.02)
    program = shutil.which("nginx") or "nginx"
    subprocess.run([program, "-c", str(site.folder.parent / "nginx.conf")], check=True, timeout=10)


@pytest.mark.parametrize("harm", [lose, take_the_place_of, pipe])
@pytest.mark.parametrize(
    ("site", "name"),
    [*(("reload", name) for name in OURS), *(("dynamic", name) for name in ("api.conf", *LUAS))],
    indirect=["site"],
)
async def test_without_one_of_our_files_a_rollback_is_obeyed_and_the_next_release_passes(
    site: Site, name: str, harm: Callable[[Path], None]
) -> None:
    assert (site.folder / name).exists() or name == "log/requests.log"
    harm(site.folder / name)
    await site.edge.apply(site.plan(3, "api-1"), 1)
    assert await site.answers() == {"api-1"}
    await site.settled()
    await site.edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-1", "api-2"}
    assert (await site.edge.observe("api")).error == ""
    await site.process.test()
    await restarted(site)
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("api.conf", "api.rollback")])
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_without_one_of_our_files_a_rollback_on_the_host_is_obeyed(site: Site, name: str) -> None:
    lose(site.folder / name)
    by_hand = NginxEdge(
        site.process, site.folder, site.edge._options, listen=site.edge._listen, closing_wait=0.0
    )
    assert (await by_hand.retreat("api", "ann", "it burns")).to == "api-1"
    await by_hand.close()
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize(
    ("site", "name"),
    [*(("reload", name) for name in OURS), *(("dynamic", name) for name in LUAS)],
    indirect=["site"],
)
async def test_an_idle_look_puts_back_what_nginx_needs_to_start(site: Site, name: str) -> None:
    lose(site.folder / name)
    seen = await site.edge.observe("api")
    if seen.file == "missing":  # as the engine does: what is served is served again
        await site.edge.apply(site.plan(2, "api-1", "api-2", back="api-1"), 1)
    assert (await site.edge.observe("api")).file == "ours"
    await restarted(site)
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_what_is_no_file_in_the_place_of_one_is_moved_aside(
    site: Site, harm: Callable[[Path], None]
) -> None:
    harm(site.folder / "api.conf")
    seen = await site.edge.observe("api")
    assert (seen.file, seen.on_disk) == ("missing", None)
    await site.edge.apply(site.plan(3, "api-1"), 1)
    assert await site.answers() == {"api-1"}
    assert os.path.lexists(site.folder / "api.conf.aside")
    assert (await site.edge.observe("api")).file == "ours"


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *(("web.conf", harm) for harm in HARMS if harm is not huge),
        ("snippets/web.conf", pipe),
        ("locations/shop/web.conf", pipe),
    ],
)
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_what_is_no_file_in_the_place_of_one_services_is_no_trouble_of_another(
    site: Site, harm: Callable[[Path], None], name: str
) -> None:
    path = site.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    harm(path)
    await site.edge.apply(site.plan(3, "api-1"), 1)
    assert await site.answers() == {"api-1"}
    assert site.edge.highest_token() == 1


@pytest.mark.parametrize("name", [".lock", "secret", "switch/api.to.api-1", "api.good", "log/requests.log"])
async def test_a_rollback_on_the_host_waits_for_no_pipe(site: Site, name: str) -> None:
    pipe(site.folder / name)
    by_hand = NginxEdge(
        site.process, site.folder, site.edge._options, listen=site.edge._listen, closing_wait=0.0
    )
    assert (await by_hand.retreat("api", "ann", "it burns")).to == "api-1"
    await by_hand.close()
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("name", [".lock", "secret"])
async def test_a_link_in_the_folder_leads_a_rollback_on_the_host_to_no_other_file(
    site: Site, name: str
) -> None:
    """Root may type it, and the folder is another account's."""
    if os.geteuid():
        pytest.skip("only root can do harm")
    other = site.folder.parent / "other"
    other.write_text("theirs")
    os.chown(other, 1, 1)
    lose(site.folder / name)
    (site.folder / name).symlink_to(other)
    by_hand = NginxEdge(
        site.process, site.folder, site.edge._options, listen=site.edge._listen, closing_wait=0.0
    )
    assert (await by_hand.retreat("api", "ann", "it burns")).to == "api-1"
    await by_hand.close()
    assert (other.read_text(), other.stat().st_uid) == ("theirs", 1)


async def test_an_emptied_folder_is_filled_again_with_the_same_generation_and_token(site: Site) -> None:
    lose(site.folder)
    site.folder.mkdir()
    site.folder.chmod(0o755)
    await restarted(site)
    seen = await site.edge.observe("api")
    assert (seen.served, seen.file) == (None, "missing")
    await site.edge.apply(site.plan(2, "api-1", "api-2", back="api-1"), 5)
    seen = await site.edge.observe("api")
    assert (seen.served, seen.confirmed, seen.floor, seen.file) == (2, 2, 2, "ours")
    assert site.edge.highest_token() == 5
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_file_that_was_lost_is_put_back_though_nginx_does_not_run(site: Site) -> None:
    text = (site.folder / "api.conf").read_text()
    (site.folder / "api.conf").unlink()
    workers = (await site.process.workers()).accepting
    os.kill(site.process.master(), signal.SIGKILL)
    with pytest.raises(Fault, match="nginx does not run"):
        await site.edge.apply(site.plan(2, "api-1", "api-2", back="api-1"), 1)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    assert (site.folder / "api.conf").read_text() == text


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_that_cannot_be_turned_keeps_nobody_from_going_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is full, or that can't be written to."""

    def refuse(*_: object, **__: object) -> None:
        raise Fault("switch/api: Read-only file system")

    monkeypatch.setattr("orchestrator.traffic.switch.write", refuse)
    with capture_logs() as logs:
        await site.edge.apply(site.plan(3, "api-1"), 1)
    assert await site.answers() == {"api-1"}
    assert "switch/api: Read-only file system" in [line.get("reason") for line in logs]
    await site.edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert (await site.edge.retreat("api", "ann", "it burns")).to == "api-1"
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_what_cannot_be_put_back_is_told_with_the_fault_that_follows(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    lost = site.folder / "snippets" / "proxy.conf"
    lost.unlink()
    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.traffic.shared.replace", refuse)
        with pytest.raises(Fault, match="open"):
            await site.edge.apply(site.plan(3, "api-2"), 1)
        error = (await site.edge.observe("api")).error
    assert error.endswith(f"; {lost} is missing: Read-only file system")
    await site.edge.apply(site.plan(3, "api-2"), 1)
    assert (await site.edge.observe("api")).error == ""
    assert await site.answers() == {"api-2"}


async def test_a_retreat_that_another_has_won_is_a_success(site: Site) -> None:
    by_hand = NginxEdge(site.process, site.folder, site.edge._options, listen=site.edge._listen)
    won = await by_hand.retreat("api", "ann", "it burns")
    await by_hand.close()
    assert await site.edge.retreat("api", "host", "the switch is on", 1) == won
    seen = await site.edge.observe("api")
    assert (seen.error, seen.local, seen.floor) == ("", won, 3)
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_fallback_put_in_place_by_hand_and_not_served_is_served_by_a_retreat(site: Site) -> None:
    (site.folder / "api.conf").write_text((site.folder / "api.rollback").read_text())
    assert await site.answers() == {"api-1", "api-2"}
    assert (await site.edge.retreat("api", "ann", "it burns")).to == "api-1"
    assert await site.answers() == {"api-1"}


async def doctor(site: Site) -> list[Check]:
    """What the doctor finds wrong."""
    root = site.folder.parent
    section = NginxSection(directory=site.folder, conf=f"{root}/nginx.conf", pid_file=root / "nginx.pid")
    config = Config(root, Settings(state_dir=root, nginx=section), {})
    return [check for check in await nginx(config) if not check.ok]


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_the_doctor_names_what_the_folder_lacks_and_who_puts_it_back(site: Site) -> None:
    assert [c for c in await doctor(site) if c.name == "nginx folder"] == []
    snippet, http, switch = (site.folder / n for n in ("snippets/proxy.conf", "_http.conf", "switch"))
    snippet.unlink()
    http.write_text("# mine\n")
    switch.rmdir()
    found = await doctor(site)
    assert [c.detail for c in found if c.name == "nginx folder"] == [
        f"{switch} is missing",
        f"{http} differs from what the daemon writes",
        f"{snippet} is missing",
    ]
    assert {c.mend for c in found if c.name in ("nginx folder", "nginx -t")} == {
        "the daemon puts it back: within a second while it runs, else at its start"
    }
    site.edge.prepare()
    assert [c for c in await doctor(site) if c.name in ("nginx folder", "nginx -t")] == []


async def test_an_empty_folder_is_no_fault_before_the_first_start(site: Site) -> None:
    lose(site.folder)
    assert [c for c in await doctor(site) if c.name == "nginx folder"] == []


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_workers_whose_master_was_killed_are_named_and_ended_before_the_start(site: Site) -> None:
    workers = (await site.process.workers()).accepting
    os.kill(site.process.master(), signal.SIGKILL)
    try:
        async with asyncio.timeout(5):
            while not workers <= orphans():
                await asyncio.sleep(0.02)
        assert await site.answers() == {"api-1", "api-2"}
        (found,) = [c for c in await doctor(site) if c.name == "nginx"]
        for words in (found.detail, found.mend):
            assert {str(pid) for pid in workers} <= set(words.replace(",", "").split())
        assert found.mend.startswith("kill -QUIT ")
        assert found.mend.endswith(", then systemctl start nginx")
        with pytest.raises(Fault, match="kill -QUIT"):
            await site.process.reload()
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGQUIT)
    async with asyncio.timeout(5):
        while workers & orphans():
            await asyncio.sleep(0.02)
