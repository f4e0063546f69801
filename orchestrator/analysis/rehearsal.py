"""A/A rehearsals: the gate on a service's own past, with nothing wrong.

Two kinds of replays. In the first a stable instance plays the candidate against its siblings, thinned to the
share of each step: what clusters on one instance shows as false alarms, and dispersion is chosen by it. In
the second every request of the whole service is routed at random, as nginx will do it: that tells how long a
good release takes at the service's traffic.
"""

import bisect
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.rollout.compare import counted, slow_bound
from orchestrator.rollout.counts import Counts, add, difference
from orchestrator.rollout.evidence import Block, begin, log_safety, safety_bet
from orchestrator.rollout.model import FULL
from orchestrator.rollout.observation import Sample
from orchestrator.rollout.plan import tolerance_of
from orchestrator.rollout.policy import Certainty, Comparison, Policy
from orchestrator.rollout.trial import Trial

DISPERSIONS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
"""Values of phi that are tried, smallest first."""

SMALL = 200.0
"""Variance up to which a binomial is drawn exactly; beyond it the normal is closer than anybody can see."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What every instance of stable counted in one scrape interval: instance to counts."""

    at: float
    instances: Mapping[str, Counts]


@dataclass(slots=True)
class Past:
    """A service's past, oldest first, and how far apart its moments are in seconds."""

    interval: float
    moments: list[Moment] = field(default_factory=list)

    def take(self, samples: Mapping[float, Mapping[str, Sample]]) -> None:
        """Add counters, time to instance to sample; gaps and instances that are new are left out."""
        times = sorted(samples)
        for before, now in itertools.pairwise(times):
            if now - before > 1.5 * self.interval:
                continue
            both = samples[before].keys() & samples[now].keys()
            if both:
                counts = {name: difference(samples[before][name], samples[now][name]) for name in both}
                self.moments.append(Moment(now, counts))

    @property
    def total(self) -> Counts:
        """All that was counted."""
        found = Counts()
        for moment in self.moments:
            for counts in moment.instances.values():
                found = add(found, counts)
        return found

    @property
    def rate(self) -> float:
        """Requests a second, on average."""
        seconds = len(self.moments) * self.interval
        return self.total.requests / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True)
class Replays:
    """What became of good releases: how many, rolled back, held, and the seconds of those promoted."""

    number: int
    rolled_back: int
    held: int
    seconds: tuple[float, ...]
    by: Mapping[str, int]

    @property
    def false_rate(self) -> float:
        """The share that was rolled back."""
        return self.rolled_back / self.number if self.number else 0.0

    def quantile(self, q: float) -> float | None:
        """Seconds within which that share of the promoted ones was promoted."""
        found = sorted(self.seconds)
        return found[min(int(q * len(found)), len(found) - 1)] if found else None


def binomial(chance: random.Random, n: int, p: float) -> int:
    """How many of n independent trials with probability p succeed."""
    if p > 0.5:  # noqa: PLR2004  the rarer side is drawn
        return n - binomial(chance, n, 1.0 - p)
    if n <= 0 or p <= 0.0:
        return 0
    variance = n * p * (1.0 - p)
    if variance > SMALL:
        return min(max(round(chance.gauss(n * p, math.sqrt(variance))), 0), n)
    found, at = 0, 0
    while True:
        at += int(math.log(1.0 - chance.random()) / math.log1p(-p)) + 1
        if at > n:
            return found
        found += 1


def thin(chance: random.Random, requests: float, bad: float, kept: float) -> tuple[float, float]:
    """Keep each request with a probability; its being bad goes with it."""
    if kept >= 1.0:
        return requests, bad
    rest = binomial(chance, round(requests - bad), kept)
    spoilt = binomial(chance, round(bad), kept)
    return float(rest + spoilt), float(spoilt)


