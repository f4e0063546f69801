"""How much the door takes at once, and from whom."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

from orchestrator.intake.problems import Problem


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Buckets:
    """A token bucket for each of those who knock.

    Args:
        rate: Requests a second that are taken from one of them for ever.
        burst: Requests that are taken at once.
    """

    MOST = 10_000
    """Buckets that are kept; beyond it those that are full are forgotten."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, now: float) -> None:
        """Count one request; `now` in seconds of a clock that is never set back.

        Raises:
            Problem: They ask too often; says after how many seconds it works again.
        """
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self.MOST:
                self._forget(now)
            bucket = self._buckets[name] = _Bucket(self._burst, now)
        bucket.tokens = min(bucket.tokens + (now - bucket.at) * self._rate, self._burst)
        bucket.at = now
        if bucket.tokens < 1:
            wait = (1 - bucket.tokens) / self._rate
            why = f"more than {self._rate:g} requests a second; try again in {wait:.1f} s"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, why, {"Retry-After": str(int(wait) + 1)})
        bucket.tokens -= 1

    def _forget(self, now: float) -> None:
        full = [n for n, b in self._buckets.items() if b.tokens + (now - b.at) * self._rate >= self._burst]
        for name in full:
            del self._buckets[name]


class Lane:
    """A number of requests that may be under way at once.

    Args:
        what: What they are, for the refusal.
        most: How many of all.
        each: How many of one of those who knock, so that nobody takes every place.
        status: What one is answered beyond those.
    """

    def __init__(
        self, what: str, most: int, each: int, status: HTTPStatus = HTTPStatus.TOO_MANY_REQUESTS
    ) -> None:
        self._what = what
        self._most = most
        self._each = each
        self._status = status
        self._busy: Counter[str] = Counter()

    @property
    def busy(self) -> int:
        """How many are under way."""
        return self._busy.total()

    @contextlib.contextmanager
    def entered(self, name: str, by: str = "with one token") -> Iterator[None]:
        """One request of somebody, known by what the refusal tells, is under way.

        Raises:
            Problem: Too many are, of theirs or of all.
        """
        if self._busy[name] >= self._each:
            why = f"more than {self._each} {self._what} at once {by}; try again"
            raise Problem(self._status, why, {"Retry-After": "1"})
        if self.busy >= self._most:
            why = f"more than {self._most} {self._what} at once; try again"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, why, {"Retry-After": "1"})
        self._busy[name] += 1
        try:
            yield
        finally:
            self._busy[name] -= 1
            if not self._busy[name]:
                del self._busy[name]
