"""From counters to verdicts, with the cases that break `rate()`."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rollout.counts import Counts, count, cpu_share, difference, missing_data, quantile
from orchestrator.rollout.judge import Measured, judge, value_of
from orchestrator.rollout.model import Outcome, Result, Verdict, readable
from orchestrator.rollout.observation import Reading, Sample
from orchestrator.rollout.policy import Limit
from tests.builders import policy, submit, template
from tests.unit.sim import Sim

INF = math.inf
RATE = Limit(
    name="errors", metric="error_rate", max=0.02, max_ratio=2.0, margin=0.001, min_requests=10, sustained=30
)
P99 = Limit(name="p99", metric="latency", max=0.3, min_requests=10)


def side(requests: float = 100, errors: float = 0) -> Counts:
    return Counts(requests, errors, {0.1: requests, INF: requests})


def measured(gate: Limit, side: Counts | Measured | None) -> Measured:
    if isinstance(side, Counts):
        return Measured(value=value_of(gate, side), samples=int(side.requests))
    return side or Measured(missing="none")


def look(
    gate: Limit, candidate: Counts | Measured, stable: Counts | Measured | None = None, **changes: object
) -> Verdict:
    settings: dict[str, object] = {
        "remembered": None,
        "broken_since": None,
        "generation": 7,
        "now": 100.0,
        **changes,
    }
    return judge(gate, measured(gate, candidate), measured(gate, stable), **settings)  # type: ignore[arg-type]


def test_a_series_born_at_500_counts_500() -> None:
    assert difference(Sample(0, 1000, 0), Sample(5, 2000, 500)).errors == 500


def test_a_reset_counts_all_that_the_new_process_counted() -> None:
    found = difference(Sample(0, 1000, 10, {0.1: 900, INF: 1000}), Sample(5, 30, 3, {0.1: 20, INF: 30}))
    assert found == Counts(30, 3, {0.1: 20, INF: 30})


def test_counting_begins_at_the_last_sample_before_the_window() -> None:
    readings = [
        Reading(at=t, samples={"a": Sample(t, t * 10, 0), "b": Sample(t, t, 0)}) for t in (0, 5, 10, 15)
    ]
    assert count(readings, ["a"], since=7).requests == 100
    assert count(readings, ["a", "b"], since=7).requests == 110
    assert count(readings, ["a"], since=-5).requests == 150
    assert count(readings, ["c"], since=0) == Counts()


def test_quantile_is_linear_inside_a_bucket_and_closed_at_the_top() -> None:
    buckets = {0.1: 50.0, 0.2: 100.0, INF: 100.0}
    assert quantile(buckets, 0.75) == pytest.approx(0.15)
    assert quantile({0.1: 0.0, INF: 10.0}, 0.5) == 0.1
    assert quantile({0.1: 0.0, INF: 0.0}, 0.5) is None
    assert quantile({INF: 10.0}, 0.5) is None
    assert quantile({}, 0.5) is None
    assert quantile({0.1: 0.0, 0.2: 5.0, INF: 5.0}, 1e-12) == pytest.approx(0.1)


@given(
    counts=st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    q=st.floats(0.01, 0.99),
)
def test_quantile_stays_inside_the_bounds(counts: list[int], q: float) -> None:
    total, buckets = 0, {}
    for i, n in enumerate(counts, 1):
        total += n
        buckets[i / 10] = float(total)
    buckets[INF] = float(total)
    found = quantile(buckets, q)
    assert (found is None) == (total == 0)
    assert found is None or 0 <= found <= len(counts) / 10


def test_why_there_is_no_data() -> None:
    reading = Reading(at=100, samples={"a": Sample(95, 1, 0)})
    assert missing_data(None, ["a"], 60, 100) == "no measurements yet"
    assert "Prometheus: down" in missing_data(Reading(at=1, error="down"), ["a"], 60, 100)
    assert "b is not scraped" in missing_data(reading, ["a", "b"], 60, 100)
    assert "105 s old" in missing_data(reading, ["a"], 60, 200)
    assert missing_data(reading, ["a"], 60, 100) == ""
    for odd in (math.nan, math.inf, -1.0):
        unsound = Reading(at=100, samples={"a": Sample(95, odd, 0)})
        assert missing_data(unsound, ["a"], 60, 100) == "a has a counter that is no number from 0 to 2^53"


def test_missing_never_passes() -> None:
    assert look(RATE, Measured(missing="a is not scraped")).result is Result.NO_DATA


def test_too_few_requests_are_inconclusive() -> None:
    found = look(RATE, side(9))
    assert (found.result, found.text) == (Result.INCONCLUSIVE, "9 of 10 requests in 60 s")


def test_no_requests_are_never_a_pass() -> None:
    assert look(replace(RATE, min_requests=0), side(0)).result is Result.INCONCLUSIVE


def test_a_histogram_that_is_not_there_is_no_data() -> None:
    assert look(P99, Counts(100, 0)).result is Result.NO_DATA


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_finite_never_passes(value: float | None) -> None:
    gate = Limit(name="q", metric="query", query="x", max=1e9)
    assert look(gate, Measured(value=value)).result is Result.NO_DATA


def test_a_query_is_compared_with_stables() -> None:
    gate = Limit(name="q", metric="query", query="x", max_ratio=1.0)
    assert look(gate, Measured(value=2.0), Measured(value=3.0)).result is Result.PASS
    assert look(gate, Measured(value=4.0), Measured(value=3.0)).result is Result.FAIL
    assert look(gate, Measured(value=4.0), Measured(value=math.nan)).result is Result.INCONCLUSIVE


def test_without_a_baseline_a_relative_limit_is_inconclusive() -> None:
    relative = replace(RATE, max=None)
    assert look(relative, side(100, 50)).result is Result.INCONCLUSIVE
    assert look(relative, side(100, 50), remembered=0.5).result is Result.PASS


def test_the_tighter_limit_counts() -> None:
    found = look(RATE, side(1000, 15), side(10000, 50))
    assert found.limit == pytest.approx(0.005 * 2 + 0.001)
    assert found.broken


def test_a_baseline_that_is_not_finite_is_not_taken() -> None:
    gate = replace(P99, max=None, max_ratio=2.0)
    empty = Counts(100, 0)
    assert look(gate, side(100), empty, remembered=0.09).baseline == 0.09


def test_a_broken_limit_must_stay_broken_for_its_time() -> None:
    bad = side(100, 10)
    assert look(RATE, bad).result is Result.INCONCLUSIVE
    waiting = look(RATE, bad, broken_since=80.0)
    assert (waiting.result, waiting.broken) == (Result.INCONCLUSIVE, True)
    assert "above for 20 of 30 s" in waiting.text
    failed = look(RATE, bad, broken_since=70.0)
    assert (failed.result, failed.generation, failed.samples) == (Result.FAIL, 7, 100)


def test_a_value_below_a_minimum_is_broken() -> None:
    gate = Limit(name="paid", metric="query", query="x", min=0.9, max=1.0, sustained=10.0)
    assert look(gate, Measured(value=0.95)).result is Result.PASS
    low = look(gate, Measured(value=0.8), broken_since=95.0)
    assert (low.result, low.broken) == (Result.INCONCLUSIVE, True)
    assert "0.8, minimum 0.9; below for 5 of 10 s" in low.text
    failed = look(gate, Measured(value=0.8), broken_since=90.0)
    assert (failed.result, failed.limit) == (Result.FAIL, 0.9)
    assert look(replace(gate, max=None), Measured(value=5.0)).result is Result.PASS


def cpu(at: float, seconds: float | None) -> Reading:
    return Reading(at=at, samples={"a": Sample(at, 0, 0, cpu=None if seconds is None else (at, seconds))})


def test_cpu_is_the_share_of_the_limit_that_was_used() -> None:
    readings = [cpu(0, 10.0), cpu(5, 12.0), cpu(5, 12.2), cpu(10, 14.5)]
    assert cpu_share(readings, ["a"], since=0, cpus=0.5) == pytest.approx(0.9)
    assert cpu_share(readings, ["a"], since=5, cpus=1.0) == pytest.approx(0.5)
    assert cpu_share(readings, ["a", "b"], since=0, cpus=1.0) is None
    assert cpu_share([cpu(0, None), cpu(5, None)], ["a"], since=0, cpus=1.0) is None


def test_cpu_of_a_restarted_process_is_measured_from_its_restart_on() -> None:
    readings = [cpu(0, 100.0), cpu(5, 1.0), cpu(10, 3.0)]
    assert cpu_share(readings, ["a"], since=0, cpus=1.0) == pytest.approx(0.4)


def test_own_counters_are_differenced_and_reset_like_others() -> None:
    older = Sample(0, 10, 0, own={"pay": (100.0, 5.0), "born": (0.0, 0.0)})
    newer = Sample(5, 20, 0, own={"pay": (150.0, 6.0), "born": (3.0, 1.0)})
    assert difference(older, newer).own == {"pay": (50.0, 1.0), "born": (3.0, 1.0)}
    assert difference(older, Sample(5, 2, 0, own={"pay": (40.0, 4.0)})).own == {"pay": (40.0, 4.0)}


def test_a_verdict_shows_units_that_people_read() -> None:
    assert readable(0.25, P99.unit) == "250 ms"
    assert readable(0.021, RATE.unit) == "2.10 %"
    assert readable(12.34567, Limit(name="q", metric="query").unit) == "12.35"


@given(
    requests=st.integers(0, 10_000),
    errors=st.integers(0, 10_000),
    value=st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
    broken=st.one_of(st.none(), st.floats(0, 100)),
)
def test_a_pass_means_finite_enough_and_within_the_limit(
    requests: int, errors: int, value: float | None, broken: float | None
) -> None:
    errors = min(requests, errors)
    query = Limit(name="q", metric="query", query="x", max=0.5)
    for gate, candidate in ((RATE, side(requests, errors)), (query, Measured(value=value))):
        found = look(gate, candidate, side(1000, 1), broken_since=broken)
        if found.result is Result.PASS:
            assert found.value is not None
            assert math.isfinite(found.value)
            assert found.limit is not None
            assert found.value <= found.limit
            assert gate.metric == "query" or found.samples >= gate.min_requests


def test_a_limit_on_cpu_rolls_back_what_is_over_it_for_the_time_given(
    sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scrape(sim: Sim) -> None:
        samples = {name: Sample(sim.now, 0, 0, cpu=(sim.now, sim.now * 0.9)) for name in sim.instances}
        sim.readings.append(Reading(at=sim.now, samples=samples))

    monkeypatch.setattr(Sim, "_scrape", scrape)
    limit = Limit(name="cpu", metric="cpu", max=0.85, sustained=5.0, window=10.0)
    sim.send(submit(2, template=template(cpus=1.0), policy=policy(limits=(limit,))))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.reason.startswith("cpu 90")
