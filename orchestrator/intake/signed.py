"""Signed webhooks: HMAC-SHA256 over time, nonce, method, path and body. Each may come once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from orchestrator.intake import strict_json
from orchestrator.intake.desk import Desk
from orchestrator.intake.door import read_bytes
from orchestrator.intake.parse import parse
from orchestrator.intake.problems import Problem
from orchestrator.intake.signatures import REMEMBER, check_time, fits, hmac_of, octets, one_header, refused
from orchestrator.ports.access import Principal
from orchestrator.ports.clock import WallClock
from orchestrator.ports.faults import Fault
from orchestrator.ports.requests import Once

PATH = "/hooks/request"
HEADERS = ("X-Release-Key", "X-Release-Timestamp", "X-Release-Nonce", "X-Release-Signature")
NONCE = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """Who signs with what. Several may be valid at once, so that one can be exchanged for another."""

    principal: Principal
    secret: bytes


def signature(secret: bytes | None, timestamp: str, nonce: str, method: str, path: str, body: bytes) -> str:
    """What `X-Release-Signature` has to be."""
    head = octets(f"v1\n{timestamp}\n{nonce}\n{method}\n{path}\n")
    return f"v1={hmac_of(secret, head + body)}"


class Signed:
    """The door for signed requests.

    Args:
        keys: By key id, as they are configured now.
    """

    def __init__(self, desk: Desk, clock: WallClock, keys: Callable[[], Mapping[str, Key]]) -> None:
        self._desk = desk
        self._clock = clock
        self._keys = keys

    async def handle(self, request: web.Request) -> web.Response:
        """Put down what is asked, if the signature is right, fresh, and new."""
        body = await read_bytes(request)
        key_id, timestamp, nonce, given = (one_header(request, name) for name in HEADERS)
        key = self._keys().get(key_id)
        secret = key.secret if key else None
        right = signature(secret, timestamp, nonce, request.method, request.raw_path, body)
        if not fits(given, right) or key is None:
            raise refused()
        check_time(timestamp, self._clock.wall())
        if not NONCE.fullmatch(nonce):
            raise refused("the nonce is not 16 to 128 letters, digits, - or _")
        once = Once(f"signed {key_id} {nonce}", REMEMBER)
        return await self._desk.take(key.principal, _fields(body), once)


def _fields(body: bytes) -> dict[str, str]:
    """The fields of a request, checked as those of the stream are."""
    try:
        given = strict_json.loads(body)
    except Fault as error:
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "send an object with the fields of a request, all of them text"
        )
    try:
        parse("0-0", given)
    except Fault as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
    return {name: value for name, value in given.items() if value}
