"""Counters that were not seen are not zero, and what was counted before is not counted again."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rollout.counts import Counts, count, difference, settle
from orchestrator.rollout.evidence import safety
from orchestrator.rollout.model import Outcome, Phase, Result
from orchestrator.rollout.observation import Reading, Sample
from orchestrator.rollout.policy import Comparison, Limit
from tests.builders import LADDER, policy, submit
from tests.unit.sim import Sim
from tests.unit.test_comparison import compared

INF = float("inf")
PAY = Comparison(name="pay", metric="counts", total="t", bad="b")
ERRORS = Comparison(name="errors", metric="error_rate")


def readings(samples: Sequence[Sample | None]) -> list[Reading]:
    """As a daemon remembers them, one a second; None: the target was down."""
    found: list[Reading] = []
    known: dict[str, object] = {}
    for at, sample in enumerate(samples):
        raw = Reading(at=at, samples={} if sample is None else {"a": replace(sample, at=at)})
        known, reading = settle(known, raw)  # type: ignore[arg-type, assignment]
        found.append(reading)
    return found


def total(samples: Sequence[Sample | None]) -> Counts:
    return count(readings(samples), ["a"], since=-1.0)


def test_a_counter_that_is_missing_once_leaves_the_others_alone() -> None:
    pay = {"pay": (500_000.0, 10_000.0)}
    seen = [
        Sample(0, 1_000_000, 900, own=pay),
        Sample(0, 1_000_100, 900),
        Sample(0, 1_000_200, 900, own={"pay": (500_020.0, 10_001.0)}),
        Sample(0, 1_000_300, 901, own={"pay": (500_030.0, 10_001.0)}),
    ]
    assert (total(seen[:2]).requests, total(seen[:2]).errors, total(seen[:2]).own) == (100, 0, {})
    assert (total(seen).requests, total(seen).errors) == (300, 1)
    assert total(seen).own == {"pay": (10, 0)}


def test_a_series_that_vanishes_is_not_zero_and_comes_back_without_its_past() -> None:
    seen = [Sample(0, 1000, 900), Sample(0, 1100, 0), Sample(0, 1200, 903), Sample(0, 1300, 904)]
    assert [r.samples["a"].unseen for r in readings(seen)] == [set(), {"requests"}, set(), set()]
    assert total(seen) == Counts(100, 1)


def test_a_counter_that_goes_down_alone_says_nothing_of_the_time_between() -> None:
    older, newer = Sample(0, 10, 5, {INF: 9}, {"pay": (7, 1)}), Sample(1, 30, 1, {INF: 2}, {"pay": (9, 1)})
    assert difference(older, newer) == Counts(own={"pay": (2, 0)})


def test_a_process_that_began_anew_need_not_have_an_error_yet() -> None:
    seen = [Sample(0, 1000, 900, {INF: 1000}), Sample(0, 20, 0, {INF: 20}), Sample(0, 50, 2, {INF: 50})]
    assert [r.samples["a"].unseen for r in readings(seen)] == [set()] * 3
    assert total(seen) == Counts(50, 2, {INF: 50})


def test_an_own_counter_that_was_not_asked_for_yet_begins_at_its_first_value() -> None:
    seen = [
        Sample(0, 10, 0),
        Sample(0, 20, 0, own={"pay": (500_000, 9)}),
        Sample(0, 30, 0, own={"pay": (500_007, 9)}),
    ]
    assert total(seen).own == {"pay": (7, 0)}


SERIES = ("requests", "errors", "bucket", "total", "bad")


@st.composite
def journeys(draw: st.DrawFn) -> tuple[list[Sample | None], list[dict[str, float]]]:
    """What Prometheus shows of five counters, and what each has truly counted since the reading before.

    Any of them may go unseen, or begin anew, at any reading but the first.
    """
    values = {name: float(draw(st.sampled_from([0, 7, 10**6]))) for name in SERIES}
    shown: list[Sample | None] = []
    true: list[dict[str, float]] = []
    for number in range(draw(st.integers(2, 8))):
        reset = draw(st.sets(st.sampled_from(SERIES))) if number else set()
        hidden = draw(st.sets(st.sampled_from(SERIES))) if number else set()
        added = {name: float(draw(st.integers(0, 50))) if number else 0.0 for name in SERIES}
        values = {n: (0.0 if n in reset else values[n]) + added[n] for n in SERIES}
        true.append(added)
        seen = {n: 0.0 if n in hidden else values[n] for n in SERIES}
        shown.append(
            None
            if number and draw(st.integers(0, 9)) == 0
            else Sample(
                0,
                seen["requests"],
                seen["errors"],
                {INF: seen["bucket"]} if seen["bucket"] else {},
                {} if "total" in hidden else {"pay": (seen["total"], seen["bad"])},
            )
        )
    return shown, true


@given(journeys())
def test_no_more_is_counted_than_was_counted_since_the_first_reading(
    journey: tuple[list[Sample | None], list[dict[str, float]]],
) -> None:
    shown, true = journey
    found = total(shown)
    pay = found.own.get("pay", (0.0, 0.0))
    counted = (found.requests, found.errors, found.buckets.get(INF, 0.0), *pay)
    for name, value in zip(SERIES, counted, strict=True):
        assert 0 <= value <= sum(added[name] for added in true)


@given(journeys())
def test_what_is_shown_whole_is_counted_whole(
    journey: tuple[list[Sample | None], list[dict[str, float]]],
) -> None:
    _, true = journey
    values = dict.fromkeys(SERIES, 0.0)
    shown = []
    for added in true:
        values = {n: values[n] + added[n] for n in SERIES}
        v = values
        shown.append(
            Sample(0, v["requests"], v["errors"], {INF: v["bucket"]}, {"pay": (v["total"], v["bad"])})
        )
    found = total(shown)
    sums = {n: sum(added[n] for added in true) for n in SERIES}
    assert (found.requests, found.errors) == (sums["requests"], sums["errors"])
    assert found.buckets == {INF: sums["bucket"]}
    assert found.own == {"pay": (sums["total"], sums["bad"])}


def _payments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let each instance have counted payments for long, which are not seen of those named in the answer."""
    hidden: list[str] = []
    scrape = Sim._scrape

    def with_payments(self: Sim) -> None:
        scrape(self)
        last = self.readings[-1]
        samples = {
            n: s if n in hidden else replace(s, own={"pay": (5e5 + s.requests, 1e4)})
            for n, s in last.samples.items()
        }
        self.known, self.readings[-1] = settle(self.known, replace(last, samples=samples))

    monkeypatch.setattr(Sim, "_scrape", with_payments)
    return hidden


