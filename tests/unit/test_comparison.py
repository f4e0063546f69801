"""Gates on evidence in the journey of a release."""

import bisect
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.rollout.command import Pause, Resume
from orchestrator.rollout.compare import alone, unlikely
from orchestrator.rollout.counts import missing_data
from orchestrator.rollout.decide import decide
from orchestrator.rollout.events import GateJudged, GatesLooked, PhaseEntered, RolloutPaused
from orchestrator.rollout.gates import unmet
from orchestrator.rollout.model import Outcome, Phase, Result
from orchestrator.rollout.observation import Reading, Sample
from orchestrator.rollout.plan import ladder
from orchestrator.rollout.policy import P95_EFFECTS, P99_EFFECTS, Certainty, Comparison, Limit, Policy
from orchestrator.rollout.turn import Turn
from tests.builders import policy, submit
from tests.unit.sim import Sim

ERRORS = Comparison(name="errors", metric="error_rate")
P95 = Comparison(
    name="p95",
    metric="latency",
    quantile=0.95,
    ratio=1.25,
    margin=0.002,
    budget=0.02,
    weight=0.2,
    usual=0.05,
    warm_up=5.0,
    effects=P95_EFFECTS,
)
P99 = replace(P95, name="p99", quantile=0.99, usual=0.01, effects=P99_EFFECTS)

STALE = "the gates have not been looked at since the route changed"


def compared(*rules: Comparison, **changes: object) -> Policy:
    steps = ladder([5, 40], holds=(5, 5), bake=10, holdback=5, max_hold=40, min_requests=0, deadline=120)
    return policy(steps=steps, limits=(), comparisons=rules or (ERRORS, P95, P99), **changes)


def weights(sim: Sim, release: str = "api-2") -> list[int]:
    return [e.weight for e in sim.events if isinstance(e, PhaseEntered) and e.release == release and e.weight]


def test_a_good_release_is_certified_step_by_step_and_stable_is_held_back(sim: Sim) -> None:
    sim.send(submit(2, policy=compared()))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.PROMOTED
    assert weights(sim) == [5, 40, 95, 100]
    assert ended.seconds < 120
    last = [e for e in sim.events if isinstance(e, GatesLooked)][-1]
    assert last.weight == 95
    assert all(look.result is Result.PASS for look in last.looks)
    assert last.harm < 1


def test_a_bad_release_goes_back_with_a_sentence_that_has_the_counts(sim: Sim) -> None:
    sim.behave("api-2").errors = 0.2
    sim.send(submit(2, policy=compared()))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert weights(sim) == [5]
    assert ended.verdict is not None
    found = ended.verdict
    assert (found.gate, found.result) == ("errors", Result.FAIL)
    assert found.harm is not None
    assert found.harm >= 100 / 0.6
    assert found.value == pytest.approx(0.2)
    assert found.interval is not None
    assert found.interval[0] < 0.2 < found.interval[1]
    assert found.baseline == 0
    assert found.baseline_samples > found.samples > 0
    assert "candidate 20.00 % of " in ended.reason
    assert "stable 0.00 % of " in ended.reason
    assert "below 1 in 100" in ended.reason


def test_a_slow_tail_goes_back_after_the_warm_up(sim: Sim) -> None:
    sim.behave("api-2").slow = 0.3
    sim.send(submit(2, policy=compared()))
    rollout = sim.until_phase(Phase.SHIFTING, held=True)
    exposed = rollout.exposed_since
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.verdict is not None
    assert ended.verdict.gate in ("p95", "p99")
    assert "took over 100 ms" in ended.reason
    assert exposed is not None
    assert ended.at >= exposed + P95.warm_up


def test_what_is_slow_only_while_it_warms_up_is_good(sim: Sim) -> None:
    sim.behave("api-2").slow = 0.5
    sim.send(submit(2, policy=compared()))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(4)
    sim.behave("api-2").slow = 0.0
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_an_outage_of_both_is_nobodys_fault(sim: Sim) -> None:
    sim.send(submit(2, policy=compared()))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(3)
    for release in ("api-1", "api-2"):
        sim.behave(release).errors = 0.5
    sim.run(20)
    for release in ("api-1", "api-2"):
        sim.behave(release).errors = 0.0
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_little_traffic_takes_longer_and_then_nothing_against_it_suffices(sim: Sim) -> None:
    sim.behave("api-1").rate = sim.behave("api-2").rate = 0.5
    sim.send(submit(2, policy=compared(ERRORS)))
    rollout = sim.until_phase(Phase.SHIFTING, held=True)
    held = rollout.held_since
    assert held is not None
    second = sim.until_phase(Phase.SHIFTING, 1)
    assert second.entered_at - held >= 40


