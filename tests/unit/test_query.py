"""Prometheus' answers taken apart."""

import math

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.discovery import document, targets
from orchestrator.analysis.presets import PRESETS
from orchestrator.analysis.query import STAT, batch, number, own, quote, readings
from orchestrator.ports.metrics import MetricQuery
from orchestrator.rollout.model import Rollout, ServiceState
from orchestrator.rollout.observation import Instance
from tests.builders import release

QUERY = MetricQuery(service="api", source=PRESETS["client_golang"])


def row(stat: str, value: str, **labels: str) -> dict[str, object]:
    return {
        "metric": {STAT: stat, "service": "api", "release": "api-1", "instance": "api-1-0", **labels},
        "value": [200.0, value],
    }


def test_counters_of_an_instance_become_one_sample() -> None:
    rows = [
        row("up", "1"),
        row("at", "123.5"),
        row("requests", "100"),
        row("bucket", "90", le="0.1"),
        row("bucket", "100", le="+Inf"),
    ]
    sample = readings([QUERY], rows, 200.0)["api"].samples["api-1-0"]
    assert (sample.at, sample.requests, sample.errors) == (123.5, 100, 0)
    assert sample.buckets == {0.1: 90, math.inf: 100}


def test_a_target_that_is_down_or_says_nan_is_absent() -> None:
    assert not readings([QUERY], [row("up", "0"), row("at", "1"), row("requests", "5")], 1.0)["api"].samples
    assert not readings([QUERY], [row("up", "1"), row("at", "1"), row("requests", "NaN")], 1.0)["api"].samples
    assert not readings([QUERY], [row("up", "1"), row("requests", "5")], 1.0)["api"].samples


def test_another_services_rows_and_wrong_labels_are_nobodys() -> None:
    rows = [row("up", "1", service="web"), row("what", "1"), row("requests", "1", instance="")]
    assert not readings([QUERY], rows, 1.0)["api"].samples


def test_own_queries_keep_the_release_and_know_their_service() -> None:
    query = MetricQuery(service="api", source=PRESETS["client_golang"], queries=(("pay", 'x{s="$service"}'),))
    assert 'x{s="api"}' in own(query)[0].text
    found = readings([query], [row("query:pay", "0.5"), row("query:pay", "NaN", release="")], 1.0)["api"]
    assert found.values["pay", "api-1"] == 0.5
    assert math.isnan(found.values["pay", ""])


def test_services_that_share_a_source_share_the_expressions() -> None:
    web = MetricQuery(service="web", source=PRESETS["client_golang"])
    assert len(batch([QUERY, web])) == len(batch([QUERY])) == 5
    assert "api|web" in batch([QUERY, web])[0].text
    assert len(batch([QUERY, MetricQuery(service="web", source=PRESETS["opentelemetry"])])) == 10


def test_a_row_that_is_no_number_is_the_trouble_of_its_gate_alone() -> None:
    histogram = {"metric": row("query:pay", "1")["metric"], "histogram": [200.0, {}]}
    rows = [row("up", "1"), row("at", "1"), row("requests", "7"), row("query:other", "3"), histogram]
    found = readings([QUERY], rows, 1.0)["api"]
    assert (found.error, found.samples["api-1-0"].requests) == ("", 7)
    assert found.values == {("other", "api-1"): 3}
    assert "unexpected answer" in found.refused["pay"]


def test_counters_that_are_refused_are_no_zeros() -> None:
    rows = [row("up", "1"), row("at", "1"), row("requests", "7"), row("total:pay", "9")]
    found = readings([QUERY], rows, 1.0, {("api", "pay"): "a typo"})["api"]
    assert (found.samples["api-1-0"].own, found.refused) == ({}, {"pay": "a typo"})
    assert readings([QUERY], rows, 1.0, {("api", ""): "a typo"})["api"].error == "a typo"
    assert readings([QUERY], rows, 1.0, {("web", ""): "a typo"})["api"].error == ""


def test_a_target_that_is_down_is_named() -> None:
    assert readings([QUERY], [row("up", "0"), row("at", "1")], 1.0)["api"].unread == {"api-1-0": ""}


def test_literals_are_quoted() -> None:
    assert quote('a"} or vector(0)#\\') == '"a\\"} or vector(0)#\\\\"'


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "metric": st.dictionaries(
                    st.sampled_from(["service", "instance", STAT, "le", "release"]), st.text(max_size=8)
                ),
                "value": st.tuples(st.floats(), st.text(max_size=8)),
            }
        ),
        max_size=10,
    )
)
def test_any_answer_is_a_reading(rows: list[dict[str, object]]) -> None:
    found = readings([QUERY], rows, 1.0)
    for sample in found["api"].samples.values():
        assert math.isfinite(sample.requests)


def test_what_is_not_a_number_is_nan() -> None:
    assert math.isnan(number("x"))
    assert number("+Inf") == math.inf


def test_targets_carry_service_release_instance_and_track() -> None:
    state = ServiceState(
        service="api",
        stable=release(2),
        previous=release(1),
        rollout=Rollout(release=release(3), began_at=0, entered_at=0, actor="a", reason="r"),
    )
    instances = [
        Instance(
            name=f"api-{n}-0",
            release=f"api-{n}",
            address=f"10.0.0.{n}:8080",
            container="c",
            started_at="t",
            running=n != 9,
        )
        for n in (1, 2, 3, 4, 9)
    ]
    found = document(targets(state, instances, PRESETS["client_golang"]), "here:9180")
    tracks = {row["labels"]["release"]: row["labels"]["track"] for row in found}
    assert tracks == {"api-1": "previous", "api-2": "stable", "api-3": "candidate", "api-4": "retiring"}
    assert found[0]["targets"] == ["10.0.0.1:8080"]
    assert found[0]["labels"]["__metrics_path__"] == "/metrics"
    at_edge = document(targets(state, instances, PRESETS["nginx"]), "here:9180")
    assert (at_edge[0]["targets"], at_edge[0]["labels"]["__metrics_path__"]) == (
        ["here:9180"],
        "/instances/api-1-0",
    )
    assert [row["labels"]["release"] for row in at_edge] == [row["labels"]["release"] for row in found]
