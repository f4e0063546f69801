"""The HTTP door: what every operation has in common.

In this order: who, how much, whether they may, what they say. Each refusal is a `Problem`. A request takes a
place with those of its token only while it is worked on, and others while its body comes or while it waits.
"""

import asyncio
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from pydantic import BaseModel, ValidationError

from orchestrator.intake import strict_json
from orchestrator.intake.limits import Buckets, Lane
from orchestrator.intake.parse import MAX_BYTES, wrong_field
from orchestrator.intake.problems import Problem
from orchestrator.intake.views import Nothing
from orchestrator.ports.access import Principal, Token, Tokens, Verb
from orchestrator.ports.clock import WallClock
from orchestrator.ports.faults import Fault

log = structlog.get_logger()

BODY_DEADLINE = 10.0
"""Seconds in which a body must have come."""

LOOK = 1.0
"""Seconds after which it is looked whether a client that waits is still there."""

URGENT: frozenset[Verb] = frozenset({"rollback", "pause", "abort"})
"""What stops harm has a lane of its own, so that no load keeps it out."""

SESSION = "orchestrator_session"
"""The cookie of the dashboard."""

BY_PAGE = "X-Requested-By"
"""A header that a page of another site can't send; asked for where a cookie says who it is."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was let in."""

    request: web.Request
    who: Principal
    token: Token
    body: Any
    query: Any

    def path(self, name: str) -> str:
        """A part of the path."""
        return self.request.match_info[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that can be asked for.

    Attributes:
        path: With `{name}` for each part that varies; `parts` says what those look like.
        verb: What is put down; None where nothing is.
        admin: Whether it is for admins only.
        everywhere: Whether it concerns all services, so that it is for those alone who have all.
        query: Model of the parameters.
        body: Model of the body; None where none is taken.
        optional: Whether the body may be left out.
        answers: What each good status means: a model, or a media type.
        endless: Whether the answer goes on for ever.
        conflict: What a 409 says; '' where there is none.
        keyed: Whether it takes an Idempotency-Key.
    """

    name: str
    method: str
    path: str
    summary: str
    handler: Callable[[Call], Coroutine[Any, Any, web.StreamResponse]]
    answers: Mapping[int, type[BaseModel] | str]
    verb: Verb | None = None
    admin: bool = False
    everywhere: bool = False
    query: type[BaseModel] = Nothing
    body: type[BaseModel] | None = None
    optional: bool = False
    endless: bool = False
    conflict: str = ""
    keyed: bool = False


class Guard:
    """Lets requests in, or tells why not."""

    def __init__(self, tokens: Tokens, clock: WallClock, *, rate: float, burst: int) -> None:
        self.tokens = tokens
        self._clock = clock
        self._usual = Buckets(rate, burst)
        self._urgent = Buckets(rate, burst)
        self._patient = Lane("requests that wait", 500, 100)
        self._bodies = {
            urgent: Lane("requests whose body has not come", 500, 100) for urgent in (True, False)
        }
        again = HTTPStatus.SERVICE_UNAVAILABLE  # what sends hooks tries again after a 5xx alone
        self._strangers = Lane("requests of unknown senders", 500, 100, again)
        self._lanes = {True: Lane("urgent requests", 200, 100), False: Lane("requests", 200, 100)}

    def guarded(self, operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler for aiohttp that lets in what may come in."""
        urgent = operation.verb in URGENT
        buckets = self._urgent if urgent else self._usual

        async def handler(request: web.Request) -> web.StreamResponse:
            lane = self._lanes[urgent]
            with lane.entered(*_address(request)):
                token = await self.recognise(request)
            buckets.take(token.id, time.monotonic())
            _check(operation, token.principal, request.match_info.get("service", ""))
            query, body = _query(operation.query, request), None
            if operation.body is not None:
                with self._bodies[urgent].entered(token.id):
                    body = await read_body(request, operation.body, optional=operation.optional)
            call = Call(request, token.principal, token, body, query)
            if not operation.endless and not getattr(query, "wait", 0):
                with lane.entered(token.id):
                    return await operation.handler(call)
            with self._patient.entered(token.id):
                return await _while_there(request, operation.handler(call))

        return handler

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Whoever is known by the body, as at `/hooks/`, takes a share of a lane while that comes."""
        if request.method != "POST" or request.path.startswith("/v1/"):
            return await handler(request)
        with self._strangers.entered(*_address(request)):
            return await handler(request)

    async def known(self, request: web.Request) -> Token | None:
        """As `recognise`; None where it is nobody."""
        try:
            return await self.recognise(request)
        except Problem:
            return None

    async def recognise(self, request: web.Request) -> Token:
        """Who it is, by a bearer token or by the session of the dashboard.

        Raises:
            Problem: Nobody who is known; or a page of another site sent it.
        """
        now = self._clock.wall()
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secret:
            token = await self.tokens.recognise(secret.strip(), now)
        elif SESSION in request.cookies and not scheme:
            token = await self.tokens.session(request.cookies[SESSION], now)
            if token is not None and request.method not in ("GET", "HEAD") and BY_PAGE not in request.headers:
                raise Problem(HTTPStatus.FORBIDDEN, f"a session needs the header {BY_PAGE}")
        else:
            token = None
        if token is None:
            why = "no token, or one that is not known or has expired: Authorization: Bearer rot_..."
            raise Problem(HTTPStatus.UNAUTHORIZED, why, {"WWW-Authenticate": "Bearer"})
        return token


def _address(request: web.Request) -> tuple[str, str]:
    """Who asks while that is not known, for a lane: a name that no token has, and how it is told."""
    return f"at {request.remote or 'the socket'}", "from one address"


def _check(operation: Operation, who: Principal, service: str) -> None:
    """Whether somebody may ask for an operation.

    Raises:
        Problem: They may not.
    """
    why = ""
    if operation.admin and who.role != "admin":
        why = f"{who.name} is {who.role}; this is for admins"
    elif operation.everywhere and not who.covers(()):
        of = ", ".join(who.services)
        why = f"{who.name} is {who.role} of {of}; this is for {who.role}s of all services"
    elif service and not who.sees(service):
        why = f"{who.name} has nothing to do with {service[:80]}"
    elif operation.verb is not None and not who.may(operation.verb, service):
        why = f"{who.name} is {who.role} and may not {operation.verb}"
    if why:
        raise Problem(HTTPStatus.FORBIDDEN, why)


async def _while_there(
    request: web.Request, work: Coroutine[Any, Any, web.StreamResponse]
) -> web.StreamResponse:
    """What a handler answers; it is cancelled, as aiohttp does it, once its client has left."""
    task = asyncio.create_task(work, name=f"waits: {request.path[:200]}")
    try:
        while not (await asyncio.wait({task}, timeout=LOOK))[0]:
            if request.transport is None:
                raise asyncio.CancelledError
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _query(model: type[BaseModel], request: web.Request) -> BaseModel:
    found: BaseModel = _validated(model, _once(request.query.items()))
    return found


def _once(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Fields by name.

    Raises:
        Problem: One is given twice.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name[:80]}: is there twice")
        found[name] = value
    return found


async def read_bytes(request: web.Request) -> bytes:
    """A body as it was sent, whole.

    Raises:
        Problem: It is too long, too slow, packed, or breaks off.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the body as it is, without Content-Encoding")
    if (request.content_length or 0) > MAX_BYTES:
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {MAX_BYTES} bytes")
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE):
            async for chunk in request.content.iter_any():
                found += chunk
                if len(found) > MAX_BYTES:
                    raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {MAX_BYTES} bytes")
    except TimeoutError:
        why = f"the body did not come within {BODY_DEADLINE:.0f} s"
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, why, {"Connection": "close"}) from None
    except (OSError, web.RequestPayloadError) as error:
        why = "the body broke off"
        raise Problem(HTTPStatus.BAD_REQUEST, why, {"Connection": "close"}) from error
    return bytes(found)


