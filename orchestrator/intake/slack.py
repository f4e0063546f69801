"""Slack: a slash command and the buttons of a release's message.

Slack signs what it sends (version 0: HMAC over time and raw body). People are known by workspace and user id,
never by the name that is sent along, which anybody can choose.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_args

import aiohttp
import structlog
from aiohttp import web

from orchestrator.intake import strict_json
from orchestrator.intake.answers import Answers
from orchestrator.intake.desk import Desk
from orchestrator.intake.door import form_of, read_bytes
from orchestrator.intake.parse import LONGEST
from orchestrator.intake.problems import Problem
from orchestrator.intake.signatures import REMEMBER, check_time, fits, hmac_of, octets, one_header, refused
from orchestrator.intake.views import RELEASE, ServiceView, service_view
from orchestrator.ports.access import Principal, Verb
from orchestrator.ports.clock import WallClock
from orchestrator.ports.faults import Fault
from orchestrator.ports.requests import Once
from orchestrator.ports.store import Journal
from orchestrator.rollout.events import RequestRefused

log = structlog.get_logger()

COMMAND_PATH = "/hooks/slack/command"
ACTION_PATH = "/hooks/slack/action"
VERBS = frozenset(get_args(Verb)) - {"release", "remove"}
"""A service is not taken down by one line of a chat."""

ANSWER_WAIT = 20.0
"""Seconds in which the daemon should have carried out what was asked."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """One workspace, and who of it may do what.

    Attributes:
        team: Its id, `T…`.
        users: By user id, `U…`.
        hooks: What every address begins with that Slack gives for later answers.
    """

    team: str
    secret: bytes
    users: Mapping[str, Principal]
    hooks: str


class Slack:
    """Both doors for one workspace.

    Args:
        workspace: As it is configured now; None where Slack is not.
    """

    def __init__(
        self,
        desk: Desk,
        journal: Journal,
        answers: Answers,
        clock: WallClock,
        workspace: Callable[[], Workspace | None],
    ) -> None:
        self._desk = desk
        self._journal = journal
        self._answers = answers
        self._clock = clock
        self._workspace = workspace
        self._later: set[asyncio.Task[None]] = set()

    async def command(self, request: web.Request) -> web.Response:
        """`/release VERB SERVICE [why]`; answers at once, and once more when it is carried out."""
        workspace, form, once = await self._form(request)
        try:
            who = _person(workspace, form.get("team_id", ""), form.get("user_id", ""))
            verb, service, why = _words(form.get("text", ""))
            if verb == "status":
                return _said(await self._status(who, service))
            self._desk.check(service, who)
            state, _ = await self._journal.load(service)
            fields = {"verb": verb, "service": service, "why": why, "release": state.meant}
            asked = await self._desk.put(who, {name: value for name, value in fields.items() if value}, once)
        except Problem as problem:
            if problem.status == HTTPStatus.UNAUTHORIZED:
                raise
            return _said(f":no_entry: {problem}")
        self._answer_later(workspace, form.get("response_url", ""), asked, f"{verb} {service}", who)
        return _said(f":hourglass: {verb} {service} …")

    async def action(self, request: web.Request) -> web.Response:
        """A button; answers at once, and tells everybody when it is carried out."""
        workspace, form, once = await self._form(request)
        try:
            payload = strict_json.loads(form.get("payload", "").encode())
            user = str(payload["user"]["id"])
            team = str(payload["team"]["id"] if payload["team"] else payload["user"]["team_id"])
            verb, release = str(payload["actions"][0]["action_id"]), str(payload["actions"][0]["value"])
            url = str(payload.get("response_url", ""))
        except (Fault, LookupError, TypeError, AttributeError):
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "this is no action of a button") from None
        try:
            who = _person(workspace, team, user)
            asked = await self._press(who, verb, release, once)
        except Problem as problem:
            if problem.status == HTTPStatus.UNAUTHORIZED:
                raise
            text = f":no_entry: {problem}"
            self._later_do(lambda: self._post(workspace, url, text, everybody=False))
            return web.Response()
        self._answer_later(workspace, url, asked, f"{verb} {release}", who)
        return web.Response()

    async def _press(self, who: Principal, verb: str, release: str, once: Once) -> str:
        """Ask for what a button says, of the release that it stands at; returns the id of the request."""
        if verb not in VERBS or not re.fullmatch(RELEASE, release):
            why = f"{verb[:40]} {release[:80]} is no button of ours"
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, why)
        service = release.rpartition("-")[0]
        return await self._desk.put(who, {"verb": verb, "service": service, "release": release}, once)

    async def close(self) -> None:
        """Give up what was to be answered later."""
        for task in tuple(self._later):
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    async def _form(self, request: web.Request) -> tuple[Workspace, dict[str, str], Once]:
        """The fields of a request that Slack has signed just now, and what it is known again by."""
        body = await read_bytes(request)
        timestamp = one_header(request, "X-Slack-Request-Timestamp")
        given = one_header(request, "X-Slack-Signature")
        workspace = self._workspace()
        text = b"v0:" + octets(timestamp) + b":" + body
        right = f"v0={hmac_of(workspace.secret if workspace else None, text)}"
        if not fits(given, right) or workspace is None:
            raise refused()
        check_time(timestamp, self._clock.wall())
        return workspace, form_of(body), Once(f"slack {right}", REMEMBER)

    async def _status(self, who: Principal, service: str) -> str:
        names = [service] if service else sorted(s for s in self._desk.services() if who.sees(s))
        for name in names:
            self._desk.check(name, who)
        files = self._desk.services()
        views = [service_view((await self._journal.load(name))[0], files.get(name)) for name in names]
        return "\n".join(map(_line, views)) or "no service"

    def _answer_later(self, workspace: Workspace, url: str, asked: str, what: str, who: Principal) -> None:
        async def work() -> None:
            answer = await self._answers.to(asked, ANSWER_WAIT)
            if answer is None:
                text = f":hourglass: {what}: no daemon has answered yet; it is kept until one does"
            elif isinstance(answer, RequestRefused):
                text = f":no_entry: {what}: {_safe(answer.reason)}"
            else:
                text = f":ok: {what} by {who.name}"
            done = answer is not None and not isinstance(answer, RequestRefused)
            await self._post(workspace, url, text, everybody=done)

        self._later_do(work)

    def _later_do(self, work: Callable[[], Awaitable[None]]) -> None:
        async def guarded() -> None:
            try:
                await work()
            except (Fault, aiohttp.ClientError, TimeoutError) as error:
                log.warning("slack_not_answered", reason=f"{type(error).__name__}: {error}"[:200])

        task = asyncio.create_task(guarded(), name="slack answer")
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _post(self, workspace: Workspace, url: str, text: str, *, everybody: bool) -> None:
        """Answer later, at the address that was sent along; it must be one of Slack's."""
        if not url.startswith(workspace.hooks):
            log.warning("slack_not_answered", reason="response_url is none of Slack's")
            return
        kind = "in_channel" if everybody else "ephemeral"
        body = {"text": text[:3000], "response_type": kind, "replace_original": False}
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, json=body, allow_redirects=False) as answer,
        ):
            if answer.status >= HTTPStatus.BAD_REQUEST:
                log.warning("slack_not_answered", reason=f"status {answer.status}")


