"""How sure a comparison of candidate and stable is, after every scrape.

A threshold on a rate has to choose between rolling good releases back and missing bad ones, because a rate
does not say on how many requests it rests. Evidence does. It is a bet against a hypothesis: capital that
starts at 1 and that no strategy can be expected to increase while the hypothesis is true. By Ville's
inequality (J. Ville, 1939; Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference",
Statistical Science 2023) capital ever reaches 1/alpha with a probability of at most alpha, however often it
is looked at.

Words:
    block: What was counted between two scrapes: requests and bad ones, on both sides.
    bad: A 5xx, or a request slower than a bound of the histogram, or what an operator's own query calls bad.
    p_s, p_c: The unknown probabilities that a request of stable and of the candidate is bad, in one block.
    good release: In every block p_c <= ratio * p_s + margin, whatever p_s does.
    harm: Evidence against "the release is good".
    safety: Evidence against "p_c >= p_s + D"; D is the harm budget divided by the share that comes next.
    effect: By how much p_c might exceed what a good release may have; each is a bet of its own.
    dispersion: By how much counts vary more than independent requests would; evidence is divided by it.

Every bet is fixed by the past and by the numbers of requests of its block, before the bad ones are looked at.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from orchestrator.rollout.policy import Certainty, Comparison

EDGE = 0.98
"""How near a bet may come to the one that loses everything with one request."""

LATE_MASS = 0.05
LATE_BLOCKS = 720
"""A share of the capital is put on harm that begins in mid-step: evenly on the first hour of 5 s scrapes."""

FIRST_STEP_MASS = 0.92
"""The share that is put on harm that shows at once; later steps share what is left of `1 - LATE_MASS`."""

LATE_SAFETY = 0.1
LATE_SAFETY_BLOCKS = 360
"""A share of the capital on safety begins in mid-step, evenly, so that an outage does not end all hope."""

LARGE = 50.0
"""Logarithm of the most by which a bet on safety may grow in a block, for floating point."""

PRIOR = 500.0
"""Requests that the first guess of stable's rate is worth."""

MEMORY = 5000.0
"""Requests after which what stable did is forgotten: the bets follow a rate that changes."""

LIFETIME = 1000.0
"""Requests that all that stable counted before the rollout is worth at most: it may be long ago."""

JUMP = 2.5
"""Standard deviations by which stable's rate changes only if something has happened to both sides."""

MOST = 1e12
"""Where capital stops growing: only a gate that decides nothing gets there."""


class Block(NamedTuple):
    """Counts of one scrape interval, or sums of them."""

    requests: float = 0.0
    bad: float = 0.0
    stable_requests: float = 0.0
    stable_bad: float = 0.0

    def plus(self, other: "Block") -> "Block":
        """Both together."""
        return Block(
            self.requests + other.requests,
            self.bad + other.bad,
            self.stable_requests + other.stable_requests,
            self.stable_bad + other.stable_bad,
        )


