"""Where every door puts requests down."""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import cast

from aiohttp import web

from orchestrator.intake.problems import Problem
from orchestrator.intake.signatures import refused
from orchestrator.intake.views import SERVICE, Accepted
from orchestrator.ports.access import Principal, Verb, author
from orchestrator.ports.faults import Conflict, Repeated
from orchestrator.ports.requests import Inbox, Once
from orchestrator.rollout.policy import Template


class Desk:
    """Puts requests down in the name of somebody who may.

    Args:
        services: The services that are configured now, and how each is to be run.
    """

    def __init__(self, inbox: Inbox, services: Callable[[], Mapping[str, Template | None]]) -> None:
        self._inbox = inbox
        self.services = services

    def check(self, service: str, who: Principal) -> None:
        """Whether a service is there, and any of their business.

        Raises:
            Problem: It is not.
        """
        if not who.sees(service):
            raise Problem(HTTPStatus.FORBIDDEN, f"{who.name} has nothing to do with {service[:80]}")
        if not re.fullmatch(SERVICE, service) or service not in self.services():
            known = ", ".join(sorted(s for s in self.services() if who.sees(s))) or "none"
            raise Problem(HTTPStatus.NOT_FOUND, f"{service[:80]!r} is not known; there are: {known}")

    async def take(self, who: Principal, fields: Mapping[str, str], once: Once | None = None) -> web.Response:
        """202 once a request is durable.

        Args:
            who: Whose request it is; a person in `fields` is named before them.
            fields: Those of the stream.
            once: Where it may come one time only.

        Raises:
            Problem: They may not, or the service is not known, or the key was used for something else, or it
                has come before (401).
        """
        request = await self.put(who, fields, once)
        return web.Response(
            body=Accepted(request=request).model_dump_json().encode(),
            status=HTTPStatus.ACCEPTED,
            headers={"Content-Type": "application/json", "Location": f"/v1/requests/{request}"},
        )

    async def put(self, who: Principal, fields: Mapping[str, str], once: Once | None = None) -> str:
        """As `take`; returns the id of the request."""
        service, verb = fields.get("service", ""), cast("Verb", fields.get("verb", "release"))
        if not who.may(verb, service):
            why = f"{who.name} is {who.role} and may not {verb} {service[:80]}"
            raise Problem(HTTPStatus.FORBIDDEN, why)
        self.check(service, who)
        person = fields.get("who", "")[:200]
        try:
            name = author(f"{person} via {who.name}" if person else who.name)
        except ValueError as error:  # a token that an older version has made
            why = f"{error}: make another token, and revoke this one"
            raise Problem(HTTPStatus.FORBIDDEN, why) from None
        try:
            return await self._inbox.push({**fields, "who": name}, once)
        except Repeated as error:
            raise refused(str(error)) from None
        except Conflict as error:
            raise Problem(HTTPStatus.CONFLICT, str(error)) from None
