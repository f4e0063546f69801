"""The doors that people and machines come by, and what has to run behind them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web

from orchestrator.daemon.section import secret_of
from orchestrator.daemon.settings import Settings
from orchestrator.intake import alertmanager, forge, signed, slack
from orchestrator.intake.alertmanager import AlertRule, Alerts
from orchestrator.intake.answers import Answers
from orchestrator.intake.api import Api
from orchestrator.intake.desk import Desk
from orchestrator.intake.door import SESSION, Guard
from orchestrator.intake.forge import Forge, Forges, Kind, Project
from orchestrator.intake.server import Server, Tls
from orchestrator.intake.signed import Key, Signed
from orchestrator.intake.slack import Slack, Workspace
from orchestrator.ports.access import Tokens
from orchestrator.ports.clock import HostClock
from orchestrator.ports.faults import Fault
from orchestrator.rollout.policy import Template
from orchestrator.store.redis_store import RedisStore
from orchestrator.store.tail import EventTail
from orchestrator.web.pages import Pages

log = structlog.get_logger()

SHORTEST_SECRET = 32
"""Letters of a secret that requests are signed with."""


class Doors:
    """HTTP, wired once. They are open at a standby too: all that is asked goes through Redis.

    Args:
        services: The services that are configured now, and how each is to be run.

    Raises:
        Fault: A secret can't be read.
    """

    def __init__(
        self,
        settings: Settings,
        store: RedisStore,
        tokens: Tokens,
        clock: HostClock,
        services: Callable[[], Mapping[str, Template | None]],
    ) -> None:
        self._settings = settings
        self._secrets = _Secrets.of(settings)
        section = settings.api
        desk = Desk(store, services)
        guard = Guard(tokens, clock, rate=section.rate, burst=section.burst)
        self._tail = EventTail(store)
        api = Api(desk, store, store, self._tail, guard, clock)
        answers = Answers(store, self._tail)
        self._slack = Slack(desk, store, answers, clock, lambda: self._secrets.workspace)
        forges = Forges(desk, lambda: self._secrets.forges)
        alerts = Alerts(desk, store, guard, clock, self._rules)
        pages = Pages(
            store,
            tokens,
            clock,
            guard.known,
            services,
            cookie=SESSION,
            secure=section.tls is not None,
        )
        routes = [
            *pages.routes(),
            web.post(signed.PATH, Signed(desk, clock, lambda: self._secrets.keys).handle),
            web.post(alertmanager.PATH, alerts.handle),
            web.post(forge.GITHUB_PATH, forges.github),
            web.post(forge.GITLAB_PATH, forges.gitlab),
            web.post(slack.COMMAND_PATH, self._slack.command),
            web.post(slack.ACTION_PATH, self._slack.action),
        ]
        tls = Tls(section.tls.certificate, section.tls.key) if section.tls else None
        served = bool(section.listen)
        self._server = Server(guard, api.operations(), routes, section.listen, tls) if served else None

    def _rules(self) -> list[AlertRule]:
        return [AlertRule(rule.match, rule.service, rule.do) for rule in self._settings.alerts]

    async def open(self) -> None:
        """Begin to serve.

        Raises:
            Fault: It is not possible; the message names the setting.
        """
        if self._server is not None:
            await self._server.start()

    def works(self) -> Mapping[str, Callable[[], Awaitable[object]]]:
        """What has to run while they are open, by name."""
        if self._server is None:
            return {}
        return {"event tail": self._tail.run, "idle connections": self._server.watch}

    def reload(self, settings: Settings) -> str:
        """Take new rules, keys and certificates; where one can't be read all stay as they are. Says which."""
        try:
            secrets = _Secrets.of(settings)
            if self._server is not None:
                self._server.reload()
        except Fault as error:
            log.error("doors_not_reloaded", reason=str(error))
            return str(error)
        self._settings, self._secrets = settings, secrets
        return ""

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            await self._server.close()
        await self._slack.close()


@dataclass(frozen=True, slots=True)
class _Secrets:
    """Who may come by the doors that check for themselves, with their secrets read."""

    keys: dict[str, Key]
    workspace: Workspace | None
    forges: dict[Kind, Forge]

    @classmethod
    def of(cls, settings: Settings) -> "_Secrets":
        """Read all of them.

        Raises:
            Fault: One can't be read; names the setting.
        """
        return cls(_keys(settings), _workspace(settings), _forges(settings))


def _workspace(settings: Settings) -> Workspace | None:
    section = settings.slack
    if section is None:
        return None
    secret = secret_of(section.signing_secret_file, "slack/signing_secret_file")
    users = {user: person.principal(person.name) for user, person in section.users.items()}
    return Workspace(section.team, secret.encode(), users, section.hooks_url)


def _keys(settings: Settings) -> dict[str, Key]:
    found = {}
    for n, key in enumerate(settings.webhooks):
        place = f"webhooks/{n}/secret_file"
        secret = secret_of(key.secret_file, place)
        if len(secret) < SHORTEST_SECRET:
            raise Fault(f"{place} {key.secret_file}: is shorter than {SHORTEST_SECRET} letters")
        found[key.id] = Key(key.principal(key.name), secret.encode())
    return found


def _forges(settings: Settings) -> dict[Kind, Forge]:
    found: dict[Kind, Forge] = {}
    for kind, section in settings.forges.items():
        secret = secret_of(section.secret_file, f"forges/{kind}/secret_file")
        projects = {
            name: Project(project.service, project.image, project.environment)
            for name, project in section.projects.items()
        }
        found[kind] = Forge(secret, projects)
    return found
