"""The rule: no bet gains on average while its hypothesis is true, and evidence grows when it is not."""

import math
import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rollout.evidence import (
    EDGE,
    LATE_BLOCKS,
    MOST,
    Block,
    Evidence,
    begin,
    enter_step,
    harm,
    harm_bet,
    harm_of_all,
    hesitation,
    interval,
    log_harm,
    log_safety,
    safety,
    safety_bet,
    take,
)
from orchestrator.rollout.policy import P99_EFFECTS, Certainty, Comparison

ERRORS = Comparison(name="errors", metric="error_rate")
P99 = Comparison(
    name="p99", metric="latency", ratio=1.25, margin=0.002, budget=0.02, weight=0.2, effects=P99_EFFECTS
)
SURE = Certainty()


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def expectation(n_c: int, n_s: int, p_c: float, p_s: float, factor: "Factor") -> float:
    """The exact expectation over both sides' counts of bad requests."""
    return math.fsum(
        binomial(n_c, x_c, p_c) * binomial(n_s, x_s, p_s) * math.exp(factor(Block(n_c, x_c, n_s, x_s)))
        for x_c, x_s in product(range(n_c + 1), range(n_s + 1))
    )


class Factor:
    """Logarithm of a bet's factor in a block."""

    def __init__(self, rule: Comparison, bet: float, tolerance: float | None = None) -> None:
        self.rule, self.bet, self.tolerance = rule, bet, tolerance

    def __call__(self, block: Block) -> float:
        if self.tolerance is None:
            load = self.rule.ratio * block.requests / block.stable_requests
            return log_harm(block, load, self.rule.margin, self.bet)
        return log_safety(block, self.bet, self.tolerance)


SIZES = ((1, 1), (1, 12), (3, 40), (20, 5), (25, 25))
RATES = (0.0, 0.001, 0.01, 0.2, 0.6)


@pytest.mark.parametrize("rule", [ERRORS, P99], ids=lambda r: r.name)
@pytest.mark.parametrize(("n_c", "n_s"), SIZES)
def test_a_good_release_is_never_expected_to_gain_evidence_of_harm(
    rule: Comparison, n_c: int, n_s: int
) -> None:
    for p_s, guess, (effect, _) in product(RATES, RATES, rule.effects):
        p_c = min(rule.ratio * p_s + rule.margin, 1.0)
        bet = harm_bet(rule.ratio * n_c / n_s, rule.ratio * guess, rule.margin, effect)
        assert 0 < bet < n_s / (rule.ratio * n_c)
        for worst in (p_c, p_c / 2, 0.0):
            assert expectation(n_c, n_s, worst, p_s, Factor(rule, bet)) <= 1 + 1e-12


@pytest.mark.parametrize(("n_c", "n_s"), SIZES)
def test_a_harmful_release_is_never_expected_to_gain_evidence_of_safety(n_c: int, n_s: int) -> None:
    for p_s, guess, tolerance in product(RATES, RATES, (0.005, 0.033, 0.3)):
        bet = safety_bet(n_c / n_s, guess, tolerance)
        assert 0 < bet <= EDGE
        for p_c in (min(p_s + tolerance, 1.0), 1.0):
            if p_c >= p_s + tolerance:
                factor = Factor(ERRORS, bet, tolerance)
                assert expectation(n_c, n_s, p_c, p_s, factor) <= 1 + 1e-12


@pytest.mark.parametrize("dispersion", [1.5, 4.0])
def test_dispersion_makes_evidence_weaker_and_keeps_the_bound(dispersion: float) -> None:
    bet = harm_bet(0.1, 0.01, ERRORS.margin, 0.1)
    plain = Factor(ERRORS, bet)
    p_s = 0.05
    tempered = math.fsum(
        binomial(4, x_c, p_s + 0.001)
        * binomial(40, x_s, p_s)
        * math.exp(plain(Block(4, x_c, 40, x_s)) / dispersion)
        for x_c, x_s in product(range(5), range(41))
    )
    assert tempered <= 1