@pytest.mark.parametrize("hidden_of", ["api-1", "api-2"])
def test_a_gate_without_its_counters_has_no_data_and_the_others_go_on(
    sim: Sim, monkeypatch: pytest.MonkeyPatch, hidden_of: str
) -> None:
    hidden = _payments(monkeypatch)
    sim.send(submit(2, policy=compared(ERRORS, PAY)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(2)
    rollout = sim.state.rollout
    assert rollout is not None
    proof = {e.gate: safety(e) for e in rollout.evidence}
    hidden += [f"{hidden_of}-0"]
    sim.step()
    rollout = sim.state.rollout
    assert rollout is not None
    errors, pay = rollout.verdicts
    assert errors.harm is not None
    assert errors.samples > 0
    assert pay.result is (Result.NO_DATA if hidden_of == "api-2" else Result.INCONCLUSIVE)
    assert f"{hidden_of}-0" in pay.text
    hidden.clear()
    sim.run(1)
    rollout = sim.state.rollout
    assert rollout is not None
    now = {e.gate: safety(e) for e in rollout.evidence}
    assert now["pay"] == proof["pay"]
    assert now["errors"] < 20
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_limit_without_its_counters_has_no_data(sim: Sim) -> None:
    limit = Limit(name="errors", metric="error_rate", max=0.5, window=60.0)
    slow = Limit(name="slow", metric="latency", max=0.5, window=60.0)
    steps = (replace(LADDER[0], hold=30.0), *LADDER[1:])
    sim.behave("api-2").errors = 0.1
    sim.send(submit(2, policy=policy(steps=steps, limits=(limit, slow))))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(5)
    sim.behave("api-2").errors = 0.0
    for name in ("api-2-0", "api-2-1"):
        sim.counters[name].errors = 0.0
    sim.step()
    assert sim.state.rollout is not None
    errors, other = sim.state.rollout.verdicts
    assert (errors.result, other.result) == (Result.NO_DATA, Result.PASS)
    assert "api-2-0" in errors.text
