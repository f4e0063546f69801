"""Configuration: what is accepted, and what is said of what is not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.daemon.config import ConfigError, load
from orchestrator.daemon.units import limit, seconds, size

SERVICE: dict[str, Any] = {"service": "api", "images": ["reg/api"], "container": {"port": 8080}}


def write(folder: Path, service: dict[str, Any] | str, settings: dict[str, Any] | None = None) -> Path:
    (folder / "services").mkdir(exist_ok=True)
    text = service if isinstance(service, str) else yaml.safe_dump(service)
    (folder / "services" / "api.yaml").write_text(text)
    path = folder / "orchestrator.yaml"
    path.write_text(yaml.safe_dump({"prometheus": {"url": "http://127.0.0.1:9090"}, **(settings or {})}))
    return path


def problems(folder: Path, service: dict[str, Any] | str, settings: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, service, settings))
    return str(caught.value)


def test_the_smallest_service_has_the_production_ladder(tmp_path: Path) -> None:
    plan = load(write(tmp_path, SERVICE)).services["api"].plan()
    assert [(s.weight, s.hold) for s in plan.policies[""].steps] == [
        (5, 1800),
        (15, 900),
        (40, 900),
        (100, 900),
    ]
    assert plan.template.read_only
    assert plan.template.user == "65534:65534"


def test_bare_and_full_steps_mix(tmp_path: Path) -> None:
    steps = [5, {"weight": 30, "hold": "10m", "approve": True}, 100]
    plan = load(write(tmp_path, {**SERVICE, "strategy": {"steps": steps}})).services["api"].plan()
    assert [(s.weight, s.hold, s.approve) for s in plan.policies[""].steps] == [
        (5, 1800, False),
        (30, 600, True),
        (100, 900, False),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"gates": [{"metric": "error_rate", "max": "many"}]},
            "services/api.yaml: gates/0/max: 'many' is not a limit",
        ),
        ({"gates": [{"metric": "error_rate"}]}, "gates/0: max: give max, max_ratio, or both"),
        ({"gates": [{"metric": "query", "max": 1}]}, "gates/0: query: is for metric: query"),
        ({"gates": [{"metric": "error_rate", "max": float("nan")}]}, "gates/0/max"),
        ({"gates": [{"metric": "latency", "max": 1}] * 2}, "gates: 'p99' is there twice"),
        ({"strategy": {"steps": [5, 5, 100]}}, "strategy: steps: weights [5, 5, 100] must ascend"),
        ({"strategy": {"steps": [0, 100]}}, "strategy: steps/0/weight: 0 is not a percentage"),
        ({"strategy": {"hold": "soon"}}, "strategy/hold: 'soon' is not a duration"),
        ({"container": {"port": 0}}, "container/port"),
        ({"container": {"port": 80, "memory": "lots"}}, "container/memory: 'lots' is not a size"),
        ({"container": {"port": 80, "privileged": True}}, "container/privileged: is not a key"),
        ({"service": "api\n"}, "is not a lower-case DNS label"),
        ({"service": "../../etc"}, "is not a lower-case DNS label"),
        ({"images": []}, "images"),
        ({"nginx": {"method": "least_conn"}}, "least_conn does not keep small weights"),
        ({"nginx": {"server": {"server_name": "a; } server {"}}}, "nginx/server/server_name"),
    ],
)
def test_every_problem_names_its_file_and_path(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in problems(tmp_path, {**SERVICE, **change})


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "key 'service' is there twice" in problems(tmp_path, "service: a\nservice: b\n")


def test_gates_need_a_prometheus(tmp_path: Path) -> None:
    service = {**SERVICE, "gates": [{"metric": "error_rate", "max": "1%"}]}
    assert "gates: need prometheus/url" in problems(tmp_path, service, {"prometheus": {"url": ""}})


def test_two_generated_servers_may_not_be_the_same(tmp_path: Path) -> None:
    service = {**SERVICE, "nginx": {"server": {}}}
    path = write(tmp_path, service)
    (tmp_path / "services" / "b.yaml").write_text(yaml.safe_dump({**service, "service": "b"}))
    with pytest.raises(ConfigError, match="is that of api"):
        load(path)


def test_the_same_service_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SERVICE)
    (tmp_path / "services" / "b.yaml").write_text(yaml.safe_dump(SERVICE))
    with pytest.raises(ConfigError, match="is in another file too"):
        load(path)


@pytest.mark.parametrize("text", ["[", "- 1", "a: !!python/object:os.system x", "\tx"])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "services/api.yaml" in problems(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_a_relative_state_folder_is_refused(tmp_path: Path) -> None:
    assert "state_dir: x must be an absolute path" in problems(tmp_path, SERVICE, {"state_dir": "x"})


def test_units() -> None:
    assert [seconds(v) for v in ("30s", "1h30m", "250ms", 5, 2.5)] == [30, 5400, 0.25, 5, 2.5]
    assert [limit(v) for v in ("0.5%", "300ms", 0.01)] == [0.005, 0.3, 0.01]
    assert [size(v) for v in ("256MiB", "1g", "512k", 1024)] == [268435456, 1073741824, 524288, 1024]
    for value in ("", "1", "-1s", "1x", -1, float("inf"), True, "١٢s"):
        with pytest.raises(ValueError, match="duration"):
            seconds(value)


def test_the_shipped_examples_are_right() -> None:
    config = load(Path(__file__).parents[2] / "config" / "orchestrator.yaml")
    assert set(config.services) == {"minimal", "api"}
    policy = config.services["api"].plan().policies[""]
    assert [(s.weight, s.hold) for s in policy.steps] == [(5, 1800), (15, 900), (40, 900), (100, 900)]
    errors, p99 = policy.gates
    assert (errors.max, errors.sustained) == (0.005, 120)
    assert p99.max is not None
    assert p99.max_ratio is not None