@given(st.floats(0.001, 50), st.floats(0, 0.9), st.floats(0.001, 0.5), st.floats(0, 0.05), st.floats(0.5, 2))
def test_bets_are_the_best_of_their_kind(
    a: float, q_s: float, effect: float, margin: float, ratio: float
) -> None:
    """The derivative of the growth is 0 at the bet, or the bet is at its edge and growth still rises."""
    b = harm_bet(ratio * a, ratio * q_s, margin, effect)
    q_c = ratio * q_s + margin + effect
    slope = q_c / (1 + b) - ratio * q_s / (1 - ratio * a * b) - margin
    scale = q_c + ratio * q_s + margin
    assert slope >= -1e-6 * scale / (1 - min(ratio * a * b, EDGE))
    if b < EDGE / (ratio * a) * (1 - 1e-9):
        assert abs(slope) <= 1e-5 * scale / (1 - min(ratio * a * b, EDGE))


def steady(
    rule: Comparison, block: Block, blocks: int, *, steps: int = 4, d: float | None = 0.03
) -> Evidence:
    evidence = enter_step(begin(rule), 0, steps)
    for _ in range(blocks):
        evidence = take(rule, evidence, block, SURE, d)
    return evidence


def test_nothing_seen_says_nothing() -> None:
    assert harm(ERRORS, begin(ERRORS)) == 1.0
    assert harm_of_all([ERRORS, P99], []) == 1.0
    assert harm_of_all([], []) == 0.0


def test_one_block_never_decides_and_two_may() -> None:
    disaster = Block(500, 500, 9500, 1)
    assert harm_of_all([ERRORS], [steady(ERRORS, disaster, 1)]) < 1 / SURE.alpha
    assert harm_of_all([ERRORS], [steady(ERRORS, disaster, 2)]) >= 1 / SURE.alpha


def test_a_good_release_loses_evidence_of_harm_and_gains_safety() -> None:
    evidence = steady(ERRORS, Block(25, 0, 475, 0), 10)
    assert harm(ERRORS, evidence) < 1
    assert safety(evidence) > 1 / SURE.beta
    assert evidence.step == Block(250, 0, 4750, 0)


def test_evidence_of_harm_that_begins_late_is_still_found() -> None:
    evidence = steady(ERRORS, Block(25, 0, 475, 0), 200)
    before = harm(ERRORS, evidence)
    for _ in range(8):
        evidence = take(ERRORS, evidence, Block(25, 5, 475, 0), SURE, None)
    assert before < 1
    assert harm(ERRORS, evidence) > 1 / SURE.alpha


