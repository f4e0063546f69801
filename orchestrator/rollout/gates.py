"""The gates of a step: one look at all of them, and what they leave unmet."""

from collections.abc import Sequence

from orchestrator.rollout.events import GateJudged
from orchestrator.rollout.judge import Counts, Measured, count, judge, missing_data
from orchestrator.rollout.model import Breach, Release, Result, Rollout, Verdict, instance_names
from orchestrator.rollout.observation import Observation, Reading
from orchestrator.rollout.plan import current_step
from orchestrator.rollout.policy import Gate
from orchestrator.rollout.turn import Turn


def look(turn: Turn, seen: Observation) -> None:
    """Judge every gate of the step now and remember breaches, baselines and changed results."""
    rollout, state = turn.rollout, turn.state
    assert state.stable is not None  # without one there is nothing to judge: the fast path
    before = {v.gate: v for v in rollout.verdicts}
    broken_since = {b.gate: b.since for b in rollout.breaches}
    baselines = dict(rollout.baselines)
    verdicts: list[Verdict] = []
    breaches: list[Breach] = []
    for gate in rollout.release.policy.gates:
        verdict = judge(
            gate,
            _measure(gate, rollout.release, rollout, seen.readings, turn.now),
            _measure(gate, state.stable, rollout, seen.readings, turn.now),
            remembered=baselines.get(gate.name),
            broken_since=broken_since.get(gate.name),
            generation=state.confirmed,
            now=turn.now,
        )
        verdicts.append(verdict)
        if verdict.broken:
            breaches.append(Breach(gate=gate.name, since=broken_since.get(gate.name, turn.now)))
        if verdict.baseline is not None:
            baselines[gate.name] = verdict.baseline
        fresh = gate.name not in before
        news = verdict.result is not Result.INCONCLUSIVE or verdict.broken
        if (fresh and news) or (not fresh and before[gate.name].result is not verdict.result):
            turn.tell(
                GateJudged(
                    service=state.service,
                    at=turn.now,
                    release=rollout.release.id,
                    step=rollout.step,
                    weight=current_step(state, rollout).weight,
                    verdict=verdict,
                )
            )
    unmeasured = {Result.NO_DATA, Result.ERROR}
    if verdicts and not any(v.result in unmeasured for v in verdicts):
        turn.roll(measured_at=turn.now)
    turn.roll(verdicts=tuple(verdicts), breaches=tuple(breaches), baselines=tuple(baselines.items()))


def _measure(
    gate: Gate, release: Release, rollout: Rollout, readings: Sequence[Reading], now: float
) -> Measured:
    last = readings[-1] if readings else None
    names = instance_names(release)
    value = None if last is None else last.values.get((gate.name, release.id))
    if value is None and last is not None and release is rollout.release:
        value = last.values.get((gate.name, ""))
    needed = () if gate.metric == "query" else names
    missing = missing_data(last, needed, rollout.release.policy.sample_max_age, now)
    since = max(now - gate.window, rollout.held_since if rollout.held_since is not None else now)
    counts = Counts() if missing else count(readings, names, since)
    return Measured(counts=counts, missing=missing, value=value)


def failing(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The first verdict that ends a rollout."""
    return next((v for v in verdicts if v.result is Result.FAIL), None)


def unmet(turn: Turn, seen: Observation) -> str:
    """What still keeps the step from passing, time aside; '' when nothing does."""
    rollout = turn.rollout
    step = current_step(turn.state, rollout)
    for verdict in rollout.verdicts:
        if verdict.result is not Result.PASS:
            return f"{verdict.gate}: {verdict.text}"
    if step.min_requests:
        since = rollout.held_since if rollout.held_since is not None else turn.now
        got = int(count(seen.readings, instance_names(rollout.release), since).requests)
        if got < step.min_requests:
            return f"{got} of {step.min_requests} requests"
    return ""
