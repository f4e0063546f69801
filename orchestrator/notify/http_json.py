"""JSON over HTTP, for channels that Apprise does not know."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp

from orchestrator.ports.faults import Fault


async def ask_json(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    json: Any = None,
    params: Mapping[str, str] | None = None,
) -> Any:
    """The JSON that a service answers.

    Raises:
        Fault: It does not answer, or with 400 or more; holds what it says, and no address.
    """
    try:
        async with session.request(method, url, json=json, params=params) as answer:
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise Fault(f"status {answer.status}: {(await answer.text())[:200]}")
            return await answer.json()
    except (aiohttp.ClientError, ValueError) as error:
        raise Fault(f"{type(error).__name__}") from error
