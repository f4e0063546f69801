"""`ports.Clock` on the system's clock."""

import time


class SystemClock:
    """The wall clock at the start, counted on by the monotonic one.

    So a step of the wall clock neither shortens a hold nor lets a deadline pass. A restart reads the wall
    clock again; if that was set back meanwhile, time goes on from what was committed last.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()  # noqa: TID251  this is the clock

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset + time.monotonic()

    def not_before(self, then: float) -> None:
        """See `ports.Clock`."""
        self._offset += max(then - self.now(), 0.0)
