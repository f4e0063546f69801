"""A limit's verdict: a value against what it must not pass, sustained for a time."""

import math
from dataclasses import dataclass
from functools import partial

from orchestrator.rollout.counts import Counts, quantile
from orchestrator.rollout.model import Result, Verdict, readable
from orchestrator.rollout.policy import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One side: a value in the metric's unit and the requests that it rests on, or why there is none."""

    value: float | None = None
    samples: int = 0
    missing: str = ""


def value_of(gate: Limit, counts: Counts) -> float | None:
    """The value of a limit that counts requests; None when there is none."""
    if gate.metric == "latency":
        return quantile(counts.buckets, gate.quantile)
    return counts.errors / counts.requests if counts.requests else None


def judge(
    gate: Limit,
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
        return Verdict(
            gate=gate.name,
            result=Result.NO_DATA,
            generation=generation,
            dry_run=gate.dry_run,
            text=candidate.missing,
        )
    value, base = _finite(candidate.value), _baseline(gate, stable, remembered)
    verdict = partial(
        Verdict,
        gate=gate.name,
        unit=gate.unit,
        value=value,
        baseline=base,
        samples=candidate.samples,
        baseline_samples=stable.samples,
        generation=generation,
        dry_run=gate.dry_run,
    )
    samples, wanted = candidate.samples, max(gate.min_requests, 1)
    if gate.counts_requests and samples < wanted:
        text = f"{samples} of {wanted} requests in {gate.window:.0f} s"
        return verdict(result=Result.INCONCLUSIVE, text=text)
    if value is None:
        return verdict(result=Result.NO_DATA, text="no finite value")
    limit = _tightest(gate, base)
    if limit is None and gate.min is None:
        text = "stable has no measurements to compare with"
        return verdict(result=Result.INCONCLUSIVE, text=text)
    return _compare(gate, verdict, value, limit, now - broken_since if broken_since is not None else 0.0)


def _compare(
    gate: Limit, verdict: "partial[Verdict]", value: float, limit: float | None, broken_for: float
) -> Verdict:
    """Pass within the limits; beyond one fail once that has lasted for the gate's time."""
    known = verdict.keywords
    below = gate.min is not None and value < gate.min
    bound = gate.min if below or limit is None else limit
    assert bound is not None
    of = f" of {known['samples']} requests" if gate.counts_requests else ""
    which = "minimum" if bound == gate.min else "limit"
    text = f"{readable(value, gate.unit)}{of}, {which} {readable(bound, gate.unit)}"
    if known["baseline"] is not None:
        text += f", stable {readable(known['baseline'], gate.unit)}"
        text += f" of {known['baseline_samples']}" if gate.counts_requests else ""
    if not below and (limit is None or value <= limit):
        return verdict(result=Result.PASS, limit=bound, text=text)
    if broken_for < gate.sustained:
        text += f"; {'below' if below else 'above'} for {broken_for:.0f} of {gate.sustained:.0f} s"
        return verdict(result=Result.INCONCLUSIVE, limit=bound, broken=True, text=text)
    return verdict(result=Result.FAIL, limit=bound, broken=True, text=text)


def _baseline(gate: Limit, stable: Measured, remembered: float | None) -> float | None:
    """Stable's value now if it has measured enough, else the last one that it had."""
    measured = not gate.counts_requests or stable.samples >= max(gate.min_requests, 1)
    value = _finite(stable.value) if measured and not stable.missing else None
    return remembered if value is None else value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _tightest(gate: Limit, base: float | None) -> float | None:
    relative = None if gate.max_ratio is None or base is None else base * gate.max_ratio + gate.margin
    return min((limit for limit in (gate.max, relative) if limit is not None), default=None)
