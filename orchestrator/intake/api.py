"""The operations of the HTTP API."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import structlog
from aiohttp import web
from pydantic import BaseModel

from orchestrator.intake.answers import Answer, Answers
from orchestrator.intake.desk import Desk
from orchestrator.intake.door import Call, Guard, Operation
from orchestrator.intake.problems import Problem
from orchestrator.intake.views import (
    BODIES,
    RELEASE,
    REQUEST,
    Accepted,
    EventFilter,
    Me,
    NewToken,
    ReleaseList,
    ReleaseView,
    Reloaded,
    RequestView,
    ServiceList,
    ServiceView,
    TokenBody,
    TokenList,
    TokenView,
    Wait,
    event_json,
    fields_of,
    release_view,
    releases_of,
    service_view,
)
from orchestrator.ports.access import Principal, Verb
from orchestrator.ports.clock import WallClock
from orchestrator.ports.faults import Conflict, Fault
from orchestrator.ports.requests import Inbox
from orchestrator.ports.store import Journal, Tail
from orchestrator.rollout.events import ConfigReloaded, Event, ReleaseAccepted, RequestRefused
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.policy import Template
from orchestrator.rollout.told import last_logs, not_remembered

log = structlog.get_logger()

V = TypeVar("V", bound=BaseModel)
View = Callable[[ServiceState, Template | None], Any]

EVENTS = "text/event-stream"

DAY = 86400.0
RELOAD_WAIT = 10.0
"""Seconds in which the daemon should have read its files again."""
RECHECK = 10.0
"""Seconds after which a listener's token is looked at again, at the latest with the next event."""

WRITE_DEADLINE = 10.0
"""Seconds in which a listener must have taken an event."""

SUMMARIES: dict[Verb, str] = {
    "release": "Release an image",
    "restart": "Release stable's own image again, as the service's file has it today",
    "rollback": "Go back: from the rollout that is under way, else from stable to the last good release",
    "promote": "Skip the rest of the ladder: all traffic now, then the bake with its gates",
    "approve": "Let a rollout go on that waits for a person",
    "pause": "Let the rollout stand still; its gates go on watching",
    "resume": "Go on after a pause",
    "abort": "End the rollout that is under way, or a queued release",
    "freeze": "Start no further release; rollbacks still work",
    "unfreeze": "Start releases again",
    "remove": "Take a service down: no traffic, no instances, no files of nginx'",
}


