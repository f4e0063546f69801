"""An issue in Jira, by its REST API, version 2."""

import aiohttp

from orchestrator.notify.http_json import ask_json
from orchestrator.notify.text import Message
from orchestrator.rollout.events import Event


class Jira:
    """One issue a release, found again by a label of its own.

    Args:
        url: Of the site.
        user: Account of an API token; empty where the token alone is sent.
        project: Key of the project.
        issue_type: Name of the type.
    """

    def __init__(self, url: str, user: str, token: str, project: str, issue_type: str) -> None:
        self._url = url.rstrip("/")
        self._auth = aiohttp.BasicAuth(user, token) if user else None
        self._headers = {} if user else {"Authorization": f"Bearer {token}"}
        self._project = project
        self._type = issue_type

    async def send(self, event: Event, text: Message) -> None:
        """See `Channel`."""
        label = f"release-{event.release}-{int(event.at)}"
        async with aiohttp.ClientSession(auth=self._auth, headers=self._headers) as session:
            jql = f'project = "{self._project}" AND labels = "{label}"'
            found = await ask_json(session, "GET", f"{self._url}/rest/api/2/search", params={"jql": jql})
            if found.get("issues"):
                return
            fields = {
                "project": {"key": self._project},
                "issuetype": {"name": self._type},
                "summary": text.title[:250],
                "description": f"{{noformat}}\n{text.body}\n{{noformat}}",
                "labels": [label, "release-orchestrator"],
            }
            await ask_json(session, "POST", f"{self._url}/rest/api/2/issue", json={"fields": fields})
