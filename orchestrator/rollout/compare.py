"""A comparison's verdict: from counters to blocks, and from evidence to a sentence."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.rollout.counts import Counts, add, difference, of_gate
from orchestrator.rollout.evidence import Block, Evidence, harm, safety, total_harm
from orchestrator.rollout.model import Result, Verdict
from orchestrator.rollout.observation import Reading, Sample
from orchestrator.rollout.policy import Certainty, Comparison, Policy

KNOWN = 1e6
"""Requests of the past for each one of the candidate: so many that their rate counts as known."""


def counted(rule: Comparison, bound: float | None, counts: Counts) -> tuple[float, float]:
    """All requests and the bad ones, as a comparison counts them."""
    if rule.metric == "error_rate":
        total, bad = counts.requests, counts.errors
    elif rule.metric == "counts":
        total, bad = counts.own.get(rule.name, (0.0, 0.0))
    else:
        total = counts.buckets.get(math.inf, 0.0)
        bad = total - counts.buckets.get(bound if bound is not None else math.inf, 0.0)
    return total, min(max(bad, 0.0), total)


def lifetime(samples: Mapping[str, Sample], instances: Sequence[str]) -> Counts:
    """All that the instances have counted since they started."""
    total = Counts()
    for name in instances:
        s = samples[name]
        total = add(total, Counts(s.requests, s.errors, s.buckets, s.own))
    return total


def between(older: Reading, newer: Reading, instances: Sequence[str]) -> Counts:
    """What the instances counted between two readings that both have all of them."""
    total = Counts()
    for name in instances:
        total = add(total, difference(older.samples[name], newer.samples[name]))
    return total


def alone(
    rule: Comparison,
    bound: float | None,
    readings: Sequence[Reading],
    candidate: Sequence[str],
    stable: Sequence[str],
    since: float,
) -> float:
    """Requests that stable had since a moment while the candidate had none; 0 where that is not known.

    The two sides are scraped at different moments: what stable counted after the candidate was scraped last
    says nothing of it, nor what came before it was scraped first. A counter that fell has counted less than
    is known.
    """
    begin, until = since, math.inf
    for name in candidate:
        shown = _shown(rule, bound, readings, name)
        first = max((i for i, (at, _) in enumerate(shown) if at <= since), default=0)
        if len({total for _, total in shown[first:]}) != 1:
            return 0.0
        begin, until = max(begin, shown[first][0]), min(until, shown[-1][0])
    found = 0.0
    for name in stable:
        shown = _shown(rule, bound, readings, name)
        known = [total for at, total in shown if total is not None and begin <= at <= until]
        found += sum(max(newer - older, 0.0) for older, newer in itertools.pairwise(known))
    return found


def _shown(
    rule: Comparison, bound: float | None, readings: Sequence[Reading], name: str
) -> list[tuple[float, float | None]]:
    """When an instance was scraped, and how many requests of a comparison it then showed; None: not known."""
    return [(s.at, _total(rule, bound, s)) for r in readings if (s := r.samples.get(name)) is not None]


def _total(rule: Comparison, bound: float | None, sample: Sample) -> float | None:
    if (
        not sample.sound
        or of_gate(rule) in sample.unseen
        or (rule.metric == "counts" and rule.name not in sample.own)
    ):
        return None
    return counted(rule, bound, Counts(sample.requests, sample.errors, sample.buckets, sample.own))[0]


def slow_bound(rule: Comparison, stable: Counts, candidate: Sequence[Sample]) -> float | None:
    """The first bound of the histogram at or above stable's quantile; None when there is none on both sides.

    A bound needs no interpolation: whether a request was slower than it is known exactly.
    """
    total = stable.buckets.get(math.inf, 0.0)
    for bound in sorted(b for b in stable.buckets if math.isfinite(b)):
        known = all(bound in s.buckets for s in candidate)
        if total and known and stable.buckets[bound] >= rule.quantile * total:
            return bound
    return None


def block_of(rule: Comparison, evidence: Evidence, candidate: Counts, stable: Counts) -> Block:
    """The block of one comparison."""
    requests, bad = counted(rule, evidence.bound, candidate)
    if rule.history:
        past_requests, past_bad = evidence.past
        return Block(requests, bad, requests * KNOWN, requests * KNOWN * past_bad / past_requests)
    return Block(requests, bad, *counted(rule, evidence.bound, stable))


def verdicts(
    policy: Policy, evidences: Mapping[str, Evidence], share: float, generation: int
) -> dict[str, Verdict]:
    """What every comparison that has evidence says.

    The release fails as a whole; the comparison that speaks most against it is the one that is named.

    Args:
        policy: The comparisons, and how sure they must be.
        evidences: By gate.
        share: The candidate's share of the traffic, 0 to 1.
        generation: The generation served.
    """
    rules = [r for r in policy.comparisons if r.name in evidences]
    harms = {r.name: harm(r, evidences[r.name]) for r in rules}
    limit = 1.0 / policy.certainty.alpha
    worst = ""
    if total_harm(policy.comparisons, harms) >= limit:
        worst = max((r for r in rules if not r.dry_run), key=lambda r: r.weight * harms[r.name]).name
    found = {}
    for rule in rules:
        name = rule.name
        failed = name == worst or (rule.dry_run and harms[name] >= limit)
        said = _verdict(rule, evidences[name], policy.certainty, harms[name], failed, generation)
        alone = evidences[name].alone
        if not rule.history and unlikely(alone, share) >= policy.certainty.no_traffic:
            text = (
                f"no request reached the candidate, and stable had {alone:,.0f} at {1.0 - share:.0%} of all"
            )
            said = replace(said, result=Result.FAIL, text=text)
        found[name] = said
    return found


def unlikely(requests: float, share: float) -> float:
    """How unlikely it is that all of some requests go to stable: minus the logarithm of the chance.

    At a small share of the candidate it is the number that it should have had.
    """
    return -requests * math.log1p(-share)


def _verdict(
    rule: Comparison, evidence: Evidence, certainty: Certainty, found: float, failed: bool, generation: int
) -> Verdict:
    step, proof = evidence.step, safety(evidence)
    safe = proof >= 1.0 / certainty.beta and found < certainty.suspicion
    result = Result.FAIL if failed else Result.PASS if safe else Result.INCONCLUSIVE
    baseline = step.stable_bad / step.stable_requests if step.stable_requests else None
    return Verdict(
        gate=rule.name,
        result=result,
        unit="share",
        value=step.bad / step.requests if step.requests else None,
        baseline=baseline,
        samples=int(step.requests),
        bad=int(step.bad),
        baseline_samples=0 if rule.history else int(step.stable_requests),
        baseline_bad=0 if rule.history else int(step.stable_bad),
        harm=found,
        safety=proof,
        generation=generation,
        broken=found >= certainty.suspicion,
        dry_run=rule.dry_run,
        text=_sentence(rule, evidence, certainty, result, found, proof),
    )


def _sentence(
    rule: Comparison, evidence: Evidence, certainty: Certainty, result: Result, found: float, proof: float
) -> str:
    step = evidence.step
    what = "failed" if rule.metric == "error_rate" else "were bad"
    if evidence.bound is not None:
        what = f"took over {evidence.bound * 1000:g} ms"
    text = f"candidate {_share(step.bad, step.requests)} {what}"
    if rule.history:
        past_requests, past_bad = evidence.past
        text += f", {past_bad / past_requests * 100:.2f} % in the past"
    else:
        text += f", stable {_share(step.stable_bad, step.stable_requests)}"
    if result is Result.FAIL:
        odds = 1.0 / certainty.alpha
        alike = ", as far as its sticky users are like stable's" if certainty.sticky else ""
        return f"{text}: the odds of this on a good release are below 1 in {odds:.0f}{alike}"
    if result is Result.PASS:
        return f"{text}: safe, evidence {proof:.3g} of {1.0 / certainty.beta:g}"
    return (
        f"{text}: evidence of harm {found:.2g} of {1.0 / certainty.alpha:g},"
        f" of safety {proof:.2g} of {1.0 / certainty.beta:g}"
    )


def _share(bad: float, requests: float) -> str:
    share = f"{bad / requests * 100:.2f} %" if requests else "none"
    return f"{share} of {requests:,.0f} requests"
