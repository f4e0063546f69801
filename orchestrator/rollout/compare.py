"""A comparison's verdict: from counters to blocks, and from evidence to a sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.rollout.counts import Counts, add, difference
from orchestrator.rollout.evidence import Block, Evidence, harm, safety, total_harm
from orchestrator.rollout.model import Result, Verdict
from orchestrator.rollout.observation import Reading, Sample
from orchestrator.rollout.policy import Certainty, Comparison, Policy

KNOWN = 1e6
"""Requests of the past for each one of the candidate: so many that their rate counts as known."""

PARTIAL_BLOCKS = 4
"""First blocks of a step that do not yet tell of a candidate without requests: see `unreached`."""


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


def alongside(
    readings: Sequence[Reading], candidate: Sequence[str], stable: Sequence[str], since: float
) -> Counts:
    """What stable counted since a moment, and before the candidate was scraped last.

    What came before a step, or after the candidate's counters were read, says nothing of its share; the two
    sides are scraped at different moments.
    """
    until = min(readings[-1].samples[name].at for name in candidate)
    total = Counts()
    for name in stable:
        found = [r.samples[name] for r in readings if name in r.samples]
        if known := [sample for sample in found if since <= sample.at <= until]:
            total = add(total, difference(known[0], known[-1]))
    return total


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
        missed = 0.0 if rule.history else unreached(evidences[name], share)
        if missed >= policy.certainty.no_traffic:
            text = f"no request reached the candidate, about {missed:.0f} were expected"
            said = replace(said, result=Result.FAIL, text=text)
        found[name] = said
    return found


def unreached(evidence: Evidence, share: float) -> float:
    """Requests that a candidate without any should have had by its share; 0 for one that has some.

    A step's first blocks do not suffice: workers of nginx from before it end what they have begun.
    """
    if evidence.step.requests or evidence.step_blocks <= PARTIAL_BLOCKS:
        return 0.0
    return evidence.alongside * share / (1.0 - share)


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
