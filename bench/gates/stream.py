"""Requests of a service under release, as scrapes see them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCRAPE = 5.0
"""Seconds between scrapes."""

BOUNDS = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, np.inf])
"""client_golang's default buckets, in seconds."""

MEDIAN, SIGMA = 0.05, 0.8
"""Latency is log-normal: p95 186 ms, p99 321 ms."""

LATENCIES = 2
"""Where a side's latency buckets begin, after requests and errors."""

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens during a release.

    Attributes:
        rate: Requests a second, both sides together.
        baseline: Stable's share of errors.
        extra: What the candidate adds to it.
        slower: Factor on the candidate's latency.
        outage: Whether both sides fail half of their requests for a minute, at a random time.
        skew: Seconds by which the candidate is scraped later than stable.
        burst: Mean number of requests that fail together; 1: independent errors.
        cold: Seconds in which a good candidate is three times slower at first.
        phi: What evidence is divided by; rivals have no such thing.
    """

    rate: float
    baseline: float = 0.001
    extra: float = 0.0
    slower: float = 1.0
    outage: bool = False
    skew: float = 0.0
    burst: float = 1.0
    cold: float = 0.0
    phi: float = 1.0

    @property
    def good(self) -> bool:
        """Whether it ought to be promoted."""
        return not self.extra and self.slower == 1.0


@dataclass(frozen=True, slots=True)
class End:
    """How a release ended: promoted, rolled_back, or held for a person; after seconds of traffic.

    `harmed`: users' requests that failed or took over half a second and would not have on stable.
    `shares`: the candidate's share at each scrape.
    """

    outcome: str
    seconds: float
    harmed: float
    by: str = ""
    shares: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Scrape:
    """Counts since the scrape before, of each side: requests, errors, requests by latency bucket."""

    candidate: Counts
    stable: Counts


def _normal_cdf(x: Counts) -> Counts:
    """Abramowitz and Stegun 26.2.17, absolute error below 1e-7."""
    t = 1.0 / (1.0 + 0.2316419 * np.abs(x))
    factors = (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530)
    poly = np.zeros_like(x)
    for factor in factors:
        poly = t * (factor + poly)
    tail = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * poly
    return np.asarray(np.where(x >= 0, 1.0 - tail, tail), dtype=float)


def buckets(slower: float) -> Counts:
    """The probability of each latency bucket."""
    cumulative = np.ones(len(BOUNDS))
    cumulative[:-1] = _normal_cdf(np.log(BOUNDS[:-1] / (MEDIAN * slower)) / SIGMA)
    return np.asarray(np.diff(cumulative, prepend=0.0), dtype=float)


class Stream:
    """Scrapes of one release. The reader says which share the candidate has."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.harmed = 0.0
        self._chance = np.random.default_rng(seed)
        self._outage = float(self._chance.uniform(0.0, 300.0))
        self._buckets = {factor: buckets(factor) for factor in (1.0, 3.0, scenario.slower)}

    def before(self, seconds: float) -> Counts:
        """What stable counted before the release."""
        return self._side(self.scenario.rate * seconds, self.scenario.baseline, 1.0)

    def scrape(self, share: float) -> Scrape:
        """The next scrape."""
        s = self.scenario
        began, self.now = self.now, self.now + SCRAPE
        slower = s.slower if not s.good else 3.0 if self.now <= s.cold else 1.0
        failing = s.baseline + s.extra + self._out(began + s.skew)
        candidate = self._side(s.rate * SCRAPE * share, failing, slower)
        stable = self._side(s.rate * SCRAPE * (1.0 - share), s.baseline + self._out(began), 1.0)
        if not s.good:
            slow = self._buckets[s.slower][7:].sum() - self._buckets[1.0][7:].sum()
            self.harmed += s.rate * SCRAPE * share * (s.extra + float(slow))
        return Scrape(candidate, stable)

    def _out(self, began: float) -> float:
        if not self.scenario.outage:
            return 0.0
        inside = min(began + SCRAPE, self._outage + 60.0) - max(began, self._outage)
        return 0.5 * max(inside, 0.0) / SCRAPE

    def _side(self, expected: float, errors: float, slower: float) -> Counts:
        requests = int(self._chance.poisson(expected))
        errors = min(errors, 1.0)
        if self.scenario.burst > 1.0:
            bursts = int(self._chance.poisson(requests * errors / self.scenario.burst))
            bad = min(int(self._chance.geometric(1.0 / self.scenario.burst, bursts).sum()), requests)
        else:
            bad = int(self._chance.binomial(requests, errors))
        slow = self._chance.multinomial(requests, self._buckets[slower])
        return np.array([requests, bad, *slow], dtype=float)