NO_COUNTS = Block()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one comparison has seen so far. Small enough to be committed with every look.

    Attributes:
        gate: The comparison's name.
        bound: For latency, the histogram bound in seconds above which a request is bad.
        capital: One for each effect: the bets on harm that have begun.
        idle: The share of the capital that is on harm that has not begun yet.
        waiting: What of `idle` begins with the next block.
        blocks: Blocks so far.
        safe: The bets on safety that have begun in this step.
        unsafe: The share of that capital that begins later.
        step: Sum of this step's blocks.
        step_blocks: How many these are.
        alone: Stable's requests in this step while the candidate had none, as of the last block.
        past: Stable's requests and bad ones that the bets go by.
        pending: Counts that wait for a first request of stable.
        last: Stable's requests and bad ones in the last block.
    """

    gate: str
    bound: float | None = None
    capital: tuple[float, ...] = ()
    idle: float = 1.0
    waiting: float = 0.0
    blocks: int = 0
    safe: float = 0.0
    unsafe: float = 1.0
    step: Block = NO_COUNTS
    step_blocks: int = 0
    alone: float = 0.0
    past: tuple[float, float] = (0.0, 0.0)
    pending: Block = NO_COUNTS
    last: tuple[float, float] = (0.0, 0.0)


def harm_bet(load: float, base: float, margin: float, effect: float) -> float:
    """The bet b on harm that grows fastest if p_s = q_s and p_c = ratio * q_s + margin + effect.

    The expected growth of a block per stable request, a * p_c * log(1 + b) + p_s * log(1 - ratio * a * b) -
    a * b * margin, is greatest where its derivative is 0: A b^2 - B b + effect = 0 with A and B as below. The
    smaller root is taken in the form that does not cancel.

    Args:
        load: ratio * a, where a is the candidate's requests for each one of stable; above 0.
        base: ratio * q_s, where q_s is what stable's rate is thought to be.
        margin: What a good release may be bad beyond `base`.
        effect: By how much the candidate is thought to exceed that, above 0.

    Returns:
        0 < b < 1 / (ratio * a), so that no outcome costs all.
    """
    big_a = margin * load
    big_b = load * (base + effect) + base + margin
    root = math.sqrt(max(big_b * big_b - 4.0 * big_a * effect, 0.0))
    return min(2.0 * effect / (big_b + root), EDGE / load)


def log_harm(block: Block, load: float, margin: float, b: float) -> float:
    """Logarithm of the factor by which a bet b on harm changes in a block.

    Given the numbers of requests n_c and n_s, the expectation of (1 + b)^x_c is at most exp(b * n_c * p_c),
    and that of (1 - ratio * a * b)^x_s at most exp(-ratio * b * n_c * p_s), because 1 + y <= exp(y). So the
    expectation of the factor is at most exp(b * n_c * (p_c - ratio * p_s - margin)): 1 for a good release.
    """
    n_c, x_c, _, x_s = block
    return x_c * math.log1p(b) + x_s * math.log1p(-load * b) - b * margin * n_c


def safety_bet(a: float, q_s: float, tolerance: float) -> float:
    """The bet c on safety that grows fastest if p_c = p_s = q_s, against p_c = p_s + tolerance.

    It solves A c^2 + B c - tolerance = 0, where the derivative of a * p_c * log(1 - c) +
    p_s * log(1 + a * c) + a * c * tolerance is 0.
    """
    big_a = tolerance * a
    big_b = q_s * a + q_s + tolerance - big_a
    return min(2.0 * tolerance / (big_b + math.sqrt(big_b * big_b + 4.0 * big_a * tolerance)), EDGE)


def log_safety(block: Block, c: float, tolerance: float) -> float:
    """Logarithm of the factor by which a bet c on safety changes in a block.

    By the same inequality its expectation is at most exp(c * n_c * (p_s + tolerance - p_c)): 1 at most if the
    candidate is worse than stable by the tolerance or more.
    """
    a = block.requests / block.stable_requests
    gained = block.stable_bad * math.log1p(a * c)
    return block.bad * math.log1p(-c) + gained + c * tolerance * block.requests


def jumped(evidence: Evidence, block: Block) -> bool:
    """Whether stable's own rate is far from that of the block before: a shared outage begins or ends.

    The scrapes of the two sides lie seconds apart, so that for a block or two one side shows it and the other
    does not. Such a block adds to no evidence; it may take some away, so no bound is lost.
    """
    requests, bad = evidence.last
    if not requests or not block.stable_requests:
        return False
    least = min(requests, block.stable_requests)
    rate = (bad + block.stable_bad) / (requests + block.stable_requests)
    change = abs(block.stable_bad / block.stable_requests - bad / requests)
    return change * least > JUMP * math.sqrt(2.0 * rate * least)


def begin(
    rule: Comparison, *, bound: float | None = None, requests: float = 0.0, bad: float = 0.0
) -> Evidence:
    """Nothing seen yet.

    Args:
        rule: The comparison.
        bound: For latency, the bound that makes a request bad.
        requests: What stable had counted before.
        bad: The bad ones of these.
    """
    scale = min(LIFETIME / requests, 1.0) if requests else 0.0
    past = (PRIOR + requests * scale, PRIOR * rule.usual + bad * scale)
    return Evidence(gate=rule.name, bound=bound, capital=(0.0,) * len(rule.effects), past=past)


def enter_step(evidence: Evidence, step: int, steps: int) -> Evidence:
    """Put capital on harm that begins with this step; safety is shown anew at every step.

    Args:
        evidence: So far.
        step: Index of the step.
        steps: How many steps are compared in all.
    """
    mass = FIRST_STEP_MASS if step == 0 else (1.0 - LATE_MASS - FIRST_STEP_MASS) / max(steps - 1, 1)
    return replace(
        evidence,
        waiting=evidence.waiting + mass,
        safe=0.0,
        unsafe=1.0,
        step=NO_COUNTS,
        step_blocks=0,
        alone=0.0,
    )


def take(
    rule: Comparison, evidence: Evidence, block: Block, certainty: Certainty, tolerance: float | None
) -> Evidence:
    """See one block; `alone` is left to the caller.

    Args:
        rule: The comparison.
        evidence: So far.
        block: What was counted. Without a request of stable to compare with it waits for the next.
        certainty: How sure a decision must be.
        tolerance: D of this step; None when the block does not count for safety.
    """
    if evidence.pending.requests:
        block = evidence.pending.plus(block)
    if block.requests and not block.stable_requests:
        return replace(evidence, pending=block)
    late = LATE_MASS / LATE_BLOCKS if evidence.blocks < LATE_BLOCKS else 0.0
    begun = min(evidence.waiting + late, evidence.idle)
    past_requests, past_bad = evidence.past
    capital, safe, unsafe = [c + begun for c in evidence.capital], evidence.safe, evidence.unsafe
    if block.requests:
        a, q_s = block.requests / block.stable_requests, past_bad / past_requests
        odd = jumped(evidence, block)
        most, dispersion = 0.0 if odd else certainty.most_a_block, certainty.dispersion
        load, base, margin = rule.ratio * a, rule.ratio * q_s, rule.margin
        for i, (effect, _) in enumerate(rule.effects):
            factor = log_harm(block, load, margin, harm_bet(load, base, margin, effect)) / dispersion
            capital[i] = min(capital[i] * math.exp(min(factor, most)), MOST)
        if tolerance is not None:
            c = safety_bet(a, q_s, tolerance)
            factor = log_safety(block, c, tolerance) / certainty.dispersion
            begins = min(1.0 - LATE_SAFETY if unsafe == 1.0 else LATE_SAFETY / LATE_SAFETY_BLOCKS, unsafe)
            unsafe -= begins
            safe = min((safe + begins) * math.exp(min(factor, 0.0 if odd else LARGE)), MOST)
    known = past_requests + block.stable_requests
    kept = min(MEMORY / known, 1.0)
    return Evidence(
        gate=evidence.gate,
        bound=evidence.bound,
        capital=tuple(capital),
        idle=evidence.idle - begun,
        waiting=0.0,
        blocks=evidence.blocks + 1,
        safe=safe,
        unsafe=unsafe,
        step=evidence.step.plus(block),
        step_blocks=evidence.step_blocks + 1,
        past=(known * kept, (past_bad + block.stable_bad) * kept),
        last=(block.stable_requests, block.stable_bad),
    )


def harm(rule: Comparison, evidence: Evidence) -> float:
    """Evidence for harm of one comparison: its capital over all effects and beginnings; 1 at first."""
    found = evidence.idle
    for (_, weight), capital in zip(rule.effects, evidence.capital, strict=True):
        found += weight * capital
    return found


def safety(evidence: Evidence) -> float:
    """Evidence for safety of one comparison in this step; 1 at first."""
    return evidence.safe + evidence.unsafe


def total_harm(rules: Sequence[Comparison], harms: Mapping[str, float]) -> float:
    """Evidence for harm of a whole release: the capital is divided among the comparisons by their weights.

    Args:
        rules: The comparisons.
        harms: Each one's `harm`; one that has seen nothing may be absent.
    """
    whole = total = 0.0
    for rule in rules:
        if not rule.dry_run:
            whole += rule.weight
            total += rule.weight * harms.get(rule.name, 1.0)
    return total / whole if whole else 0.0


def harm_of_all(rules: Sequence[Comparison], evidences: Iterable[Evidence]) -> float:
    """Evidence for harm of a whole release, from what each comparison has seen."""
    found = {e.gate: e for e in evidences}
    return total_harm(rules, {r.name: harm(r, found[r.name]) for r in rules if r.name in found})


def hesitation(
    rules: Sequence[Comparison],
    evidences: Iterable[Evidence],
    certainty: Certainty,
    *,
    held: float,
    max_hold: float | None,
) -> str:
    """Why the comparisons do not let a step go; '' when they do.

    Args:
        rules: The comparisons; those on trial (`dry_run`) are not asked.
        evidences: What each has seen.
        certainty: How sure they must be.
        held: Seconds that the step has been held.
        max_hold: See `policy.Step`.
    """
    found = {e.gate: e for e in evidences}
    total = harm_of_all(rules, found.values())
    if total >= certainty.suspicion:
        return f"evidence of harm is {total:.3g}, and from {certainty.suspicion:g} on no step is left"
    for rule in rules:
        evidence = found.get(rule.name)
        if rule.dry_run:
            continue
        if evidence is None or not evidence.step.requests:
            return f"{rule.name}: the candidate has had no requests"
        found_safe = safety(evidence)
        if max_hold is None or found_safe >= 1.0 / certainty.beta:
            continue
        if held < max_hold or total > 1.0:
            return f"{rule.name}: evidence of safety is {found_safe:.2g} of {1.0 / certainty.beta:g}"
    return ""


def interval(bad: float, requests: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (E. B. Wilson, JASA 1927). Nothing is decided by it."""
    if requests <= 0:
        return 0.0, 1.0
    z, p = 1.96, bad / requests
    centre = p + z * z / (2 * requests)
    spread = z * math.sqrt(max(p * (1 - p), 0.0) / requests + z * z / (4 * requests * requests))
    scale = 1 + z * z / requests
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
