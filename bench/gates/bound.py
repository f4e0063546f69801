"""How soon harm could be known at all."""

import math

from bench.gates.ours import CERTAINTY, RULES, STEPS
from bench.gates.stream import SCRAPE, Scenario, buckets
from orchestrator.rollout.evidence import Block, harm_bet, log_harm
from orchestrator.rollout.policy import Comparison


def information_bound(scenario: Scenario) -> float:
    """Seconds until the information in the counts reaches ln(1/alpha), at the first share, in whole scrapes.

    The information of a scrape is the Kullback-Leibler divergence of what happens from the nearest good release,
    which equals the greatest growth that a bet on these counts can have (Grünwald, de Heide and Koolen, "Safe
    testing", JRSS B 2024). A test with this alpha needs at least that much on average. The rates are taken as
    known; the warm-up of latency, in which nothing is judged, is added.
    """
    soonest = math.inf
    for rule in RULES:
        stable, candidate = _shares(rule, scenario)
        excess = candidate - rule.ratio * stable - rule.margin
        if excess <= 0:
            continue
        share = STEPS[0].weight / 100
        n_c, n_s = scenario.rate * SCRAPE * share, scenario.rate * SCRAPE * (1 - share)
        bet = harm_bet(rule, n_c / n_s, stable, excess)
        growth = log_harm(rule, Block(n_c, n_c * candidate, n_s, n_s * stable), bet)
        scrapes = math.ceil(math.log(1 / CERTAINTY.alpha) / growth)
        soonest = min(soonest, scrapes * SCRAPE + rule.warm_up)
    return soonest


def _shares(rule: Comparison, scenario: Scenario) -> tuple[float, float]:
    """The true shares of bad requests on both sides."""
    if rule.metric == "error_rate":
        return scenario.baseline, scenario.baseline + scenario.extra
    before, after = buckets(1.0), buckets(scenario.slower)
    total, bound = 0.0, 0
    while total < rule.quantile:
        total, bound = total + float(before[bound]), bound + 1
    return float(before[bound:].sum()), float(after[bound:].sum())
