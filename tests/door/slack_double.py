"""What the project uses of Slack, as Slack documents it: Web API methods, response URLs, signing.

Strict where Slack is: a wrong token, an unknown channel or message, and blocks that it would not show are
errors in a 200, and a response URL works five times.
"""

import hashlib
import hmac
import json
import time
import urllib.parse
from typing import Any

from aiohttp import web

from examples.playground.lease import free_port

TEAM, CHANNEL, TOKEN = "T0001", "C0001", "xoxb-the-bots-own"
SIGNING = "8f742231b10e8888abcd99yyyzzz85a5"
USES = 5


class SlackDouble:
    """Its API at `url`, and everything that was written there."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/"
        self.hooks = f"http://127.0.0.1:{self.port}/commands/"
        self.messages: dict[str, dict[str, Any]] = {}
        self.updates = 0
        self.said: list[dict[str, Any]] = []
        self.strayed: list[str] = []
        self.limited = 0
        self._uses: dict[str, int] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/api/{method}", self._api)
        app.router.add_post("/commands/{id}", self._hook)
        app.router.add_route("*", "/{elsewhere:.*}", self._elsewhere)
        self._runner = web.AppRunner(app, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _api(self, request: web.Request) -> web.Response:
        if self.limited:
            self.limited -= 1
            return web.json_response(
                {"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "1"}
            )
        body = (
            await request.json() if request.content_type == "application/json" else dict(await request.post())
        )
        error = self._error(request, body)
        if error:
            return web.json_response({"ok": False, "error": error})
        method = request.match_info["method"]
        if method == "chat.update":
            self.updates += 1
            self.messages[str(body["ts"])].update(body)
            return web.json_response({"ok": True, "ts": body["ts"], "channel": CHANNEL})
        stamp = f"{time.time():.6f}"  # noqa: TID251  its own clock
        self.messages[stamp] = dict(body)
        return web.json_response({"ok": True, "ts": stamp, "channel": CHANNEL, "message": {"ts": stamp}})

    def _error(self, request: web.Request, body: dict[str, Any]) -> str:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return "invalid_auth"
        if request.match_info["method"] not in ("chat.postMessage", "chat.update"):
            return "unknown_method"
        if body.get("channel") != CHANNEL:
            return "channel_not_found"
        stamp = body.get("ts") or body.get("thread_ts")
        if stamp and stamp not in self.messages:
            return "message_not_found" if body.get("ts") else "thread_not_found"
        blocks = body.get("blocks") or []
        blocks = json.loads(blocks) if isinstance(blocks, str) else blocks
        body["blocks"] = blocks
        if not body.get("text") and not blocks:
            return "no_text"
        return "" if all(map(_shown, blocks)) else "invalid_blocks"

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.strayed.append(request.path)
        return web.Response()

    async def _hook(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        self._uses[name] = self._uses.get(name, 0) + 1
        if self._uses[name] > USES:
            return web.Response(status=404, text="used_url")
        self.said.append(await request.json())
        return web.Response(text="ok")


def _shown(block: dict[str, Any]) -> bool:
    """Whether Slack would show a block: its kinds, its limits of length."""
    if block["type"] == "section":
        return block["text"]["type"] in ("mrkdwn", "plain_text") and 0 < len(block["text"]["text"]) <= 3000
    if block["type"] == "context":
        return 0 < len(block["elements"]) <= 10 and all(0 < len(e["text"]) <= 3000 for e in block["elements"])
    if block["type"] != "actions":
        return False
    ids = [e["action_id"] for e in block["elements"]]
    return len(ids) == len(set(ids)) <= 25 and all(map(_button, block["elements"]))


def _button(element: dict[str, Any]) -> bool:
    confirm = element["confirm"]
    return (
        element["type"] == "button"
        and element["text"]["type"] == "plain_text"
        and len(element["text"]["text"]) <= 75
        and len(element["value"]) <= 2000
        and element.get("style", "danger") in ("danger", "primary")
        and len(confirm["title"]["text"]) <= 100
        and len(confirm["text"]["text"]) <= 300
        and max(len(confirm["confirm"]["text"]), len(confirm["deny"]["text"])) <= 30
    )


def signed(body: bytes, at: float, secret: str = SIGNING) -> dict[str, str]:
    """The headers that Slack sends with a body."""
    stamp = str(int(at))
    text = b"v0:" + stamp.encode() + b":" + body
    sign = hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()
    return {
        "X-Slack-Request-Timestamp": stamp,
        "X-Slack-Signature": f"v0={sign}",
        "Content-Type": "application/x-www-form-urlencoded",
    }


def command(text: str, hooks: str, user: str = "U0001", team: str = TEAM, **more: str) -> bytes:
    """The body of a slash command."""
    fields = {
        "token": "deprecated",
        "team_id": team,
        "team_domain": "shop",
        "channel_id": CHANNEL,
        "user_id": user,
        "user_name": "ann",
        "command": "/release",
        "text": text,
        "response_url": f"{hooks}1",
        "trigger_id": "13345224609.738474920.8088930838d88f008e0",
        **more,
    }
    return urllib.parse.urlencode(fields).encode()


def press(verb: str, release: str, hooks: str, user: str = "U0001", team: str = TEAM) -> bytes:
    """The body of a pressed button."""
    payload = {
        "type": "block_actions",
        "team": {"id": team, "domain": "shop"},
        "user": {"id": user, "username": "ann", "team_id": team},
        "api_app_id": "A02",
        "container": {"type": "message", "message_ts": "1.0", "channel_id": CHANNEL},
        "response_url": f"{hooks}2",
        "actions": [
            {"type": "button", "block_id": "b", "action_id": verb, "value": release, "action_ts": "1.0"}
        ],
    }
    return urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()
