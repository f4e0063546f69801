"""What the API takes and shows, as pydantic models; the OpenAPI document is made from them. Pure."""

import json
from functools import cache
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from orchestrator.intake.parse import IMAGE, Fields, Known, Said
from orchestrator.ports.access import Role, Token, Verb, somebody
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import (
    FULL,
    NUMBER,
    SERVICE_NAME,
    Ended,
    Mark,
    Outcome,
    Phase,
    Release,
    ServiceState,
    Verdict,
)
from orchestrator.rollout.plan import current_step, step_count
from orchestrator.rollout.policy import Template
from orchestrator.rollout.told import outdated, problems, way_back

SERVICE = rf"^{SERVICE_NAME.pattern}$"
RELEASE = rf"^{SERVICE_NAME.pattern}-{NUMBER.pattern}$"
REQUEST = r"^[0-9]{1,15}-[0-9]{1,10}$"
TOKEN = r"^[0-9a-f]{8}$"  # noqa: S105  a pattern

Seconds = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]
When = Annotated[float, Field(description="Seconds since the epoch")]
Line = Annotated[str, StringConstraints(max_length=2000)]


class Model(BaseModel):
    """Knows its fields and refuses others."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Wait(Model):
    """How long an answer may wait for news."""

    wait: Seconds = Field(0, description="Answer when it is over, or after so many seconds, 60 at the most")


class Nothing(Model):
    """No parameters."""


class EventFilter(Model):
    """Which events are wanted."""

    service: Annotated[str, Field(pattern=SERVICE)] | None = None
    release: Annotated[str, Field(pattern=RELEASE)] | None = None
    after: Annotated[str, Field(pattern=REQUEST)] | None = Field(
        None, description="As Last-Event-ID, which wins: the id of an event that has been seen"
    )


class Asking(Model):
    """Who asks on whose behalf, and why."""

    reason: Line = Field("", description="Why, for the audit trail")
    who: Annotated[str, StringConstraints(max_length=200), AfterValidator(somebody)] = Field(
        "", description="On whose behalf: shown beside the name of the token"
    )


class ReleaseBody(Asking):
    """An image to release."""

    image: Annotated[str, StringConstraints(max_length=512, pattern=IMAGE)] = Field(
        description="repository:tag or repository@sha256:..."
    )
    link: Annotated[str, StringConstraints(max_length=2000, pattern=r"^(https?://\S+)?$")] = Field(
        "", description="Where the build can be seen"
    )
    strategy: Annotated[str, StringConstraints(max_length=40)] = Field(
        "", description="An override from the service's file"
    )
    checks: dict[Annotated[str, StringConstraints(max_length=40)], Said] = Field(
        {}, description="What is said for the service's checklist", max_length=50
    )


class RestartBody(Asking):
    """How stable's own image is released again."""

    strategy: Annotated[str, StringConstraints(max_length=40)] = Field(
        "", description="An override from the service's file"
    )


class CommandBody(Asking):
    """A command that needs nothing else."""


class RemoveBody(Asking):
    """That it is meant."""

    yes: Literal[True] = Field(description="Nothing is removed without it")


class RolloutBody(Asking):
    """Which rollout is meant."""

    release: Annotated[str, StringConstraints(pattern=RELEASE)] | None = Field(
        None, description="Refused when it is not under way any more; unset: whichever is"
    )


class RollbackBody(Asking):
    """Where to go back from, and to."""

    release: Annotated[str, StringConstraints(pattern=RELEASE)] | None = Field(
        None, description="What is to be rolled back; refused when it has no traffic any more"
    )
    to: Annotated[str, StringConstraints(pattern=RELEASE)] | None = Field(
        None, description="An earlier promoted release; unset: the last good one"
    )


class AbortBody(Asking):
    """What to end."""

    release: Annotated[str, StringConstraints(pattern=RELEASE)] | None = Field(
        None, description="A queued release; unset: the one that is under way"
    )


class Accepted(Model):
    """The request is durable and will be carried out, or refused with a reason, in its turn."""

    request: str = Field(description="Its id: ask /v1/requests/ID what became of it")


class RequestView(Model):
    """What became of a request."""

    request: str
    state: Literal["waiting", "accepted", "refused"]
    service: str = ""
    release: str = Field("", description="The release that it made or was about")
    reason: str = Field("", description="Why it was refused, or why the release that it made waits")


