"""One PromQL expression for all services of a tick, and its answer taken apart again. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.ports import MetricQuery, MetricSource
from orchestrator.rollout.observation import Reading, Sample

STAT = "orchestrator_stat"
BY = "service, release, instance"


def quote(text: str) -> str:
    """A PromQL string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _tag(expression: str, stat: str) -> str:
    return f'label_replace({expression}, "{STAT}", {quote(stat)}, "", "")'


def counters(source: MetricSource, services: Sequence[str]) -> list[str]:
    """The expressions for the raw counters of the services that share a source."""
    which = f"service=~{quote('|'.join(services))}"
    users = "".join(f", {label}!~{quote(pattern)}" for label, pattern in source.ignore)
    failed = f", {source.status_label}=~{quote(source.error_pattern)}"
    parts = [
        _tag(f"max by ({BY}) (up{{{which}}})", "up"),
        _tag(f"max by ({BY}) (timestamp(up{{{which}}}))", "at"),
        _tag(f"sum by ({BY}) ({source.requests}{{{which}{users}}})", "requests"),
        _tag(f"sum by ({BY}) ({source.requests}{{{which}{users}{failed}}})", "errors"),
    ]
    if source.latency:
        parts.append(_tag(f"sum by ({BY}, le) ({source.latency}_bucket{{{which}{users}}})", "bucket"))
    return parts


def own(query: MetricQuery) -> list[str]:
    """The operator's own expressions of one service; `$service` in them is the service's name."""
    service = quote(query.service)
    return [
        _tag(
            f'label_replace({text.replace("$service", query.service)}, "service", {service}, "", "")',
            f"query:{gate}",
        )
        for gate, text in query.queries
    ]


def batch(queries: Sequence[MetricQuery]) -> list[str]:
    """The expressions for all counters of all services, grouped by source."""
    groups: dict[MetricSource, list[str]] = defaultdict(list)
    for query in queries:
        groups[query.source].append(query.service)
    return [part for source, services in groups.items() for part in counters(source, sorted(services))]


@dataclass(slots=True)
class _Raw:
    up: float = 0.0
    at: float = math.nan
    requests: float = 0.0
    errors: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)


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
    for row in result:
        labels, (asked_at, text) = row["metric"], row["value"]
        service, stat, value = labels.get("service", ""), labels.get(STAT, ""), number(text)
        if service not in units:
            continue
        if stat.startswith("query:"):
            values[service][stat.removeprefix("query:"), labels.get("release", "")] = value
            continue
        entry = raw[service, labels.get("instance", "")]
        if stat == "bucket":
            entry.buckets[number(labels.get("le", "")) * units[service]] = value
        elif stat == "at":
            entry.at = now - (float(asked_at) - value)
        elif stat in ("up", "requests", "errors"):
            setattr(entry, stat, value)
    samples: dict[str, dict[str, Sample]] = defaultdict(dict)
    for (service, instance), entry in raw.items():
        finite = (entry.at, entry.requests, entry.errors, *entry.buckets.values())
        if entry.up == 1 and all(math.isfinite(v) for v in finite):
            samples[service][instance] = Sample(entry.at, entry.requests, entry.errors, entry.buckets)
    return {s: Reading(at=now, samples=samples[s], values=values[s]) for s in units}


def number(text: str) -> float:
    """A sample value or a bucket bound; what is not a number is NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
