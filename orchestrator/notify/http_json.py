"""JSON over HTTP, for channels that Apprise does not know."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp

from orchestrator.ports.faults import Away, Fault, Refused

LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
"""Statuses of 400 to 499 that mean "again later" (RFC 9110, 8470, 6585); the others are final."""


def fault(status: int, words: str) -> Fault:
    """What a status of 400 or more means."""
    final = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in LATER
    return (Refused if final else Away)(words)


async def ask_json(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    json: Any = None,
    params: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object that a service answers. What a fault says holds no address.

    Raises:
        Away: It does not answer, or what answers is not the service.
        Refused: It will not, by its status.
    """
    try:
        async with session.request(method, url, json=json, params=params) as answer:
            if answer.status >= HTTPStatus.BAD_REQUEST:
                words = (await answer.text(errors="replace"))[:200]
                raise fault(answer.status, f"status {answer.status}: {words}")
            found = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Away(f"{type(error).__name__}") from error
    if not isinstance(found, dict):
        raise Away(f"status {answer.status}: JSON that is no object")
    return found
