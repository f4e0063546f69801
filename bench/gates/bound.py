"""How soon harm could be known at all."""

import functools
import itertools
import math
from collections.abc import Sequence

from bench.gates.ours import CERTAINTY, RULES
from bench.gates.stream import SCRAPE, Scenario, buckets
from orchestrator.rollout.evidence import Block, harm_bet, log_harm
from orchestrator.rollout.policy import Comparison


def information_bound(scenario: Scenario, shares: Sequence[float]) -> float:
    """Seconds until the information in the counts reaches ln(1/alpha), in whole scrapes, along a run.

    The information of a scrape is the Kullback-Leibler divergence of what happens from the nearest good
    release, which equals the greatest growth that a bet on these counts can have (Grünwald, de Heide and
    Koolen, "Safe testing", JRSS B 2024). A test with this alpha needs at least that much on average. The
    rates are taken as known; the warm-up of latency, in which nothing is judged, is added. After its end a
    run would have gone on at its last share.
    """
    soonest = math.inf
    for rule in RULES:
        found, known = 0.0, 0
        for share in itertools.chain(shares, itertools.repeat(shares[-1])):
            gain = _information(rule, scenario, share)
            known += 1
            if known * SCRAPE > rule.warm_up:
                found += gain
            if not gain or found >= math.log(1 / CERTAINTY.alpha):
                break
        if found:
            soonest = min(soonest, known * SCRAPE)
    return soonest


@functools.cache
def _information(rule: Comparison, scenario: Scenario, share: float) -> float:
    stable, candidate = _shares(rule, scenario)
    excess = candidate - rule.ratio * stable - rule.margin
    if excess <= 0:
        return 0.0
    n_c, n_s = scenario.rate * SCRAPE * share, scenario.rate * SCRAPE * (1 - share)
    load = rule.ratio * n_c / n_s
    bet = harm_bet(load, rule.ratio * stable, rule.margin, excess)
    return log_harm(Block(n_c, n_c * candidate, n_s, n_s * stable), load, rule.margin, bet)


def _shares(rule: Comparison, scenario: Scenario) -> tuple[float, float]:
    """The true shares of bad requests on both sides."""
    if rule.metric == "error_rate":
        return scenario.baseline, scenario.baseline + scenario.extra
    before, after = buckets(1.0), buckets(scenario.slower)
    total, bound = 0.0, 0
    while total < rule.quantile:
        total, bound = total + float(before[bound]), bound + 1
    return float(before[bound:].sum()), float(after[bound:].sum())