def test_all_capital_is_on_some_beginning_and_no_more_than_all() -> None:
    evidence = begin(ERRORS)
    for step in range(4):
        evidence = enter_step(evidence, step, 4)
        for _ in range(LATE_BLOCKS // 2):
            evidence = take(ERRORS, evidence, Block(), SURE, None)
    assert evidence.idle == pytest.approx(0.0, abs=1e-9)
    assert harm(ERRORS, evidence) == pytest.approx(1.0)
    assert evidence.capital == pytest.approx((1.0,) * len(ERRORS.effects))


def test_a_new_step_must_be_proven_safe_anew() -> None:
    before = replace(steady(ERRORS, Block(25, 0, 475, 0), 10), alone=475.0)
    evidence = enter_step(before, 1, 4)
    assert (safety(evidence), evidence.step, evidence.alone) == (1.0, Block(), 0.0)
    assert evidence.past[0] > 4000


def test_a_block_without_stable_waits_for_the_next() -> None:
    evidence = enter_step(begin(ERRORS), 0, 4)
    waiting = take(ERRORS, evidence, Block(3, 1, 0, 0), SURE, 0.03)
    assert (waiting.pending, waiting.capital) == (Block(3, 1, 0, 0), evidence.capital)
    whole = take(ERRORS, waiting, Block(2, 0, 95, 1), SURE, 0.03)
    assert whole == take(ERRORS, evidence, Block(5, 1, 95, 1), SURE, 0.03)


def test_a_block_in_which_stable_jumps_adds_to_nothing() -> None:
    """An outage of both sides that the candidate's scrape sees some seconds before stable's."""
    evidence = steady(ERRORS, Block(125, 0, 2375, 2), 5)
    early = take(ERRORS, evidence, Block(125, 4, 2375, 2), SURE, 0.03)
    assert harm(ERRORS, early) > harm(ERRORS, evidence)
    late = take(ERRORS, early, Block(125, 62, 2375, 40), SURE, 0.03)
    assert max(b / a for a, b in zip(early.capital, late.capital, strict=True)) < 1.2
    assert safety(late) <= safety(early)
    unlike = take(ERRORS, early, Block(125, 62, 2375, 3), SURE, 0.03)
    assert harm(ERRORS, unlike) > 50 * harm(ERRORS, early)


def test_a_shared_outage_does_not_end_all_hope_of_a_step() -> None:
    evidence = steady(ERRORS, Block(125, 0, 2375, 2), 2)
    for _ in range(12):
        evidence = take(ERRORS, evidence, Block(125, 62, 2375, 1187), SURE, 0.033)
    assert safety(evidence) < 1
    for _ in range(12):
        evidence = take(ERRORS, evidence, Block(125, 0, 2375, 2), SURE, 0.033)
    assert safety(evidence) > 1 / SURE.beta


def test_capital_on_safety_is_all_capital_and_no_more() -> None:
    evidence = enter_step(begin(ERRORS), 0, 4)
    for _ in range(2000):
        evidence = take(ERRORS, evidence, Block(1e-9, 0, 1, 0), SURE, 0.03)
    assert safety(evidence) == pytest.approx(1.0, abs=1e-5)


def test_a_block_that_does_not_certify_leaves_safety_alone() -> None:
    evidence = steady(ERRORS, Block(25, 0, 475, 0), 3, d=None)
    assert safety(evidence) == 1.0
    assert harm(ERRORS, evidence) < 1


def test_evidence_of_a_gate_that_decides_nothing_does_not_overflow() -> None:
    evidence = steady(ERRORS, Block(500, 500, 9500, 1), 400)
    assert max(evidence.capital) == MOST
    assert math.isfinite(harm(ERRORS, evidence))


def test_what_stable_did_before_is_worth_a_thousand_requests_at_most() -> None:
    evidence = begin(ERRORS, requests=1e6, bad=1e5)
    requests, bad = evidence.past
    assert requests == 1500
    assert bad == pytest.approx(100.5)


def test_a_dry_run_is_not_in_the_total_and_delays_nothing() -> None:
    trial = replace(P99, dry_run=True)
    bad = steady(P99, Block(100, 90, 900, 1), 5)
    assert harm_of_all([ERRORS, P99], [bad]) > 100
    assert harm_of_all([ERRORS, trial], [bad]) == 1.0
    safe = steady(ERRORS, Block(25, 0, 475, 0), 10)
    assert hesitation([ERRORS, trial], [safe, bad], SURE, held=30, max_hold=1800) == ""


def test_why_a_step_is_not_left() -> None:
    safe, little = steady(ERRORS, Block(25, 0, 475, 0), 10), steady(ERRORS, Block(25, 0, 475, 0), 1)
    suspect = steady(ERRORS, Block(25, 1, 475, 0), 9)
    assert harm_of_all([ERRORS], [suspect]) > 10

    def ask(*found: Evidence, held: float = 30.0, max_hold: float | None = 1800.0) -> str:
        return hesitation([ERRORS], found, SURE, held=held, max_hold=max_hold)

    assert ask(safe) == ""
    assert "evidence of safety is" in ask(little)
    assert ask(little, held=1800.0) == ""
    assert ask(little, max_hold=None) == ""
    assert "from 10 on no step is left" in ask(suspect, max_hold=None)
    assert "has had no requests" in ask()
    assert "has had no requests" in ask(max_hold=None)
    assert "has had no requests" in ask(steady(ERRORS, Block(0, 0, 500, 0), 9), held=9999.0)
    mild = steady(ERRORS, Block(25, 1, 475, 4), 2)
    assert harm_of_all([ERRORS], [mild]) > 1
    assert "evidence of safety is" in ask(mild, held=9999.0)


def test_intervals_hold_the_share() -> None:
    low, high = interval(5, 100)
    assert 0 < low < 0.05 < high < 0.12
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(0, 10)[0] == 0.0
    assert interval(10, 10)[1] == 1.0


def test_false_alarms_of_a_good_release_are_rarer_than_alpha() -> None:
    """At the edge of what is good, at the worst place, for as long as a rollout may last."""
    chance = random.Random(4)
    alarms = 0
    for _ in range(300):
        evidence = enter_step(begin(ERRORS), 0, 4)
        for _ in range(60):
            x_c = sum(chance.random() < 0.011 for _ in range(20))
            x_s = sum(chance.random() < 0.010 for _ in range(180))
            evidence = take(ERRORS, evidence, Block(20, x_c, 180, x_s), SURE, None)
            if harm(ERRORS, evidence) >= 1 / SURE.alpha:
                alarms += 1
                break
    assert alarms <= 6
