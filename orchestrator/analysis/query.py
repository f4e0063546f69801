"""One PromQL expression for all services of a tick, and its answer taken apart again. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.ports.metrics import ENGINE, MetricQuery, MetricSource
from orchestrator.rollout.observation import Reading, Sample

STAT = "orchestrator_stat"
BY = "service, release, instance"


def quote(text: str) -> str:
    """A PromQL string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _tag(expression: str, stat: str) -> str:
    return f'label_replace({expression}, "{STAT}", {quote(stat)}, "", "")'


def once(selector: str) -> str:
    """Each series once: for some scrapes after a release has changed its track there are two of each."""
    return f"max without (track) ({selector})"


def requests(source: MetricSource, which: str, *, failed: bool = False) -> str:
    """The selector of the counter of users' requests, or of the failed ones.

    A series without the status label counts as no request at all: its errors could never be seen.
    """
    users = "".join(f", {label}!~{quote(pattern)}" for label, pattern in source.ignore)
    status = f"=~{quote(source.error_pattern)}" if failed else '!=""'
    return f"{source.requests}{{{which}{users}, {source.status_label}{status}}}"


def latencies(source: MetricSource, which: str) -> str:
    """The selector of the buckets of users' requests."""
    users = "".join(f", {label}!~{quote(pattern)}" for label, pattern in source.ignore)
    return f"{source.latency}_bucket{{{which}{users}}}"


def counters(source: MetricSource, services: Sequence[str], *, cpu: bool = False) -> list[str]:
    """The expressions for the raw counters of the services that share a source."""
    which = f"service=~{quote('|'.join(services))}"
    parts = [
        _tag(f"max by ({BY}) (up{{{which}}})", "up"),
        _tag(f"max by ({BY}) (timestamp(up{{{which}}}))", "at"),
        _tag(f"sum by ({BY}) ({once(requests(source, which))})", "requests"),
        _tag(f"sum by ({BY}) ({once(requests(source, which, failed=True))})", "errors"),
    ]
    if source.latency:
        parts.append(_tag(f"sum by ({BY}, le) ({once(latencies(source, which))})", "bucket"))
    if cpu and source.cpu != ENGINE:
        parts.append(_tag(f"sum by ({BY}) ({once(source.cpu + '{' + which + '}')})", "cpu"))
    return parts


def own(query: MetricQuery) -> list[str]:
    """The operator's own expressions of one service; `$service` in them is the service's name."""

    def tagged(expression: str, stat: str) -> str:
        named = f'label_replace({expression}, "service", {quote(query.service)}, "", "")'
        return _tag(named.replace("$service", query.service), stat)

    counts = {gate: (total, bad) for gate, total, bad in query.counts}
    parts = [tagged(text, f"query:{gate}") for gate, text in query.queries]
    for gate, (total, bad) in counts.items():
        parts.append(tagged(f"sum by (release, instance) ({once(total)})", f"total:{gate}"))
        parts.append(tagged(f"sum by (release, instance) ({once(bad)})", f"bad:{gate}"))
    which = f"service={quote(query.service)}"
    users = (requests(query.source, which), requests(query.source, which, failed=True))
    for gate, seconds in query.history:
        total, bad = counts.get(gate, users)
        parts.append(
            tagged(f"({_past(bad, seconds)} or vector(0)) / {_past(total, seconds)}", f"past:{gate}")
        )
    return parts


def _past(counter: str, seconds: float) -> str:
    """What a counter counted in the past, looked at 2000 times at most."""
    every = max(int(seconds / 2000), min(int(seconds / 10), 60), 1)
    return f"sum(increase(({counter})[{int(seconds)}s:{every}s]))"


def batch(queries: Sequence[MetricQuery]) -> list[str]:
    """The expressions for all counters of all services, grouped by source."""
    groups: dict[tuple[MetricSource, bool], list[str]] = defaultdict(list)
    for query in queries:
        groups[query.source, query.cpu].append(query.service)
    return [
        part
        for (source, cpu), services in groups.items()
        for part in counters(source, sorted(services), cpu=cpu)
    ]


