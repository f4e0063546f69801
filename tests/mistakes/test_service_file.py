"""Ordinary mistakes in a service's file: `config check` names cause and cure, and the cure cures."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mistakes.place import Place


class Mistake(NamedTuple):
    """What was added to a right file, what is said of it, and what is written then."""

    done: str
    wrong: str
    says: str
    right: str


MISTAKES = [
    Mistake(
        "a key by Kubernetes' name",
        "  replicas: 2",
        "container: unknown key `replicas`; did you mean `instances`?",
        "  instances: 2",
    ),
    Mistake("a letter is missing", "  instnces: 2", "unknown key `instnces`; did you mean `instances`?", ""),
    Mistake("one level too high", "env: {A: b}", "unknown key `env`; did you mean `container/env`?", ""),
    Mistake(
        "the name of another tool, one level too high",
        "healthcheck: {path: /ping}",
        "unknown key `healthcheck`; did you mean `container/probe`?",
        "  probe: {path: /ping}",
    ),
    Mistake("volumes of Compose", "  volumes: [a:/b]", "unknown key `volumes`: containers have none", ""),
    Mistake("networks of Compose", "  networks: [db]", "docker network connect NETWORK CONTAINER", ""),
    Mistake("ports of Compose", '  ports: ["8080:8080"]', "write `port`, the one in the container", ""),
    Mistake("depends_on of Compose", "  depends_on: [db]", "a service is ready when its `probe` is", ""),
    Mistake("environment of Compose", "  environment: {A: b}", "did you mean `env`?", "  env: {A: b}"),
    Mistake(
        "env as a list",
        "  env: [A=b]",
        "container/env: what is written is not a mapping; write {key: value}",
        "  env: {A: b}",
    ),
    Mistake(
        "no value",
        "  env:\n    A:",
        'container/env: A: is empty; write A: "" for an empty value',
        '  env: {A: ""}',
    ),
    Mistake(
        "a name that is none",
        "  env: {A B: c}",
        "container/env: name 1 is none; a name has letters, digits, '_', '.' and '-'",
        "  env: {A_B: c}",
    ),
    Mistake(
        "a command as text",
        "  command: sleep 5",
        "container/command: 'sleep 5' is not a list; write [one, two]",
        "  command: [sleep, 5]",
    ),
    Mistake("memory without a unit", "  memory: 512", "512 would be bytes; write 512MiB", "  memory: 512MiB"),
    Mistake(
        "a word for a number",
        "  instances: two",
        "container/instances: 'two' is not a whole number",
        "  instances: 2",
    ),
    Mistake(
        "all below a key is commented out",
        "gates:\n# - {metric: error_rate}",
        "gates: is empty; write a value, or remove the key",
        "",
    ),
    Mistake(
        "a share of 500 %",
        "gates: [{metric: error_rate, max: 5, for: 30s}]",
        "gates/0/max: 5 would be 500%; write 5%",
        "gates: [{metric: error_rate, max: 5%, for: 30s}]",
    ),
    Mistake(
        "a share that nothing can pass",
        "gates: [{metric: error_rate, max: 500%}]",
        "gates/0/max: 500% is more than all; a share is at most 100%",
        "gates: [{metric: error_rate, max: 5%}]",
    ),
    Mistake(
        "a time for a share",
        "gates: [{metric: error_rate, max: 300ms}]",
        "gates/0/max: '300ms' is a time, and this is a share; write 0.5%",
        "gates: [{metric: error_rate, max: 0.5%}]",
    ),
    Mistake(
        "minutes for a share",
        "gates: [{metric: error_rate, max: 5m}]",
        "gates/0/max: '5m' is a time, and this is a share",
        "gates: [{metric: error_rate, max: 5%}]",
    ),
    Mistake(
        "percent of a CPU as a number",
        "gates: [{metric: cpu, max: 85}]",
        "gates/0/max: 85 would be 8500%; write 85%",
        "gates: [{metric: cpu, max: 85%}]",
    ),
    Mistake(
        "milliseconds without a unit",
        "gates: [{metric: latency, max: 800}]",
        "gates/0/max: 800 would be seconds; write 800ms or 800s",
        "gates: [{metric: latency, max: 800ms}]",
    ),
    Mistake(
        "a share for a time",
        "gates: [{metric: latency, max: 5%}]",
        "gates/0/max: '5%' is a share, and a latency is a time; write 300ms",
        "gates: [{metric: latency, max: 300ms}]",
    ),
    Mistake(
        "a comparison's margin of 500 %",
        "gates: [{metric: error_rate, margin: 5}]",
        "gates/0/margin: 5 would be 500%; write 5%",
        "gates: [{metric: error_rate, margin: 0.2%}]",
    ),
    Mistake(
        "a key of the other kind of gate",
        "gates: [{metric: error_rate, window: 1m}]",
        "gates/0: key `window` is not for a gate that compares: it needs a limit (max, min or max_ratio)",
        "gates: [{metric: error_rate, window: 1m, max: 5%}]",
    ),
    Mistake(
        "a metric that there is not",
        "gates: [{metric: error_rates}]",
        "'error_rates' is not one of 'error_rate', 'latency' or 'counts'; did you mean 'error_rate'?",
        "gates: [{metric: error_rate}]",
    ),
    Mistake(
        "a preset that there is not",
        "metrics: {preset: ngnix}",
        "did you mean 'nginx'?",
        "metrics: {preset: nginx}",
    ),
    Mistake(
        "percent signs at weights",
        "strategy: {steps: [5%, 20]}",
        "strategy/steps/0: '5%' is not a whole number",
        "strategy: {steps: [5, 20]}",
    ),
    Mistake(
        "the file was indented by a tab", "\tx: 1", "found character '\\t' that cannot start any token", ""
    ),
    Mistake(
        "a relative path",
        "  env_file: ./api.env",
        "container/env_file: what is written is not an absolute path; it begins with /",
        "  env_file: /etc/api.env",
    ),
    Mistake(
        "a user by name",
        "  user: nobody",
        "container/user: 'nobody' is not a uid, or uid:gid, in numbers",
        "  user: 65534",
    ),
    Mistake(
        "an address without its scheme",
        "hooks: [{name: ask, at: before_step, url: 'example.com/x'}]",
        "hooks/0/url: 'example.com/x' is not an address; it begins with http:// or https://",
        "hooks: [{name: ask, at: before_step, url: 'https://example.com/x'}]",
    ),
    Mistake(
        "one space too many",
        "   instances: 2",
        "mapping values are not allowed here",
        "  instances: 2",
    ),
    Mistake("a key is there twice", "images: [a]", "key 'images' is there twice", ""),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.done for m in MISTAKES])
def test_a_mistake_in_a_service_file_is_answered_by_its_cause_and_cure(
    mistake: Mistake, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    assert place.check() == ""
    place.service(mistake.wrong)
    said = place.check()
    assert f"{tmp_path}/services/api.yaml: " in said
    assert mistake.says in said
    for word in ("Input should", "Extra inputs", "Field required", "ctx", "function-"):
        assert word not in said
    place.service(mistake.right)
    assert place.check() == ""


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            "registry.example.com/team/api:1.0",
            "has a tag; name the repository alone: registry.example.com/team/api",
        ),
        ("localhost:5000/api:1.0", "has a tag; name the repository alone: localhost:5000/api"),
        ("api@sha256:00", "has a digest; name the repository alone: api"),
        (
            "https://registry.example.com/api",
            "has a scheme; name the repository alone: registry.example.com/api",
        ),
    ],
)
def test_images_are_repositories(image: str, says: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    text = (tmp_path / "services" / "api.yaml").read_text()
    place.write("services/api.yaml", text.replace("registry.example.com/team/api", f'"{image}"'))
    said = place.check()
    assert f"images: 0: {image!r} {says}" in said
    place.write("services/api.yaml", text.replace("registry.example.com/team/api", says.rpartition(" ")[2]))
    assert place.check() == ""


@pytest.mark.parametrize("name", ["hello_api", "Hello", "a.b", "-a"])
def test_a_name_that_is_no_dns_label_is_told(name: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("services/hello.yaml", f"service: {name}\nimages: [a]\ncontainer: {{port: 80}}\n")
    said = place.check()
    assert f"hello.yaml: service: '{name}' is not a lower-case DNS label of at most 40 characters" in said
    place.write("services/hello.yaml", "service: hello-api\nimages: [a]\ncontainer: {port: 80}\n")
    assert place.check() == ""


def test_what_may_be_a_secret_is_not_shown(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service(
        "hooks: [{name: a, at: before_step, url: 'htp://me:hunter2@x', secret_file: hunter2}]\nhunter: 2"
    )
    said = place.check()
    assert "hooks/0/url" in said
    assert "hooks/0/secret_file" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "wrong",
    [
        "  env: PASSWORD=hunter2",
        "  env: [PASSWORD=hunter2]",
        "  env: {PASSWORD=hunter2: }",
        "  env: {PASSWORD: [hunter2]}",
        "  env: {PASSWORD: {a: hunter2}}",
        "  env: {'PASSWORD: hunter2'}",
        "  command: redis://u:p@hunter2@h",
        "  command: redis://u:p/hunter2@h",
        f"  command: https://u:hunter2{'x' * 200}@h",
        "hooks: [{name: a, at: before_step, url: 'htp://me:p@hunter2@x'}]",
        "  memory: redis://u:p@hunter2@h",
        "images: ['https://u:p@hunter2@h/x']",
        "redis://u:p@hunter2@h: 1",
    ],
)
def test_neither_a_password_of_an_address_nor_anything_of_env_is_shown(wrong: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    images = "" if wrong.startswith("images") else "images: [a]\n"
    place.write("services/api.yaml", f"{images}service: api\ncontainer:\n  port: 8080\n{wrong}\n")
    said = place.check()
    assert said
    assert "hunter2" not in said


def test_what_is_missing_is_required(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("services/api.yaml", "service: api\ncontainer: {}\n")
    said = place.check()
    assert "api.yaml: images: is required" in said
    assert "api.yaml: container/port: is required" in said


def test_numbers_and_switches_are_taken_where_text_is_wanted_as_they_are_written(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service(
        """
  env: {PORT: 8080, DEBUG: true, VERSION: 1.10, MODE: 0644, NO: no, BUILD: 2026-11-01, TIME: 12:30}
  command: [sleep, 1.50]
  user: 1000:50
