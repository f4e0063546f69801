"""The pages. What they show comes from the journal; what their buttons do goes through the API."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from typing import Any, get_args

import jinja2
from aiohttp import web

from orchestrator.ports.access import MAY, Principal, Token, Tokens
from orchestrator.ports.clock import WallClock
from orchestrator.ports.store import Journal
from orchestrator.rollout.command import offers
from orchestrator.rollout.events import Event, GatesLooked, RouteConfirmed
from orchestrator.rollout.model import FULL, Phase, Release, ServiceState
from orchestrator.rollout.plan import current_step, is_fast
from orchestrator.rollout.policy import Template
from orchestrator.rollout.told import last_logs, not_remembered, outdated, problems, told, way_back
from orchestrator.web.charts import Chart, charts

SESSION_SECONDS = 12 * 3600.0
FORM_DEADLINE = 10.0
LAST_EVENTS = 200
"""Lines of an event log that a page shows."""

KINDS = [kind.__dataclass_fields__["kind"].default for kind in get_args(Event)]

Asked = Callable[[web.Request], Awaitable[Token | None]]

_STATIC = {
    name: ((files("orchestrator.web") / "static" / name).read_bytes(), kind)
    for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"))
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("orchestrator.web"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True, slots=True)
class Row:
    """A service at a glance."""

    state: ServiceState
    phase: str
    weight: float
    problems: list[str]
    way_back: str
    outdated: str
    verbs: list[str]

    @property
    def release(self) -> Release | None:
        """What its buttons are about: the one that rolls out, or stable."""
        return self.state.rollout.release if self.state.rollout else self.state.stable


@dataclass(frozen=True, slots=True)
class Rung:
    """A step of the ladder. `place`: done, current or ahead."""

    weight: int
    place: str
    hold: str


class Pages:
    """All of them.

    Args:
        recognise: Whose session, or token, a request carries; None where nobody's.
        services: The services that are configured now, and how each is to be run.
        cookie: Name of the session's cookie.
        secure: Whether the cookie goes over TLS only.
    """

    def __init__(
        self,
        journal: Journal,
        tokens: Tokens,
        clock: WallClock,
        recognise: Asked,
        services: Callable[[], Mapping[str, Template | None]],
        *,
        cookie: str,
        secure: bool,
    ) -> None:
        self._journal = journal
        self._tokens = tokens
        self._clock = clock
        self._recognise = recognise
        self._services = services
        self._cookie = cookie
        self._secure = secure

    def routes(self) -> list[web.RouteDef]:
        """Where they are."""
        return [
            web.get("/", self._guarded(self._home)),
            web.get("/services/{service}", self._guarded(self._service)),
            web.get("/services/{service}/row", self._guarded(self._row)),
            web.get("/releases/{release}", self._guarded(self._release)),
            web.get("/releases/{release}/live", self._guarded(self._live)),
            web.get("/login", self._login),
            web.post("/login", self._enter),
            web.post("/logout", self._leave),
            web.get("/static/{name}", _static),
        ]

    def _guarded(
        self, handler: Callable[[web.Request, Principal], Awaitable[str]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def guarded(request: web.Request) -> web.Response:
            token = await self._recognise(request)
            if token is None:
                raise web.HTTPSeeOther("/login")
            try:
                return _html(await handler(request, token.principal))
            except LookupError as error:
                text = self._page("missing.html", token.principal, what=str(error.args[0]))
                return _html(text, HTTPStatus.NOT_FOUND)

        return guarded

    async def _home(self, _: web.Request, who: Principal) -> str:
        names = sorted(name for name in self._services() if who.sees(name))
        rows = [self._look(await self._state(name), who) for name in names]
        return self._page("home.html", who, rows=rows)

    async def _row(self, request: web.Request, who: Principal) -> str:
        state = await self._known(request.match_info["service"], who)
        return _TEMPLATES.get_template("row.html").render(row=self._look(state, who), full=FULL)

    async def _service(self, request: web.Request, who: Principal) -> str:
        state = await self._known(request.match_info["service"], who)
        return self._page("service.html", who, row=self._look(state, who), state=state, when=_when)

    async def _release(self, request: web.Request, who: Principal) -> str:
        found = await self._story(request.match_info["release"], who)
        return self._page("release.html", who, **found)

    async def _live(self, request: web.Request, who: Principal) -> str:
        found = await self._story(request.match_info["release"], who)
        return _TEMPLATES.get_template("live.html").render(who=who, **found)

    async def _story(self, name: str, who: Principal) -> dict[str, Any]:
        """Everything that the page of a release shows."""
        state = await self._known(name.rpartition("-")[0], who)
        release, rollout = state.known(name), state.rolling(name)
        if release is None:
            raise LookupError(not_remembered(state, name))
        ended = next(iter(state.journeys(name)), None) if rollout is None else None
        journey = rollout or ended
        began = journey.began_at if journey else release.submitted_at
        until = math.inf if ended is None else ended.ended_at + release.policy.keep_previous
        events = await self._journal.told(name, began, until)
        shown = [e for e in events if not isinstance(e, GatesLooked | RouteConfirmed)]
        return {
            "state": state,
            "release": release,
            "rollout": rollout,
            "ended": ended,
            "ladder": _ladder(state, release.id),
            "charts": _charts(events, release),
            "logs": last_logs(events),
            "lines": [(_clock(e.at), e.kind, told(e)) for e in shown[-LAST_EVENTS:]],
            "verbs": _verbs(state, release.id, who),
            "share": state.route.share(release.id) * FULL,
            "when": _when,
        }

    async def _known(self, service: str, who: Principal) -> ServiceState:
        if service not in self._services() or not who.sees(service):
            known = ", ".join(sorted(s for s in self._services() if who.sees(s))) or "none"
            raise LookupError(f"{service[:80]!r} is not known; there are: {known}")
        return await self._state(service)

    async def _state(self, service: str) -> ServiceState:
        return (await self._journal.load(service))[0]

    def _look(self, state: ServiceState, who: Principal) -> Row:
        rollout = state.rollout
        phase = str(rollout.phase).replace("_", " ") if rollout else "idle" if state.stable else "empty"
        share = state.route.share(state.current) * FULL
        differs = outdated(state, self._services().get(state.service))
        verbs = _verbs(state, state.current, who)
        return Row(state, phase, share, problems(state), way_back(state), differs, verbs)

    def _page(self, name: str, who: Principal, **shown: Any) -> str:
        return _TEMPLATES.get_template(name).render(who=who, kinds=json.dumps(KINDS), full=FULL, **shown)

    async def _login(self, request: web.Request) -> web.Response:
        if await self._recognise(request) is not None:
            raise web.HTTPSeeOther("/")
        return _html(_TEMPLATES.get_template("login.html").render(wrong=False))

    async def _enter(self, request: web.Request) -> web.Response:
        if request.content_type != "application/x-www-form-urlencoded":
            raise web.HTTPUnsupportedMediaType
        try:
            async with asyncio.timeout(FORM_DEADLINE):
                form = await request.post()
        except (OSError, ValueError, LookupError, web.RequestPayloadError):  # slow, odd, or broken off
            raise web.HTTPBadRequest from None
        token = await self._tokens.recognise(str(form.get("token", "")).strip(), self._clock.wall())
        if token is None:
            await asyncio.sleep(0.5)
            text = _TEMPLATES.get_template("login.html").render(wrong=True)
            return _html(text, HTTPStatus.UNAUTHORIZED)
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": "/"})
        response.set_cookie(
            self._cookie,
            await self._tokens.open_session(token, SESSION_SECONDS),
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="Strict",
            secure=self._secure,
            path="/",
        )
        return response

    async def _leave(self, request: web.Request) -> web.Response:
        if self._cookie in request.cookies:
            await self._tokens.close_session(request.cookies[self._cookie])
        response = web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": "/login"})
        response.del_cookie(self._cookie, path="/")
        return response


def _verbs(state: ServiceState, release: str, who: Principal) -> list[str]:
    """What somebody may ask for of a release now."""
    return [verb for verb in offers(state, release) if verb in MAY[who.role]]


def _ladder(state: ServiceState, release: str) -> list[Rung]:
    """The steps of the rollout, and where it stands; empty where it takes none."""
    rollout = state.rolling(release)
    if rollout is None:
        return []
    fast = is_fast(state, rollout)
    steps = [current_step(state, rollout)] if fast else rollout.release.policy.steps
    moving = rollout.phase in (Phase.SHIFTING, Phase.BAKING)
    at = rollout.step if moving else len(steps) if rollout.phase is Phase.ROLLING_BACK else -1
    places = ["done" if n < at else "current" if n == at else "ahead" for n in range(len(steps))]
    return [Rung(s.weight, place, f"{s.hold:g} s") for s, place in zip(steps, places, strict=True)]


def _charts(events: list[Event], release: Release) -> list[Chart]:
    alpha = release.policy.certainty.alpha
    return charts(events, 1.0 / alpha if alpha else math.inf)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) + " UTC"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at))


def _html(text: str, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(
        text=text, status=status, content_type="text/html", headers={"Cache-Control": "no-store"}
    )


async def _static(request: web.Request) -> web.Response:
    found = _STATIC.get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    body, kind = found
    return web.Response(
        body=body, content_type=kind, charset="utf-8", headers={"Cache-Control": "max-age=300"}
    )