def test_suspicion_keeps_a_step_until_a_person_is_asked(sim: Sim) -> None:
    rule = replace(ERRORS, margin=0.0005)
    sure = Certainty(alpha=1e-9, suspicion=3.0)
    sim.behave("api-2").errors = 0.012
    sim.send(submit(2, policy=compared(rule, certainty=sure)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(140)
    assert sim.state.rollout is not None
    assert weights(sim) == [5]
    assert sim.state.rollout.mark is not None
    assert "from 3 on no step is left" in sim.state.rollout.mark.reason
    assert [e for e in sim.events if isinstance(e, RolloutPaused)]


def test_a_verdict_says_that_sticky_users_are_fewer_than_their_requests(sim: Sim) -> None:
    sim.behave("api-2").errors = 0.3
    sim.send(submit(2, policy=compared(ERRORS, certainty=Certainty(sticky=True))))
    reason = sim.until_ended("api-2").reason
    assert reason.endswith("below 1 in 100, as far as its sticky users are like stable's")


@pytest.mark.parametrize(("action", "outcome"), [("rollback", Outcome.ROLLED_BACK), ("hold", None)])
def test_what_happens_when_it_stays_undecided_is_a_policy(
    sim: Sim, action: str, outcome: Outcome | None
) -> None:
    sure = Certainty(alpha=1e-9, suspicion=1.001)
    sim.behave("api-2").errors = 0.008
    sim.send(submit(2, policy=compared(ERRORS, certainty=sure, on_inconclusive=action)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(150)
    assert sim.outcomes().get("api-2") is outcome


def test_no_request_at_the_candidate_where_some_were_expected_is_a_failure(sim: Sim) -> None:
    sim.behave("api-2").rate = 0.0
    sim.send(submit(2, policy=compared(ERRORS)))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "no request reached the candidate" in ended.reason


def test_a_lull_just_after_a_step_is_not_taken_for_a_candidate_without_requests(sim: Sim) -> None:
    """At a large share few requests of stable are many expected ones, and a scrape may have begun before."""
    sim.send(submit(2, policy=compared(ERRORS)))
    sim.until_phase(Phase.SHIFTING, 2, held=True)
    sim.behave("api-2").rate = 0.0
    sim.run(2)
    sim.behave("api-2").rate = 100.0
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_requests_from_before_a_step_are_not_expected_at_the_candidate(sim: Sim) -> None:
    """The first block began long before: Prometheus scraped late. Users were many, and are gone."""
    sim.behave("api-1").rate = sim.behave("api-2").rate = 0.0
    sim.send(submit(2, policy=compared(ERRORS)))
    sim.until_phase(Phase.SHIFTING, held=True)
    first = sim.readings[-1]
    early = {n: replace(s, at=s.at - 20, requests=s.requests - 5000) for n, s in first.samples.items()}
    early |= {n: replace(s, at=s.at - 20) for n, s in first.samples.items() if n.startswith("api-2")}
    sim.readings.insert(0, replace(first, at=first.at - 20, samples=early))
    sim.state = replace(sim.state, rollout=replace(sim.state.rollout, block_from=first.at - 20))  # type: ignore[type-var]
    sim.run(30)
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.evidence[0].step.stable_requests == 10_000
    assert rollout.phase is Phase.SHIFTING, rollout.reason


def test_what_is_expected_came_in_the_step_and_before_the_candidate_was_read() -> None:
    """Whatever is scraped when, and whenever somebody looks."""
    chance, of_all, found = random.Random(1), 0.0, 0.0
    for _ in range(200):
        since = chance.uniform(5.0, 15.0)
        came = {name: sorted(chance.uniform(0.0, 60.0) for _ in range(300)) for name in ("a", "b")}
        scraped = {name: _moments(chance, 0.2, 6.0) for name in ("a", "b", "c", "d")}
        readings = [
            Reading(at=at, samples={n: _shown(came.get(n, []), times, at) for n, times in scraped.items()})
            for at in _moments(chance, 0.5, chance.choice((1.0, 20.0)))
            if at > max(times[0] for times in scraped.values())
        ]
        total = alone(ERRORS, None, readings, ("c", "d"), ("a", "b"), since)
        read = min(readings[-1].samples[name].at for name in ("c", "d"))
        really = sum(since <= at <= read for times in came.values() for at in times)
        assert total <= really
        of_all, found = of_all + really, found + total
    assert found > 0.7 * of_all


def _moments(chance: random.Random, least: float, most: float) -> list[float]:
    return list(itertools.takewhile(lambda at: at < 60.0, itertools.accumulate(_gaps(chance, least, most))))


def _gaps(chance: random.Random, least: float, most: float) -> Iterator[float]:
    while True:
        yield chance.uniform(least, most)


def _shown(came: list[float], scraped: list[float], now: float) -> Sample:
    at = max(moment for moment in scraped if moment <= now)
    return Sample(at, float(bisect.bisect(came, at)), 0.0)


def test_requests_of_a_warm_up_are_not_expected_after_it(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the last of them, that stable was scraped for after the candidate. Then all users are gone."""
    scrape = Sim._scrape

    def stable_later(self: Sim) -> None:
        scrape(self)
        last = self.readings[-1]
        later = {n: replace(s, at=s.at + 0.1 * n.startswith("api-1")) for n, s in last.samples.items()}
        self.readings[-1] = replace(last, samples=later)

    monkeypatch.setattr(Sim, "_scrape", stable_later)
    sim.behave("api-1").rate = sim.behave("api-2").rate = 1000.0
    sim.send(submit(2, policy=compared(P95)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(5)
    sim.behave("api-1").rate = sim.behave("api-2").rate = 0.0
    sim.run(30)
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.evidence[0].step_blocks > 20
    assert rollout.phase is Phase.SHIFTING, rollout.reason


def test_requests_that_stable_had_before_the_candidate_was_read_are_not_expected_there(sim: Sim) -> None:
    """The daemon was restarted: of what was before its first look nothing is known."""
    readings = [
        Reading(at=at, samples={"s": Sample(at + 0.5, 100.0 * at, 0.0), "c": Sample(at, 0.0, 0.0)})
        for at in range(10)
    ]
    assert alone(ERRORS, None, readings, ["c"], ["s"], 2.0) == 600.0
    assert alone(ERRORS, None, readings[5:], ["c"], ["s"], 2.0) == 300.0
    late = [replace(r, samples={"s": r.samples["s"]}) for r in readings[:7]]
    assert alone(ERRORS, None, [*late, *readings[7:]], ["c"], ["s"], 2.0) == 100.0


OWN = Comparison(name="paid", metric="counts")


@pytest.mark.parametrize(
    ("mine", "theirs", "found"),
    [
        ([0, 0, 0, 0], [10, 20, 30, 40], 20.0),
        ([0, 0, 1, 1], [10, 20, 30, 40], 0.0),
        ([7, 7, 0, 0], [10, 20, 30, 40], 0.0),
        ([7, 7, 7, 7], [10, 20, 5, 25], 10.0),
        ([None] * 4, [10, 20, 30, 40], 20.0),
        ([None, None, 1, 1], [10, 20, 30, 40], 0.0),
        ([0, 0, 0, 0], [None, None, 500, 520], 0.0),
        ([0, 0, 0, 0], [10, None, 30, 40], 20.0),
        ([0, 0, 0, 0], [10, -1.0, 30, 40], 20.0),
    ],
)
def test_only_what_is_known_is_expected(
    mine: list[float | None], theirs: list[float | None], found: float
) -> None:
    """Of counters that are born, fall or are no numbers; stable is scraped after the candidate."""

    def sample(at: float, total: float | None) -> Sample:
        return Sample(at, 0.0, 0.0, own={} if total is None else {"paid": (total, 0.0)})

    readings = [
        Reading(at=at, samples={"c": sample(at, c), "s": sample(at + 0.5, s)})
        for at, (c, s) in enumerate(zip(mine, theirs, strict=True))
    ]
    assert alone(OWN, None, readings, ["c"], ["s"], 0.0) == found


def test_how_unlikely_it_is_that_stable_has_all() -> None:
    """By chance alone, whatever the share; the number that is expected where that is small."""
    assert math.isclose(math.exp(-unlikely(7, 0.95)), 0.05**7)
    assert math.isclose(unlikely(1000, 0.01), 10.0, rel_tol=0.01)


def test_no_traffic_at_all_is_not_a_failure_but_never_a_pass(sim: Sim) -> None:
    sim.behave("api-1").rate = sim.behave("api-2").rate = 0.0
    sim.send(submit(2, policy=compared(ERRORS)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(200)
    assert sim.state.rollout is not None
    assert sim.state.rollout.step == 0
    assert sim.state.rollout.mark is not None
    assert "the candidate has had no requests" in sim.state.rollout.mark.reason


def test_a_stable_that_can_not_be_read_holds_and_a_candidate_that_can_not_goes_back(sim: Sim) -> None:
    sim.send(submit(2, policy=compared(ERRORS)))
    sim.until_phase(Phase.SHIFTING, held=True)

    def hide(release: str) -> None:
        last = sim.readings[-1]
        samples = {n: s for n, s in last.samples.items() if not n.startswith(release)}
        sim.readings[-1] = replace(last, at=last.at + 0.1, samples=samples)

    for _ in range(40):
        sim.now += 1
        sim._scrape()
        hide("api-1")
        sim.state, events = decide(sim.state, sim.observe(), sim.now)
        sim.events += events
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.SHIFTING
    assert sim.state.rollout.verdicts[0].result is Result.INCONCLUSIVE
    for _ in range(20):
        sim.now += 1
        sim._scrape()
        hide("api-2")
        sim.state, events = decide(sim.state, sim.observe(), sim.now)
        sim.events += events
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.ROLLING_BACK
    assert "no data for" in sim.state.rollout.reason


def test_evidence_goes_on_after_a_restart_that_lost_the_readings(sim: Sim) -> None:
    sim.send(submit(2, policy=compared(ERRORS)))
    rollout = sim.until_phase(Phase.SHIFTING, held=True)
    held = rollout.held_since
    sim.run(3)
    assert sim.state.rollout is not None
    before = sim.state.rollout.evidence[0]
    assert before.blocks >= 2
    sim.readings.clear()
    sim.run(1)
    assert sim.state.rollout.evidence[0] == before
    sim.run(2)
    assert sim.state.rollout.evidence[0].blocks > before.blocks
    assert sim.state.rollout.held_since == held


def test_a_scrape_is_counted_once_however_often_it_is_read(sim: Sim) -> None:
    sim.send(submit(2, policy=compared(ERRORS)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(2)
    assert sim.state.rollout is not None
    before = sim.state.rollout.evidence
    for _ in range(5):
        sim.now += 1
        last = sim.readings[-1]
        sim.readings.append(replace(last, at=sim.now))
        sim.state, _ = decide(sim.state, sim.observe(), sim.now)
    assert sim.state.rollout is not None
    assert sim.state.rollout.evidence == before


def test_the_clock_of_an_answer_does_not_make_a_scrape_new() -> None:
    first, again = Sample(100.0, 5, 0, stamp=7.0), Sample(100.3, 5, 0, stamp=7.0)
    assert not again.later_than(first)
    assert Sample(105.0, 9, 0, stamp=12.0).later_than(first)


def test_a_histogram_without_a_bound_above_the_quantile_is_no_data(sim: Sim) -> None:
    sim.behave("api-1").slow = 0.5
    only = replace(P99, quantile=0.999)
    sim.send(submit(2, policy=compared(only)))
    sim.until_phase(Phase.SHIFTING, held=True)
    last = sim.readings[-1]
    samples = {n: replace(s, buckets={0.1: 0.0, math.inf: s.requests}) for n, s in last.samples.items()}
    sim.readings = [Reading(at=last.at + 0.5, samples=samples)]
    assert sim.state.rollout is not None
    blank = replace(sim.state, rollout=replace(sim.state.rollout, evidence=()))
    state, _ = decide(blank, sim.observe(), sim.now)
    assert state.rollout is not None
    assert state.rollout.verdicts[0].result is Result.NO_DATA
    assert "no bound above its p99.9" in state.rollout.verdicts[0].text


def test_a_candidate_without_a_histogram_yet_is_waited_for(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    scrape = Sim._scrape

    def born_with_a_request(sim: Sim) -> None:
        scrape(sim)
        last = sim.readings[-1]
        samples = {n: s if s.requests else replace(s, buckets={}) for n, s in last.samples.items()}
        sim.readings[-1] = replace(last, samples=samples)

    monkeypatch.setattr(Sim, "_scrape", born_with_a_request)
    sim.behave("api-2").rate = 0.0
    sim.send(submit(2, policy=compared(P99)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(2)
    assert sim.state.rollout is not None
    assert sim.state.rollout.verdicts[0].result is Result.INCONCLUSIVE
    assert "no histogram yet" in sim.state.rollout.verdicts[0].text
    sim.behave("api-2").rate = 100.0
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_gate_on_trial_reports_and_does_not_decide(sim: Sim) -> None:
    sim.behave("api-2").errors = 0.2
    trial = Limit(name="limit", metric="error_rate", max=0.01, min_requests=1, dry_run=True)
    rules = (replace(ERRORS, dry_run=True), P99)
    sim.send(submit(2, policy=replace(compared(*rules), limits=(trial,))))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    told = {
        e.verdict.gate for e in sim.events if isinstance(e, GateJudged) and e.verdict.result is Result.FAIL
    }
    assert told == {"errors", "limit"}
    assert all(e.verdict.dry_run for e in sim.events if isinstance(e, GateJudged) and e.verdict.gate in told)


def test_a_limit_decides_beside_the_comparison(sim: Sim) -> None:
    sim.behave("api-1").errors = sim.behave("api-2").errors = 0.05
    limit = Limit(name="limit", metric="error_rate", max=0.02, min_requests=10, sustained=2.0, window=10.0)
    sim.send(submit(2, policy=replace(compared(ERRORS), limits=(limit,))))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.reason.startswith("limit 5.00 %")


def test_a_limit_with_too_few_requests_does_not_hold_up_what_is_certified(sim: Sim) -> None:
    limit = Limit(name="limit", metric="error_rate", max=0.02, min_requests=10**6, window=10.0)
    sim.send(submit(2, policy=replace(compared(ERRORS), limits=(limit,))))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_fixed_holds_wait_their_time_and_need_no_certificate(sim: Sim) -> None:
    sim.behave("api-1").rate = sim.behave("api-2").rate = 0.5
    steps = ladder([5], holds=(30, 30), bake=10, holdback=5, max_hold=None, min_requests=0, deadline=60)
    sim.send(submit(2, policy=policy(steps=steps, limits=(), comparisons=(ERRORS,))))
    rollout = sim.until_phase(Phase.SHIFTING, held=True)
    held = rollout.held_since
    assert held is not None
    second = sim.until_phase(Phase.SHIFTING, 1)
    assert 30 <= second.entered_at - held <= 32
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_fixed_holds_do_not_pass_without_a_request(sim: Sim) -> None:
    sim.behave("api-1").rate = sim.behave("api-2").rate = 0.0
    steps = ladder([5], holds=(30, 30), bake=10, holdback=5, max_hold=None, min_requests=0, deadline=60)
    sim.send(submit(2, policy=policy(steps=steps, limits=(), comparisons=(ERRORS,))))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(200)
    assert weights(sim) == [5]


def test_business_counters_are_compared_with_stable_or_with_the_past(
    sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_rule = Comparison(
        name="pay", metric="counts", total="t", bad="b", margin=0.03, budget=0.065, effects=P95_EFFECTS
    )
    past_rule = replace(now_rule, name="past", history=86400.0)
    payments = {"api-1": 0.02, "api-2": 0.02}
    scrape = Sim._scrape
    counted: dict[str, tuple[float, float]] = {}

    def scrape_payments(sim: Sim) -> None:
        scrape(sim)
        last = sim.readings[-1]
        samples = {}
        for name, s in last.samples.items():
            counted[name] = (s.requests, s.requests * payments[name.rpartition("-")[0]])
            samples[name] = replace(s, own={"pay": counted[name], "past": counted[name]})
        sim.readings[-1] = replace(last, samples=samples, history={"past": 0.02})

    monkeypatch.setattr(Sim, "_scrape", scrape_payments)
    sim.send(submit(2, policy=compared(now_rule, past_rule)))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    payments["api-3"] = 0.15
    sim.send(submit(3, policy=compared(past_rule)))
    ended = sim.until_ended("api-3")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "were bad, 2.00 % in the past" in ended.reason
    payments["api-4"] = 0.15
    sim.send(submit(4, policy=compared(now_rule)))
    ended = sim.until_ended("api-4")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "were bad, stable 2.00 %" in ended.reason


def test_without_a_past_there_is_no_data(sim: Sim) -> None:
    rule = replace(ERRORS, history=86400.0)
    sim.send(submit(2, policy=compared(rule)))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "Prometheus has no history of 86400 s" in ended.reason


def test_a_pause_for_want_of_data_can_be_resumed(sim: Sim) -> None:
    sim.send(submit(2, policy=compared(ERRORS, on_no_data="pause")))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.unreadable.add("api-2")
    sim.run(20)
    assert sim.state.rollout is not None
    assert sim.state.rollout.mark is not None
    sim.unreadable.clear()
    sim.send(Resume(request="9-0", actor="ann"))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_evidence_goes_on_while_a_person_has_paused(sim: Sim) -> None:
    sim.send(submit(2, policy=compared(ERRORS)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(Pause(request="9-0", actor="ann"))
    sim.run(3)
    sim.behave("api-2").errors = 0.3
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK


def test_an_approval_comes_after_the_certificate(sim: Sim) -> None:
    steps = list(compared().steps)
    steps[0] = replace(steps[0], approve=True)
    sim.send(submit(2, policy=replace(compared(ERRORS), steps=tuple(steps))))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(60)
    assert sim.state.rollout is not None
    assert sim.state.rollout.mark is not None
    assert sim.state.rollout.mark.kind == "awaiting_approval"
    assert sim.state.rollout.verdicts[0].result is Result.PASS


def test_a_stable_instance_that_is_replaced_in_mid_step_counts_anew(sim: Sim) -> None:
    sim.send(submit(2, policy=compared(ERRORS)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(2)
    sim.counters["api-1-0"].requests = sim.counters["api-1-0"].errors = 0.0
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_verdicts_on_another_route_do_not_pass_a_step(sim: Sim) -> None:
    limit = Limit(name="limit", metric="error_rate", max=0.02, min_requests=1, window=10.0)
    sim.send(submit(2, policy=policy(limits=(limit,))))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(2)
    route = sim.state.route
    assert unmet(Turn(sim.state, sim.now), sim.observe(), 2.0) != STALE
    later = replace(sim.state, route=replace(route, generation=route.generation + 1))
    assert unmet(Turn(later, sim.now), sim.observe(), 2.0) == STALE


def test_a_gate_whose_own_queries_prometheus_refuses_has_no_data_and_says_why(
    sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrape = Sim._scrape

    def refused(sim: Sim) -> None:
        scrape(sim)
        why = {"pay": "pay{: parse error", "paid": "paid{: parse error"}
        sim.readings[-1] = replace(sim.readings[-1], refused=why)

    monkeypatch.setattr(Sim, "_scrape", refused)
    pay = Comparison(name="pay", metric="counts", total="pay{", bad="pay{")
    paid = Limit(name="paid", metric="query", query="paid{", max=1.0)
    sim.send(submit(2, policy=replace(compared(ERRORS, pay), limits=(paid,))))
    rollout = sim.until_phase(Phase.SHIFTING, held=True)
    sim.step()
    rollout = sim.state.rollout or rollout
    found = {v.gate: (v.result, v.text) for v in rollout.verdicts}
    assert found["pay"] == (Result.NO_DATA, "Prometheus: pay{: parse error")
    assert found["paid"] == (Result.NO_DATA, "Prometheus: paid{: parse error")
    assert found["errors"][0] is not Result.NO_DATA


def test_a_target_that_is_down_is_told_with_the_reason() -> None:
    reading = Reading(at=1.0, unread={"a": "connection refused", "b": ""})
    assert missing_data(reading, ["a"], 9.0, 1.0) == (
        "a is not scraped or its target is down: connection refused"
    )
    assert missing_data(reading, ["b"], 9.0, 1.0) == "b is not scraped or its target is down"
