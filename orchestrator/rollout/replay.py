"""A decision made again, offline, from the measurements that were kept with it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from orchestrator.rollout.compare import verdicts
from orchestrator.rollout.events import GateLook, GatesLooked
from orchestrator.rollout.evidence import Block, Evidence, enter_step, harm_of_all, take
from orchestrator.rollout.judge import Measured, judge
from orchestrator.rollout.model import FULL, Result, Verdict
from orchestrator.rollout.plan import compared_steps, tolerance_of
from orchestrator.rollout.policy import Limit, Policy

EXACT = 1e-9

PARTIAL_BLOCKS = 4
"""First blocks of a step by which an older version did not judge a candidate without requests."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One look: what was said then, what is said now, and where the two differ."""

    then: GatesLooked
    now: Mapping[str, Verdict]
    harm: float
    differences: tuple[str, ...]


def replay(policy: Policy, looks: Iterable[GatesLooked]) -> Iterator[Replayed]:
    """Judge every look of a rollout again, oldest first.

    Args:
        policy: The policy that the release was made with.
        looks: Its `gates_looked` events, in their order.
    """
    evidences: dict[str, Evidence] = {}
    broken: dict[str, float] = {}
    step = 0
    for look in looks:
        if look.step != step:
            broken = {}
        while step < look.step:
            step += 1
            if policy.steps[step].weight < FULL:
                evidences = {n: enter_step(e, step, compared_steps(policy)) for n, e in evidences.items()}
        said = {found.gate: found for found in look.looks}
        _take_blocks(policy, look.step, said, evidences)
        now = {limit.name: _again(limit, said[limit.name], look, broken) for limit in policy.limits}
        if look.weight < FULL:
            known = {n: e for n, e in evidences.items() if n in said and said[n].harm is not None}
            now |= verdicts(policy, known, look.weight / FULL, look.generation)
        harm = harm_of_all(policy.comparisons, evidences.values())
        yield Replayed(look, now, harm, tuple(_differences(look, now, harm)))


def _take_blocks(
    policy: Policy, step: int, said: Mapping[str, GateLook], evidences: dict[str, Evidence]
) -> None:
    for rule in policy.comparisons:
        found = said.get(rule.name)
        if found is not None and found.begun is not None:
            evidences[rule.name] = found.begun
        if found is not None and found.block is not None:
            tolerance = tolerance_of(policy, step, rule) if found.certifies else None
            before = evidences[rule.name]
            alone = _alone(before, found.block) if found.alone is None else found.alone
            taken = take(rule, before, found.block, policy.certainty, tolerance)
            evidences[rule.name] = replace(taken, alone=alone)


def _alone(before: Evidence, block: Block) -> float:
    """See `Evidence`, as a version counted it that went by a step's blocks from the fifth on."""
    step = before.step.plus(block)
    return 0.0 if step.requests or before.step_blocks < PARTIAL_BLOCKS else step.stable_requests


def _again(limit: Limit, said: GateLook, look: GatesLooked, broken: dict[str, float]) -> Verdict:
    found = judge(
        limit,
        Measured(value=said.value, samples=said.samples, missing=said.missing),
        Measured(missing="remembered"),
        remembered=said.baseline,
        broken_since=broken.get(limit.name),
        generation=look.generation,
        now=look.at,
    )
    if found.broken:
        broken.setdefault(limit.name, look.at)
    else:
        broken.pop(limit.name, None)
    return found


def _differences(look: GatesLooked, now: Mapping[str, Verdict], harm: float) -> Iterator[str]:
    for then in look.looks:
        found = now.get(then.gate)
        if found is None:
            if then.harm is not None:
                yield f"{then.gate}: {then.result} then, not judged now"
            continue
        if found.result is not then.result:
            yield f"{then.gate}: {then.result} then, {found.result} now"
        for what, was, made in (("harm", then.harm, found.harm), ("safety", then.safety, found.safety)):
            if was is not None and not math.isclose(was, made or 0.0, rel_tol=EXACT):
                yield f"{then.gate}: evidence of {what} {was:.6g} then, {made or 0.0:.6g} now"
    failed = any(v.result is Result.FAIL and not v.dry_run for v in now.values())
    if not math.isclose(harm, look.harm, rel_tol=EXACT, abs_tol=EXACT) and not failed:
        yield f"evidence of harm {look.harm:.6g} then, {harm:.6g} now"
