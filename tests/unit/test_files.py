"""Files in nginx' folder: what else may lie in their place, and who may read them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.files import LARGEST, in_the_way, locked, read, text_of, write
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.process import HostNginx
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
