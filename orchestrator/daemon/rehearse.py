"""The past of a service, read from Prometheus for a rehearsal."""

import math
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from orchestrator.analysis.prometheus import Prometheus
from orchestrator.analysis.query import history_counters, number
from orchestrator.analysis.rehearsal import Past
from orchestrator.ports.metrics import MetricQuery
from orchestrator.rollout.observation import Sample

Rows = list[dict[str, Any]]

POINTS = 720
"""Points a series in one query: an hour of 5 s scrapes."""


async def read_past(
    prometheus: Prometheus, query: MetricQuery, past: Past, start: float, end: float
) -> AsyncIterator[float]:
    """Fill a past, an hour of scrapes at a time; yields how far it is, 0 to 1.

    Only the release with the most requests of each hour counts: two releases at a time were a rollout.

    Raises:
        Fault: Prometheus did not answer.
    """
    at, reach = start, POINTS * past.interval
    while at < end:
        until = min(at + reach, end)
        rows: dict[str, Rows] = {}
        for stat, expression in history_counters(query).items():
            rows[stat] = await prometheus.range(expression, at, until, past.interval)
        past.take(_samples(rows, query.source.latency_unit))
        at = until
        yield (at - start) / (end - start)


def _samples(rows: dict[str, Rows], unit: float) -> dict[float, dict[str, Sample]]:
    main = _main_release(rows["requests"])
    raw: dict[tuple[float, str], dict[str, float]] = defaultdict(dict)
    for stat, found in rows.items():
        for row in found:
            labels = row["metric"]
            if labels.get("release", "") != main:
                continue
            kind = stat if stat != "bucket" else f"le:{number(labels.get('le', '')) * unit}"
            for at, text in row["values"]:
                raw[float(at), labels.get("instance", "")][kind] = number(text)
    samples: dict[float, dict[str, Sample]] = defaultdict(dict)
    for (at, instance), numbers in raw.items():
        if "requests" in numbers and all(math.isfinite(v) for v in numbers.values()):
            samples[at][instance] = _sample(at, numbers)
    return samples


def _sample(at: float, numbers: dict[str, float]) -> Sample:
    buckets = {float(k.removeprefix("le:")): v for k, v in numbers.items() if k.startswith("le:")}
    gates = {k.removeprefix("total:") for k in numbers if k.startswith("total:")}
    own = {g: (numbers[f"total:{g}"], numbers.get(f"bad:{g}", 0.0)) for g in gates}
    return Sample(at, numbers["requests"], numbers.get("errors", 0.0), buckets, own)


def _main_release(rows: Rows) -> str:
    """The release that counted most."""
    grown: dict[str, float] = defaultdict(float)
    for row in rows:
        values = [v for v in (number(text) for _, text in row["values"]) if math.isfinite(v)]
        if values:
            grown[row["metric"].get("release", "")] += max(values[-1] - values[0], 0.0)
    return max(grown, key=lambda release: grown[release], default="")
