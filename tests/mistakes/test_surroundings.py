"""Ordinary mistakes around the daemon: the doctor names cause and cure, and the cure cures."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from orchestrator.cli.session import run
from orchestrator.daemon.config import Config, load
from orchestrator.daemon.doctor import answered, credentials, files, guarded
from orchestrator.daemon.doctor.check import Check
from orchestrator.daemon.doctor.files import folders
from orchestrator.daemon.doctor.prometheus import discovers, unscraped
from orchestrator.daemon.settings import HttpSection
from orchestrator.traffic.shared import Shared
from tests.mistakes.place import Place

SECRET = '  user: "1234:1234"\n  secrets: [{source: FOLDER/password, target: /run/secrets/password}]'


ASK = """\
    error_page 418 = @closing;
    if (-f FOLDER/edge/switch/.closing) { return 418; }
    location @closing { keepalive_timeout 0; proxy_pass http://127.0.0.1; }
"""
"""What asks clients to close their connections before a reload."""


def site(*lines: str, ask: str = ASK) -> Callable[[Place], None]:
    """A `location` of the operator's own that says this."""

    def write(place: Place) -> None:
        Shared(place.folder / "edge").repair()
        place.write("edge/snippets/api.conf", "set $release_pool 127.0.0.1;\n")
        body = "\n".join(f"        {line}" for line in lines)
        place.write(
            "sites/api.conf",
            f"server {{\n    listen 127.0.0.1:24080;\n    location /api/ {{\n{body}\n    }}\n{ask}}}\n",
        )

    return write


SNIPPETS = ("include FOLDER/edge/snippets/proxy.conf;", "include FOLDER/edge/snippets/api.conf;")
RIGHT = site(*SNIPPETS, "proxy_pass http://$release_pool;")


class Mistake(NamedTuple):
    """What was done, what the doctor says of it, and what is done then."""

    done: str
    wrong: Callable[[Place], None]
    says: tuple[str, ...]
    cure: Callable[[Place], None]


def both(*steps: Callable[[Place], None]) -> Callable[[Place], None]:
    def take(place: Place) -> None:
        for step in steps:
            step(place)

    return take


MISTAKES = [
    Mistake(
        "a secret is not there",
        lambda p: p.service(SECRET),
        ("FOLDER/password is not there", "create FOLDER/password"),
        both(lambda p: p.write("password", "x", 0o400), lambda p: os.chown(p.folder / "password", 1234, 0)),
    ),
    Mistake(
        "a secret that the container's user can't read",
        both(lambda p: p.service(SECRET), lambda p: p.write("password", "x", 0o600)),
        (
            "FOLDER/password can't be read by uid 1234, container/user",
            "chown 1234 FOLDER/password && chmod 400 FOLDER/password",
        ),
        both(
            lambda p: os.chown(p.folder / "password", 1234, -1),
            lambda p: (p.folder / "password").chmod(0o400),
        ),
    ),
    Mistake(
        "a folder where a secret should be, as Docker makes one for a bind mount",
        both(lambda p: p.service(SECRET), lambda p: (p.folder / "password").mkdir()),
        ("FOLDER/password is no file", "create FOLDER/password as a file"),
        both(
            lambda p: (p.folder / "password").rmdir(),
            lambda p: p.write("password", "x", 0o400),
            lambda p: os.chown(p.folder / "password", 1234, 0),
        ),
    ),
    Mistake(
        "an env file is not there",
        lambda p: p.service("  env_file: FOLDER/api.env"),
        ("services/api file: FOLDER/api.env is not there", "create FOLDER/api.env"),
        lambda p: p.write("api.env", "A=1", 0o600),
    ),
    Mistake(
        "an env file that everybody can read",
        both(lambda p: p.service("  env_file: FOLDER/api.env"), lambda p: p.write("api.env", "A=1")),
        ("FOLDER/api.env can be read by everybody here", "chmod o= FOLDER/api.env"),
        lambda p: (p.folder / "api.env").chmod(0o640),
    ),
    Mistake(
        "an upstream of the service's name",
        lambda p: p.write("sites/api.conf", "\nupstream api { server 127.0.0.1:8080; }\n"),
        ("FOLDER/sites/api.conf:2: upstream api is there already", "rename it there"),
        lambda p: p.write("sites/api.conf", "\nupstream api_old { server 127.0.0.1:8080; }\n"),
    ),
    Mistake(
        "a slash after the pool",
        site(*SNIPPETS, "proxy_pass http://$release_pool/;"),
        (
            "FOLDER/sites/api.conf:6: proxy_pass http://$release_pool/ sends every request to the path",
            "write proxy_pass http://$release_pool; without a path",
        ),
        RIGHT,
    ),
    Mistake(
        "a rewrite above the snippets",
        site("rewrite ^/api/(.*)$ /$1 break;", *SNIPPETS, "proxy_pass http://$release_pool;"),
        ("FOLDER/sites/api.conf:4: rewrite … break ends the `set`", "above the rewrite"),
        site(*SNIPPETS, "rewrite ^/api/(.*)$ /$1 break;", "proxy_pass http://$release_pool;"),
    ),
    Mistake(
        "the Host header of every tutorial",
        site("proxy_set_header Host $host;", *SNIPPETS, "proxy_pass http://$release_pool;"),
        ("api.conf:4: proxy_set_header Host is in FOLDER/edge/snippets/proxy.conf too", "Go answers 400"),
        RIGHT,
    ),
    Mistake(
        "a header for all locations",
        both(RIGHT, lambda p: p.write("sites/all.conf", "proxy_set_header X-Tenant a;\n")),
        ("sites/all.conf:1: proxy_set_header X-Tenant does not hold where", "put it into the location"),
        both(
            lambda p: p.remove("sites/all.conf"),
            site(*SNIPPETS, "proxy_set_header X-Tenant a;", "proxy_pass http://$release_pool;"),
        ),
    ),
    Mistake(
        "a location whose clients are not asked to close their connections",
        site(*SNIPPETS, "proxy_pass http://$release_pool;", ask=""),
        (
            "FOLDER/sites/api.conf:6: a reload cuts the connections that are kept",
            "`keepalive_timeout 0` while FOLDER/edge/switch/.closing is there: docs/how-to/nginx.md",
        ),
        RIGHT,
    ),
    Mistake(
        "the same in an included file, the upstream by its name",
        both(
            lambda p: p.write("edge/up.conf", "upstream api { server 127.0.0.1:1; }\n"),
            lambda p: p.write("place.inc", "proxy_pass http://api;\n"),
            site("include FOLDER/place.inc;", ask=""),
        ),
        ("FOLDER/place.inc:1: a reload cuts the connections that are kept",),
        site("include FOLDER/place.inc;"),
    ),
    Mistake(
        "our folder is not included",
        lambda p: p.write(
            "nginx.conf", (p.folder / "nginx.conf").read_text().replace("/edge/*.conf", "/sites/x*")
        ),
        ("nginx include: does not read", "add to http {}: include FOLDER/edge/*.conf;"),
        lambda p: p.write(
            "nginx.conf", (p.folder / "nginx.conf").read_text().replace("/sites/x*", "/edge/*.conf")
        ),
    ),
    Mistake(
        "a certificate that is not there",
        lambda p: p.service(
            "nginx: {server: {listen: '24443', tls: {certificate: FOLDER/c.pem, key: FOLDER/k.pem}}}"
        ),
        ("nginx files: ", "FOLDER/c.pem", "correct it in the service's file"),
        lambda p: p.service("nginx: {server: {listen: '24443'}}"),
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.done for m in MISTAKES])
def test_a_mistake_around_the_daemon_is_answered_by_its_cause_and_cure(
    mistake: Mistake, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    assert place.doctor() == ""
    mistake.wrong(place)
    said = place.doctor()
    for words in mistake.says:
        assert words.replace("FOLDER", str(tmp_path)) in said
    mistake.cure(place)
    assert place.doctor() == ""


def test_a_broken_file_of_nginx_is_told_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("sites/shop.conf", "server {\n    listen 127.0.0.1:24080\n}\n")
    said = place.doctor()
    assert said.count("sites/shop.conf:3") == 1
    place.write("sites/shop.conf", "server {\n    listen 127.0.0.1:24080;\n}\n")
    assert place.doctor() == ""


def test_a_disk_that_is_nearly_full_is_named_with_what_is_left() -> None:
    small = files.room("state_dir disk", Path("/s"), free=190 * 1024**2, total=1024**3)
    assert not small.ok
    assert small.detail == (
        "/s: 190.0 MiB of 1.0 GiB free, 19%; wanted: 200.0 MiB and 5% (or 10.0 GiB), and 5% of the inodes"
    )
    assert "set state_dir to a folder on a larger disk" in small.mend
    assert "du -xh /s" in small.mend
    assert not files.room("x", Path("/s"), free=4 * 1024**3, total=100 * 1024**3).ok
    assert not files.room("x", Path("/s"), free=50 * 1024**3, total=100 * 1024**3, inodes=0.01).ok
    assert files.room("x", Path("/s"), free=6 * 1024**3, total=100 * 1024**3).ok


def test_where_nginx_itself_waits_or_keeps_no_connection_nobody_has_to_be_asked(tmp_path: Path) -> None:
    place = Place(tmp_path)
    site(*SNIPPETS, "proxy_pass http://$release_pool;", "keepalive_timeout 0;", ask="")(place)
    assert place.doctor() == ""
    site(*SNIPPETS, "proxy_pass http://$release_pool;", ask="")(place)
    assert "nginx connections" in place.doctor()
    text = place.config.read_text()
    place.config.write_text(text.replace("nginx: {", "nginx: {closing_wait: 0s, "))
    assert place.doctor() == ""


async def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(tmp_path: Path) -> None:
    async def broken(_: Config) -> list[Check]:
        raise PermissionError(13, "Permission denied", "/secret")

    (found,) = await guarded("folders", broken, load(Place(tmp_path).config))
    assert not found.ok
    assert "PermissionError: [Errno 13] Permission denied: '/secret'" in found.detail


def test_a_helper_of_docker_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    assert credentials(file) == []
    file.write_text(json.dumps({"credsStore": "no-such", "credHelpers": {"r.example.com": "neither"}}))
    found = credentials(file)
    assert [c.detail for c in found] == [
        f"{file}: credsStore: there is no program docker-credential-no-such on the PATH",
        f"{file}: credHelpers/r.example.com: there is no program docker-credential-neither on the PATH",
    ]
    assert "remove credsStore from" in found[0].mend
    file.write_text("{}")
    assert credentials(file) == []
    file.write_text("[")
    assert "is no JSON object" in credentials(file)[0].detail


def target(**changes: Any) -> str:
    found = {
        "labels": {"service": "api", "release": "api-1", "instance": "api-1-0"},
        "discoveredLabels": {"__meta_url": "http://127.0.0.1:9180/targets"},
        "scrapeUrl": "http://10.213.0.2:8080/metrics",
        "health": "down",
        "lastError": "server returned HTTP status 404 Not Found",
        **changes,
    }
    return json.dumps({"status": "success", "data": {"activeTargets": [found]}})


def test_a_target_that_prometheus_can_not_scrape_is_told_in_its_own_words(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (found,) = unscraped(load(place.config), target())
    assert found.ok  # no gate
    place.service("gates: [{metric: error_rate}]")
    config = load(place.config)
    (found,) = unscraped(config, target())
    assert not found.ok
    assert (
        found.detail == "api-1-0: http://10.213.0.2:8080/metrics: server returned HTTP status 404 Not Found"
    )
    assert "metrics/path" in found.mend
    for other in (
        target(health="up"),
        target(labels={"service": "x"}),
        target(discoveredLabels={}),
        "",
        "[]",
    ):
        assert unscraped(config, other) == []


def test_a_target_that_the_daemon_serves_itself_is_mended_by_starting_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("metrics: {preset: nginx}\ngates: [{metric: error_rate}]")
    (found,) = unscraped(load(place.config), target(lastError="connection refused"))
    assert "metrics/" not in found.mend
    assert "systemctl start orchestrator" in found.mend


async def test_a_folder_that_the_file_system_keeps_from_being_written_has_a_mend_that_helps(
    tmp_path: Path,
) -> None:
    if os.geteuid():
        pytest.skip("only root can mount, and make a folder immutable")
    place = Place(tmp_path)
    config = load(place.config)
    for path, shut, cure in (
        (config.settings.state_dir, ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs"], "remount,rw"),
        (config.settings.nginx.directory, ["chattr", "+i"], "chattr -i"),
    ):
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run([*shut, str(path)], check=True)
        try:
            (found,) = [c for c in await folders(config) if not c.ok and "written" in c.detail]
        finally:
            opens = ["umount"] if shut[0] == "mount" else ["chattr", "-i"]
            subprocess.run([*opens, str(path)], check=True)
        assert cure in found.mend
        assert "chown" not in found.mend
        assert ("read-only" if cure == "remount,rw" else "immutable") in found.detail


@pytest.mark.parametrize(
    ("urls", "read"),
    [
        ((), False),
        (("http://127.0.0.1:9180/targets",), False),  # the other daemon's
        (("http://127.0.0.1:9180/targets", "http://host:9181/targets"), True),
        (("https://proxy.example.com/orchestrator/targets",), True),
        (("http://other:9181/sd",), False),
    ],
)
def test_the_targets_of_this_very_daemon_are_looked_for(urls: tuple[str, ...], read: bool) -> None:
    text = "".join(f"  http_sd_configs:\n  - refresh_interval: 5s\n    url: {url}\n" for url in urls)
    answer = json.dumps({"status": "success", "data": {"yaml": text}})
    assert discovers(answer, "http://127.0.0.1:9181/targets") is read


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("10.0.0.1:9181", "http://10.0.0.1:9181/targets"),
        ("0.0.0.0:9181", f"http://{socket.gethostname()}:9181/targets"),
        ("[::]:9181", f"http://{socket.gethostname()}:9181/targets"),
    ],
)
def test_where_prometheus_finds_the_targets_is_named_so_that_it_can_be_copied(listen: str, url: str) -> None:
    assert HttpSection(listen=listen).targets == url


def test_a_daemon_that_has_not_read_a_corrected_file_is_told_to(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("oops: 1", "web")
    config = load(place.config)
    text = json.dumps({"status": "ready", "problems": [str(p) for p in config.problems]})
    assert [c.ok for c in answered(config, "u", text)] == [True]
    place.service("", "web")
    (_, found) = answered(load(place.config), "u", text)
    assert "has read: " in found.detail
    assert found.mend == "orchestrator reload, or systemctl reload orchestrator, reads the files again"
    (found,) = answered(config, "u", json.dumps({"status": "unready", "reason": "no Docker"}))
    assert (found.detail, found.mend) == ("runs, and does not drive: no Docker", "correct what it names")
    assert answered(config, "u", "")[0].mend == "systemctl start orchestrator"


@pytest.mark.parametrize(
    "line",
    [
        "proxy_pass http://api;",
        "proxy_pass http://api/v1/;",
        "grpc_pass grpc://api_back;",
        "include FOLDER/edge/snippets/api.conf;",
    ],
)
def test_what_of_nginx_own_files_names_a_service_is_told_before_it_is_removed(
    line: str, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    site(line)(place)
    place.write(
        "edge/api.conf", "upstream api { server 127.0.0.1:9; }\nupstream api_back { server 127.0.0.1:9; }\n"
    )
    line = line.replace("FOLDER", str(tmp_path))
    code, text = place.run("remove", "api", "--yes")
    assert f"warning: {tmp_path}/sites/api.conf:4: {line} names it; take that out first" in text
    assert (code, "Redis" in text) == (10, False)
    site("return 204;")(place)
    _, text = place.run("remove", "api")
    assert "warning" not in text
    _, text = place.run("remove", "web")
    assert "warning" not in text


@pytest.mark.parametrize("verb", ["rollback api --local", "reload-nginx", "status"])
@pytest.mark.parametrize("key", ["/edge", "/state"])
def test_what_the_system_refuses_is_one_line_and_an_exit_code(tmp_path: Path, verb: str, key: str) -> None:
    """A folder whose name no file system takes stands for whatever it says."""
    place = Place(tmp_path)
    place.config.write_text(place.config.read_text().replace(f"{tmp_path}{key}", f"{tmp_path}/{'x' * 300}"))
    code, text = place.run(*verb.split())
    assert code == 1
    assert text.startswith("error: ")
    assert len(text.replace("\n", "")) < 1000


def test_what_the_system_refuses_while_a_verb_runs_is_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        (tmp_path / ("x" * 300)).touch()

    with pytest.raises(typer.Exit) as ended:
        run(work())
    assert ended.value.exit_code == 1
    told = capsys.readouterr().err.replace("\n", "")
    assert told == f"error: {tmp_path}/{'x' * 300}: File name too long"