nginx: {server: {listen: 24080}}
"""
    )
    assert place.check() == ""
    from orchestrator.daemon.config import load

    service = load(place.config).services["api"]
    assert service.container.env == {
        "PORT": "8080",
        "DEBUG": "true",
        "VERSION": "1.10",
        "MODE": "0644",
        "NO": "no",
        "BUILD": "2026-11-01",
        "TIME": "12:30",
    }
    assert service.container.command == ["sleep", "1.50"]
    assert service.container.user == "1000:50"
    assert service.edge.server is not None
    assert service.nginx.server is not None
    assert service.nginx.server.listen == "24080"


def test_a_file_that_ends_in_yml_is_read_too_and_an_editors_is_not(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("services/web.yml", "service: web\nimages: [web]\ncontainer: {port: 80}\n")
    place.write("services/.#web.yaml", "half a file: [")
    assert place.run("config", "check") == (0, f"ok: {place.config} and 2 services (api, web)\n")
    place.write("services/web.yaml", "service: web\nimages: [web]\ncontainer: {port: 80}\n")
    assert (
        f"web.yml: service: 'web' is that of {tmp_path}/services/web.yaml; one of them must go"
        in place.check()
    )
    place.remove("services/web.yml")
    assert place.check() == ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("A=1\nnot a variable\n", "line 2: there is no '='; write NAME=value"),
        ("1A=1\n", "line 1: what is before '=' is no name"),
        ('A="1\n', "line 1: the quote is not closed"),
    ],
)
def test_a_line_of_an_env_file_is_told_by_path_and_number(wrong: str, says: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("  env_file: FOLDER/api.env")
    place.write("api.env", wrong, 0o640)
    said = f"env_file {tmp_path}/api.env: {says}"
    assert f"services/api.yaml: container/{said}" in place.check()
    assert said in place.doctor()
    place.write("api.env", '\ufeffexport A="1" # one\n', 0o640)
    assert place.check() == ""
    assert place.doctor() == ""
