"""The time."""

from typing import Protocol


class Clock(Protocol):
    """The time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def not_before(self, then: float) -> None:
        """Go on from a time that was told before, if the clock has been set back behind it since."""
        ...