class Rehearsal:
    """Replays of one policy on one past.

    Args:
        policy: The policy that releases would be made with.
        past: Has moments.
        chance: Where chance comes from; the same seed gives the same replays.
    """

    def __init__(self, policy: Policy, past: Past, chance: random.Random) -> None:
        whole = past.total
        self._past, self._chance = past, chance
        self._bounds = {
            r.name: slow_bound(r, whole, ()) if r.metric == "latency" else None for r in policy.comparisons
        }
        usable = tuple(
            r for r in policy.comparisons if not r.dry_run and (r.metric != "latency" or self._bounds[r.name])
        )
        self.policy = replace(policy, comparisons=tuple(replace(r, history=0.0) for r in usable))
        self.unusable = [r.name for r in policy.comparisons if not r.dry_run and r not in usable]
        self._before = {r.name: counted(r, self._bounds[r.name], whole) for r in usable}
        self._siblings = [i for i, m in enumerate(past.moments) if len(m.instances) > 1]

    @property
    def has_siblings(self) -> bool:
        """Whether there were ever two instances at a time."""
        return bool(self._siblings)

    def instances(self, number: int, dispersion: float) -> Iterator[Replays]:
        """Replays in which an instance plays the candidate; yields the result so far after each."""
        return self._many(number, dispersion, self._as_instance)

    def routed(self, number: int, dispersion: float) -> Iterator[Replays]:
        """Replays in which requests are routed at random; yields the result so far after each."""
        return self._many(number, dispersion, self._as_routed)

    def _many(self, number: int, dispersion: float, play: Callable[[Trial], str]) -> Iterator[Replays]:
        rolled_back = held = 0
        seconds: list[float] = []
        by: dict[str, int] = {}
        certainty = replace(self.policy.certainty, dispersion=dispersion)
        policy = replace(self.policy, certainty=certainty)
        for done in range(1, number + 1):
            begun = {
                r.name: begin(
                    r,
                    bound=self._bounds[r.name],
                    requests=self._before[r.name][0],
                    bad=self._before[r.name][1],
                )
                for r in policy.comparisons
            }
            trial = Trial(policy, begun)
            end = play(trial)
            if end == "promoted":
                seconds.append(trial.seconds)
            elif end == "rolled_back":
                rolled_back += 1
                by[trial.worst] = by.get(trial.worst, 0) + 1
            else:
                held += 1
            yield Replays(done, rolled_back, held, tuple(seconds), by)

    def _as_instance(self, trial: Trial) -> str:
        moments = self._past.moments
        at = self._chance.choice(self._siblings)
        player = self._chance.choice(sorted(moments[at].instances))
        while True:
            moment = moments[at % len(moments)]
            others = [c for name, c in moment.instances.items() if name != player]
            mine = moment.instances.get(player)
            if mine is None or not others:  # its release ended: somebody else goes on
                at = self._siblings[bisect.bisect(self._siblings, at % len(moments)) % len(self._siblings)]
                player = self._chance.choice(sorted(moments[at].instances))
                continue
            blocks = {r.name: self._shared(r, mine, others, trial.share) for r in trial.policy.comparisons}
            end = trial.see(blocks, self._past.interval)
            if end is not None:
                return end
            at += 1

    def _shared(self, rule: Comparison, mine: Counts, others: Sequence[Counts], share: float) -> Block:
        """A block with one instance as the candidate, thinned until the shares are those of the step."""
        bound = self._bounds[rule.name]
        n_c, x_c = counted(rule, bound, mine)
        found = [counted(rule, bound, c) for c in others]
        n_s, x_s = sum(n for n, _ in found), sum(x for _, x in found)
        if not n_c or not n_s:
            return Block(n_c, x_c, n_s, x_s)
        wanted = share / (1.0 - share)
        ratio = n_c / n_s
        n_c, x_c = thin(self._chance, n_c, x_c, wanted / ratio)
        n_s, x_s = thin(self._chance, n_s, x_s, ratio / wanted)
        return Block(n_c, x_c, n_s, x_s)

    def _as_routed(self, trial: Trial) -> str:
        moments = self._past.moments
        at = self._chance.randrange(len(moments))
        while True:
            blocks = {}
            for rule in trial.policy.comparisons:
                bound = self._bounds[rule.name]
                found = [counted(rule, bound, c) for c in moments[at].instances.values()]
                n, x = sum(n for n, _ in found), sum(x for _, x in found)
                n_c, x_c = thin(self._chance, n, x, trial.share)
                blocks[rule.name] = Block(n_c, x_c, max(n - n_c, 0.0), max(x - x_c, 0.0))
            end = trial.see(blocks, self._past.interval)
            if end is not None:
                return end
            at = (at + 1) % len(moments)

    def undecidable(self) -> list[str]:
        """Steps that this traffic can't certify in time, each with the numbers."""
        found = []
        seconds = len(self._past.moments) * self._past.interval
        for rule in self.policy.comparisons:
            requests, bad = self._before[rule.name]
            rate, usual = requests / seconds, bad / requests if requests else 0.0
            for index, step in enumerate(self.policy.steps):
                if step.weight == FULL or step.max_hold is None:
                    continue
                tolerance = tolerance_of(self.policy, index, rule)
                wanted = needed(usual, tolerance, step.weight / FULL, self.policy.certainty)
                takes = wanted / (rate * step.weight / FULL) if rate else math.inf
                if takes > step.max_hold:
                    found.append(
                        f"{rule.name} at {step.weight} %: to rule out {tolerance * 100:.2g} percentage points"
                        f" takes about {wanted:.0f} requests of the candidate, and at"
                        f" {rate * step.weight / FULL:.2g} a second that is {_minutes(takes)};"
                        f" max_step is {_minutes(step.max_hold)}"
                    )
        return found


def needed(usual: float, tolerance: float, share: float, certainty: Certainty) -> float:
    """Requests of the candidate until a release like stable is certified; infinite if it never is."""
    n_c, n_s = share, 1.0 - share
    bet = safety_bet(n_c / n_s, usual, tolerance)
    growth = log_safety(Block(n_c, n_c * usual, n_s, n_s * usual), bet, tolerance)
    growth /= certainty.dispersion * share
    return math.log(1.0 / certainty.beta) / growth if growth > 0 else math.inf


def _minutes(seconds: float) -> str:
    if math.isinf(seconds):
        return "never"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"  # noqa: PLR2004