def _person(workspace: Workspace, team: str, user: str) -> Principal:
    who = workspace.users.get(user) if team == workspace.team else None
    if who is None:
        raise Problem(HTTPStatus.FORBIDDEN, f"user {user[:20]} of workspace {team[:20]} is not on the list")
    return who


def _words(text: str) -> tuple[str, str, str]:
    """Verb, service and reason of a command."""
    verb, _, rest = " ".join(text.split()).partition(" ")
    service, _, why = rest.partition(" ")
    known = ["status", *sorted(VERBS)]
    if verb not in known or (verb != "status" and not service):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"write: {'|'.join(known)} SERVICE [why]")
    return verb, service, why[:LONGEST]  # what is asked gets through, whatever is said of it


def _line(view: ServiceView) -> str:
    stable = f"{view.stable.release} `{_safe(view.stable.image)}`" if view.stable else "empty"
    found = f"*{view.service}* {stable}"
    if view.rollout is not None:
        rollout = view.rollout
        found += f" → {rollout.release} {rollout.phase} {rollout.weight:g} %"
        found += f" ({rollout.mark.kind}: {_safe(rollout.mark.reason)})" if rollout.mark else ""
    found += f", frozen by {_safe(view.frozen.actor)}" if view.frozen else ""
    said = [*view.problems, view.outdated] if view.outdated else view.problems
    return ", ".join([found, *map(_safe, said)])


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _said(text: str) -> web.Response:
    body: dict[str, Any] = {"response_type": "ephemeral", "text": text[:3000]}
    return web.json_response(body)
