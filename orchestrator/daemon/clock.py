"""`ports.Clock` on the system's clock."""

import time


class SystemClock:
    """The wall clock, because the times of a rollout must survive the process."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()  # noqa: TID251  this is the clock
