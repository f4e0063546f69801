"""What others have to say before a release goes on: hooks, and the checklist of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.rollout.model import Phase, Release, ServiceState
from orchestrator.rollout.plan import is_fast
from orchestrator.rollout.policy import Check, Hook


@dataclass(frozen=True, slots=True, kw_only=True)
class HookCall:
    """One hook that has to be asked.

    Attributes:
        key: Tells calls apart; the same one may be made twice after a crash.
        step: The step that comes next; -1 in preflight.
        weight: Its weight in percent.
    """

    key: str
    hook: Hook
    release: Release
    step: int = -1
    weight: int = 0


@dataclass(frozen=True, slots=True)
class HookResult:
    """What a hook said."""

    passed: bool
    text: str


def due(state: ServiceState) -> tuple[HookCall, ...]:
    """The hooks that have to be asked now."""
    rollout = state.rollout
    if rollout is None or rollout.kind == "revert":
        return ()
    release = rollout.release
    if rollout.phase is Phase.PREFLIGHT:
        return _calls(release, "preflight") if release.digest else ()
    step = rollout.hooks_for
    if step is None or is_fast(state, rollout):
        return ()
    return _calls(release, "before_step", step, release.policy.steps[step].weight)


def _calls(release: Release, at: str, step: int = -1, weight: int = 0) -> tuple[HookCall, ...]:
    return tuple(
        HookCall(key=f"{release.id}:{at}:{step}:{h.name}", hook=h, release=release, step=step, weight=weight)
        for h in release.policy.hooks
        if h.at == at
    )


def verdict(calls: Sequence[HookCall], results: Mapping[str, HookResult]) -> str | None:
    """Why it must not go on; '' when it may; None while not all have said something."""
    found = [(call, results.get(call.key)) for call in calls]
    for call, result in found:
        if result is not None and not result.passed:
            return f"hook {call.hook.name}: {result.text}"
    return None if any(result is None for _, result in found) else ""


def unchecked(checklist: Sequence[Check], given: Mapping[str, float]) -> str:
    """What a request's checklist lacks; '' when nothing."""
    problems = []
    for check in checklist:
        value = given.get(check.name)
        if value is None:
            problems.append(f"{check.name} is missing")
        elif not value >= check.least:  # NaN is not enough
            problems.append(f"{check.name} is {value:g}, and must be {check.least:g} or more")
    return "; ".join(problems)
