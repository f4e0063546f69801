"""The door on a real Redis, without a daemon behind it: what a daemon would commit, a test commits."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from examples.playground.lease import free_port
from orchestrator.daemon.clock import SystemClock
from orchestrator.engine.tasks import eternal
from orchestrator.intake import alertmanager, forge, signed, slack
from orchestrator.intake.alertmanager import AlertRule, Alerts
from orchestrator.intake.answers import Answers
from orchestrator.intake.api import Api
from orchestrator.intake.desk import Desk
from orchestrator.intake.door import SESSION, Guard
from orchestrator.intake.server import Server
from orchestrator.intake.signed import Key, Signed
from orchestrator.intake.slack import Slack, Workspace
from orchestrator.ports.access import Principal, Role
from orchestrator.rollout.command import Command, handle
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import ReadingStore, RedisStore, connect
from orchestrator.store.server import PrivateRedis
from orchestrator.store.tail import EventTail
from orchestrator.store.tokens import RedisTokens
from orchestrator.web.pages import Pages
from tests.builders import template


async def until(look: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what readers do by themselves, polling; `seconds`: at the most."""
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.02)


class House:
    """The door, its Redis, and somebody with every role."""

    def __init__(self, redis: Any, *, rate: float = 10_000, burst: int = 10_000) -> None:
        self.redis, self.keys, self.clock = redis, Keys("t"), SystemClock()
        self.store, self.tokens = RedisStore(redis, self.keys, 1), RedisTokens(redis, self.keys)
        reading = ReadingStore(redis, self.keys)
        self.tail = EventTail(self.store)
        self.guard = Guard(self.tokens, self.clock, rate=rate, burst=burst)
        self.desk = Desk(self.store, lambda: self.services)
        self.api = Api(self.desk, self.store, reading, self.tail, self.guard, self.clock)
        self.keys_of: dict[str, Key] = {}
        self.rules: list[AlertRule] = []
        self.workspace: Workspace | None = None
        answers = Answers(self.store, self.tail)
        self.slack = Slack(self.desk, self.store, answers, self.clock, lambda: self.workspace)
        self.forges: dict[forge.Kind, forge.Forge] = {}
        forges = forge.Forges(self.desk, lambda: self.forges)
        alerts = Alerts(self.desk, self.store, self.guard, self.clock, lambda: self.rules)
        self.services = {"api": template(), "web": template()}
        pages = Pages(
            reading,
            self.tokens,
            self.clock,
            self.guard.known,
            lambda: self.services,
            cookie=SESSION,
            secure=False,
        )
        routes = [
            *pages.routes(),
            web.post(signed.PATH, Signed(self.desk, self.clock, lambda: self.keys_of).handle),
            web.post(alertmanager.PATH, alerts.handle),
            web.post(forge.GITHUB_PATH, forges.github),
            web.post(forge.GITLAB_PATH, forges.gitlab),
            web.post(slack.COMMAND_PATH, self.slack.command),
            web.post(slack.ACTION_PATH, self.slack.action),
        ]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.guard, self.api.operations(), routes, f"127.0.0.1:{self.port}")
        self._given: Counter[Role] = Counter()
        self.private: PrivateRedis | None = None
        self.session = aiohttp.ClientSession()

    async def secret(self, role: Role, *services: str, expires_in: float | None = None) -> str:
        """Of a new token."""
        self._given[role] += 1
        name = f"the {role}" if self._given[role] == 1 else f"the {role} {self._given[role]}"
        principal = Principal(name=name, role=role, services=services)
        now = self.clock.now()
        until = None if expires_in is None else now + expires_in
        return (await self.tokens.create(principal, "test", now, until))[1]

    async def ask(
        self, method: str, path: str, secret: str = "", body: Any = None, **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, parsed body and headers of an answer."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if secret:
            given["Authorization"] = f"Bearer {secret}"
        raw = {"data": body} if isinstance(body, bytes | str) else {"json": body} if body is not None else {}
        async with self.session.request(method, self.url + path, headers=given, **raw) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None, answer.headers

    async def asked(self) -> list[dict[str, str]]:
        """All requests that were put down."""
        return [fields for _, fields in await self.redis.xrange(self.keys.requests)]

    async def commit(self, command: Command) -> tuple[Event, ...]:
        """As a daemon does."""
        service = getattr(command, "service", "api")
        state, version = await self.store.load(service)
        state, events = handle(state, command, self.clock.now())
        await self.store.commit(state, version, events)
        return events

    async def put(self, state: ServiceState, *events: Event) -> None:
        """Commit a state as it is."""
        _, version = await self.store.load(state.service)
        await self.store.commit(state, version, events)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Open, with its event tail running."""
    server = PrivateRedis(tmp_path)
    await server.start()
    redis = connect(server.url)
    await redis.set("t:lease", 1)
    found = House(redis)
    found.private = server
    await found.server.start()
    tail = asyncio.create_task(eternal("tail", found.tail.run), name="tail")
    yield found
    tail.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tail
    await found.session.close()
    await found.slack.close()
    await found.server.close()
    await redis.aclose()
    await server.stop()
