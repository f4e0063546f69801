"""What is asked for, and where it is put down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from orchestrator.ports.access import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A validated request, from whichever door it came.

    Attributes:
        id: The id of its stream entry.
        service: Empty for `reload`.
        release: For `rollback` and `abort`: which release is meant.
        to: For `rollback`: where to go.
        checks: For `release`: what is said for the checklist; yes is 1.
    """

    id: str
    verb: Verb | Literal["reload"]
    service: str
    who: str
    why: str = ""
    image: str = ""
    link: str = ""
    key: str = ""
    strategy: str = ""
    release: str = ""
    to: str = ""
    checks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Once:
    """What makes a request one that is appended one time only.

    Attributes:
        nonce: What it is known again by.
        seconds: For how long. It is noted in one step with the request: what was not appended may come again.
    """

    nonce: str
    seconds: float


class Inbox(Protocol):
    """Where requests are put down."""

    async def push(self, fields: Mapping[str, str], once: Once | None = None) -> str:
        """Append a request; returns its id once it is durable.

        Raises:
            Conflict: Its key has been used for something else.
            Repeated: It is one that was to come once, and has come before.
            Fault: It may have been appended or not.
        """
        ...

    async def pushed(self, request: str) -> Mapping[str, str] | None:
        """The fields of a request by its id; None when there is none."""
        ...
