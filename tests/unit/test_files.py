"""Files in nginx' folder: what else may lie in their place, and who may read them."""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from orchestrator.daemon.settings import NginxSection, Settings
from orchestrator.daemon.watch import _unwritten
from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route
from orchestrator.traffic.edge import NginxEdge, files_of
from orchestrator.traffic.files import LARGEST, in_the_way, locked, read, text_of, write
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.process import HostNginx
from orchestrator.traffic.shared import Shared
from orchestrator.traffic.switch import Switches
from tests.conftest import let_all_pass


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    """One that never ends."""
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, LARGEST + 1)


@pytest.mark.parametrize("put", [pipe, device, huge, Path.mkdir])
def test_what_lies_in_the_place_of_a_file_and_is_none_has_no_text(tmp_path: Path, put: object) -> None:
    path = tmp_path / "api.conf"
    assert in_the_way(path) == ""
    put(path)  # type: ignore[operator]
    assert in_the_way(path)
    assert read(path) is None


def test_nothing_is_written_into_what_lies_in_the_place_of_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.traffic.files._numbers", iter([7]))
    theirs = tmp_path / "theirs"
    (tmp_path / f".api.conf.{os.getpid()}.7.tmp").symlink_to(theirs)
    write(tmp_path / "api.conf", "ours")
    assert (read(tmp_path / "api.conf"), theirs.exists()) == ("ours", False)


def test_a_text_is_on_the_disk_before_it_is_seen_and_a_switch_is_seen_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen, sync = tmp_path / "file", list[bool](), os.fsync

    def noting(file: int) -> None:
        seen.append(path.exists())
        sync(file)

    monkeypatch.setattr(os, "fsync", noting)
    write(path, "text")
    assert seen == [False, True], "the file, then its folder"
    path.unlink()
    seen.clear()
    write(path, "")
    assert seen == [True, True]


async def test_a_lock_is_no_pipe(tmp_path: Path) -> None:
    device(tmp_path / ".lock")
    with pytest.raises(Fault, match=f"{tmp_path}/.lock"):
        async with locked(tmp_path / ".lock", 1.0):
            pass


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As an account that may read nothing of others."""
    if os.geteuid():
        pytest.skip("only root can be somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_file_of_another_account_is_the_trouble_of_its_service_alone(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    edge = NginxEdge(HostNginx(), folder, lambda _: EdgeOptions(), mode="reload")
    edge.prepare()
    for token, service in enumerate(("api", "web"), 3):
        await edge.put_down(RoutePlan(service=service, route=Route()), token)
    let_all_pass(tmp_path)
    edge.file("web").chmod(0o600)
    why = f"{folder}/web.conf: Permission denied for uid 65534: the owner of {folder} has to read it"
    with nobody():
        assert edge.highest_token() == 3
        assert text_of(edge.file("web")) == ""
        with pytest.raises(Fault) as told:
            await edge.observe("web")
        assert str(told.value) == why
    await edge.close()


@pytest.mark.parametrize("shut", ["..", ".", "switch", "snippets", "locations"])
async def test_a_folder_that_may_not_be_entered_is_told_and_breaks_nothing(tmp_path: Path, shut: str) -> None:
    state, folder = tmp_path / "state", tmp_path / "at" / "edge"
    edge = NginxEdge(HostNginx(), folder, lambda _: EdgeOptions(), mode="reload")
    edge.prepare()
    (folder / "locations" / "web").mkdir(parents=True)
    for place in (state, folder, *(path for path in folder.rglob("*") if path.is_dir())):
        place.mkdir(exist_ok=True)
        os.chown(place, 65534, 65534)
    let_all_pass(tmp_path)
    plan = RoutePlan(service="api", route=Route(generation=3))
    (folder / shut).resolve().chmod(0)
    try:
        with nobody():
            _unwritten(Settings(state_dir=state, nginx=NginxSection(directory=folder)))
            Shared(folder).repair(files_of(folder, "api"))
            assert Switches(folder).all("api") == ()
            for _ in range(2):
                with contextlib.suppress(Fault):
                    await edge.observe("api")
                with pytest.raises(Fault):
                    await edge.apply(plan, 1)
    finally:
        (folder / shut).resolve().chmod(0o755)
        await edge.close()


def test_nothing_that_was_put_right_meanwhile_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two services' changes have seen the same pipe, and a file was written between their looks."""
    shared, path = Shared(tmp_path), tmp_path / "api.conf"
    shared.repair()
    path.write_text("ours")
    monkeypatch.setattr(shared, "lacking", lambda files: dict.fromkeys(files, "is no file"))
    shared.repair([path])
    assert path.read_text() == "ours"


def test_one_repair_waits_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, inside, overlaps = Shared(tmp_path), threading.Lock(), []
    lacking = shared.lacking

    def look(files: Iterable[Path]) -> dict[Path, str]:
        overlaps.append(not inside.acquire(blocking=False))
        found = lacking(files)
        threading.Event().wait(0.05)
        if not overlaps[-1]:
            inside.release()
        return found

    monkeypatch.setattr(shared, "lacking", look)
    threads = [threading.Thread(target=shared.repair) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False] * 4
