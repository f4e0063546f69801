"""From raw counters to a verdict.

Counters are read per instance and differenced here; `rate()` is not trusted: it gives 0 for a counter that
is born with a value, and an error series that does not exist yet is an empty vector, not a zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from orchestrator.rollout.model import Result, Verdict
from orchestrator.rollout.observation import Reading, Sample
from orchestrator.rollout.policy import Gate


@dataclass(frozen=True, slots=True)
class Counts:
    """What a release's instances counted in a window. `buckets`: cumulative, upper bound in seconds."""

    requests: float = 0.0
    errors: float = 0.0
    buckets: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One side of a comparison: counts, or why there are none, and the value of a `query` gate."""

    counts: Counts = Counts()
    missing: str = ""
    value: float | None = None


def difference(older: Sample, newer: Sample) -> Counts:
    """What was counted between two samples of one instance.

    A counter that went down means that the process restarted: all that `newer` holds was counted since. A
    series that `older` lacks was born in between and counts in full.
    """
    restarted = (
        newer.requests < older.requests
        or newer.errors < older.errors
        or any(newer.buckets.get(bound, 0.0) < count for bound, count in older.buckets.items())
    )
    if restarted:
        return Counts(newer.requests, newer.errors, dict(newer.buckets))
    return Counts(
        newer.requests - older.requests,
        newer.errors - older.errors,
        {bound: count - older.buckets.get(bound, 0.0) for bound, count in newer.buckets.items()},
    )


def _add(a: Counts, b: Counts) -> Counts:
    bounds = {*a.buckets, *b.buckets}
    return Counts(
        a.requests + b.requests,
        a.errors + b.errors,
        {bound: a.buckets.get(bound, 0.0) + b.buckets.get(bound, 0.0) for bound in bounds},
    )


def count(readings: Sequence[Reading], instances: Sequence[str], since: float) -> Counts:
    """What the instances counted since a moment, as far as the readings go back.

    For each instance the last sample taken at or before `since` is the zero; without one, its first.
    """
    total = Counts()
    for name in instances:
        samples = [r.samples[name] for r in readings if name in r.samples]
        start = max((i for i, s in enumerate(samples) if s.at <= since), default=0)
        for older, newer in zip(samples[start:], samples[start + 1 :], strict=False):
            total = _add(total, difference(older, newer))
    return total


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """The q-quantile in seconds, linear inside a bucket as Prometheus' `histogram_quantile` does it.

    A quantile in the open last bucket is the highest finite bound. None without observations.
    """
    bounds = sorted(buckets)
    finite = [b for b in bounds if math.isfinite(b)]
    if not finite:
        return None
    total = buckets[bounds[-1]]
    if total <= 0:
        return None
    rank, below, lower = q * total, 0.0, 0.0
    for bound in finite:
        if buckets[bound] >= rank:
            inside = buckets[bound] - below
            return bound if inside <= 0 else lower + (bound - lower) * (rank - below) / inside
        below, lower = buckets[bound], bound
    return finite[-1]


def missing_data(reading: Reading | None, instances: Sequence[str], max_age: float, now: float) -> str:
    """Why the instances can't be judged now: no answer, a target that is not up, a stale sample; else ''."""
    if reading is None:
        return "no measurements yet"
    if reading.error:
        return f"Prometheus: {reading.error}"
    for name in instances:
        sample = reading.samples.get(name)
        if sample is None:
            return f"{name} is not scraped or its target is down"
        if now - sample.at > max_age:
            return f"the last sample of {name} is {now - sample.at:.0f} s old"
    return ""


def judge(
    gate: Gate,
    candidate: Measured,
    stable: Measured,
    *,
    remembered: float | None,
    broken_since: float | None,
    generation: int,
    now: float,
) -> Verdict:
    """One look of one gate.

    Args:
        gate: The rule.
        candidate: The candidate's side.
        stable: Stable's side.
        remembered: Stable's last value, used when stable has no traffic of its own.
        broken_since: Since when a limit has been broken without a break, None if it is not.
        generation: The generation served.
        now: The time of the look.

    Returns:
        A verdict. Data that is missing, stale, not finite or too little never passes.
    """
    if candidate.missing:
        return Verdict(gate=gate.name, result=Result.NO_DATA, generation=generation, text=candidate.missing)
    value, base = _value(gate, candidate), _baseline(gate, stable, remembered)
    verdict = partial(
        Verdict,
        gate=gate.name,
        value=value,
        baseline=base,
        samples=int(candidate.counts.requests),
        baseline_samples=int(stable.counts.requests),
        generation=generation,
    )
    samples, wanted = int(candidate.counts.requests), max(gate.min_requests, 1)
    if gate.metric != "query" and samples < wanted:
        text = f"{samples} of {wanted} requests in {gate.window:.0f} s"
        return verdict(result=Result.INCONCLUSIVE, text=text)
    if value is None:
        return verdict(result=Result.NO_DATA, text="no finite value")
    limit = _tightest(gate, base)
    if limit is None:
        text = "stable has no measurements to compare with"
        return verdict(result=Result.INCONCLUSIVE, text=text)
    return _compare(gate, verdict, value, limit, now - broken_since if broken_since is not None else 0.0)


def _compare(
    gate: Gate, verdict: "partial[Verdict]", value: float, limit: float, broken_for: float
) -> Verdict:
    """Pass within the limit; above it fail once that has lasted for the gate's time."""
    known = verdict.keywords
    text = f"{show(gate, value)} of {known['samples']} requests, limit {show(gate, limit)}"
    if known["baseline"] is not None:
        text += f", stable {show(gate, known['baseline'])} of {known['baseline_samples']}"
    if value <= limit:
        return verdict(result=Result.PASS, limit=limit, text=text)
    if broken_for < gate.sustained:
        text += f"; above for {broken_for:.0f} of {gate.sustained:.0f} s"
        return verdict(result=Result.INCONCLUSIVE, limit=limit, broken=True, text=text)
    return verdict(result=Result.FAIL, limit=limit, broken=True, text=text)


def _baseline(gate: Gate, stable: Measured, remembered: float | None) -> float | None:
    """Stable's value now if it has measured enough, else the last one that it had."""
    measured = gate.metric == "query" or stable.counts.requests >= max(gate.min_requests, 1)
    value = _value(gate, stable) if measured and not stable.missing else None
    return remembered if value is None else value


def _value(gate: Gate, side: Measured) -> float | None:
    """The gate's value on one side; None when there is none or it is not finite."""
    if gate.metric == "query":
        value = side.value
    elif gate.metric == "latency":
        value = quantile(side.counts.buckets, gate.quantile)
    else:
        value = side.counts.errors / side.counts.requests if side.counts.requests else None
    return value if value is not None and math.isfinite(value) else None


def _tightest(gate: Gate, base: float | None) -> float | None:
    relative = None if gate.max_ratio is None or base is None else base * gate.max_ratio + gate.margin
    return min((limit for limit in (gate.max, relative) if limit is not None), default=None)


def show(gate: Gate, value: float) -> str:
    """A value in the unit that people read."""
    if gate.metric == "latency":
        return f"{value * 1000:.0f} ms"
    return f"{value * 100:.2f} %" if gate.metric == "error_rate" else f"{value:.4g}"
