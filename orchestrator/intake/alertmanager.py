"""Alertmanager's webhook: a firing alert takes back, or holds, the release that it is about.

Alertmanager repeats an alert for as long as it fires, so what is asked names the release: a release that is
on its way back, or was replaced, is not meant a second time.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal, get_args

import structlog
from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from orchestrator.intake.desk import Desk
from orchestrator.intake.door import Guard, read_body
from orchestrator.intake.parse import wrong_field
from orchestrator.intake.problems import Problem
from orchestrator.ports.access import MAY, Principal
from orchestrator.ports.clock import HostClock
from orchestrator.ports.store import Journal
from orchestrator.rollout.model import Phase, ServiceState

log = structlog.get_logger()

PATH = "/hooks/alertmanager"
Labels = dict[str, Annotated[str, StringConstraints(max_length=4096)]]
Action = Literal["rollback", "pause"]


@dataclass(frozen=True, slots=True)
class AlertRule:
    """Which alerts are about which service.

    Attributes:
        match: Labels that an alert must have, all of them.
        service: Which service it is about; '' takes it from the alert's label `service`.
        action: What is asked for.
    """

    match: Mapping[str, str]
    service: str
    action: Action


def _zoned(when: dt.datetime) -> dt.datetime:
    """A time without a zone is UTC; Alertmanager always sends one."""
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


class Alert(BaseModel):
    """What is read of an alert."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    status: Literal["firing", "resolved"]
    labels: Labels = {}
    annotations: Labels = {}
    startsAt: Annotated[dt.datetime, AfterValidator(_zoned)] | None = None  # noqa: N815  Alertmanager's name


class Group(BaseModel):
    """What is read of a notification, version 4 of its format."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    status: Literal["firing", "resolved"]
    commonLabels: Labels = {}  # noqa: N815
    commonAnnotations: Labels = {}  # noqa: N815
    truncatedAlerts: int = Field(0, ge=0)  # noqa: N815
    alerts: list[Any] = Field([], max_length=1000)

    def firing(self) -> tuple[list[Alert], str]:
        """The alerts that fire, and what is wrong with those that are none.

        Where some were cut off, what all have in common stands for those.
        """
        found: list[Alert] = []
        wrong: list[str] = []
        for place, given in enumerate(self.alerts):
            try:
                found.append(Alert.model_validate(given))
            except ValidationError as error:
                wrong += [f"alerts/{place}/{wrong_field(e)}" for e in error.errors()[:1]]
        found = [a for a in found if a.status == "firing"]
        if self.truncatedAlerts and self.status == "firing":
            latest = max((a.startsAt for a in found if a.startsAt), default=None)
            common = {"labels": self.commonLabels, "annotations": self.commonAnnotations}
            found.append(Alert(status="firing", startsAt=latest, **common))
        return found, "; ".join(wrong[:5])


def meant(alerts: Sequence[Alert], rules: Sequence[AlertRule]) -> dict[str, list[tuple[Action, Alert]]]:
    """What firing alerts ask for, by service: each by the first rule that matches it; rollbacks first."""
    found: dict[str, list[tuple[Action, Alert]]] = {}
    for alert in alerts:
        rule = next((r for r in rules if r.match.items() <= alert.labels.items()), None)
        service = (rule.service or alert.labels.get("service", "")) if rule else ""
        if rule and service:
            found.setdefault(service, []).append((rule.action, alert))
    return {s: sorted(asked, key=lambda one: one[0] != "rollback") for s, asked in found.items()}


def concerns(state: ServiceState, action: Action, alert: Alert, now: float, ahead: float = 0.0) -> str:
    """The release that an alert is about; '' when it is about none that can still be helped.

    That is the one that rolls out, or the one that was promoted while the one before it is still warm; and
    the alert began after its rollout did, so that the cure of an older fault is not taken back for it. An
    alert that does not say when it began, began now.

    Args:
        state: Of its service.
        action: What its rule asks for.
        alert: Its time is the host's.
        now: The time of decisions.
        ahead: Seconds by which that is ahead of the host's clock.
    """
    rollout = state.rollout
    starts = alert.startsAt.timestamp() + ahead if alert.startsAt else now
    if rollout is not None:
        stands = rollout.mark is not None and rollout.mark.kind == "paused"
        done = rollout.phase is Phase.ROLLING_BACK or (action == "pause" and stands)
        return "" if done or starts < rollout.began_at else rollout.release.id
    warm = state.previous is not None and now < (state.previous_until or 0.0)
    if action == "pause" or not warm or state.stable is None:
        return ""
    began = next((e.began_at for e in state.journeys(state.stable.id)), None)
    reverted = any(e.kind == "revert" and e.release.id == state.stable.id for e in state.history[-1:])
    return state.stable.id if began is not None and starts >= began and not reverted else ""


class Alerts:
    """The door for Alertmanager; it carries a token, as it can't sign.

    Args:
        rules: As they are configured now.
    """

    def __init__(
        self,
        desk: Desk,
        journal: Journal,
        guard: Guard,
        clock: HostClock,
        rules: Callable[[], Sequence[AlertRule]],
    ) -> None:
        self._desk = desk
        self._journal = journal
        self._guard = guard
        self._clock = clock
        self._rules = rules

    async def handle(self, request: web.Request) -> web.Response:
        """Put down what the alerts ask for. 503 is tried again by Alertmanager, 4xx never."""
        who = (await self._guard.recognise(request)).principal
        # Told at the first notification, not at the first that matters.
        if not set(get_args(Action)) <= MAY[who.role]:
            why = f"{who.name} is {who.role} and may not {' and '.join(get_args(Action))}"
            raise Problem(HTTPStatus.FORBIDDEN, why)
        group: Group = await read_body(request, Group, optional=False)
        if group.truncatedAlerts:
            log.warning("alerts_truncated", number=group.truncatedAlerts, reason="raise max_alerts")
        firing, wrong = group.firing()
        asked: list[str] = []
        refused: Problem | None = None
        if wrong:
            log.warning("alert_refused", reason=wrong)
            refused = Problem(HTTPStatus.UNPROCESSABLE_ENTITY, wrong)
        for service, actions in meant(firing, self._rules()).items():
            try:
                asked += await self._ask(who, service, actions)
            except Problem as problem:
                log.warning("alert_refused", service=service, reason=str(problem))
                refused = problem
        if refused is not None and not asked:
            raise refused
        return web.json_response({"requests": asked}, status=HTTPStatus.OK)

    async def _ask(self, who: Principal, service: str, actions: Sequence[tuple[Action, Alert]]) -> list[str]:
        """Put down the first of the actions that is about a release; returns the id of the request."""
        self._desk.check(service, who)
        state, _ = await self._journal.load(service)
        for action, alert in actions:
            release = concerns(state, action, alert, self._clock.now(), self._clock.ahead())
            if release:
                fields = {
                    "verb": action,
                    "service": service,
                    "release": release,
                    "who": alert.labels.get("alertname", "alert")[:80],
                    "why": _why(alert),
                }
                return [await self._desk.put(who, fields)]
        return []


def _why(alert: Alert) -> str:
    text = alert.annotations.get("summary") or alert.annotations.get("description")
    labels = ", ".join(f"{k}={v}" for k, v in sorted(alert.labels.items()) if k != "alertname")
    return f"{text or 'alert'} ({labels})"[:2000]
