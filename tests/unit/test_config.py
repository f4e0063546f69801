"""Configuration: what is accepted, and what is said of what is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.daemon.changes import changes
from orchestrator.daemon.config import load
from orchestrator.daemon.gate_section import ComparisonSection
from orchestrator.daemon.kept import KeptFiles
from orchestrator.daemon.units import limit, seconds, size
from orchestrator.daemon.yaml_file import ConfigError
from orchestrator.rollout.policy import Certainty, Policy
from orchestrator.traffic.options import Audience, ServerBlock, Tls

SERVICE: dict[str, Any] = {"service": "api", "images": ["reg/api"], "container": {"port": 8080}}


def write(folder: Path, service: dict[str, Any] | str, settings: dict[str, Any] | None = None) -> Path:
    (folder / "services").mkdir(exist_ok=True)
    text = service if isinstance(service, str) else yaml.safe_dump(service)
    (folder / "services" / "api.yaml").write_text(text)
    path = folder / "orchestrator.yaml"
    path.write_text(yaml.safe_dump({"prometheus": {"url": "http://127.0.0.1:9090"}, **(settings or {})}))
    return path


def problems(folder: Path, service: dict[str, Any] | str, settings: dict[str, Any] | None = None) -> str:
    try:
        found = load(write(folder, service, settings)).problems
    except ConfigError as error:
        found = tuple(error.problems)
    assert found
    return "\n".join(map(str, found))


def test_the_smallest_service_has_the_production_ladder(tmp_path: Path) -> None:
    plan = load(write(tmp_path, SERVICE)).services["api"].plan()
    assert [(s.weight, s.hold) for s in plan.policies[""].steps] == [
        (5, 1800),
        (15, 900),
        (40, 900),
        (100, 900),
    ]
    assert plan.template.read_only
    assert plan.template.user == ""  # the image's own, or 65534 where that is root


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
            "services/api.yaml: gates/0/max: 'many' is not a share; write 0.5%",
        ),
        ({"gates": [{"metric": "query"}]}, "gates/0: max: metric: query needs max, min or max_ratio"),
        ({"gates": [{"metric": "query", "max": 1}]}, "gates/0: query: is for metric: query"),
        (
            {"gates": [{"metric": "error_rate", "window": "1m"}]},
            "gates/0: key `window` is not for a gate that compares: it needs a limit",
        ),
        (
            {"gates": [{"metric": "error_rate", "max": 1, "budget": 1}]},
            "gates/0: key `budget` is not for a gate with a limit",
        ),
        (
            {"gates": [{"metric": "query", "query": "x", "min": 2, "max": 1}]},
            "gates/0: min: 2 is above max, 1",
        ),
        (
            {"gates": [{"metric": "counts", "name": "x", "total": "a"}]},
            "gates/0: total: total and bad are for",
        ),
        (
            {"gates": [{"metric": "counts", "total": "a", "bad": "b"}]},
            "gates/0: name: metric: counts needs one",
        ),
        (
            {"gates": [{"metric": "error_rate", "total": "a", "bad": "b"}]},
            "total and bad are for metric: counts",
        ),
        (
            {"gates": [{"metric": "latency", "history": "1d"}]},
            "gates/0: history: is for error_rate and counts",
        ),
        (
            {"gates": [{"metric": "error_rate", "margin": "1%"}]},
            "gates/0: budget: 0.005 must be above margin",
        ),
        ({"gates": [{"metric": "error_rate", "effects": ["100%"]}]}, "gates/0: effects: each is a share"),
        ({"gates": ["error_rate"]}, "gates/0"),
        ({"evidence": {"alpha": 0}}, "evidence/alpha"),
        ({"evidence": {"phi": 0.5}}, "evidence/phi"),
        (
            {"strategy": {"advance": "on_evidence"}},
            "strategy/advance: on_evidence needs a gate that compares",
        ),
        (
            {"strategy": {"hold": "5m"}, "gates": [{"metric": "error_rate"}]},
            "strategy/hold: is for advance: on_hold",
        ),
        (
            {"overrides": {"slow": {"first_hold": "5m"}}, "gates": [{"metric": "error_rate"}]},
            "overrides/slow/first_hold: is for advance: on_hold",
        ),
        (
            {"strategy": {"min_requests": 3}},
            "strategy/min_requests: requests are counted where there are gates, and there are none",
        ),
        (
            {"overrides": {"slow": {"steps": [{"weight": 5, "min_requests": 3}, 100]}}},
            "overrides/slow/steps/0/min_requests: requests are counted where there are gates",
        ),
        ({"strategy": {"max_step": "1s"}}, "strategy: max_step: 1 s is shorter than min_step, 30 s"),
        ({"gates": [{"metric": "error_rate", "max": float("nan")}]}, "gates/0/max"),
        ({"gates": [{"metric": "latency", "max": 1}] * 2}, "gates: 'p99_limit' is there twice"),
        ({"strategy": {"steps": [5, 5, 100]}}, "strategy: steps: weights [5, 5, 100] must ascend"),
        ({"strategy": {"steps": [0, 100]}}, "strategy: steps/0/weight: 0 is not a percentage"),
        ({"strategy": {"hold": "soon"}}, "strategy/hold: 'soon' is not a duration"),
        ({"container": {"port": 0}}, "container/port"),
        ({"container": {"port": 80, "memory": "lots"}}, "container/memory: 'lots' is not a size"),
        (
            {"container": {"port": 80, "privileged": True}},
            "container: unknown key `privileged`: containers have no capabilities",
        ),
        ({"service": "api\n"}, "is not a lower-case DNS label"),
        ({"service": "../../etc"}, "is not a lower-case DNS label"),
        ({"images": []}, "images"),
        ({"nginx": {"method": "least_conn"}}, "least_conn does not keep small weights"),
        ({"nginx": {"server": {"server_name": "a; } server {"}}}, "nginx/server/server_name"),
        ({"nginx": {"sticky": {"by": "address", "name": "x"}}}, "nginx/sticky: name: an address has none"),
        ({"nginx": {"sticky": {"by": "header"}}}, "nginx/sticky: name: which header?"),
        ({"nginx": {"sticky": {"by": "cookie", "name": "a-b"}}}, "name: 'a-b' does not match [A-Za-z0-9_]+"),
        ({"nginx": {"force": {"header": "X Release"}}}, "nginx/force/header"),
        ({"nginx": {"backup": ["host:80"]}}, "backup: 'host:80' is not an IPv4 address and port"),
        ({"nginx": {"backup": ["10.0.0.9:0"]}}, "backup: '10.0.0.9:0' is not an IPv4 address and port"),
        ({"nginx": {"method": "ip_hash", "backup": ["10.0.0.9:80"]}}, "nginx knows no backup servers with"),
        ({"nginx": {"mirror": True}}, "mirror: needs a generated block; set server"),
        (
            {"nginx": {"mirror": True, "server": {}}},
            "nginx/mirror: copies requests to a candidate in preview",
        ),
        ({"nginx": {"server": {"join": "shop", "tls": None}}}, "tls: is that of the block of 'shop'"),
        ({"nginx": {"server": {"static": {"path": "/", "max_age": 1}}}}, "static/path: / is the path of all"),
        ({"nginx": {"server": {"maintenance_page": "/a b"}}}, "nginx/server/maintenance_page"),
        (
            {"nginx": {"server": {"tls": {"certificate": "/c", "key": "/k", "acme_webroot": "/a"}}}},
            'nginx/server/tls: acme_webroot: needs redirect_from, for example "80"',
        ),
        ({"metrics": {"preset": "nginx", "port": 1}}, "metrics: port: is not asked for where nginx counts"),
    ],
)
def test_every_problem_names_its_file_and_path(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in problems(tmp_path, {**SERVICE, **change})


def test_one_host_alone_counts_at_nginx(tmp_path: Path) -> None:
    settings = {"redis": {"url": "redis://127.0.0.1:6379/0"}, "edges": {"enabled": True}}
    service = {**SERVICE, "metrics": {"preset": "nginx"}}
    assert "metrics/preset: nginx counts at this host alone" in problems(tmp_path, service, settings)


def test_edges_need_a_redis_that_they_reach(tmp_path: Path) -> None:
    assert "edges/enabled: other hosts need a Redis" in problems(
        tmp_path, SERVICE, {"edges": {"enabled": True}}
    )


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "key 'service' is there twice" in problems(tmp_path, "service: a\nservice: b\n")


def test_gates_need_a_prometheus(tmp_path: Path) -> None:
    service = {**SERVICE, "gates": [{"metric": "error_rate", "max": "1%"}]}
    assert "gates: need prometheus/url" in problems(tmp_path, service, {"prometheus": {"url": ""}})


def test_two_generated_servers_may_not_be_the_same(tmp_path: Path) -> None:
    service = {**SERVICE, "nginx": {"server": {}}}
    path = write(tmp_path, service)
    (tmp_path / "services" / "b.yaml").write_text(yaml.safe_dump({**service, "service": "b"}))
    config = load(path)
    assert list(config.services) == ["api"]
    assert "services/b.yaml: nginx/server: listen 80, server_name _ is that of api" in config.unusable["b"]


@pytest.mark.parametrize(
    ("joined", "words"),
    [
        ({"join": "api", "path": "/"}, "path / is that of api"),
        ({"join": "shop", "path": "/b/"}, "join: 'shop' is no service with a server block of its own"),
        ({"join": "b", "path": "/b/"}, "join: 'b' is no service with a server block of its own"),
    ],
)
def test_a_path_in_anothers_block_is_one_that_is_free(
    tmp_path: Path, joined: dict[str, str], words: str
) -> None:
    path = write(tmp_path, {**SERVICE, "nginx": {"server": {}}})
    other = tmp_path / "services" / "b.yaml"
    other.write_text(yaml.safe_dump({**SERVICE, "service": "b", "nginx": {"server": joined}}))
    assert words in load(path).unusable["b"]
    free = {"join": "api", "path": "/b/"}
    other.write_text(yaml.safe_dump({**SERVICE, "service": "b", "nginx": {"server": free}}))
    assert load(path).services["b"].edge.server == ServerBlock(join="api", path="/b/")


def test_who_goes_where_becomes_variables_of_nginx(tmp_path: Path) -> None:
    def audience(**nginx: Any) -> Audience | None:
        return load(write(tmp_path, {**SERVICE, "nginx": nginx})).services["api"].edge.audience

    assert audience() is None
    assert audience(force={"header": "X-Release"}) == Audience(header="X-Release")
    assert audience(sticky={"by": "cookie"}) == Audience(sticky=("uid_got", "uid_set"), issued="release_user")
    assert audience(sticky={"by": "cookie", "name": "sid"}) == Audience(sticky=("cookie_sid",))
    assert audience(sticky={"by": "header", "name": "X-User-Id"}) == Audience(sticky=("http_x_user_id",))
    assert audience(sticky={"by": "address"}) == Audience(sticky=("remote_addr",))
    assert load(tmp_path / "orchestrator.yaml").services["api"].plan().policies[""].certainty.sticky


@pytest.mark.parametrize(
    ("listen", "tls", "address"),
    [
        ("80", False, ("127.0.0.1", 80)),
        ("10.0.0.1:8443", True, ("10.0.0.1", 8443)),
        ("[::]:443", True, ("::1", 443)),
        ("*:443 default_server", True, ("127.0.0.1", 443)),
        ("10.0.0.1", True, ("10.0.0.1", 443)),
        ("localhost", False, ("localhost", 80)),
    ],
)
def test_where_a_generated_block_is_reached(listen: str, tls: bool, address: tuple[str, int]) -> None:
    block = ServerBlock(listen=listen, tls=Tls(certificate="/c", key="/k") if tls else None)
    assert block.address == address


def test_the_same_service_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SERVICE)
    (tmp_path / "services" / "b.yaml").write_text(yaml.safe_dump({**SERVICE, "images": ["other"]}))
    config = load(path)
    assert config.services["api"].images == ["reg/api"]
    assert [str(p).partition("/services/")[2] for p in config.problems] == [
        f"b.yaml: service: 'api' is that of {tmp_path}/services/api.yaml; one of them must go"
    ]


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
    assert [size(v) for v in ("256MiB", "1g", "512k", 2097152)] == [268435456, 1073741824, 524288, 2097152]
    for value in ("", "1", "-1s", "1x", -1, float("inf"), True, "١٢s"):
        with pytest.raises(ValueError, match="duration"):
            seconds(value)


def service_of(tmp_path: Path, **changes: Any) -> Policy:
    path = write(tmp_path, {**SERVICE, **changes})
    return load(path).services["api"].plan().policies[""]


COMPARED = {"gates": [{"metric": "error_rate"}]}


def test_a_gate_that_compares_makes_steps_advance_on_evidence_with_a_holdback(tmp_path: Path) -> None:
    steps = service_of(tmp_path, **COMPARED).steps
    assert [(s.weight, s.hold, s.max_hold) for s in steps] == [
        (5, 30, 1800),
        (15, 30, 1800),
        (40, 30, 1800),
        (95, 120, 1800),
        (100, 0, 1800),
    ]


def test_holds_stay_where_nothing_is_compared_or_they_are_asked_for(tmp_path: Path) -> None:
    steps = service_of(tmp_path, gates=[{"metric": "error_rate", "max": "1%"}]).steps
    assert [(s.weight, s.hold, s.max_hold) for s in steps] == [
        (5, 1800, None),
        (15, 900, None),
        (40, 900, None),
        (100, 900, None),
    ]
    held = service_of(tmp_path, **COMPARED, strategy={"advance": "on_hold", "bake": "5m"}).steps
    assert [(s.weight, s.hold, s.max_hold) for s in held] == [
        (5, 1800, None),
        (15, 900, None),
        (40, 900, None),
        (95, 300, None),
        (100, 0, None),
    ]


def test_blue_green_bakes_with_a_holdback_too_unless_it_is_0(tmp_path: Path) -> None:
    strategy = {"kind": "blue-green", "bake": "1m"}
    steps = service_of(tmp_path, **COMPARED, strategy=strategy).steps
    assert [(s.weight, s.hold) for s in steps] == [(95, 60), (100, 0)]
    steps = service_of(tmp_path, **COMPARED, strategy={**strategy, "holdback": 0}).steps
    assert [(s.weight, s.hold) for s in steps] == [(100, 60)]


def test_a_comparison_has_the_values_that_are_usual_for_its_metric(tmp_path: Path) -> None:
    policy = service_of(
        tmp_path,
        gates=[
            {"metric": "error_rate"},
            {"metric": "latency", "quantile": 0.95},
            {"metric": "latency", "dry_run": True},
            {"metric": "counts", "name": "pay", "total": "t", "bad": "b", "margin": "3%", "history": "7d"},
            {"metric": "error_rate", "name": "own", "effects": ["1%", "5%"], "ratio": 2},
            {"metric": "cpu", "max": "85%", "for": "5m"},
        ],
        evidence={"alpha": "2%", "phi": 3},
    )
    errors, p95, p99, pay, own = policy.comparisons
    assert (errors.name, errors.ratio, errors.margin, errors.budget, errors.weight, errors.warm_up) == (
        "error_rate",
        1.0,
        0.001,
        0.005,
        0.48,
        0.0,
    )
    assert (p95.name, p95.ratio, p95.margin, p95.budget, p95.warm_up) == ("p95", 1.25, 0.002, 0.02, 30.0)
    assert p95.effects != p99.effects
    assert p99.dry_run
    assert (pay.margin, pay.history) == (0.03, 7 * 86400)
    assert pay.budget > pay.margin
    assert (own.effects, own.ratio) == (((0.01, 0.5), (0.05, 0.5)), 2.0)
    assert [(limit.name, limit.max, limit.sustained) for limit in policy.limits] == [("cpu_limit", 0.85, 300)]
    assert (policy.certainty.alpha, policy.certainty.dispersion) == (0.02, 3.0)
    for rule in policy.comparisons:
        assert sum(weight for _, weight in rule.effects) == pytest.approx(1.0)


def test_the_shipped_examples_are_right() -> None:
    config = load(Path(__file__).parents[2] / "config" / "orchestrator.yaml")
    assert set(config.services) == {"minimal", "api"}
    policy = config.services["api"].plan().policies[""]
    assert [(s.weight, s.hold) for s in policy.steps] == [(5, 30), (15, 30), (40, 30), (95, 120), (100, 0)]
    bare = ComparisonSection.model_validate({"metric": "error_rate"}).gate()
    assert [r.name for r in policy.comparisons] == ["error_rate", "p95", "p99"]
    assert policy.comparisons[0] == bare
    assert policy.certainty == Certainty()
    errors, p99, cpu = policy.limits
    assert (errors.max, errors.sustained) == (0.005, 120)
    assert (p99.max, cpu.dry_run) == (0.8, True)


def test_what_has_changed_is_told_by_its_keys_and_by_when_it_counts(tmp_path: Path) -> None:
    container = {"port": 8080, "env": {"COLOUR": "green"}}
    before = load(write(tmp_path, {**SERVICE, "container": container}))
    assert changes(before, before) == ()
    container = {"port": 8080, "env": {"COLOUR": "blue", "SIZE": "9"}, "instances": 3}
    gates = [{"metric": "error_rate", "max": "5%", "for": "1m"}]
    after = load(
        write(
            tmp_path,
            {**SERVICE, "container": container, "images": ["reg/other"], "gates": gates, "keep_images": 9},
            {"tick": "2s", "alerts": [{"match": {"a": "b"}, "do": "rollback"}]},
        )
    )
    settings, service = changes(before, after)
    assert settings == "orchestrator.yaml: alerts at once; tick when the daemon is started again"
    assert service.split("; ") == [
        "api: container/env/COLOUR, container/env/SIZE, container/instances with the next release or restart",
        "gates, keep_images with the next release",
        "images/0 at once",
    ]
    (tmp_path / "services" / "web.yaml").write_text(yaml.safe_dump({**SERVICE, "service": "web"}))
    both = load(tmp_path / "orchestrator.yaml")
    assert changes(after, both) == ("web: is new",)
    assert changes(both, after) == (
        "web: its file is gone; it takes no release, and is driven until it is removed",
    )
    (tmp_path / "services" / "web.yaml").write_text("service: web\nimages: 7\n")
    wrong = load(tmp_path / "orchestrator.yaml")
    assert changes(both, wrong) == ("web: its file is wrong; its traffic stays as it is",)
    assert changes(wrong, both) == ("web: its file is right, it is driven",)
    assert changes(both, load(tmp_path / "orchestrator.yaml", both)) == ()


@pytest.mark.parametrize("later", ["images: oops: [", None])
def test_what_was_checked_is_kept_whatever_the_file_says_by_then(tmp_path: Path, later: str | None) -> None:
    """None: it is gone by then."""
    path, kept = write(tmp_path, SERVICE), KeptFiles(tmp_path / "state")
    file = tmp_path / "services" / "api.yaml"
    checked = load(path)
    file.unlink() if later is None else file.write_text(later)
    kept.keep(checked)
    assert kept.services() == checked.services


def test_a_service_is_known_by_its_last_right_file_until_it_is_removed(tmp_path: Path) -> None:
    path, kept = write(tmp_path, SERVICE), KeptFiles(tmp_path / "state")
    first = load(path)
    kept.keep(first)
    (tmp_path / "services" / "api.yaml").write_text("service: api\noops: 1\n")
    before = replace(first, services=kept.services(), files={})
    wrong = load(path, before)
    assert wrong.services["api"].container.port == 8080
    assert "oops" in wrong.wrong("api")
    kept.keep(wrong)  # what is wrong is not kept
    (tmp_path / "services" / "api.yaml").unlink()
    gone = load(path, replace(first, services=kept.services(), files={}))
    assert (list(gone.services), list(gone.gone), list(gone.driven)) == ([], ["api"], ["api"])
    assert list(load(path, gone).gone) == ["api"]
    (tmp_path / "services" / "api.yaml").write_text(yaml.safe_dump(SERVICE))
    assert (list(load(path, gone).services), load(path, gone).gone) == (["api"], {})
    kept.forget("api")
    assert kept.services() == {}
    (tmp_path / "state" / "services" / "web.yaml").write_text("of: another version\n")
    assert kept.services() == {}
