"""Deployments that GitHub and GitLab announce, as requests for releases."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.intake import strict_json
from orchestrator.intake.desk import Desk
from orchestrator.intake.door import form_of, read_bytes
from orchestrator.intake.parse import parse
from orchestrator.intake.problems import Problem
from orchestrator.intake.signatures import fits, hmac_of, one_header, refused
from orchestrator.ports.access import Principal
from orchestrator.ports.faults import Fault

FORM = "application/x-www-form-urlencoded"
"""What GitHub sends unless told otherwise: the JSON is the field `payload`."""

GITHUB_PATH, GITLAB_PATH = "/hooks/github", "/hooks/gitlab"

Kind = Literal["github", "gitlab"]


@dataclass(frozen=True, slots=True)
class Project:
    """What a deployment of a repository means.

    Attributes:
        image: With `{sha}`, `{short_sha}` or `{ref}` in it.
        environment: Deployments to others are none of ours.
    """

    service: str
    image: str
    environment: str


@dataclass(frozen=True, slots=True)
class Forge:
    """A GitHub or GitLab, and its projects by full name."""

    secret: str
    projects: Mapping[str, Project]


@dataclass(frozen=True, slots=True)
class Announced:
    """A deployment that somebody has begun."""

    project: str
    id: str
    environment: str
    sha: str
    short_sha: str
    ref: str
    who: str
    why: str
    link: str


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", defer_build=True)


class _Named(_Model):
    login: str = ""
    username: str = ""
    full_name: str = ""
    html_url: str = ""
    path_with_namespace: str = ""


class _Deployment(_Model):
    id: int
    sha: str
    ref: str = ""
    environment: str
    description: str | None = None
    creator: _Named = _Named()


class _GitHub(_Model):
    action: str
    deployment: _Deployment
    repository: _Named


class _GitLab(_Model):
    status: str
    deployment_id: int
    environment: str
    project: _Named
    short_sha: str
    ref: str = ""
    user: _Named = _Named()
    commit_title: str = ""
    deployable_url: str | None = None
    commit_url: str = ""


def github(payload: Any) -> Announced | None:
    """A `deployment` event that was created; None for anything else that it may say of one."""
    found = _GitHub.model_validate(payload)
    if found.action != "created":
        return None
    told = found.deployment
    return Announced(
        project=found.repository.full_name,
        id=str(told.id),
        environment=told.environment,
        sha=told.sha,
        short_sha=told.sha[:7],
        ref=told.ref,
        who=told.creator.login,
        why=told.description or "",
        link=f"{found.repository.html_url}/commit/{told.sha}",
    )


def gitlab(payload: Any) -> Announced | None:
    """A `deployment` hook of one that begins; None for its end."""
    found = _GitLab.model_validate(payload)
    if found.status not in ("created", "running"):
        return None
    sha = found.commit_url.rpartition("/")[2]
    return Announced(
        project=found.project.path_with_namespace,
        id=str(found.deployment_id),
        environment=found.environment,
        sha=sha,
        short_sha=found.short_sha,
        ref=found.ref,
        who=found.user.username,
        why=found.commit_title,
        link=found.deployable_url or found.commit_url,
    )


def fields_of(announced: Announced, project: Project, kind: Kind) -> dict[str, str]:
    """The request that an announcement means.

    Raises:
        Problem: It makes none that is right, such as an image with a ref that can't be a tag.
    """
    image = project.image
    for name in ("short_sha", "sha", "ref"):
        image = image.replace(f"{{{name}}}", getattr(announced, name))
    fields = {
        "service": project.service,
        "image": image,
        "who": announced.who[:200],
        "why": announced.why[:2000],
        "link": announced.link if announced.link.startswith(("https://", "http://")) else "",
        "key": f"{kind}-{announced.id}",
    }
    given = {name: value for name, value in fields.items() if value}
    try:
        parse("0-0", {**given, "who": kind})  # whoever has announced it is named beside the forge
    except Fault as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
    return given


class Forges:
    """Their doors.

    Args:
        forges: Those that are configured now.
    """

    def __init__(self, desk: Desk, forges: Callable[[], Mapping[Kind, Forge]]) -> None:
        self._desk = desk
        self._forges = forges

    async def github(self, request: web.Request) -> web.Response:
        """GitHub signs the body as it is sent; it announces other things too, which are none of ours."""
        body = await read_bytes(request)
        forge = self._forges().get("github")
        given = one_header(request, "X-Hub-Signature-256")
        right = f"sha256={hmac_of(forge.secret.encode() if forge else None, body)}"
        if not fits(given, right) or forge is None:
            raise refused()
        if request.content_type == FORM:
            body = form_of(body).get("payload", "").encode()
        return await self._take("github", forge, body, request.headers.get("X-GitHub-Event", ""), github)

    async def gitlab(self, request: web.Request) -> web.Response:
        """GitLab sends a token along."""
        body = await read_bytes(request)
        forge = self._forges().get("gitlab")
        given = one_header(request, "X-Gitlab-Token")
        if not fits(given, forge.secret if forge else "none") or forge is None:
            raise refused()
        return await self._take("gitlab", forge, body, request.headers.get("X-Gitlab-Event", ""), gitlab)

    async def _take(
        self, kind: Kind, forge: Forge, body: bytes, event: str, read: Callable[[Any], Announced | None]
    ) -> web.Response:
        if event.lower() not in ("deployment", "deployment hook"):
            return _none(f"{event[:40]!r} is nothing that makes a release")
        try:
            announced = read(strict_json.loads(body))
        except Fault as error:
            raise Problem(HTTPStatus.BAD_REQUEST, str(error)) from None
        except ValidationError as error:
            places = ", ".join("/".join(map(str, e["loc"])) for e in error.errors()[:5])
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"no deployment of {kind}: {places}") from None
        project = forge.projects.get(announced.project) if announced else None
        if announced is None or project is None or project.environment != announced.environment:
            return _none("no project of ours, or another environment, or not the beginning of a deployment")
        fields = fields_of(announced, project, kind)
        who = Principal(name=kind, role="submitter", services=(project.service,))
        return await self._desk.take(who, fields)  # its key makes one release of all deliveries


def _none(why: str) -> web.Response:
    return web.json_response({"request": None, "because": why})
