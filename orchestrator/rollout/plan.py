"""Strategies as ladders of steps."""

from collections.abc import Sequence

from orchestrator.rollout.model import FULL, Rollout, ServiceState
from orchestrator.rollout.policy import Policy, Step


def canary(
    weights: Sequence[int],
    *,
    first_hold: float,
    hold: float,
    bake: float,
    min_requests: int,
    deadline: float,
) -> tuple[Step, ...]:
    """A ladder through ascending weights; a last step of 100 % is added when it is missing.

    Args:
        weights: Shares in percent.
        first_hold: Seconds to hold the first weight.
        hold: Seconds to hold each later weight below 100.
        bake: Seconds to hold 100 %.
        min_requests: Requests that each step below 100 needs.
        deadline: Seconds that a step may take beyond its hold.
    """
    partial = [w for w in weights if w < FULL]
    steps = [
        Step(weight=w, hold=h, min_requests=min_requests, deadline=h + deadline)
        for w, h in zip(partial, [first_hold] + [hold] * len(partial), strict=False)
    ]
    return (*steps, Step(weight=FULL, hold=bake, deadline=bake + deadline))


def blue_green(*, bake: float, deadline: float) -> tuple[Step, ...]:
    """One switch to 100 %, then `bake` seconds under the gates."""
    return (Step(weight=FULL, hold=bake, deadline=bake + deadline),)


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


def is_fast(state: ServiceState, rollout: Rollout) -> bool:
    """Whether a rollout takes the fast path: nothing to compare with, or a release that was good before."""
    return rollout.kind == "revert" or state.stable is None


def current_step(state: ServiceState, rollout: Rollout) -> Step:
    """The step that a rollout stands on; the fast path has only the switch, without a hold."""
    policy: Policy = rollout.release.policy
    if is_fast(state, rollout):
        return Step(weight=FULL, hold=0.0, deadline=policy.confirm_deadline)
    return policy.steps[min(rollout.step, len(policy.steps) - 1)]


def step_count(state: ServiceState, rollout: Rollout) -> int:
    """How many steps the journey has."""
    return 1 if is_fast(state, rollout) else len(rollout.release.policy.steps)
