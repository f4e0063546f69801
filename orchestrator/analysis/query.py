"""One PromQL expression for all services of a tick, and its answer taken apart again. Pure."""

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

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


class Part(NamedTuple):
    """An expression of one service that Prometheus can refuse.

    Attributes:
        gate: Whose it is; empty for the counters that all gates need.
        asked: What the service's file asks for.
        text: What Prometheus is asked.
    """

    gate: str
    asked: str
    text: str


def counters(source: MetricSource, services: Sequence[str], *, cpu: bool = False) -> list[Part]:
    """The raw counters of the services that share a source."""
    which = f"service=~{quote('|'.join(services))}"
    users, failed = requests(source, which), requests(source, which, failed=True)

    def part(selector: str, expression: str, stat: str) -> Part:
        return Part("", selector, _tag(expression, stat))

    found = [
        part("up", f"max by ({BY}) (up{{{which}}})", "up"),
        part("up", f"max by ({BY}) (timestamp(up{{{which}}}))", "at"),
        part(users, f"sum by ({BY}) ({once(users)})", "requests"),
        part(failed, f"sum by ({BY}) ({once(failed)})", "errors"),
    ]
    if source.latency:
        buckets = latencies(source, which)
        found.append(part(buckets, f"sum by ({BY}, le) ({once(buckets)})", "bucket"))
    if cpu and source.cpu != ENGINE:
        used = f"{source.cpu}{{{which}}}"
        found.append(part(used, f"sum by ({BY}) ({once(used)})", "cpu"))
    return found


def own(query: MetricQuery) -> list[Part]:
    """The operator's own expressions of one service; `$service` in them is the service's name."""

    def tagged(expression: str, kind: str, gate: str) -> Part:
        named = f'label_replace({expression}, "service", {quote(query.service)}, "", "")'
        asked = expression.replace("$service", query.service)
        return Part(gate, asked, _tag(named.replace("$service", query.service), f"{kind}:{gate}"))

    counts = {gate: (total, bad) for gate, total, bad in query.counts}
    parts = [tagged(text, "query", gate) for gate, text in query.queries]
    for gate, (total, bad) in counts.items():
        parts.append(tagged(f"sum by (release, instance) ({once(total)})", "total", gate))
        parts.append(tagged(f"sum by (release, instance) ({once(bad)})", "bad", gate))
    which = f"service={quote(query.service)}"
    users = (requests(query.source, which), requests(query.source, which, failed=True))
    for gate, seconds in query.history:
        total, bad = counts.get(gate, users)
        past = f"({_past(bad, seconds)} or vector(0)) / {_past(total, seconds)}"
        parts.append(tagged(past, "past", gate))
    return parts


def parts(query: MetricQuery) -> list[Part]:
    """All that is asked for one service."""
    return [*counters(query.source, [query.service], cpu=query.cpu), *own(query)]


def _past(counter: str, seconds: float) -> str:
    """What a counter counted in the past, looked at 2000 times at most."""
    every = max(int(seconds / 2000), min(int(seconds / 10), 60), 1)
    return f"sum(increase(({counter})[{int(seconds)}s:{every}s]))"


def batch(queries: Sequence[MetricQuery]) -> list[Part]:
    """All counters of all services, grouped by source."""
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
    up: float = math.nan
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

    def sample(self, without: Container[str]) -> Sample | None:
        """As the core has it, without some gates; None when it is not up or a number is not finite."""
        own = {
            gate: (total, self.bad.get(gate, 0.0))
            for gate, total in self.total.items()
            if gate not in without
        }
        numbers = (self.at, self.requests, self.errors, *self.buckets.values(), self.cpu or 0.0)
        if self.up != 1 or not all(
            math.isfinite(v) for v in (*numbers, *(n for pair in own.values() for n in pair))
        ):
            return None
        cpu = None if self.cpu is None or self.stamp is None else (self.stamp, self.cpu)
        return Sample(self.at, self.requests, self.errors, self.buckets, own, cpu, self.stamp)


def readings(
    queries: Sequence[MetricQuery],
    result: Iterable[Mapping[str, Any]],
    now: float,
    refused: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> dict[str, Reading]:
    """The answer, by service.

    An instance whose target is not up, or whose numbers are not finite, is absent. A missing error series
    is zero errors: it is born with the first error. The age of a sample is told by Prometheus' own clock,
    so that it holds when the clocks of two hosts differ. A row that can't be read is the trouble of its
    service, and of its gate where it has one.

    Args:
        queries: What was asked for.
        result: The rows of all services.
        now: When, in seconds since the epoch.
        refused: (service, gate) to why there is no answer; the gate is empty for the counters.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {q.service: [] for q in queries}
    for row in result:
        labels = row.get("metric") if isinstance(row, dict) else None
        service = labels.get("service") if isinstance(labels, dict) else None
        if isinstance(service, str) and service in rows:
            rows[service].append(row)
    return {
        q.service: _reading(
            q, rows[q.service], now, {gate: why for (name, gate), why in refused.items() if name == q.service}
        )
        for q in queries
    }


def _reading(
    query: MetricQuery, rows: Iterable[Mapping[str, Any]], now: float, why: dict[str, str]
) -> Reading:
    raw: dict[str, _Raw] = defaultdict(_Raw)
    values: dict[tuple[str, str], float] = {}
    past: dict[str, float] = {}
    for row in rows:
        kind, _, gate = str(row["metric"].get(STAT, "")).partition(":")
        try:
            labels, (asked_at, text) = row["metric"], row["value"]
            value = number(text)
            if kind == "query":
                values[gate, labels.get("release", "")] = value
            elif kind == "past" and math.isfinite(value):
                past[gate] = value
            elif kind == "bucket":
                bound = number(labels.get("le", "")) * query.source.latency_unit
                raw[labels.get("instance", "")].buckets[bound] = value
            else:
                raw[labels.get("instance", "")].set(kind, gate, value, now - float(asked_at))
        except Exception as error:  # noqa: BLE001  whatever it was, it is this service's alone
            why.setdefault(gate, f"unexpected answer ({error!r}): {str(row)[:200]}")
    if "" in why:
        return Reading(at=now, error=why[""])
    samples = {name: s for name, entry in raw.items() if (s := entry.sample(why.keys())) is not None}
    return Reading(
        at=now,
        samples=samples,
        values={key: value for key, value in values.items() if key[0] not in why},
        history=past,
        refused=why,
        unread={name: "" for name, entry in raw.items() if entry.up == 0 and name not in samples},
    )


def number(text: str) -> float:
    """A sample value or a bucket bound; text that is not a number is NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
