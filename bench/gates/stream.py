"""Requests of a service under release, as scrapes see them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCRAPE = 5.0
"""Seconds between scrapes."""

BOUNDS = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, np.inf])
"""client_golang's default buckets, in seconds."""

MEDIAN, SIGMA = 0.05, 0.8
"""Latency is log-normal: p95 186 ms, p99 321 ms."""

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens during a release.

    Attributes:
        rate: Requests a second, both sides together.
        baseline: Stable's share of errors.
        extra: What the candidate adds to it.
        slower: Factor on the candidate's latency.
        onset: Seconds after the first traffic from which the candidate is bad.
        outage: Whether both sides fail half of their requests for a minute, at a random time.
        skew: Seconds by which the candidate is scraped later than stable.
        burst: Mean number of requests that fail together; 1: independent errors.
        cold: Seconds in which a good candidate is three times slower at first.
    """

    name: str
    rate: float
    baseline: float = 0.001
    extra: float = 0.0
    slower: float = 1.0
    onset: float = 0.0
    outage: bool = False
    skew: float = 0.0
    burst: float = 1.0
    cold: float = 0.0

    @property
    def good(self) -> bool:
        """Whether it ought to be promoted."""
        return not self.extra and self.slower == 1.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """What was counted since the scrape before: requests, errors, and requests by latency bucket."""

    candidate: Counts
    stable: Counts

    @staticmethod
    def requests(side: Counts) -> float:
        """All requests of a side."""
        return float(side[0])

    @staticmethod
    def errors(side: Counts) -> float:
        """Its errors."""
        return float(side[1])


def _normal_cdf(x: Counts) -> Counts:
    """Abramowitz and Stegun 26.2.17, absolute error below 1e-7."""
    t = 1.0 / (1.0 + 0.2316419 * np.abs(x))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * poly
    return np.where(x >= 0, 1.0 - tail, tail)


def buckets(slower: float) -> Counts:
    """The probability of each bucket."""
    with np.errstate(divide="ignore"):
        z = np.log(BOUNDS / (MEDIAN * slower)) / SIGMA
    cumulative = np.where(np.isinf(BOUNDS), 1.0, _normal_cdf(z))
    return np.diff(cumulative, prepend=0.0)


class Stream:
    """Scrapes of one release. The reader says which share the candidate has."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.harmed = 0.0
        self._chance = np.random.default_rng(seed)
        self._outage = self._chance.uniform(0.0, 300.0)
        self._buckets = {f: buckets(f) for f in (1.0, 3.0, scenario.slower)}

    def before(self, seconds: float) -> Counts:
        """What stable counted before the release."""
        s = self.scenario
        return self._side(s.rate * seconds, s.baseline, 1.0)

    def scrapes(self, share: float) -> Iterator[Scrape]:
        """One scrape after the other at a share; ends never."""
        while True:
            yield self.scrape(share)

    def scrape(self, share: float) -> Scrape:
        """The next scrape."""
        s = self.scenario
        began, self.now = self.now, self.now + SCRAPE
        bad = not s.good and self.now > s.onset
        stable_errors = s.baseline + self._out(began, self.now)
        candidate_errors = s.baseline + self._out(began + s.skew, self.now + s.skew)
        slower = s.slower if bad else 3.0 if self.now <= s.cold else 1.0
        candidate = self._side(s.rate * SCRAPE * share, candidate_errors + (s.extra if bad else 0.0), slower)
        stable = self._side(s.rate * SCRAPE * (1.0 - share), stable_errors, 1.0)
        if bad:
            slow = self._buckets[slower][7:].sum() - self._buckets[1.0][7:].sum()
            self.harmed += s.rate * SCRAPE * share * (s.extra + slow)
        return Scrape(candidate, stable)

    def _out(self, began: float, ended: float) -> float:
        if not self.scenario.outage:
            return 0.0
        inside = min(ended, self._outage + 60.0) - max(began, self._outage)
        return 0.5 * max(inside, 0.0) / SCRAPE

    def _side(self, expected: float, errors: float, slower: float) -> Counts:
        requests = self._chance.poisson(expected)
        errors = min(errors, 1.0)
        if self.scenario.burst > 1.0:
            bursts = self._chance.poisson(requests * errors / self.scenario.burst)
            bad = min(int(self._chance.geometric(1.0 / self.scenario.burst, bursts).sum()), requests)
        else:
            bad = self._chance.binomial(requests, errors)
        slow = self._chance.multinomial(requests, self._buckets[slower])
        return np.array([requests, bad, *slow], dtype=float)
