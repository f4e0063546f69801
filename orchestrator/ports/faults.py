"""What goes wrong on the other side: it is away (ask again), it refuses (do not), or we are stale (stop)."""

from orchestrator.ports.addresses import masked


class Fault(Exception):  # noqa: N818  what goes wrong on the other side, not an error of ours
    """The other side failed or did not answer; the message says what it said, without what may be secret."""

    def __init__(self, words: str = "") -> None:
        super().__init__(masked(words))


class Away(Fault):
    """The other side did not answer: what was asked may be done or not, and can be asked again."""


class Refused(Fault):
    """The other side has understood and will not do it; asking again does not help."""


class Conflict(Refused):
    """What is asked contradicts what was asked before."""


class Repeated(Conflict):
    """What may be asked once was asked before; nothing was done this time.

    Attributes:
        request: The id of the request that it was.
    """

    def __init__(self, request: str) -> None:
        super().__init__(f"it has come before, as request {request}")
        self.request = request


class Stale(Fault):
    """A newer daemon or a newer generation has taken over; what was asked must not be done."""
