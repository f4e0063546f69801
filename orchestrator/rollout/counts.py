"""From raw counters to what was counted in between.

Counters are read per instance and differenced here; `rate()` is not trusted: it gives 0 for a counter that
is born with a value, and an error series that does not exist yet is an empty vector, not a zero.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.rollout.observation import Reading, Sample

NONE = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a release's instances counted in a window.

    Attributes:
        buckets: Cumulative, upper bound in seconds to requests.
        own: The operator's counters: gate to all and bad ones.
    """

    requests: float = 0.0
    errors: float = 0.0
    buckets: Mapping[float, float] = field(default_factory=dict)
    own: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def difference(older: Sample, newer: Sample) -> Counts:
    """What was counted between two samples of one instance.

    A counter that went down means that the process restarted: all that `newer` holds was counted since. A
    series that `older` lacks was born in between and counts in full.
    """
    restarted = (
        newer.requests < older.requests
        or newer.errors < older.errors
        or any(newer.buckets.get(bound, 0.0) < count for bound, count in older.buckets.items())
        or any(newer.own.get(gate, NONE)[i] < was[i] for gate, was in older.own.items() for i in (0, 1))
    )
    if restarted:
        return Counts(newer.requests, newer.errors, dict(newer.buckets), dict(newer.own))
    return Counts(
        newer.requests - older.requests,
        newer.errors - older.errors,
        {bound: count - older.buckets.get(bound, 0.0) for bound, count in newer.buckets.items()},
        {
            gate: (total - older.own.get(gate, NONE)[0], bad - older.own.get(gate, NONE)[1])
            for gate, (total, bad) in newer.own.items()
        },
    )


def add(a: Counts, b: Counts) -> Counts:
    """Both together."""
    own = {}
    for gate in {*a.own, *b.own}:
        (total, bad), (more, more_bad) = a.own.get(gate, NONE), b.own.get(gate, NONE)
        own[gate] = (total + more, bad + more_bad)
    return Counts(
        a.requests + b.requests,
        a.errors + b.errors,
        {bound: a.buckets.get(bound, 0.0) + b.buckets.get(bound, 0.0) for bound in {*a.buckets, *b.buckets}},
        own,
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
            total = add(total, difference(older, newer))
    return total


def cpu_share(
    readings: Sequence[Reading], instances: Sequence[str], since: float, cpus: float
) -> float | None:
    """The highest share of its CPU limit that an instance has used since a moment; None when it is not known.

    A process that restarted in between is measured from its restart on.
    """
    highest: float | None = None
    for name in instances:
        found: list[tuple[float, float]] = []
        for reading in readings:
            sample = reading.samples.get(name)
            if sample and sample.cpu is not None and (not found or sample.cpu[0] > found[-1][0]):
                found.append(sample.cpu)
        start = max((i for i, (at, _) in enumerate(found) if at <= since), default=0)
        used = span = 0.0
        for (then, before), (at, now) in itertools.pairwise(found[start:]):
            if now >= before:
                used, span = used + now - before, span + at - then
        if span <= 0:
            return None
        highest = max(highest or 0.0, used / span / cpus)
    return highest


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
            why = reading.unread.get(name, "")
            return f"{name} is not scraped or its target is down" + (f": {why}" if why else "")
        if now - sample.at > max_age:
            return f"the last sample of {name} is {now - sample.at:.0f} s old"
    return ""
