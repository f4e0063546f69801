"""From raw counters to what was counted in between.

Counters are read per instance and differenced here; `rate()` is not trusted: it gives 0 for a counter that
is born with a value, and an error series that does not exist yet is an empty vector, not a zero.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.rollout.observation import COUNTABLE, Reading, Sample
from orchestrator.rollout.policy import Comparison, Limit

NONE = (0.0, 0.0)

SPARSE = 60.0
"""Seconds between readings that nothing is counted from; a sample is older than its reading by less."""


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


Series = tuple[str, str | float]
"""One counter of an instance: what it is a part of, as `of_gate` names it, and which one of that."""


def of_gate(gate: Limit | Comparison) -> str:
    """What of a sample a gate that counts requests is judged on."""
    if gate.metric == "counts":
        return f"counts:{gate.name}"
    return "latency" if gate.metric == "latency" else "requests"


def _parts(sample: Sample) -> list[str]:
    return ["requests", "latency", *(f"counts:{gate}" for gate in sample.own)]


def _part(sample: Sample, part: str) -> Mapping[Any, float]:
    """The counters of one part, by what tells them apart: a histogram's bounds, or all and the bad ones."""
    if part == "latency":
        return sample.buckets
    if part == "requests":
        return {"all": sample.requests, "bad": sample.errors}
    own = sample.own.get(part.removeprefix("counts:"))
    return {} if own is None else {"all": own[0], "bad": own[1]}


def _series(sample: Sample) -> dict[Series, float]:
    return {(part, name): v for part in _parts(sample) for name, v in _part(sample, part).items()}


@dataclass(frozen=True, slots=True)
class Known:
    """What the counters of one instance have shown so far.

    Attributes:
        last: The last value of each that was above 0.
        excused: Those of a process before the present one, which need not have them yet.
        sample: The last sample, settled; None before the first.
    """

    last: Mapping[Series, float] = field(default_factory=dict)
    excused: frozenset[Series] = frozenset()
    sample: Sample | None = None


def settle(known: Mapping[str, Known], reading: Reading) -> tuple[dict[str, Known], Reading]:
    """Mark in a new reading what had been seen of an instance and is missing, and sum up its requests.

    A counter never goes back to 0 while its process lives. One that is 0 or absent after it was above has not
    been seen, unless others have gone down and none has grown: then the process began anew, and the counter
    is born when it first counts. If it then comes with no less than it had, it may be the old one.

    Args:
        known: By instance; what the last call returned.
        reading: The next one.
    """
    whole, samples = dict(known), {}
    for name, sample in reading.samples.items():
        before = known.get(name, Known())
        now = {key: value for key, value in _series(sample).items() if value > 0}
        both = now.keys() & before.last.keys()
        grown = any(now[key] > before.last[key] for key in both)
        anew = not grown and any(now[key] < before.last[key] for key in both)
        absent = before.last.keys() - now.keys()
        missing = set() if anew else absent - before.excused
        doubtful = {key for key in both & before.excused if now[key] >= before.last[key]}
        settled = replace(sample, unseen=frozenset(group for group, _ in missing | doubtful))
        if before.sample is not None:
            more = difference(before.sample, settled, ("requests",)).requests
            settled = replace(settled, counted=before.sample.counted + more)
        whole[name] = Known({**before.last, **now}, frozenset(absent - missing), settled)
        samples[name] = settled
    return whole, replace(reading, samples=samples)