def history_counters(query: MetricQuery) -> dict[str, str]:
    """The counters of one service for a look at its past, by what they count."""
    which, source = f"service={quote(query.service)}", query.source
    found = {
        "requests": f"sum by ({BY}) ({once(requests(source, which))})",
        "errors": f"sum by ({BY}) ({once(requests(source, which, failed=True))})",
    }
    if source.latency:
        found["bucket"] = f"sum by ({BY}, le) ({once(latencies(source, which))})"
    for gate, total, bad in query.counts:
        for kind, counter in (("total", total), ("bad", bad)):
            summed = f"sum by (release, instance) ({once(counter)})"
            found[f"{kind}:{gate}"] = summed.replace("$service", query.service)
    return found


@dataclass(slots=True)
class _Raw:
    up: float = 0.0
    at: float = math.nan
    stamp: float | None = None
    requests: float = 0.0
    errors: float = 0.0
    cpu: float | None = None
    buckets: dict[float, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    bad: dict[str, float] = field(default_factory=dict)

    def set(self, kind: str, gate: str, value: float, ahead: float) -> None:
        """Take one number; `ahead`: by how much our clock is ahead of Prometheus'."""
        if kind == "at":
            self.at, self.stamp = value + ahead, value
        elif kind in ("total", "bad"):
            getattr(self, kind)[gate] = value
        elif kind in ("up", "requests", "errors", "cpu"):
            setattr(self, kind, value)

    def sample(self) -> Sample | None:
        """As the core has it; None when the target is not up or a number is not finite."""
        own = {gate: (total, self.bad.get(gate, 0.0)) for gate, total in self.total.items()}
        numbers = (self.at, self.requests, self.errors, *self.buckets.values(), self.cpu or 0.0)
        if self.up != 1 or not all(
            math.isfinite(v) for v in (*numbers, *(n for pair in own.values() for n in pair))
        ):
            return None
        cpu = None if self.cpu is None or self.stamp is None else (self.stamp, self.cpu)
        return Sample(self.at, self.requests, self.errors, self.buckets, own, cpu, self.stamp)


def readings(
    queries: Sequence[MetricQuery], result: Iterable[Mapping[str, Any]], now: float
) -> dict[str, Reading]:
    """The answer, by service.

    An instance whose target is not up, or whose numbers are not finite, is absent. A missing error series
    is zero errors: it is born with the first error. The age of a sample is told by Prometheus' own clock,
    so that it holds when the clocks of two hosts differ.
    """
    units = {q.service: q.source.latency_unit for q in queries}
    raw: dict[tuple[str, str], _Raw] = defaultdict(_Raw)
    values: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    past: dict[str, dict[str, float]] = defaultdict(dict)
    for row in result:
        labels, (asked_at, text) = row["metric"], row["value"]
        service, value = labels.get("service", ""), number(text)
        kind, _, gate = labels.get(STAT, "").partition(":")
        if service not in units:
            continue
        if kind == "query":
            values[service][gate, labels.get("release", "")] = value
        elif kind == "past" and math.isfinite(value):
            past[service][gate] = value
        elif kind == "bucket":
            entry = raw[service, labels.get("instance", "")]
            entry.buckets[number(labels.get("le", "")) * units[service]] = value
        else:
            raw[service, labels.get("instance", "")].set(kind, gate, value, now - float(asked_at))
    samples: dict[str, dict[str, Sample]] = defaultdict(dict)
    for (service, instance), entry in raw.items():
        sample = entry.sample()
        if sample is not None:
            samples[service][instance] = sample
    return {s: Reading(at=now, samples=samples[s], values=values[s], history=past[s]) for s in units}


def number(text: str) -> float:
    """A sample value or a bucket bound; what is not a number is NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
