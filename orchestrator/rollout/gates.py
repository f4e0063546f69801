"""The gates of a step: one look at all of them after every reading, and what they leave unmet."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from orchestrator.rollout.compare import alone, between, block_of, counted, lifetime, slow_bound, verdicts
from orchestrator.rollout.counts import count, cpu_share, missing_data, of_gate, requests_since, unseen
from orchestrator.rollout.events import GateJudged, GateLook, GatesLooked
from orchestrator.rollout.evidence import (
    Block,
    Evidence,
    begin,
    enter_step,
    harm_of_all,
    hesitation,
    take,
)
from orchestrator.rollout.judge import Measured, judge, value_of
from orchestrator.rollout.model import FULL, Breach, Release, Result, Rollout, Verdict, instance_names
from orchestrator.rollout.observation import Observation, Reading
from orchestrator.rollout.plan import compared_steps, current_step, tolerance_of
from orchestrator.rollout.policy import Comparison, Limit
from orchestrator.rollout.turn import Turn


class Taken(NamedTuple):
    """A block that a comparison has seen.

    Attributes:
        certifies: Whether it counts for safety.
        alone: See `Evidence`.
    """

    block: Block
    certifies: bool
    alone: float


Looks = list[tuple[Verdict, GateLook]]


def look(turn: Turn, seen: Observation) -> None:
    """Judge every gate of the step, once for each reading, and remember what was seen."""
    rollout, generation = turn.rollout, turn.state.confirmed
    last = seen.readings[-1] if seen.readings else None
    known = last is not None and last.at == rollout.looked_at
    if known and all(v.generation == generation for v in rollout.verdicts):
        return
    before = {v.gate: v for v in rollout.verdicts}
    looks = (*_limits(turn, seen), *_comparisons(turn, seen))
    found_now = tuple(v for v, _ in looks)
    for found in found_now:
        fresh = found.gate not in before
        news = found.result is not Result.INCONCLUSIVE or found.broken
        if (fresh and news) or (not fresh and before[found.gate].result is not found.result):
            turn.tell(
                GateJudged(
                    service=turn.state.service,
                    at=turn.now,
                    release=rollout.release.id,
                    step=rollout.step,
                    weight=current_step(turn.state, rollout).weight,
                    verdict=found,
                )
            )
    turn.roll(silent=_silence(turn, seen, found_now))
    turn.roll(verdicts=found_now, looked_at=last.at if last else None)
    if last is not None and looks:
        turn.tell(
            GatesLooked(
                service=turn.state.service,
                at=turn.now,
                release=rollout.release.id,
                step=rollout.step,
                weight=current_step(turn.state, rollout).weight,
                generation=generation,
                harm=harm_of_all(rollout.release.policy.comparisons, turn.rollout.evidence),
                looks=tuple(found for _, found in looks),
            )
        )


def _silence(turn: Turn, seen: Observation, found: Sequence[Verdict]) -> float:
    """For how many seconds the candidate has had no data.

    Only time between two readings of this process counts, which Prometheus has answered both and which are
    no further apart than a sample may be old: else nobody looked. While stable can't be read either, or
    Prometheus refuses to say, it is not the candidate that is silent.
    """
    rollout, stable = turn.rollout, turn.state.stable
    last = seen.readings[-1] if seen.readings else None
    if last is None or last.error:
        return rollout.silent
    if not _no_data(found, last):
        return 0.0
    policy = rollout.release.policy
    before = next((r for r in reversed(seen.readings[:-1]) if r.at == rollout.looked_at), None)
    assert stable is not None
    of_all = policy.counted and missing_data(last, instance_names(stable), policy.sample_max_age, turn.now)
    if before is None or before.error or of_all or not _no_data(rollout.verdicts, last):
        return rollout.silent
    gap = last.at - before.at
    return rollout.silent + (gap if gap <= policy.sample_max_age else 0.0)


def _no_data(found: Sequence[Verdict], last: Reading) -> bool:
    asked = [v for v in found if v.gate not in last.refused and not v.dry_run]
    return any(v.result is Result.NO_DATA for v in asked)


def _limits(turn: Turn, seen: Observation) -> Looks:
    """Judge the limits and remember breaches and baselines."""
    rollout, state = turn.rollout, turn.state
    assert state.stable is not None  # without one there is nothing to judge: the fast path
    broken_since = {b.gate: b.since for b in rollout.breaches}
    baselines = dict(rollout.baselines)
    looks: Looks = []
    for limit in rollout.release.policy.limits:
        found = judge(
            limit,
            _measure(limit, rollout.release, rollout, seen.readings, turn.now),
            _measure(limit, state.stable, rollout, seen.readings, turn.now),
            remembered=baselines.get(limit.name),
            broken_since=broken_since.get(limit.name),
            generation=state.confirmed,
            now=turn.now,
        )
        looks.append((found, GateLook.of(found)))
        if found.broken:
            broken_since.setdefault(limit.name, turn.now)
        else:
            broken_since.pop(limit.name, None)
        if found.baseline is not None:
            baselines[limit.name] = found.baseline
    breaches = tuple(Breach(gate=name, since=since) for name, since in broken_since.items())
    turn.roll(breaches=breaches, baselines=tuple(baselines.items()))
    return looks


def _measure(
    limit: Limit, release: Release, rollout: Rollout, readings: Sequence[Reading], now: float
) -> Measured:
    last = readings[-1] if readings else None
    names = instance_names(release)
    missing = missing_data(
        last, () if limit.metric == "query" else names, rollout.release.policy.sample_max_age, now
    )
    if last is not None and not missing and limit.name in last.refused:
        missing = f"Prometheus: {last.refused[limit.name]}"
    elif last is not None and not missing and limit.counts_requests:
        missing = unseen(last, names, limit)
    if missing or last is None:
        return Measured(missing=missing)
    since = max(now - limit.window, rollout.held_since if rollout.held_since is not None else now)
    if limit.counts_requests:
        counts = count(readings, names, since, ("requests", of_gate(limit)))
        return Measured(value=value_of(limit, counts), samples=int(counts.requests))
    if limit.metric == "cpu":
        return Measured(value=cpu_share(readings, names, since, release.template.cpus))
    value = last.values.get((limit.name, release.id))
    if value is None and release is rollout.release:
        value = last.values.get((limit.name, ""))
    return Measured(value=value)


def _comparisons(turn: Turn, seen: Observation) -> Looks:
    """Take the next block, if every instance has been scraped since the last one, and judge."""
    rollout, state = turn.rollout, turn.state
    policy, weight = rollout.release.policy, current_step(state, rollout).weight
    if not policy.comparisons or weight == FULL:
        return []
    assert state.stable is not None
    candidate, stable = instance_names(rollout.release), instance_names(state.stable)
    last = seen.readings[-1] if seen.readings else None
    missing = missing_data(last, candidate, policy.sample_max_age, turn.now)
    unread = missing_data(last, stable, policy.sample_max_age, turn.now)
    if missing or unread or last is None:
        result = Result.NO_DATA if missing else Result.INCONCLUSIVE  # stable unreadable: hold
        return [_unknown(rule, result, missing or unread, state.confirmed) for rule in policy.comparisons]
    base = _base(rollout, seen.readings, (*candidate, *stable))
    evidences = _evidences(turn, base or last, last, candidate, stable)
    begun = {name: e for name, e in evidences.items() if e not in rollout.evidence}
    blocks: dict[str, Taken] = {}
    if base is None:
        turn.roll(block_from=last.at)
    elif all(last.samples[n].later_than(base.samples[n]) for n in (*candidate, *stable)):
        blocks = _blocks(turn, evidences, seen.readings, base)
    turn.roll(evidence=tuple(evidences.values()))
    return _judged(turn, last, evidences, begun, blocks)


def _lost(turn: Turn, rule: Comparison, reading: Reading) -> tuple[Result, str] | None:
    """What is said of a comparison while counters of it are unseen; None when they are all there."""
    rollout, stable = turn.rollout, turn.state.stable
    assert stable is not None
    text = unseen(reading, instance_names(stable), rule)
    if text:
        return Result.INCONCLUSIVE, text
    text = unseen(reading, instance_names(rollout.release), rule)
    return (Result.NO_DATA, text) if text else None


def _unknown(rule: Comparison, result: Result, text: str, generation: int) -> tuple[Verdict, GateLook]:
    found = Verdict(gate=rule.name, result=result, generation=generation, dry_run=rule.dry_run, text=text)
    return found, GateLook.of(found)


def _evidences(
    turn: Turn, base: Reading, last: Reading, candidate: Sequence[str], stable: Sequence[str]
) -> dict[str, Evidence]:
    """The evidence by gate; begun for those that can be judged from now on, with what stable counted before.

    A latency bound that is not known yet, because a side has no requests, is looked for again next time.
    """
    rollout = turn.rollout
    found = {e.gate: e for e in rollout.evidence}
    new = [r for r in rollout.release.policy.comparisons if r.name not in found]
    if not new:
        return found
    timed = [last.samples[n] for n in candidate if last.samples[n].buckets]
    before = lifetime(base.samples, stable)
    for rule in new:
        bound = None
        if rule.metric == "latency":
            bound = slow_bound(rule, before, timed)
            if bound is None or not timed:
                continue
        if rule.history:
            if not 0.0 <= last.history.get(rule.name, -1.0) <= 1.0:
                continue
            known = begin(rule)
            evidence = replace(known, past=(1.0, last.history[rule.name]))
        else:
            requests, bad = counted(rule, bound, before)
            evidence = begin(rule, bound=bound, requests=requests, bad=bad)
        found[rule.name] = enter_step(evidence, rollout.step, compared_steps(rollout.release.policy))
    return found


def _base(rollout: Rollout, readings: Sequence[Reading], names: Sequence[str]) -> Reading | None:
    """The reading that the next block begins at; None when none is in memory, as after a restart.

    The first block begins before the candidate's first request, so that all of them count.
    """
    if rollout.block_from is not None:
        return next((r for r in readings if r.at == rollout.block_from), None)
    exposed = rollout.exposed_since if rollout.exposed_since is not None else 0.0
    whole = [r for r in readings if r.at <= exposed and not missing_data(r, names, math.inf, r.at)]
    return whole[-1] if whole else None


def _blocks(
    turn: Turn, evidences: dict[str, Evidence], readings: Sequence[Reading], base: Reading
) -> dict[str, Taken]:
    """Count the block and let every comparison see it."""
    rollout, state = turn.rollout, turn.state
    assert state.stable is not None
    assert rollout.held_since is not None
    assert rollout.exposed_since is not None
    policy, last = rollout.release.policy, readings[-1]
    candidate, stable = instance_names(rollout.release), instance_names(state.stable)
    mine, theirs = between(base, last, candidate), between(base, last, stable)
    whole = rollout.step == 0 or base.at >= rollout.held_since  # else it began at the share before
    settled = rollout.held_since + policy.drain_deadline  # what began before the step has ended
    blocks: dict[str, Taken] = {}
    for rule in policy.comparisons:
        cold = rule.warm_up and base.at - rollout.exposed_since < rule.warm_up
        if rule.name not in evidences or rule.name in last.refused or cold:
            continue
        if _lost(turn, rule, base) or _lost(turn, rule, last):
            continue
        evidence = evidences[rule.name]
        block = block_of(rule, evidence, mine, theirs)
        tolerance = tolerance_of(policy, rollout.step, rule) if whole else None
        missed = alone(rule, evidence.bound, readings, candidate, stable, settled)
        taken = take(rule, evidence, block, policy.certainty, tolerance)
        evidences[rule.name] = replace(taken, alone=missed)
        blocks[rule.name] = Taken(block, whole, missed)
    turn.roll(block_from=last.at)
    return blocks


def _judged(
    turn: Turn,
    last: Reading,
    evidences: dict[str, Evidence],
    begun: dict[str, Evidence],
    blocks: dict[str, Taken],
) -> Looks:
    policy, weight = turn.rollout.release.policy, current_step(turn.state, turn.rollout).weight
    lost = {r.name: why for r in policy.comparisons if (why := _lost(turn, r, last)) is not None}
    seen = {name: e for name, e in evidences.items() if name not in (*lost, *last.refused)}
    found = verdicts(policy, seen, weight / FULL, turn.state.confirmed)
    looks: Looks = []
    for rule in policy.comparisons:
        taken = blocks.get(rule.name)
        if rule.name in found:
            verdict, looked = found[rule.name], GateLook.of(found[rule.name])
        elif rule.name in last.refused:
            why = Result.NO_DATA, f"Prometheus: {last.refused[rule.name]}"
            verdict, looked = _unknown(rule, *why, turn.state.confirmed)
        else:
            why = lost.get(rule.name) or _why_unknown(turn, rule, last)
            verdict, looked = _unknown(rule, *why, turn.state.confirmed)
        looked = replace(looked, begun=begun.get(rule.name))
        if taken is not None:
            looked = replace(looked, block=taken.block, certifies=taken.certifies, alone=taken.alone)
        looks.append((verdict, looked))
    return looks


def _why_unknown(turn: Turn, rule: Comparison, last: Reading) -> tuple[Result, str]:
    if rule.history:
        return Result.INCONCLUSIVE, f"Prometheus has no history of {rule.history:.0f} s"
    if not any(last.samples[n].buckets for n in instance_names(turn.rollout.release)):
        return Result.INCONCLUSIVE, "the candidate has no histogram yet; it is born with its first request"
    text = f"stable's histogram has no bound above its p{rule.quantile * 100:g} that the candidate's has too"
    return Result.NO_DATA, text


def failing(found: Sequence[Verdict]) -> Verdict | None:
    """The first verdict that ends a rollout."""
    return next((v for v in found if v.result is Result.FAIL and not v.dry_run), None)


def unmet(turn: Turn, seen: Observation, held: float) -> str:
    """What still keeps the step from passing, its least time aside; '' when nothing does."""
    rollout, policy = turn.rollout, turn.rollout.release.policy
    step = current_step(turn.state, rollout)
    limits = {limit.name for limit in policy.limits}
    for found in rollout.verdicts:
        if found.dry_run or found.result is Result.PASS or found.harm is not None:
            continue  # of those that have evidence all are asked together, below
        few = found.result is Result.INCONCLUSIVE and not found.broken
        if step.max_hold is None or not few or found.gate not in limits:
            return f"{found.gate}: {found.text}"
    if any(v.generation != turn.state.route.generation for v in rollout.verdicts):
        return "the gates have not been looked at since the route changed"
    if step.weight < FULL:
        why = hesitation(
            policy.comparisons, rollout.evidence, policy.certainty, held=held, max_hold=step.max_hold
        )
        if why:
            return why
    if step.min_requests:
        since = rollout.held_since if rollout.held_since is not None else turn.now
        got = int(requests_since(seen.readings, instance_names(rollout.release), since))
        if got < step.min_requests:
            return f"{got} of {step.min_requests} requests"
    return ""