class Left(Model):
    """The rollback by which a promoted release was left."""

    to: str = Field(description="The release that the traffic went to")
    by: str
    because: str
    at: When


class ReleaseView(Model):
    """One release and where it stands."""

    release: str
    service: str
    image: str
    digest: str = Field(description="What runs; empty until the image was resolved")
    state: Literal["queued", "active", "ended"]
    phase: Phase | None = Field(None, description="While it is active")
    outcome: Outcome | None = Field(None, description="Once it has ended")
    author: str
    reason: str
    link: str
    submitted_at: When
    kind: Literal["release", "revert"] = "release"
    step: int = Field(0, description="From 1, while traffic moves; 0 before")
    steps: int = Field(0, description="Steps of the ladder, while it is active")
    weight: float = Field(0, description="Percent of the traffic")
    mark: Mark | None = Field(None, description="Why it stands still")
    verdicts: tuple[Verdict, ...] = Field((), description="What the gates said at the last look")
    began_at: When | None = None
    ended_at: When | None = None
    ended_by: str = Field("", description="Who decided it; orchestrator: the gates")
    ended_because: str = ""
    logs: str = Field(
        "", description="The last log lines of what died in it; where one release is asked for, and has ended"
    )
    left: Left | None = Field(None, description="That a promoted release was rolled back from since")


class ReleaseList(Model):
    """Releases, latest first."""

    releases: list[ReleaseView]


class ServiceView(Model):
    """What a service is doing."""

    service: str
    stable: ReleaseView | None = Field(description="What holds the traffic")
    previous: str = Field(description="The release that is still warm; empty when there is none")
    rollout: ReleaseView | None = Field(description="What is rolling out")
    queue: list[str] = Field(description="Releases that wait, next first")
    frozen: Mark | None = Field(description="Why no release may start")
    removal: Mark | None = Field(description="That it is being taken down, or was")
    shares: dict[str, float] = Field(description="Percent of the traffic by release")
    generation: int
    confirmed: int = Field(description="The generation that nginx was seen to serve")
    problems: list[str] = Field(description="What is wrong now")
    way_back: str = Field("", description="Where users are while they are taken back")
    outdated: str = Field(description="In what stable differs from the service's file; empty when in nothing")


class ServiceList(Model):
    """Services by name."""

    services: list[ServiceView]


class Reloaded(Model):
    """What reading the files again has changed."""

    changes: list[str] = Field(description="A line for each service, and one for the daemon; empty: nothing")
    problems: list[str] = Field(description="What is wrong, by file and path; that stays as it was")


class TokenBody(Model):
    """A token to make."""

    name: Known = Field(description="For the audit trail; no other token has it")
    role: Role
    services: list[Annotated[str, StringConstraints(pattern=SERVICE)]] = Field(
        [], description="Empty: all of them", max_length=100
    )
    days: float | None = Field(None, gt=0, le=3660, description="Until it expires; unset: never")


class TokenView(Model):
    """What is known of a token."""

    id: str
    name: str
    role: Role
    services: list[str]
    created_at: When
    created_by: str
    expires_at: When | None

    @classmethod
    def of(cls, token: Token) -> "TokenView":
        """A token as it is shown."""
        return cls(**_token(token))


class NewToken(TokenView):
    """A token with its secret."""

    secret: str = Field(description="Shown this once")

    @classmethod
    def made(cls, token: Token, secret: str) -> "NewToken":
        """A token that was just made."""
        return cls(**_token(token), secret=secret)


def _token(token: Token) -> dict[str, object]:
    who = token.principal
    return {
        "id": token.id,
        "name": who.name,
        "role": who.role,
        "services": list(who.services),
        "created_at": token.created_at,
        "created_by": token.created_by,
        "expires_at": token.expires_at,
    }


class TokenList(Model):
    """Tokens by name."""

    tokens: list[TokenView]


class Me(Model):
    """Who is asking."""

    name: str
    role: Role
    services: list[str]


