"""The time. What a part may ask for says which of the two it goes by."""

from typing import Protocol


class Clock(Protocol):
    """The time that releases are decided by: no step of the host's clock moves it."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def not_before(self, then: float) -> None:
        """Go on from a time that was told before, if the clock has been set back behind it since."""
        ...


class WallClock(Protocol):
    """The time that the rest of the world goes by: signatures and tokens are judged by it."""

    def wall(self) -> float:
        """Seconds since the epoch as the host's clock shows them; it may be put right at any moment."""
        ...


class HostClock(Clock, WallClock, Protocol):
    """Both, for who has to compare them."""

    def ahead(self) -> float:
        """Seconds by which `now` is ahead of `wall`; negative where it is behind."""
        ...
