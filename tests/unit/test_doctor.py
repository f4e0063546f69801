"""What the doctor says of nginx."""

from pathlib import Path

import pytest

from orchestrator.daemon.config import load
from orchestrator.daemon.doctor.files import secrets
from orchestrator.daemon.doctor.nginx import closed_to_others, weights
from tests.conftest import let_all_pass

LUA = "load_module modules/ngx_http_lua_module.so;"


@pytest.mark.parametrize(
    ("mode", "whole", "ok", "says"),
    [
        ("auto", LUA, True, "in nginx' memory"),
        ("auto", "", True, "libnginx-mod-http-lua"),
        ("reload", LUA, True, "by a reload"),
        ("dynamic", LUA, True, "in nginx' memory"),
        ("dynamic", "", False, "no Lua module"),
    ],
)
def test_how_weights_change(mode: str, whole: str, ok: bool, says: str) -> None:
    check = weights(mode, whole)
    assert check.ok is ok
    assert says in check.detail
    assert bool(check.mend) is not ok


def test_a_folder_that_workers_can_not_pass_is_named(tmp_path: Path) -> None:
    let_all_pass(tmp_path)
    folder = tmp_path / "edge"
    (folder / "switch").mkdir(parents=True)
    folder.chmod(0o755)
    assert closed_to_others(folder) is None
    (folder / "switch").chmod(0o700)
    assert closed_to_others(folder) == folder / "switch"
    folder.chmod(0o750)
    assert closed_to_others(folder) == folder


async def test_a_secret_that_everybody_can_read_is_named(tmp_path: Path) -> None:
    for name, mode in (("hook", 0o644), ("slack", 0o640), ("notify", 0o604), ("key.pem", 0o644)):
        (tmp_path / name).write_text("x" * 32)
        (tmp_path / name).chmod(mode)
    (tmp_path / "orchestrator.yaml").write_text(
        f"""
        webhooks:
          - {{id: a, name: ci, role: submitter, secret_file: {tmp_path}/hook}}
        slack: {{team: T01, signing_secret_file: {tmp_path}/slack, users: {{}}}}
        notify: [{{name: team, urls_file: {tmp_path}/notify}}]
        api: {{tls: {{certificate: {tmp_path}/cert.pem, key: {tmp_path}/key.pem}}}}
        """
    )
    (tmp_path / "services").mkdir()
    found = await secrets(load(tmp_path / "orchestrator.yaml"))
    assert {c.name for c in found} == {"webhooks/0/secret_file", "notify/0/urls_file", "api/tls/key"}
    assert all(not c.ok and c.mend.startswith("chmod o= ") for c in found)