BODIES: dict[Verb, type[Asking]] = {
    "release": ReleaseBody,
    "restart": RestartBody,
    "rollback": RollbackBody,
    "promote": RolloutBody,
    "approve": RolloutBody,
    "pause": RolloutBody,
    "resume": RolloutBody,
    "abort": AbortBody,
    "freeze": CommandBody,
    "unfreeze": CommandBody,
    "remove": RemoveBody,
}
"""What each verb takes."""


def fields_of(verb: Verb, service: str, body: Asking, key: str = "") -> dict[str, str]:
    """A request as it is put down: the fields of `parse.Fields` that say something.

    Args:
        verb: What is asked for.
        service: Of which service.
        body: The rest of it.
        key: The idempotency key.
    """
    said = body.model_dump(exclude={"reason", "who"}, exclude_none=True)
    if said.get("checks"):
        said["checks"] = json.dumps(said["checks"])
    given = {**said, "verb": verb, "service": service, "who": body.who, "why": body.reason, "key": key}
    return {name: given[name] for name in Fields.model_fields if given.get(name)}


@cache
def _event() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def event_json(event: Event) -> bytes:
    """An event as listeners get it."""
    return _event().dump_json(event)


def service_view(state: ServiceState, template: Template | None) -> ServiceView:
    """A state as it is shown, beside what the service's file says."""
    stable, rollout = state.stable, state.rollout
    shares = {s.release: round(state.route.share(s.release) * FULL, 4) for s in state.route.servers}
    return ServiceView(
        service=state.service,
        stable=release_view(state, stable.id) if stable else None,
        previous=state.previous.id if state.previous else "",
        rollout=release_view(state, rollout.release.id) if rollout else None,
        queue=[r.id for r in state.queue],
        frozen=state.frozen,
        removal=state.removal,
        shares=shares,
        generation=state.route.generation,
        confirmed=state.confirmed,
        problems=problems(state),
        way_back=way_back(state),
        outdated=outdated(state, template),
    )


def release_view(state: ServiceState, release: str) -> ReleaseView | None:
    """A release as it is shown; None when the state does not know it."""
    rollout = state.rolling(release)
    if rollout is not None:
        moving = rollout.phase in (Phase.SHIFTING, Phase.BAKING)
        return ReleaseView(
            **_about(rollout.release),
            state="active",
            phase=rollout.phase,
            kind=rollout.kind,
            step=rollout.step + 1 if moving else 0,
            steps=step_count(state, rollout),
            weight=current_step(state, rollout).weight if moving else 0,
            mark=rollout.mark,
            verdicts=rollout.verdicts,
            began_at=rollout.began_at,
        )
    queued = next((r for r in state.queue if r.id == release), None)
    if queued is not None:
        return ReleaseView(**_about(queued), state="queued")
    ended = next(iter(state.journeys(release)), None)
    if ended is not None:
        return _ended(state, ended)
    if state.stable is not None and state.stable.id == release:  # adopted: nobody saw it come
        share = state.route.share(release) * FULL
        return ReleaseView(**_about(state.stable), state="ended", outcome=Outcome.PROMOTED, weight=share)
    return None


def releases_of(state: ServiceState) -> list[ReleaseView]:
    """All releases that the state knows, latest first, each once."""
    ids = [r.id for r in reversed(state.queue)]
    ids += [state.rollout.release.id] if state.rollout else []
    ids += [e.release.id for e in reversed(state.history)]
    ids += [state.stable.id] if state.stable else []
    return [view for name in dict.fromkeys(ids) if (view := release_view(state, name)) is not None]


def _ended(state: ServiceState, ended: Ended) -> ReleaseView:
    back = state.left(ended)
    left = Left(to=back.release.id, by=back.actor, because=back.reason, at=back.ended_at) if back else None
    return ReleaseView(
        left=left,
        **_about(ended.release),
        state="ended",
        outcome=ended.outcome,
        kind=ended.kind,
        weight=state.route.share(ended.release.id) * FULL,
        began_at=ended.began_at,
        ended_at=ended.ended_at,
        ended_by=ended.actor,
        ended_because=ended.reason,
    )


def _about(release: Release) -> dict[str, str | float]:
    return {
        "release": release.id,
        "service": release.service,
        "image": release.image,
        "digest": release.digest,
        "author": release.author,
        "reason": release.reason,
        "link": release.link,
        "submitted_at": release.submitted_at,
    }
