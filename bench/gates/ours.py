"""This project's rule with its defaults, on a stream."""

from dataclasses import replace

import numpy as np

from bench.gates.stream import BOUNDS, LATENCIES, SCRAPE, Counts, End, Scenario, Stream
from orchestrator.daemon.gate_section import ComparisonSection, EvidenceSection
from orchestrator.rollout.evidence import Block, begin
from orchestrator.rollout.plan import ladder
from orchestrator.rollout.policy import Comparison, Policy
from orchestrator.rollout.trial import Trial

GATES = ({"metric": "error_rate"}, {"metric": "latency", "quantile": 0.95}, {"metric": "latency"})
RULES = tuple(ComparisonSection.model_validate(gate).gate() for gate in GATES)
STEPS = ladder(
    [5, 15, 40], holds=(30.0, 30.0), bake=120.0, holdback=5, max_hold=1800.0, min_requests=0, deadline=3600.0
)
CERTAINTY = EvidenceSection().certainty()


def bad(rule: Comparison, side: Counts, bound: int) -> float:
    """The bad requests of one side, as a comparison counts them."""
    if rule.metric == "error_rate":
        return float(side[1])
    return float(side[LATENCIES + bound + 1 :].sum())


def run(scenario: Scenario, seed: int) -> End:
    """One release from its first traffic to its end."""
    stream = Stream(scenario, seed)
    before = stream.before(3600.0)
    cumulative = np.cumsum(before[LATENCIES:]) / max(before[0], 1)
    bounds = {r.name: int(np.argmax(cumulative >= r.quantile)) for r in RULES}
    begun = {
        r.name: begin(
            r,
            bound=float(BOUNDS[bounds[r.name]]),
            requests=float(before[0]),
            bad=bad(r, before, bounds[r.name]),
        )
        for r in RULES
    }
    certainty = replace(CERTAINTY, dispersion=scenario.phi)
    trial = Trial(Policy(kind="canary", steps=STEPS, comparisons=RULES, certainty=certainty), begun)
    shares: list[float] = []
    while True:
        shares.append(trial.share)
        scrape = stream.scrape(trial.share)
        blocks = {
            r.name: Block(
                float(scrape.candidate[0]),
                bad(r, scrape.candidate, bounds[r.name]),
                float(scrape.stable[0]),
                bad(r, scrape.stable, bounds[r.name]),
            )
            for r in RULES
        }
        end = trial.see(blocks, SCRAPE)
        if end is not None:
            return End(
                end, stream.now, stream.harmed, trial.worst if end == "rolled_back" else "", tuple(shares)
            )
