"""One wrong file stops nobody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.daemon.config import Config, load
from orchestrator.daemon.kept import KeptFiles
from orchestrator.daemon.yaml_file import ConfigError
from orchestrator.rollout.model import Route
from orchestrator.rollout.observation import OnDisk
from orchestrator.traffic.files import write
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.render import render
from tests.builders import server
from tests.mistakes.place import Place

WRONG = [
    "oops: 1",
    "\t",
    "container: 5",
    "nginx: {server: {listen: 'a;b'}}",
    '"',
    "a: [" * 2000,
    "x: " + "1" * 5000,
    "x: !!int eighty",
    "x: !!float x",
    "x: !!bool x",
    "x: !!timestamp foo",
    "x: !!timestamp 2026-13-45",
    "!!bool x: 1",
    "x: [{y: !!bool x}]",
    'x: "\\U00110000"',
    'x: "\\Uffffffff"',
    "%YAML 1." + "1" * 5000 + "\n---\n",
    'x: "\\ud83d"',
    '"\\ude00": 1',
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda text: text[:24])
def test_the_others_are_there_and_the_wrong_one_is_told(wrong: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service(wrong, "web")
    config = load(place.config)
    assert list(config.services) == ["api"]
    assert list(config.unusable) == ["web"]
    assert f"{tmp_path}/services/web.yaml: " in config.unusable["web"]
    assert "web.yaml" in place.check()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("x: !!int hunter2", "what is written is not of type int"),
        ("x: !!bool hunter2", "what is written is not of type bool"),
        (
            'x: "hunter2\\ud83d\\ude00"',
            "half of a surrogate pair is no character; write the character itself, or \\U and 8 digits",
        ),
        ('x: "hunter2', "found unexpected end of stream"),
        ('x: "hunter2\\U00110000', "has a number or a character that is out of range"),
    ],
)
def test_what_can_not_be_read_is_told_by_its_place_and_never_shown(
    wrong: str, says: str, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    place.service(wrong, "web")
    told = load(place.config).unusable["web"]
    assert says in told
    assert "at line 6, column " in told or "out of range" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "command", ["status", "history api", "rollback api", "edges", "token list", "rollback web"]
)
def test_verbs_need_a_name_and_no_file_of_a_service(command: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("oops: 1", "web")
    code, text = place.run(*command.split())
    assert code == 1  # it was Redis that they asked
    assert f"warning: {tmp_path}/services/web.yaml: unknown key `oops`" in text
    assert "Redis: Error 2 connecting to" in text
    assert "(the daemon runs this Redis: does it run?)" in text


def test_a_rollback_on_the_host_needs_no_others_file_and_says_what_does_without_its_own(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    place.service("oops: 1", "web")
    _, text = place.run("rollback", "api", "--local")
    assert "error: api has nothing to go back to on this host" in text
    code, text = place.run("rollback", "web", "--local")
    assert code == 1
    assert f"to go back all the same: touch {tmp_path}/edge/switch/web" in text


def test_a_rollback_on_a_host_where_no_daemon_runs_needs_no_file_of_the_service(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert "'shop' is not known; there are: " in place.run("rollback", "shop", "--local")[1]
    served = Route(generation=3, servers=(server("shop-2", "10.1.0.2:80"),))
    disk = OnDisk(route=served, stable="shop-1", back=(server("shop-1", "10.1.0.1:80"),))
    text = render("shop", disk, EdgeOptions(), token=1, listen="127.0.0.1:1", folder=str(tmp_path / "edge"))
    (tmp_path / "edge" / "switch").mkdir(parents=True, exist_ok=True)
    write(tmp_path / "edge" / "shop.conf", text)
    code, text = place.run("rollback", "shop", "--local")
    assert (code, "shop: nginx sends all traffic to shop-1" in text) == (0, True), text
    assert (tmp_path / "edge" / "switch" / "shop").is_file()


def test_a_verb_that_needs_the_very_file_refuses(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("oops: 1", "web")
    code, text = place.run("rehearse", "web")
    assert code == 2
    assert "'web' can't be looked at before its file is right" in text


def test_orchestrator_yaml_itself_is_needed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.settings("ngnix: {}")
    with pytest.raises(ConfigError, match="unknown key `ngnix`; did you mean `nginx`"):
        load(place.config)
    place.remove("orchestrator.yaml")
    code, text = place.run("status")
    assert code == 2
    assert "orchestrator init writes an example" in text


def test_an_alert_about_a_service_that_is_not_there_is_told_and_stops_nobody(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.settings("alerts: [{match: {a: b}, service: shop}]")
    assert list(load(place.config).services) == ["api"]
    assert f"{place.config}: alerts/0/service: no service 'shop'; there are: api" in place.check()
    place.service("oops: 1", "shop")  # it is there, and wrong
    assert "alerts" not in place.check()


def test_of_two_that_want_the_same_the_first_by_name_has_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for name in ("web", "api", "zoo"):
        place.service('nginx: {server: {listen: "80"}}', name)
    config = load(place.config)
    assert list(config.services) == ["api"]
    assert "listen 80, server_name _ is that of api" in config.unusable["web"]
    assert "join its block at a path of its own: {join: api, path: /zoo/}" in config.unusable["zoo"]


def test_who_joins_the_block_of_a_wrong_file_is_driven(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service('nginx: {server: {listen: "80"}}\noops: 1', "api")
    place.service("nginx: {server: {join: api, path: /web/}}", "web")
    assert list(load(place.config).services) == ["web"]


def reread(place: Place, before: Config) -> Config:
    return load(place.config, before)


def test_a_service_whose_file_goes_wrong_keeps_the_plan_that_it_had(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("  instances: 3", "web")
    before = load(place.config)
    for wrong in ("  instances: none", "\t", '"'):
        place.service(wrong, "web")
        after = reread(place, before)
        assert after.services["web"].container.instances == 3
        assert after.wrong("web")
        assert after.unusable == {}
    place.write("services/web.yaml", "nothing of it is left")
    after = reread(place, after)
    assert after.services["web"].container.instances == 3
    place.service("  instances: 4", "web")
    assert reread(place, after).services["web"].container.instances == 4
    assert reread(place, after).problems == ()


def test_a_copy_of_a_file_does_not_take_the_service_over(tmp_path: Path) -> None:
    place = Place(tmp_path)
    before = load(place.config)
    text = (tmp_path / "services" / "api.yaml").read_text()
    place.write("services/a-copy.yaml", text + "  instances: 9\n")
    after = reread(place, before)
    assert after.services["api"].container.instances == 1
    assert after.wrong("api") == ""
    assert [p.file.name for p in after.problems] == ["a-copy.yaml"]


def test_a_service_that_changes_to_anothers_place_keeps_its_own(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service('nginx: {server: {listen: "80"}}', "api")
    place.service('nginx: {server: {listen: "81"}}', "web")
    before = load(place.config)
    place.service('nginx: {server: {listen: "81"}}', "api")
    place.service('nginx: {server: {listen: "80"}}', "new")
    after = reread(place, before)
    listens = {n: s.nginx.server.listen for n, s in after.services.items() if s.nginx.server}
    assert listens == {"api": "80", "web": "81"}
    assert "listen 81, server_name _ is that of web" in after.wrong("api")
    assert "listen 80, server_name _ is that of api" in after.unusable["new"]


def test_a_folder_that_is_gone_takes_no_service_away(tmp_path: Path) -> None:
    place = Place(tmp_path)
    before = load(place.config)
    (tmp_path / "services").rename(tmp_path / "elsewhere")
    after = reread(place, before)
    assert list(after.services) == ["api"]
    assert [str(p) for p in after.problems] == [f"{tmp_path}/services: No such file or directory"]


def test_what_holds_is_shown_with_where_it_is_from(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.settings('redis: {url: "redis://me:secret@and/secret@127.0.0.1/0"}')
    place.service(
        "  instances: 3\n  env: {A: 'x://u:secret@h'}\n  command: ['x://u:secret@h']\n"
        "  secrets: [{source: /a, target: /b}]\ngates: [{metric: error_rate, max: 5%}]"
    )
    code, text = place.run("config", "show", "--output", "json")
    assert code == 0
    assert "secret@" not in text
    files = json.loads(text)
    settings, service = (
        {row["key"]: (row["value"], row["from"]) for row in files[str(path)]}
        for path in (place.config, tmp_path / "services" / "api.yaml")
    )
    assert settings["redis/url"] == ("redis://***@127.0.0.1/0", "file")
    assert settings["redis/prefix"] == ("orchestrator", "default")
    assert service["container/instances"] == (3, "file")
    assert service["container/env"] == ({"A": "***"}, "file")
    assert service["container/command"] == (["x://***@h"], "file")
    assert service["container/pids"] == (256, "default")
    assert service["container/secrets/0/source"] == ("/a", "file")
    assert service["gates/0/max"] == (0.05, "file")
    assert service["gates/0/for"] == (0.0, "default")
    code, text = place.run("config", "show", "api")
    assert code == 0
    assert [line.split() for line in text.splitlines() if line.startswith("container/instances")] == [
        ["container/instances", "3", "file"]
    ]
    assert yaml.safe_load(place.config.read_text())["redis"]["url"]  # nothing is written


@pytest.mark.parametrize(
    ("more", "rows"),
    [
        (
            "",
            {
                "container/memory": "512MiB default",
                "container/stop_grace": "30s default",
                "container/user": "unset: the image's own user, or 65534:65534 where that is root default",
                "keep_previous": "1h default",
                "metrics/requests": '"http_requests_total" preset client_golang',
                "metrics/port": "8080 container/port",
                "metrics/latency_unit": "1s preset client_golang",
                "strategy/advance": '"on_hold" default',
                "strategy/first_hold": "30m default",
                "strategy/hold": "15m default",
                "strategy/bake": "15m default",
                "deadlines/queue": "1d default",
                "evidence/alpha": "1% default",
            },
        ),
        (
            """\
  memory: 1g