class Api:
    """What the operations do."""

    def __init__(
        self,
        desk: Desk,
        inbox: Inbox,
        journal: Journal,
        tail: Tail,
        guard: Guard,
        clock: WallClock,
    ) -> None:
        self._desk = desk
        self._inbox = inbox
        self._journal = journal
        self._tail = tail
        self._answers = Answers(journal, tail)
        self._views: dict[tuple[str, View], tuple[ServiceState, Template | None, Any]] = {}
        self._guard = guard
        self._tokens = guard.tokens
        self._clock = clock

    def operations(self) -> list[Operation]:
        """All of them."""
        asked = [
            Operation(
                name=verb,
                method="POST",
                path=f"/v1/services/{{service}}/{'releases' if verb == 'release' else verb}",
                summary=SUMMARIES[verb],
                handler=self._asking(verb),
                answers={202: Accepted},
                verb=verb,
                body=body,
                optional=verb not in ("release", "remove"),
                keyed=verb == "release",
                conflict="The key was used for something else" if verb == "release" else "",
            )
            for verb, body in BODIES.items()
        ]
        return [*asked, *self._shown(), *self._for_admins()]

    def _shown(self) -> list[Operation]:
        return [
            _get("listServices", "/v1/services", "All services", self._list, ServiceList),
            _get("service", "/v1/services/{service}", "What a service is doing", self._service, ServiceView),
            _get(
                "releases",
                "/v1/services/{service}/releases",
                "Those that wait, the one that is under way, and the last fifty that ended",
                self._releases,
                ReleaseList,
            ),
            _get(
                "showRelease",
                "/v1/releases/{release}",
                "One release; with `wait`, once it has ended",
                self._release,
                ReleaseView,
                query=Wait,
            ),
            _get(
                "request",
                "/v1/requests/{request}",
                "What became of a request; with `wait`, once it was carried out",
                self._request,
                RequestView,
                query=Wait,
            ),
            _get(
                "events",
                "/v1/events",
                "What happens, as server-sent events; resumes after Last-Event-ID",
                self._events,
                EVENTS,
                query=EventFilter,
                endless=True,
            ),
            _get("me", "/v1/me", "Who is asking", self._me, Me),
        ]

    def _for_admins(self) -> list[Operation]:
        return [
            Operation(
                name="reload",
                method="POST",
                path="/v1/reload",
                summary="Let the daemon that drives read its files again",
                handler=self._reload,
                answers={200: Reloaded, 202: Accepted},
                admin=True,
                everywhere=True,
            ),
            _get(
                "listTokens",
                "/v1/tokens",
                "All tokens for services of one's own",
                self._list_tokens,
                TokenList,
                admin=True,
            ),
            Operation(
                name="createToken",
                method="POST",
                path="/v1/tokens",
                summary="Make a token; its secret is in the answer, and nowhere else",
                handler=self._create_token,
                answers={201: NewToken},
                conflict="There is a token of this name",
                admin=True,
                body=TokenBody,
            ),
            Operation(
                name="revokeToken",
                method="DELETE",
                path="/v1/tokens/{token}",
                summary="Take a token back",
                handler=self._revoke_token,
                answers={204: ""},
                admin=True,
            ),
        ]

    async def _state(self, service: str) -> ServiceState:
        return (await self._journal.load(service))[0]

    async def _view(self, service: str, make: Callable[[ServiceState, Template | None], V]) -> V:
        """A state as it is shown; made once for each state and each file."""
        state, template = await self._state(service), self._desk.services().get(service)
        known = self._views.get((service, make))
        if known is None or known[0] is not state or known[1] != template:
            known = self._views[service, make] = (state, template, make(state, template))
        view: V = known[2]
        return view

    def _asking(self, verb: Verb) -> Callable[[Call], Coroutine[Any, Any, web.StreamResponse]]:
        async def ask(call: Call) -> web.Response:
            key = call.request.headers.get("Idempotency-Key", "") if verb == "release" else ""
            if not re.fullmatch(r"[ -~]{0,200}", key):
                raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Idempotency-Key: at most 200 ASCII letters")
            return await self._desk.take(call.who, fields_of(verb, call.path("service"), call.body, key))

        return ask

    async def _list(self, call: Call) -> web.Response:
        names = sorted(name for name in self._desk.services() if call.who.sees(name))
        return _json(ServiceList(services=[await self._view(name, service_view) for name in names]))

    async def _service(self, call: Call) -> web.Response:
        self._desk.check(call.path("service"), call.who)
        return _json(await self._view(call.path("service"), service_view))

    async def _releases(self, call: Call) -> web.Response:
        self._desk.check(call.path("service"), call.who)
        return _json(await self._view(call.path("service"), _release_list))

    async def _release(self, call: Call) -> web.Response:
        name = call.path("release")
        service = name.rpartition("-")[0]
        if not re.fullmatch(RELEASE, name):
            raise Problem(HTTPStatus.NOT_FOUND, f"{name[:80]!r} is no release, such as api-7")
        self._desk.check(service, call.who)

        async def look() -> ReleaseView | None:
            return release_view(await self._state(service), name)

        after = await self._journal.last_event_id()
        found = await look()
        if found is None:
            raise Problem(HTTPStatus.NOT_FOUND, not_remembered(await self._state(service), name))
        if found.state != "ended" and call.query.wait:
            await self._answers.end(name, after, call.query.wait)
            found = await look() or found
        if found.began_at is not None and found.ended_at is not None:
            told = await self._journal.told(name, found.began_at, found.ended_at)
            found = found.model_copy(update={"logs": last_logs(told)})
        return _json(found)

    async def _request(self, call: Call) -> web.Response:
        request = call.path("request")
        known = re.fullmatch(REQUEST, request)
        fields = await self._inbox.pushed(request) if known else None
        if fields is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"{request[:80]!r} is the id of no request")
        service = fields.get("service", "")
        if not call.who.sees(service):
            raise Problem(HTTPStatus.FORBIDDEN, f"{call.who.name} has nothing to do with that request")
        event = await self._answers.to(request, call.query.wait)
        if event is None:
            return _json(RequestView(request=request, state="waiting", service=service))
        return _json(
            RequestView(
                request=request,
                state="refused" if isinstance(event, RequestRefused) else "accepted",
                service=service,
                release=event.release,
                reason=_why(event),
            )
        )

    async def _events(self, call: Call) -> web.StreamResponse:
        query: EventFilter = call.query
        after = call.request.headers.get("Last-Event-ID", "") or query.after or ""
        if after and not re.fullmatch(REQUEST, after):
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Last-Event-ID: is not the id of an event")
        for service in filter(None, (query.service, (query.release or "").rpartition("-")[0])):
            self._desk.check(service, call.who)
        after = after or await self._journal.last_event_id()
        response = web.StreamResponse(headers={"Content-Type": EVENTS, "Cache-Control": "no-store"})
        try:
            await response.prepare(call.request)
            await response.write(b"retry: 2000\n\n")
            await self._tell(call, after, response)
        except (Fault, TimeoutError, ConnectionError) as error:  # who still listens comes again
            log.debug("listener_gone", reason=f"{type(error).__name__}: {error}")
        return response

    async def _tell(self, call: Call, after: str, response: web.StreamResponse) -> None:
        """Write the events that a listener may hear, until its token is good no longer.

        Raises:
            Fault: Redis does not answer.
            TimeoutError: It does not take them.
            ConnectionError: It is gone.
        """
        query, who, looked = call.query, call.who, time.monotonic()
        async with self._tail.follow(after) as events:
            async for told in events:
                if told is None or time.monotonic() - looked >= RECHECK:
                    token = await self._guard.known(call.request)
                    if token is None:
                        return
                    who, looked = token.principal, time.monotonic()
                line = (
                    b": quiet\n\n" if told is None else _line(*told) if _heard(told[1], who, query) else b""
                )
                if line:
                    async with asyncio.timeout(WRITE_DEADLINE):
                        await response.write(line)

    async def _me(self, call: Call) -> web.Response:
        who = call.who
        return _json(Me(name=who.name, role=who.role, services=list(who.services)))

    async def _reload(self, call: Call) -> web.Response:
        request = await self._inbox.push({"verb": "reload", "who": call.who.name})
        event = await self._answers.to(request, RELOAD_WAIT)
        if not isinstance(event, ConfigReloaded):
            return _json(Accepted(request=request), HTTPStatus.ACCEPTED)
        return _json(Reloaded(changes=list(event.changes), problems=list(event.problems)))

    async def _list_tokens(self, call: Call) -> web.Response:
        found = [t for t in await self._tokens.tokens() if call.who.covers(t.principal.services)]
        return _json(TokenList(tokens=[TokenView.of(t) for t in found]))

    async def _create_token(self, call: Call) -> web.Response:
        body: TokenBody = call.body
        if not call.who.covers(body.services):
            why = f"{call.who.name} gives out tokens for some or all of: {', '.join(call.who.services)}"
            raise Problem(HTTPStatus.FORBIDDEN, why)
        now = self._clock.wall()
        principal = Principal(name=body.name, role=body.role, services=tuple(body.services))
        expires = now + body.days * DAY if body.days else None
        try:
            token, secret = await self._tokens.create(principal, call.who.name, now, expires)
        except Conflict as error:
            raise Problem(HTTPStatus.CONFLICT, str(error)) from None
        log.info("token_created", token=token.id, name=body.name, role=body.role, actor=call.who.name)
        return _json(NewToken.made(token, secret), HTTPStatus.CREATED)

    async def _revoke_token(self, call: Call) -> web.Response:
        token = call.path("token")
        services = await self._tokens.reach(token)
        if services is None or not call.who.covers(services) or not await self._tokens.revoke(token):
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no token {token[:20]!r}")
        log.info("token_revoked", token=token, actor=call.who.name)
        return web.Response(status=HTTPStatus.NO_CONTENT)