def difference(older: Sample, newer: Sample, parts: Sequence[str] = ()) -> Counts:
    """What was counted between two samples of one instance, as far as that is known.

    A counter went down and none has grown: the process began anew, and all that the counter holds was counted
    since. One that went down while others grew has lost a part of its series, so that nothing is known of
    what it belongs to; nor is it where a part of that is unseen. A counter of requests or a histogram that
    `older` lacks was born in between and counts in full; an operator's own begins with its first value,
    because it may not have been asked for before.

    Args:
        older: The earlier one.
        newer: The later one.
        parts: What is asked for, as `of_gate` names it; empty: all.
    """
    found: dict[str, dict[Any, float]] = {}
    for part in parts or _parts(newer):
        was, now = _part(older, part), _part(newer, part)
        fell = {name for name, value in was.items() if not now.get(name, 0.0) >= value}
        counted = {name: value if name in fell else value - was.get(name, 0.0) for name, value in now.items()}
        unasked = not was and part.startswith("counts:")
        unknown = unasked or part in older.unseen or part in newer.unseen or (fell and _grew(older, newer))
        if not unknown and all(0.0 <= value <= COUNTABLE for value in counted.values()):
            found[part] = counted
    requests = found.get("requests", {"all": 0.0, "bad": 0.0})
    own = {gate: found[f"counts:{gate}"] for gate in newer.own if f"counts:{gate}" in found}
    return Counts(
        requests["all"],
        requests["bad"],
        found.get("latency", {}),
        {gate: (counted["all"], counted["bad"]) for gate, counted in own.items()},
    )


def _grew(older: Sample, newer: Sample) -> bool:
    now = _series(newer)
    return any(now.get(key, 0.0) > value > 0 for key, value in _series(older).items())


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


def count(
    readings: Sequence[Reading], instances: Sequence[str], since: float, parts: Sequence[str] = ()
) -> Counts:
    """What the instances counted since a moment, as far as the readings go back.

    For each instance the last sample taken at or before `since` is the zero; without one, its first. `parts`:
    see `difference`.
    """
    total = Counts()
    for name in instances:
        samples = [r.samples[name] for r in readings if name in r.samples]
        start = max((i for i, s in enumerate(samples) if s.at <= since), default=0)
        for older, newer in zip(samples[start:], samples[start + 1 :], strict=False):
            total = add(total, difference(older, newer, parts))
    return total


def requests_since(readings: Sequence[Reading], instances: Sequence[str], since: float) -> float:
    """The requests of `count`, of settled readings that need not all be there."""
    total = 0.0
    for name in instances:
        samples = [r.samples[name] for r in readings if name in r.samples]
        zero = next((s for s in reversed(samples) if s.at <= since), samples[0] if samples else None)
        if zero is not None:
            total += samples[-1].counted - zero.counted
    return total


def thinned(
    readings: Sequence[Reading], since: float, recent: float, needed: Sequence[float | None]
) -> list[Reading]:
    """What is kept of the readings of a step, which may last for days.

    After a pause the step is counted from later on: then its requests may begin `SPARSE` seconds too early,
    and as long as an instance was not scraped.

    Args:
        readings: In their order.
        since: Where the step is counted from; those around it are kept.
        recent: Where the longest window begins; those from it on are kept.
        needed: When others were read that are kept.
    """
    first = max((i for i, r in enumerate(readings) if r.at < min(since, recent) - SPARSE), default=0)
    kept: list[Reading] = []
    last: dict[str, float] = {}
    for reading in readings[first:]:
        counted_from = reading.at >= recent - SPARSE or abs(reading.at - since) <= SPARSE
        due = any(reading.at - last.get(name, -math.inf) >= SPARSE for name in reading.samples)
        if counted_from or due or reading.at in needed or not kept:
            kept.append(reading)
            last |= dict.fromkeys(reading.samples, reading.at)
    return kept


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


def unseen(reading: Reading, instances: Sequence[str], gate: Limit | Comparison) -> str:
    """Which instance lacks counters of a gate that it has shown before; '' when none does."""
    for name in instances:
        if of_gate(gate) in reading.samples[name].unseen:
            return f"Prometheus has lost counters of {name} that it had before"
    return ""


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
        if not sample.sound:
            return f"{name} has a counter that is no number from 0 to 2^53"
        if not now - sample.at <= max_age:
            return f"the last sample of {name} is {now - sample.at:.0f} s old"
    return ""
