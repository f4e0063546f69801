"""`ports.HostClock` on the system's clock."""

import asyncio
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()

APART = 60.0
"""Seconds by which the two times may differ without a warning."""

LOOK_EVERY = 10.0
"""Seconds between two looks at that."""


class SystemClock:
    """The wall clock at the start, counted on by the monotonic one; and the wall clock as it is.

    So a step of the wall clock neither shortens a hold nor lets a deadline pass. A restart reads the wall
    clock again; if that was set back meanwhile, time goes on from what was committed last.

    Args:
        wall: The host's clock, in seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:  # noqa: TID251  this is the clock
        self.wall = wall
        self._offset = wall() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset + time.monotonic()

    def not_before(self, then: float) -> None:
        """See `ports.Clock`."""
        self._offset += max(then - self.now(), 0.0)

    def ahead(self) -> float:
        """See `ports.HostClock`."""
        return self.now() - self.wall()

    async def watch(self, show: Callable[[float], None]) -> None:
        """Show how far the two times are apart, for ever; log when that begins to matter and when it ends."""
        apart = False
        while True:
            ahead = self.ahead()
            show(ahead)
            if apart != (abs(ahead) > APART):
                apart = not apart
                if apart:
                    log.warning("clocks_differ", ahead_seconds=round(ahead, 1), reason=_why(ahead))
                else:
                    log.info("clocks_agree", ahead_seconds=round(ahead, 1))
            await asyncio.sleep(LOOK_EVERY)


def _why(ahead: float) -> str:
    if ahead > 0:
        return (
            "decisions go on from a time that was committed while the host's clock was ahead, or it was set"
            " back; events carry that time, signatures and tokens go by the host's clock"
        )
    return "the host's clock was put forward, or the host slept, since the daemon began: a restart mends it"
