"""nginx' private listener: what it serves, and a newer route where it takes one."""

import asyncio
import contextlib
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from orchestrator.ports.addresses import unreached
from orchestrator.ports.faults import Fault, Refused
from orchestrator.traffic.render import probe_host

DEADLINE = 1.0
"""Seconds for one request."""

TOLD = re.compile(
    r"(?P<service>\S+) (?P<number>[0-9]+) (?P<token>[0-9]+)"
    r" (?:dynamic (?P<shape>\S+) (?P<draining>-?[0-9]+)(?: (?P<back>\S+))?|(?P<mark>\S*))",
    re.ASCII,
)
"""What is said of a service: generation, token, what the file is like, and where a rollback has all users."""

REFUSED = -1
"""In place of a status, where nobody listens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What nginx says of a service.

    Attributes:
        text: The answer, or why there is none.
        generation: The generation that it serves; None without a proper answer.
        mark: Of the whole file that it has loaded; where routes change in its memory, of all but the route.
        shape: What its file is like apart from the route; empty where routes change by a reload.
        back: The release that has all users by a rollback on this host, where routes change in its memory.
        draining: Workers that have requests under way at servers which the route does not name any more, each
            server counted by itself; -1 where nobody counts.
        answered: Whether it has answered at all.
        refused: Whether nobody listens there: nginx has loaded no service, or does not run.
        token: The fencing token under which it serves what it serves.
    """

    text: str
    generation: int | None = None
    mark: str = ""
    shape: str = ""
    back: str = ""
    draining: int = 0
    answered: bool = True
    refused: bool = False
    token: int = 0


class Listener:
    """The private listener of one nginx, asked on a fresh connection each time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, service: str) -> Answer:
        """What is served; a failure is in the text, never raised."""
        status, text = await self._request("GET", "/generation", service)
        said = TOLD.fullmatch(text)
        if said is None or said["service"] != service:
            return Answer(text, answered=status > 0, refused=status == REFUSED)
        shape = said["shape"] or ""
        return Answer(
            text,
            int(said["number"]),
            shape or said["mark"],
            shape,
            back=said["back"] or "",
            draining=int(said["draining"] or 0),
            token=int(said["token"]),
        )

    async def put(self, service: str, route: str, *, secret: str, shape: str) -> None:
        """Let nginx serve a route from the next request on, if the rest of its file is of this shape.

        Raises:
            Refused: It serves a newer one.
            Fault: It did not take it, or did not say so.
        """
        headers = {"X-Secret": secret, "X-Shape": shape}
        status, text = await self._request("PUT", "/route", service, data=route, headers=headers)
        if status != HTTPStatus.OK:
            why = f"nginx did not take the route of {service}: {text}"
            raise Refused(why) if status == HTTPStatus.CONFLICT else Fault(why)

    async def _request(
        self, method: str, path: str, service: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> tuple[int, str]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        headers = {"Host": probe_host(service), **(headers or {})}
        try:
            async with (
                asyncio.timeout(DEADLINE),
                self._session.request(method, f"{self._url}{path}", headers=headers, **more) as answer,
            ):
                return answer.status, (await answer.text(errors="replace"))[:200]
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, ConnectionRefusedError)
            return REFUSED if refused else 0, unreached(error, self._url)
        except Exception as error:  # noqa: BLE001  whatever it is, there is no answer
            return 0, unreached(error, self._url)

    async def close(self) -> None:
        """Close the connections; one that does not close in time is left."""
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEADLINE):
                    await self._session.close()
