"""Strategies as ladders of steps."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.rollout.model import FULL, Rollout, ServiceState
from orchestrator.rollout.policy import Comparison, Policy, Step


def ladder(
    weights: Sequence[int],
    *,
    holds: tuple[float, float],
    bake: float,
    holdback: int,
    max_hold: float | None,
    min_requests: int,
    deadline: float,
) -> tuple[Step, ...]:
    """A ladder through ascending weights to 100 %.

    Args:
        weights: Shares in percent; 100 is added when it is missing.
        holds: Seconds to hold the first weight, and each later one.
        bake: Seconds to hold the last weight that is judged whole: 100, or that of the holdback.
        holdback: Percent that stable keeps while the release bakes, to be compared with; 0 bakes at 100 %.
        max_hold: See `policy.Step`.
        min_requests: Requests that each step below 100 needs.
        deadline: Seconds that a step may take beyond its hold.
    """
    partial = [w for w in weights if w < FULL]
    if holdback and FULL - holdback not in partial:
        partial.append(FULL - holdback)
    first, later = holds
    steps = [
        Step(
            weight=weight,
            hold=bake if holdback and weight == FULL - holdback else later if i else first,
            max_hold=max_hold,
            min_requests=min_requests,
        )
        for i, weight in enumerate(sorted(partial))
    ]
    last = 0.0 if holdback else bake
    whole = Step(weight=FULL, hold=last, max_hold=max_hold, bake=bake - last)
    return tuple(replace(s, deadline=s.hold + deadline) for s in (*steps, whole))


def ladder_errors(steps: Sequence[Step]) -> list[str]:
    """What is wrong with a ladder, each with its place; empty when it is right."""
    errors = []
    for i, step in enumerate(steps):
        if not 1 <= step.weight <= FULL:
            errors.append(f"{i}/weight: {step.weight} is not a percentage from 1 to 100")
        if i and step.weight <= steps[i - 1].weight:
            errors.append(f"{i}/weight: {step.weight} must be above the step before ({steps[i - 1].weight})")
        if step.deadline < step.hold:
            errors.append(f"{i}/deadline: {step.deadline:g} s is shorter than the hold of {step.hold:g} s")
    if not steps or steps[-1].weight != FULL:
        errors.append(f"{max(len(steps) - 1, 0)}/weight: the last step must be 100")
    return errors


def compared_steps(policy: Policy) -> int:
    """How many steps of the ladder leave stable traffic to compare with."""
    return sum(step.weight < FULL for step in policy.steps)


def tolerance_of(policy: Policy, step: int, rule: Comparison) -> float:
    """The harm budget for the share that comes next: worse by this much there would use up all of it."""
    following = policy.steps[step + 1].weight if step + 1 < len(policy.steps) else FULL
    return rule.budget * FULL / following


def is_fast(state: ServiceState, rollout: Rollout) -> bool:
    """Whether a rollout takes the fast path: nothing to compare with, or a release that was good before."""
    return rollout.kind == "revert" or state.stable is None


def current_step(state: ServiceState, rollout: Rollout) -> Step:
    """The step that a rollout stands on; the fast path has only the switch, without a hold."""
    policy: Policy = rollout.release.policy
    if is_fast(state, rollout):
        return Step(weight=FULL, hold=0.0, deadline=policy.confirm_deadline)
    step = policy.steps[min(rollout.step, len(policy.steps) - 1)]
    if not rollout.skipped:
        return step
    return replace(step, hold=step.hold + step.bake, deadline=step.deadline + step.bake)


def step_count(state: ServiceState, rollout: Rollout) -> int:
    """How many steps the journey has."""
    return 1 if is_fast(state, rollout) else len(rollout.release.policy.steps)
