"""What one look at many rollouts costs."""

import time

from bench.gates.ours import RULES, STEPS
from orchestrator.rollout.compare import verdicts
from orchestrator.rollout.evidence import Block, begin, enter_step, take
from orchestrator.rollout.plan import tolerance_of
from orchestrator.rollout.policy import Policy

LOOKS = 50


def look(rollouts: int) -> float:
    """CPU seconds for taking a block and saying what it means, for every comparison of so many rollouts."""
    policy = Policy(kind="canary", steps=STEPS, comparisons=RULES)
    blocks = {
        "error_rate": Block(125, 1, 2375, 3),
        "p95": Block(125, 3, 2375, 52),
        "p99": Block(125, 0, 2375, 5),
    }
    states = [{r.name: enter_step(begin(r, bound=0.25), 0, 4) for r in RULES} for _ in range(rollouts)]
    began = time.process_time()
    for _ in range(LOOKS):
        for evidences in states:
            for rule in RULES:
                tolerance = tolerance_of(policy, 0, rule)
                evidences[rule.name] = take(
                    rule, evidences[rule.name], blocks[rule.name], policy.certainty, tolerance
                )
            verdicts(policy, evidences, 0.05, 7)
    return (time.process_time() - began) / LOOKS
