"""Who may ask for what."""

import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from orchestrator.rollout.turn import DAEMON

Verb = Literal[
    "release",
    "restart",
    "rollback",
    "pause",
    "resume",
    "approve",
    "promote",
    "abort",
    "freeze",
    "unfreeze",
    "remove",
]


Role = Literal["viewer", "submitter", "operator", "admin"]


MAY: Mapping[Role, frozenset[Verb]] = {
    "viewer": frozenset(),
    "submitter": frozenset({"release", "restart"}),
    "operator": frozenset(get_args(Verb)) - {"remove"},
    "admin": frozenset(get_args(Verb)),
}
"""What a role may ask for; everyone may look, and an admin takes services down and gives out tokens too,
within the services that their own is for."""


def somebody(name: str) -> str:
    """A name for the audit trail; letters that look like others, or like none, are compared as they look.

    Raises:
        ValueError: It is the one that the daemon's own decisions are shown with.
    """
    looks = "".join(filter(str.isprintable, unicodedata.normalize("NFKC", name))).strip()
    if looks.casefold() == DAEMON:
        raise ValueError(f"{looks!r} is the daemon's own name in the audit trail; choose another")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who knocked and was recognised.

    Attributes:
        name: As the audit trail shows it.
        services: The services that the role is given for; empty is all of them.
    """

    name: str
    role: Role
    services: tuple[str, ...] = ()

    def sees(self, service: str) -> bool:
        """Whether a service is any of their business."""
        return not self.services or service in self.services

    def covers(self, services: Collection[str]) -> bool:
        """Whether all services that a role is given for are theirs; none named is all that there are."""
        return not self.services or (bool(services) and set(services) <= set(self.services))

    def may(self, verb: Verb, service: str) -> bool:
        """Whether they may ask for this."""
        return verb in MAY[self.role] and self.sees(service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of an API token; its secret is not. Times in seconds since the epoch.

    Attributes:
        expires_at: None is never.
        created_by: Who made it.
    """

    id: str
    principal: Principal
    created_at: float
    created_by: str
    expires_at: float | None = None


class Tokens(Protocol):
    """Who may knock."""

    async def create(
        self, principal: Principal, by: str, now: float, expires_at: float | None
    ) -> tuple[Token, str]:
        """A new token and its secret, which is shown once.

        Raises:
            Conflict: There is one of this name, so that the audit trail could not tell them apart.
        """
        ...

    async def tokens(self) -> list[Token]:
        """All that were not revoked, by name; an entry that can't be read is none, and the log names it."""
        ...

    async def reach(self, token: str) -> tuple[str, ...] | None:
        """The services that a token is for, by its id; None where there is none.

        Of an entry that can't be read it is all: whoever may take any token back may take that one back too.
        """
        ...

    async def revoke(self, token: str) -> bool:
        """Take a token back, by its id; whether there was one. Elsewhere it works for a second more."""
        ...

    async def recognise(self, secret: str, now: float) -> Token | None:
        """Whose secret this is; None where nobody's, or where it has expired."""
        ...

    async def open_session(self, token: Token, seconds: float) -> str:
        """The secret of a session that ends with its token, or after `seconds`."""
        ...

    async def session(self, secret: str, now: float) -> Token | None:
        """Whose session this is."""
        ...

    async def close_session(self, secret: str) -> None:
        """End a session."""
        ...
