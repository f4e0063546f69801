"""This project's rule with its defaults, on a stream."""

from dataclasses import dataclass

import numpy as np

from bench.gates.stream import BOUNDS, SCRAPE, Counts, Scenario, Scrape, Stream
from orchestrator.rollout import evidence as rule
from orchestrator.rollout.evidence import Block, Evidence
from orchestrator.rollout.policy import P95_EFFECTS, P99_EFFECTS, Certainty, Comparison

SHARES = (0.05, 0.15, 0.40, 0.95)
MIN_STEP, MAX_STEP, BAKE, HOLD_MAX = 30.0, 1800.0, 120.0, 3600.0

RULES = (
    Comparison(name="error_rate", metric="error_rate"),
    Comparison(
        name="p95",
        metric="latency",
        quantile=0.95,
        ratio=1.25,
        margin=0.002,
        budget=0.02,
        weight=0.2,
        usual=0.05,
        warm_up=30.0,
        effects=P95_EFFECTS,
    ),
    Comparison(
        name="p99",
        metric="latency",
        quantile=0.99,
        ratio=1.25,
        margin=0.002,
        budget=0.02,
        weight=0.2,
        usual=0.01,
        warm_up=30.0,
        effects=P99_EFFECTS,
    ),
)


@dataclass(frozen=True, slots=True)
class End:
    """How a release ended: promoted, rolled back, or held for a person; and after how many seconds."""

    outcome: str
    seconds: float
    harmed: float
    by: str = ""


def _bad(comparison: Comparison, side: Counts, bound: int) -> float:
    if comparison.metric == "error_rate":
        return Scrape.errors(side)
    return float(side[2 + bound + 1 :].sum())


def run(scenario: Scenario, seed: int, certainty: Certainty = Certainty()) -> End:
    stream = Stream(scenario, seed)
    before = stream.before(3600.0)
    cumulative = np.cumsum(before[2:]) / max(before[0], 1)
    bounds = {r.name: int(np.argmax(cumulative >= r.quantile)) for r in RULES}
    found: list[Evidence] = [
        rule.begin(
            r, bound=float(BOUNDS[bounds[r.name]]), requests=before[0], bad=_bad(r, before, bounds[r.name])
        )
        for r in RULES
    ]
    for step, share in enumerate(SHARES):
        found = [rule.enter_step(e, step, len(SHARES)) for e in found]
        following = SHARES[step + 1] if step + 1 < len(SHARES) else 1.0
        least = BAKE if following == 1.0 else MIN_STEP
        held = 0.0
        while True:
            scrape = stream.scrape(share)
            held += SCRAPE
            for i, r in enumerate(RULES):
                if stream.now <= r.warm_up:
                    continue
                n_c, n_s = Scrape.requests(scrape.candidate), Scrape.requests(scrape.stable)
                bad_c, bad_s = (_bad(r, side, bounds[r.name]) for side in (scrape.candidate, scrape.stable))
                block = Block(n_c, bad_c, n_s, bad_s)
                found[i] = rule.take(r, found[i], block, certainty, r.budget / following)
            if rule.total_harm(RULES, found) >= 1.0 / certainty.alpha:
                worst = max(zip(RULES, found), key=lambda p: p[0].weight * rule.harm(*p))
                return End("rolled back", stream.now, stream.harmed, worst[0].name)
            if held >= least and not rule.hesitation(RULES, found, certainty, held=held, max_hold=MAX_STEP):
                break
            if held >= HOLD_MAX:
                return End("held", stream.now, stream.harmed)
    return End("promoted", stream.now, stream.harmed)