def form_of(body: bytes) -> dict[str, str]:
    """The fields of a form (`application/x-www-form-urlencoded`).

    Raises:
        Problem: It is none, or has a field twice.
    """
    try:
        pairs = urllib.parse.parse_qsl(body.decode(), max_num_fields=50)
    except ValueError:
        raise Problem(HTTPStatus.BAD_REQUEST, "send a form") from None
    return _once(pairs)


async def read_body(request: web.Request, model: type[BaseModel] | None, *, optional: bool) -> Any:
    """A JSON body as a model; None where none is taken.

    Raises:
        Problem: It is not what is asked for; the detail names each wrong field.
    """
    if model is None:
        return None
    text = await read_bytes(request)
    if not text and optional:
        return model()
    if request.content_type != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
    try:
        given = strict_json.loads(text)
    except Fault as error:
        raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None
    return _validated(model, given)


def _validated(model: type[BaseModel], given: Any) -> Any:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found = "; ".join(map(wrong_field, error.errors()[:5]))
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, found) from None


@web.middleware
async def problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Whatever goes wrong is told as problem details, and nothing of what is inside."""
    try:
        return await handler(request)
    except Problem as problem:
        if problem.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            log.info("door_refused", path=request.path[:200], remote=request.remote, reason=str(problem))
        return problem.answer()
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        headers = {k: v for k, v in error.headers.items() if k == "Allow"}
        return Problem(HTTPStatus(error.status), _reason(request, error.status), headers).answer()
    except Fault as error:
        log.warning("door_unavailable", path=request.path, reason=str(error))
        why = "what is asked for can't be reached; try again"
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, why, {"Retry-After": "2"}).answer()
    except Exception:
        log.exception("door_failed", path=request.path)
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug; the daemon's log tells more").answer()


def _reason(request: web.Request, status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return f"there is nothing at {request.path[:200]}"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} does not work at {request.path[:200]}"
    return HTTPStatus(status).phrase