metrics: {preset: go-gin-prometheus, latency_unit: 1ms, requests: mine}
gates: [{metric: latency}]
strategy: {steps: [{weight: 5, hold: 90s}, {weight: 20}, {weight: 100}]}
""",
            {
                "container/memory": "1GiB file",
                "metrics/requests": '"mine" file',
                "metrics/latency_unit": "1ms file",
                "metrics/status_label": '"code" preset go-gin-prometheus',
                "strategy/advance": '"on_evidence" default',
                "strategy/first_hold": "unset default",
                "strategy/bake": "2m default",
                "strategy/steps/0/hold": "1m30s file",
                "strategy/steps/0/deadline": "1h1m30s default",
                "strategy/steps/1/hold": "30s default",
                "gates/0/warm_up": "30s default",
                "gates/0/budget": "2% default",
            },
        ),
    ],
)
def test_what_holds_where_nothing_is_written_is_shown_as_it_would_be_written(
    more: str, rows: dict[str, str], tmp_path: Path
) -> None:
    place = Place(tmp_path)
    place.service(more)
    code, text = place.run("config", "show", "api")
    assert code == 0, text
    found = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    assert {key: " ".join(found[key].split()) for key in rows} == rows


@pytest.mark.parametrize(
    "more",
    [
        "  env: {PASSWORD: hunter2}",
        "  command: [&secret hunter2]\n  env: {PASSWORD: *secret}",
        "  env: &all {PASSWORD: hunter2}\noverrides: {}",
        "  env: {URL: 'http://h/?token=hunter2', OTHER: &secret hunter2, PASSWORD: *secret}",
        "  env: {<<: {PASSWORD: hunter2}}",
        "  env: {PASSWORD: !!str hunter2}",
    ],
)
def test_what_may_be_a_secret_is_hidden_by_its_place_however_it_is_written(more: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service(more)
    for output in ("json", "text"):
        code, text = place.run("config", "show", "api", "--output", output)
        assert code == 0, text
        rows = [line for line in text.splitlines() if "container/command" not in line]
        assert "PASSWORD" in text
        assert "hunter2" not in "\n".join(rows).replace('"value": [\n        "hunter2"', "")


def test_the_query_of_an_address_is_shown_nowhere(tmp_path: Path) -> None:
    place = Place(tmp_path)
    url = "http://me:hunter2@127.0.0.1:9/prom?token=hunter2"
    place.config.write_text(place.config.read_text().replace("http://127.0.0.1:9", url))
    for words in (["config", "show"], ["doctor"], ["doctor", "--output", "json"]):
        _, text = place.run(*words)
        assert "http://***@127.0.0.1:9/prom?***" in text
        assert "hunter2" not in text


def test_a_state_folder_that_can_not_be_written_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("a-file", "")
    place.config.write_text(place.config.read_text().replace("/state\n", "/a-file/state\n"))
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "serve", "--config", str(place.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    (failed,) = [line for line in told if line["event"] == "start_failed"]
    assert failed["reason"] == (
        f"state_dir {tmp_path}/a-file/state: Not a directory: create it for uid {os.getuid()}"
    )


def test_what_is_kept_of_a_service_without_its_file_is_shown_and_said(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("  instances: 3")
    KeptFiles(tmp_path / "state").keep(load(place.config))
    kept = f"{tmp_path}/state/services/api.yaml"
    place.remove("services/api.yaml")
    for words in (["config", "show", "api"], ["config", "show"]):
        code, text = place.run(*words)
        assert code == 0
        assert f"{tmp_path}/services/api.yaml is gone; api is driven as it was there last" in text
        assert f"kept in {kept}: put it back, or run orchestrator remove api" in text
        assert f"\n{kept}\n" in text
        assert ["container/instances", "3", "file"] in [line.split() for line in text.splitlines()]
    code, text = place.run("rehearse", "api")
    assert (code, "services/api.yamlisgone" in "".join(text.replace("│", "").split())) == (2, True)
    place.service("  instances: three")
    code, text = place.run("config", "show", "api")
    assert (code, f"api is driven as its file was when it was right last: {kept}" in text) == (0, True)
    code, text = place.run("config", "show", "nope")
    assert (code, "'nope' is not known" in text) == (2, True)
