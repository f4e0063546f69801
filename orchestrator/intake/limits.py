"""How much the door takes at once, and from whom."""

import contextlib
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
    """A number of requests that may be under way at once."""

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._most = most
        self._busy = 0

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """One request is under way.

        Raises:
            Problem: Too many are.
        """
        if self._busy >= self._most:
            why = f"more than {self._most} {self._what} at once; try again"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, why, {"Retry-After": "1"})
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
