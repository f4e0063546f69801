"""Who may ask for what."""

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from orchestrator.rollout.turn import DAEMON

SIGNS = r" -/:-@\[-`{-~"
"""As in a set of a regular expression: what stands between words, spaces and the punctuation of ASCII."""

SCRIPTS = (
    "A-Za-z\u00c0-\u024f\u1e00-\u1eff",  # Latin
    "\u0370-\u03ff\u1f00-\u1fff",  # Greek
    "\u0400-\u04ff",  # Cyrillic
    "\u0531-\u0587\u10d0-\u10ff",  # Armenian, Georgian
    "\u05d0-\u05ea\u0621-\u065f\u066e-\u06d3",  # Hebrew, Arabic
    "\u0900-\u0963\u0980-\u09e3\u0b82-\u0bcd\u0e01-\u0e4e",  # Devanagari, Bengali, Tamil, Thai
    "\u3005\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3",  # Chinese, Japanese, Korean
)
"""The letters of a word are all of one of these."""

_WORD = re.compile("|".join(f"[0-9{letters}]*" for letters in SCRIPTS))

RESERVED = frozenset({DAEMON, "host"})
"""Whom the audit trail shows for the gates, and for a rollback that was made by hand on a host."""

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


def _usual(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).split())


def somebody(name: str) -> str:
    """A name for the audit trail, in the usual form of its characters (NFKC) and with single spaces.

    Raises:
        ValueError: It has other characters than names have, or in a word letters of two scripts, so that one
            may pass for another; or the daemon's own decisions are shown with it.
    """
    found = _usual(name)
    words = re.split(f"[{SIGNS}]+", found)
    if not all(map(_WORD.fullmatch, words)):
        what = "letters and digits, in a word those of one script, spaces, and signs such as ._@+-"
        raise ValueError(f"{found[:80]!a} has other characters than a name may: {what}")
    if "".join(words).casefold() in RESERVED:
        raise ValueError(f"{found!r} is the daemon's own name in the audit trail; choose another")
    return found


def shown(name: str) -> str:
    """A name that another system gives, with ? for each character of a word that no name has."""
    parts = re.split(f"([{SIGNS}]+)", _usual(name))  # the signs are every second part
    return "".join(
        part if i % 2 or _WORD.fullmatch(part) else "?" * len(part) for i, part in enumerate(parts)
    )


def author(name: str) -> str:
    """A request's author as the audit trail shows them; how a name is spelled keeps no request out.

    Raises:
        ValueError: The daemon's own decisions are shown with that name.
    """
    return somebody(shown(name))


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
