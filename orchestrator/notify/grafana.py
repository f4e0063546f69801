"""Annotations in Grafana: a mark where something happened, over the whole time of a release at its end."""

from typing import Any

import aiohttp

from orchestrator.notify.http_json import ask_json
from orchestrator.notify.text import Message
from orchestrator.rollout.events import Event, ReleaseEnded

TAG = "release-orchestrator"


class Grafana:
    """Writes by the HTTP API, with the token of a service account that may write annotations."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url.rstrip('/')}/api/annotations"
        self._headers = {"Authorization": f"Bearer {token}"}

    async def send(self, event: Event, text: Message) -> None:
        """See `Channel`."""
        end = int(event.at * 1000)
        began = int((event.at - event.seconds) * 1000) if isinstance(event, ReleaseEnded) else end
        tags = [TAG, f"service:{event.service}", f"event:{event.kind}"]
        tags += [f"outcome:{event.outcome.value}"] if isinstance(event, ReleaseEnded) else []
        body: dict[str, Any] = {
            "time": began,
            "timeEnd": end,
            "tags": tags,
            "text": f"{text.title}\n{text.body}",
        }
        async with aiohttp.ClientSession(headers=self._headers) as session:
            await ask_json(session, "POST", self._url, json=body)