def _get(
    name: str,
    path: str,
    summary: str,
    handler: Callable[[Call], Coroutine[Any, Any, web.StreamResponse]],
    answer: type[BaseModel] | str,
    **more: Any,
) -> Operation:
    """An operation that shows something."""
    return Operation(
        name=name,
        method="GET",
        path=path,
        summary=summary,
        handler=handler,
        answers={200: answer},
        **more,
    )


def _why(answer: Answer) -> str:
    """Why a request was refused, or the release that it made waits."""
    match answer:
        case RequestRefused():
            return answer.reason
        case ReleaseAccepted(frozen=by) if by:
            return f"queued: frozen by {by}"
    return ""


def _heard(event: Event, who: Principal, query: EventFilter) -> bool:
    """Whether an event is for a listener."""
    mine = who.sees(event.service) and query.service in (None, event.service)
    return mine and query.release in (None, event.release)


def _line(entry: str, event: Event) -> bytes:
    """An event as it is sent."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (entry.encode(), event.kind.encode(), event_json(event))


def _release_list(state: ServiceState, _: Template | None) -> ReleaseList:
    return ReleaseList(releases=releases_of(state))


def _json(
    model: BaseModel, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=model.model_dump_json().encode(),
        status=status,
        headers={**(headers or {}), "Content-Type": "application/json", "Cache-Control": "no-store"},
    )
