"""Replays of good releases on a made-up past."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.analysis.rehearsal import Past, Rehearsal, Replays, binomial, needed, thin
from orchestrator.daemon.rehearse import _main_release, _samples
from orchestrator.rollout.observation import Sample
from orchestrator.rollout.plan import ladder
from orchestrator.rollout.policy import Certainty, Comparison, Policy
from tests.unit.test_comparison import ERRORS, P95

STEPS = ladder([5, 40], holds=(30, 30), bake=60, holdback=5, max_hold=1800, min_requests=0, deadline=3600)


def policy(*rules: Comparison) -> Policy:
    return Policy(kind="canary", steps=STEPS, comparisons=rules or (ERRORS,))


def past(
    *, instances: int = 3, rate: float = 100.0, errors: float = 0.002, burst: int = 1, minutes: int = 60
) -> Past:
    """`burst`: errors come this many at a time, on one instance."""
    chance = random.Random(7)
    found, counters = Past(5.0), {f"api-1-{i}": [0.0, 0.0] for i in range(instances)}
    samples = {}
    for tick in range(minutes * 12):
        for counter in counters.values():
            n = rate * 5 / instances
            counter[0] += n
            counter[1] += min(binomial(chance, int(n), errors / burst) * burst, n)
        samples[tick * 5.0] = {
            name: Sample(tick * 5.0, n, x, {0.1: n * 0.96, math.inf: n}) for name, (n, x) in counters.items()
        }
    found.take(samples)
    return found


def last(replays: Iterator[Replays]) -> Replays:
    *_, end = replays
    return end


def test_independent_errors_need_no_dispersion() -> None:
    rehearsal = Rehearsal(policy(ERRORS, P95), past(), random.Random(1))
    found = last(rehearsal.instances(200, 1.0))
    assert found.number == 200
    assert found.false_rate <= 0.01
    assert found.rolled_back + found.held + len(found.seconds) == 200


def test_errors_that_cluster_on_an_instance_need_some() -> None:
    clustered = past(errors=0.02, burst=25)
    plain = last(Rehearsal(policy(), clustered, random.Random(1)).instances(100, 1.0))
    calm = last(Rehearsal(policy(), clustered, random.Random(1)).instances(30, 20.0))
    assert plain.false_rate > 0.02
    assert plain.by == {"errors": plain.rolled_back}
    assert calm.false_rate < plain.false_rate / 2


def test_how_long_a_good_release_takes_depends_on_traffic() -> None:
    quick = last(Rehearsal(policy(), past(rate=500), random.Random(1)).routed(50, 1.0))
    slow = last(Rehearsal(policy(), past(rate=20), random.Random(1)).routed(50, 1.0))
    fast_half, slow_half = quick.quantile(0.5), slow.quantile(0.5)
    assert fast_half is not None
    assert slow_half is not None
    assert 120 <= fast_half < slow_half
    assert quick.rolled_back == 0


def test_the_same_seed_is_the_same_rehearsal() -> None:
    ends = [last(Rehearsal(policy(), past(), random.Random(3)).routed(20, 1.0)) for _ in range(2)]
    assert ends[0] == ends[1]


def test_too_little_traffic_is_told_with_its_numbers() -> None:
    assert Rehearsal(policy(), past(rate=100), random.Random(1)).undecidable() == []
    few = Rehearsal(policy(), past(rate=0.6), random.Random(1)).undecidable()
    assert few
    assert "errors at 5 %: to rule out 1.2 percentage points takes about" in few[0]
    assert "max_step is 30 min" in few[0]


def test_a_single_instance_can_only_be_routed() -> None:
    rehearsal = Rehearsal(policy(), past(instances=1), random.Random(1))
    assert not rehearsal.has_siblings
    assert last(rehearsal.routed(10, 1.0)).number == 10


def test_a_comparison_without_a_usable_bound_is_named() -> None:
    tail = replace(P95, name="tail", quantile=0.99)
    rehearsal = Rehearsal(policy(ERRORS, P95, tail), past(), random.Random(1))
    assert rehearsal.unusable == ["tail"]
    assert [r.name for r in rehearsal.policy.comparisons] == ["errors", "p95"]


def test_an_instance_that_ends_in_mid_replay_is_followed_by_another() -> None:
    found = past(minutes=10)
    half = len(found.moments) // 2
    for i, moment in enumerate(found.moments[half:], half):
        renamed = {n.replace("api-1", "api-2"): c for n, c in moment.instances.items()}
        found.moments[i] = replace(moment, instances=renamed)
    assert last(Rehearsal(policy(), found, random.Random(1)).instances(20, 1.0)).number == 20


def test_gaps_and_new_instances_are_left_out() -> None:
    found = Past(5.0)
    found.take(
        {
            0.0: {"a": Sample(0, 10, 0)},
            5.0: {"a": Sample(5, 20, 1), "b": Sample(5, 900, 9)},
            60.0: {"a": Sample(60, 500, 1)},
            65.0: {"a": Sample(65, 2, 1)},
        }
    )
    assert [(m.at, {n: c.requests for n, c in m.instances.items()}) for m in found.moments] == [
        (5.0, {"a": 10.0}),
        (65.0, {"a": 2.0}),
    ]


@pytest.mark.parametrize(("n", "p"), [(50, 0.05), (50, 0.95), (400, 0.3), (100_000, 0.4), (3, 0.5)])
def test_a_binomial_has_its_mean_and_spread(n: int, p: float) -> None:
    chance = random.Random(5)
    drawn = [binomial(chance, n, p) for _ in range(2000)]
    mean = sum(drawn) / len(drawn)
    variance = sum((d - mean) ** 2 for d in drawn) / len(drawn)
    assert 0 <= min(drawn) <= max(drawn) <= n
    assert mean == pytest.approx(n * p, abs=5 * math.sqrt(n * p * (1 - p) / 2000))
    assert variance == pytest.approx(n * p * (1 - p), rel=0.2)


def test_the_edges_of_a_binomial() -> None:
    chance = random.Random(5)
    assert [binomial(chance, n, p) for n, p in ((0, 0.5), (7, 0.0), (7, 1.0))] == [0, 0, 7]
    assert thin(chance, 10, 3, 1.5) == (10, 3)
    kept, spoilt = thin(chance, 1000, 100, 0.1)
    assert spoilt <= kept < 300


def test_requests_that_are_needed() -> None:
    clean = needed(0.0, 0.0333, 0.05, Certainty())
    assert clean == pytest.approx(math.log(20) / 0.0333, rel=0.05)
    assert needed(0.05, 0.0333, 0.05, Certainty()) > clean
    assert needed(0.0, 0.0333, 0.05, Certainty(dispersion=3.0)) == pytest.approx(3 * clean)


ROW: dict[str, Any] = {"metric": {"release": "api-2", "instance": "api-2-0"}, "values": [[0, "5"], [5, "9"]]}
OLD: dict[str, Any] = {"metric": {"release": "api-1", "instance": "api-1-0"}, "values": [[0, "1"], [5, "2"]]}


def test_the_release_with_most_requests_is_read() -> None:
    assert _main_release([OLD, ROW]) == "api-2"
    assert _main_release([]) == ""
    bucket = {"metric": {**ROW["metric"], "le": "100"}, "values": [[5, "8"]]}
    nan = {"metric": {"release": "api-2", "instance": "api-2-1"}, "values": [[5, "NaN"]]}
    total = {**ROW, "values": [[5, "7"]]}
    found = _samples(
        {"requests": [OLD, ROW, nan], "errors": [], "bucket": [bucket], "total:pay": [total]}, 0.001
    )
    assert found[0.0] == {"api-2-0": Sample(0.0, 5.0, 0.0)}
    assert found[5.0] == {"api-2-0": Sample(5.0, 9.0, 0.0, {0.1: 8.0}, {"pay": (7.0, 0.0)})}
