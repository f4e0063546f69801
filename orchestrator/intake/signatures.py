"""What all doors have in common that take signed requests. Nothing here tells how near a guess was."""

import hashlib
import hmac
import re
from http import HTTPStatus

from aiohttp import web

from orchestrator.intake.problems import Problem

SKEW = 300.0
"""Seconds by which a signature's time may differ from ours."""

REMEMBER = 2 * SKEW + 60
"""Seconds for which a signature, or its nonce, is known again: longer than its time is good for."""

_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)


def refused(why: str = "the signature does not fit") -> Problem:
    """The answer to a signature that is not good."""
    return Problem(HTTPStatus.UNAUTHORIZED, why, {"WWW-Authenticate": "Signature"})


def one_header(request: web.Request, name: str) -> str:
    """A header that must be there once, and say something.

    Raises:
        Problem: It is missing or doubled.
    """
    found = request.headers.getall(name, [])
    if len(found) != 1 or not found[0]:
        raise refused(f"{name}: must be there once")
    return found[0]


def octets(text: str) -> bytes:
    """A header, or a path, as it was sent; aiohttp keeps bytes that are no UTF-8 as surrogates."""
    return text.encode("utf-8", "surrogateescape")


def hmac_of(secret: bytes | None, text: bytes) -> str:
    """HMAC-SHA256 in hexadecimal; one that is as long to make without a secret."""
    return hmac.new(secret or b"none", text, hashlib.sha256).hexdigest()


def fits(given: str, right: str) -> bool:
    """Whether what was sent, which may be anything, is what is right; in a time that tells nothing."""
    return hmac.compare_digest(octets(given), right.encode())


def check_time(timestamp: str, now: float) -> None:
    """Whether a signature was made just now; both in seconds since the epoch.

    Raises:
        Problem: It was not, or the text is no time.
    """
    if not _SECONDS.fullmatch(timestamp) or abs(now - int(timestamp)) > SKEW:
        raise refused(f"the timestamp is more than {SKEW:.0f} s from now")
