"""Each event as one log line and as metrics. The event's kind is the line's name; its fields are stable."""

from dataclasses import fields
from typing import Any

import structlog

from orchestrator.observability.metrics import DaemonMetrics
from orchestrator.rollout.events import (
    Event,
    GateJudged,
    GatesLooked,
    ReleaseEnded,
)
from orchestrator.rollout.model import Outcome, Result, Verdict

log = structlog.get_logger()

WARNINGS = frozenset(
    {
        "request_refused",
        "instance_died",
        "rollback_started",
        "edge_drifted",
        "edge_stuck",
        "service_troubled",
        "rollout_paused",
        "approval_wanted",
    }
)


def tell(event: Event, metrics: DaemonMetrics) -> None:
    """Log and count one event."""
    metrics.count(event)
    about = {f.name: getattr(event, f.name) for f in fields(event) if f.name not in ("kind", "at")}
    verdict = about.pop("verdict", None)
    if isinstance(verdict, Verdict):
        about |= spread(verdict)
    level = "warning" if event.kind in WARNINGS or _bad(event) else "info"
    if isinstance(event, GatesLooked):  # one after every scrape: for replay, not for people
        level = "debug"
    getattr(log, level)(event.kind, **about)


def _bad(event: Event) -> bool:
    if isinstance(event, ReleaseEnded):
        return event.outcome is not Outcome.PROMOTED
    return isinstance(event, GateJudged) and event.verdict.result is Result.FAIL


def spread(verdict: Verdict) -> dict[str, Any]:
    """A verdict as flat fields."""
    return {
        "gate": verdict.gate,
        "result": verdict.result,
        "value": verdict.value,
        "limit": verdict.limit,
        "baseline": verdict.baseline,
        "samples": verdict.samples,
        "baseline_samples": verdict.baseline_samples,
        "bad": verdict.bad,
        "baseline_bad": verdict.baseline_bad,
        "interval": verdict.interval,
        "baseline_interval": verdict.baseline_interval,
        "harm": verdict.harm,
        "safety": verdict.safety,
        "dry_run": verdict.dry_run,
        "measured_at_generation": verdict.generation,
        "text": verdict.text,
    }
