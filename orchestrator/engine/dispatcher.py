"""Requests to commands, commands to the conductor of their service."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import structlog

from orchestrator.engine.conductor import Conductor, Parts
from orchestrator.engine.replies import Replies
from orchestrator.engine.tasks import bug, eternal
from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.requests import Request
from orchestrator.ports.runtime import RuntimeEvents
from orchestrator.ports.service import ServicePlan
from orchestrator.ports.store import Store
from orchestrator.rollout.command import (
    Abort,
    Approve,
    Command,
    Freeze,
    Pause,
    Promote,
    Remove,
    Restart,
    Resume,
    Rollback,
    Submit,
    Unfreeze,
)
from orchestrator.rollout.events import RequestRefused
from orchestrator.rollout.hooks import unchecked
from orchestrator.rollout.policy import Policy

log = structlog.get_logger()

AGAIN = 1.0
"""Seconds between tries to answer what waited for a service that is not driven any more."""


class Dispatcher:
    """One conductor for each configured service.

    Attributes:
        replies: What is said to requests that no conductor carries out.
    """

    def __init__(self, parts: Parts, store: Store) -> None:
        self._parts = parts
        self._conductors: dict[str, Conductor] = {}
        self.replies = Replies(store, self._conductors)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed: Mapping[str, str] = {}

    def configure(
        self,
        plans: Mapping[str, ServicePlan],
        group: asyncio.TaskGroup,
        closed: Mapping[str, str] | None = None,
    ) -> None:
        """Take a new configuration. A service that is not in it is left alone from then on.

        A service that is `closed` is refused releases with what is said of it there, and all else where it
        has no plan.
        """
        self._closed = closed or {}
        for service, plan in plans.items():
            if service in self._conductors:
                self._conductors[service].plan = plan
                continue
            conductor = Conductor(plan, self._parts)
            self._conductors[service] = conductor
            name = f"conductor {service}"
            self._tasks[service] = group.create_task(eternal(name, conductor.run), name=name)
        for service in self._conductors.keys() - plans.keys():
            log.warning("service_unconfigured", service=service, reason="its traffic stays as it is")
            task, conductor = self._tasks.pop(service), self._conductors.pop(service)
            task.cancel()
            group.create_task(self._hand_on(task, conductor), name=f"hand on {service}")

    async def _hand_on(self, task: asyncio.Task[None], conductor: Conductor) -> None:
        """Dispatch again what waited for a conductor that is dropped: whoever drives then answers it.

        Raises:
            Stale: Another daemon has taken over.
        """
        await asyncio.wait({task})
        for request, fields in conductor.left():
            while True:
                try:
                    await self.dispatch(request, fields)
                    break
                except Stale:
                    raise
                except Fault as error:
                    log.warning("request_left", request=request.id, reason=str(error))
                except Exception:
                    log.exception("request_failed", service=request.service, request=request.id)
                await asyncio.sleep(AGAIN)

    def doubt(self) -> None:
        """The store may have lost something."""
        for conductor in self._conductors.values():
            conductor.doubt()

    async def dispatch(self, request: Request, fields: Mapping[str, str]) -> None:
        """Hand a request to its service's conductor, or refuse it with a reason.

        Raises:
            Fault: The refusal could not be written; the request stays pending.
        """
        conductor = self._conductors.get(request.service)
        if conductor is None:
            known = ", ".join(sorted(self._conductors)) or "none"
            mend = "orchestrator reload, or systemctl reload orchestrator, reads new files"
            reason = f"is not known; there are: {known} ({mend})"
            if request.service in self._closed:
                reason = f"is not driven: {self._closed[request.service]}"
            await self._refuse(request, fields, f"service: {request.service!r} {reason}")
            return
        closed = self._closed.get(request.service)
        if closed and request.verb in ("release", "restart"):
            await self._refuse(request, fields, f"service: {request.service!r}: {closed}")
            return
        try:
            command = to_command(request, conductor.plan)
        except Exception as error:
            log.exception("request_failed", service=request.service, request=request.id)
            command = bug(error)
        if isinstance(command, str):
            await self._refuse(request, fields, command)
        elif not conductor.submit(command, (request, fields)):
            await self._refuse(request, fields, "too many requests wait for this service; try again later")

    async def _refuse(self, request: Request, fields: Mapping[str, str], reason: str) -> None:
        event = RequestRefused(
            service=request.service,
            at=self._parts.clock.now(),
            verb=request.verb,
            actor=request.who,
            request=request.id,
            reason=reason,
        )
        log.warning("request_refused", service=request.service, request=request.id, reason=reason)
        await self.replies.refuse(request.id, {**fields, "error": reason}, event)

    async def listen(self, events: RuntimeEvents) -> None:
        """Wake a conductor whenever Docker tells of one of its containers, for ever."""
        stream: AsyncIterator[str] = events.changes()
        async for service in stream:
            if service in self._conductors:
                self._conductors[service].wake()


def to_command(request: Request, plan: ServicePlan) -> Command | str:  # noqa: C901, PLR0911  one a verb
    """The command that a request means under a service's configuration, or why it may not be."""
    about = {"request": request.id, "actor": request.who, "reason": request.why}
    match request.verb:
        case "release":
            return _submission(request, plan)
        case "restart":
            return _restart(request, plan)
        case "rollback":
            return Rollback(**about, release=request.release, to=request.to)
        case "pause":
            return Pause(**about, release=request.release)
        case "resume":
            return Resume(**about, release=request.release)
        case "approve":
            return Approve(**about, release=request.release)
        case "promote":
            return Promote(**about, release=request.release)
        case "abort":
            return Abort(**about, release=request.release)
        case "freeze":
            return Freeze(**about)
        case "unfreeze":
            return Unfreeze(**about)
        case "remove":
            return Remove(**about)
        case "reload":
            return "reload is about the files of all services"


def _submission(request: Request, plan: ServicePlan) -> Command | str:
    repository, at, _ = request.image.partition("@")
    last = repository.rpartition("/")[2]
    if ":" in last:
        repository = repository.rpartition(":")[0]
    if repository not in plan.images:
        return f"image: {repository!r} is not allowed for {plan.service}; allowed: {', '.join(plan.images)}"
    if plan.require_digest and not at:
        return f"image: {plan.service} takes digests only (repository@sha256:...)"
    lacking = unchecked(plan.checklist, request.checks)
    if lacking:
        return f"checklist: {lacking}"
    policy = _policy(request, plan)
    if isinstance(policy, str):
        return policy
    return Submit(
        request=request.id,
        actor=request.who,
        reason=request.why,
        image=request.image,
        template=plan.template,
        policy=policy,
        strategy=request.strategy,
        key=request.key,
        link=request.link,
    )


def _restart(request: Request, plan: ServicePlan) -> Command | str:
    policy = _policy(request, plan)
    if isinstance(policy, str):
        return policy
    return Restart(
        request=request.id, actor=request.who, reason=request.why, template=plan.template, policy=policy
    )


def _policy(request: Request, plan: ServicePlan) -> Policy | str:
    """The policy of the strategy that is asked for, or why there is none."""
    names = ", ".join(sorted(n for n in plan.policies if n)) or "none"
    lacking = f"strategy: {request.strategy!r} is not an override of {plan.service}; there are: {names}"
    return plan.policies.get(request.strategy, lacking)
