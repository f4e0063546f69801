"""What two services may not have both is what nginx has for one: asked of a real nginx."""

import itertools
import subprocess
from pathlib import Path

import pytest

from orchestrator.daemon.nginx_section import ServerSection
from orchestrator.daemon.places import obstacle
from orchestrator.rollout.model import Route
from orchestrator.rollout.observation import OnDisk
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.render import render
from tests.mistakes.place import NGINX

LISTENS = (
    "28231",
    "*:28231",
    "0.0.0.0:28231",
    "127.0.0.1:28231",
    "127.000.0.1:028231",
    "localhost:28231",
    "28230-28232",
    "[::]:28231",
    "[::1]:28231",
    "[0:0::1]:28231",
    "28231 default_server",
)
NAMES = ("a.test", "A.test b.test", ".a.test", "b.test")
REFUSED = ("conflicting server name", "duplicate default server")


@pytest.mark.parametrize("names", list(itertools.combinations_with_replacement(NAMES, 2)), ids="-".join)
def test_what_nginx_finds_in_conflict_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    found = 0
    for one, other in itertools.combinations_with_replacement(LISTENS, 2):
        servers = {
            name: ServerSection(listen=listen, server_name=asked)
            for name, listen, asked in zip(("api", "web"), (one, other), names, strict=True)
        }
        if any(word in _nginx(tmp_path, servers) for word in REFUSED):
            found += 1
            assert obstacle("web", servers["web"], "api", servers["api"], {}), (one, other)
            assert obstacle("api", servers["api"], "web", servers["web"], {}), (one, other)
    assert found  # "28231 default_server" twice at least


def _nginx(folder: Path, servers: dict[str, ServerSection]) -> str:
    """What nginx says of two services' files."""
    for name in ("edge", "tmp", "sites"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    for name, server in servers.items():
        options = EdgeOptions(server=server.block())
        text = render(
            name, OnDisk(route=Route()), options, token=1, listen="127.0.0.1:18100", folder=str(folder)
        )
        block = text[text.rindex(f"    listen {server.listen};") :].split("    include ", 1)[0]
        (folder / "edge" / f"{name}.conf").write_text(f"server {{\n{block}}}\n")
    done = subprocess.run(
        ["nginx", "-t", "-c", str(folder / "nginx.conf"), "-e", "stderr"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stderr
