"""`orchestrator.yaml`: where things are. Every key has a default that works on one host."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from orchestrator.daemon.door_section import (
    AlertSection,
    ApiSection,
    ForgeSection,
    NotifySection,
    SlackSection,
    TracesSection,
    WebhookKeySection,
)
from orchestrator.daemon.section import Section, address
from orchestrator.daemon.units import Duration


class RedisSection(Section):
    """Where requests, state and events are kept."""

    url: str | None = Field(None, description="redis:// or unix:// URL; unset: a private redis-server")
    prefix: str = Field("orchestrator", pattern=r"^[A-Za-z0-9:_-]+$", description="Prefix of every key")
    durability: Literal["strict", "relaxed"] = Field(
        "strict", description="strict refuses a server that may lose what it has acknowledged"
    )
    lease_ttl: Duration = Field(10.0, description="How long a dead daemon on another host blocks a standby")


class DockerSection(Section):
    """Where containers run."""

    url: str = Field("", description="Engine address; unset: DOCKER_HOST or the local socket")
    owner: str = Field(
        "orchestrator", pattern=r"^[a-z0-9][a-z0-9-]*$", description="Marks our containers and names them"
    )
    network: str = Field("orchestrator", description="Our bridge network, created when missing")
    subnet: str = Field("10.213.0.0/20", description="Its subnet; the lower half holds static addresses")
    pull: Literal["newer", "missing", "always"] = Field(
        "newer",
        description="When to ask the registry for a tag; newer: without an answer the local image counts",
    )
    pull_deadline: Duration = Field(600.0, description="How long one pull may take")


class NginxSection(Section):
    """The nginx that serves the routes."""

    directory: Path = Field(
        Path("/etc/nginx/orchestrator"), description="Our folder; nginx includes DIRECTORY/*.conf in http {}"
    )
    listen: str = Field(
        "127.0.0.1:18100",
        pattern=r"^[0-9A-Za-z.:\[\]-]+$",
        description="Private listener that tells the served generation",
    )
    probe: str = Field("", description="URL of that listener as the daemon reaches it; unset: from listen")
    confirm_deadline: Duration = Field(10.0, description="From a reload to its confirmation")
    mode: Literal["auto", "reload", "dynamic"] = Field(
        "auto", description="How weights change; dynamic: in nginx' memory, by Lua; auto: where it has Lua"
    )
    closing_wait: Duration = Field(
        1.0,
        description="Before a reload, how long answers close their connections; 0: by keepalive_min_timeout",
    )
    binary: str = Field("nginx", description="Program for nginx -t")
    conf: str = Field("", description="Main configuration file; unset: the program's own default")
    pid_file: Path = Field(Path("/run/nginx.pid"), description="The master's pid, which gets SIGHUP")
    test_command: list[str] = Field([], description="Replaces nginx -T, the test")
    reload_command: list[str] = Field([], description="Replaces the signal")
    container: str = Field("", description="Name of the container that nginx runs in; unset: this host")
    directory_in_container: str = Field("", description="Our folder as that container sees it")


class EdgesSection(Section):
    """nginx on other hosts, each with `orchestrator edge` beside it."""

    enabled: bool = Field(default=False, description="The daemon tells them, and waits for them")
    name: str = Field(
        "", pattern=r"^[A-Za-z0-9_.-]*$", description="Of this host's edge; unset: its host name"
    )
    ttl: Duration = Field(10.0, gt=0.5, description="An edge that says nothing for as long is away")
    on_failure: Literal["all_back", "go_on"] = Field(
        "all_back", description="go_on: an edge that can't follow is left behind"
    )


class PrometheusSection(Section):
    """Where gates are measured."""

    url: str = Field("", description="Unset: services may not have gates")
    interval: Duration = Field(5.0, description="Seconds between looks; no shorter than the scrape interval")
    timeout: Duration = Field(5.0, description="For one query")
    bearer_file: Path | None = Field(None, description="File that holds a bearer token")


class HttpSection(Section):
    """Health, metrics, service discovery."""

    listen: str = Field("127.0.0.1:9180", description="address:port")

    @field_validator("listen")
    @classmethod
    def _right(cls, value: str) -> str:
        return address(value)

    @property
    def targets(self) -> str:
        """The URL of the document for `http_sd_configs`, as this host calls itself."""
        host, _, port = self.listen.rpartition(":")
        here = socket.gethostname() if host in ("0.0.0.0", "[::]") else host  # noqa: S104  a comparison
        return f"http://{here}:{port}/targets"


class LogSection(Section):
    """The log on standard output."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """The whole file."""

    state_dir: Path = Field(Path("/var/lib/orchestrator"), description="Lease, private Redis")
    services_dir: Path = Field(Path("services"), description="One YAML file a service; relative to this file")
    tick: Duration = Field(1.0, gt=0, description="Seconds between looks at an active rollout")
    redis: RedisSection = RedisSection()
    docker: DockerSection = DockerSection()
    nginx: NginxSection = NginxSection()
    edges: EdgesSection = EdgesSection()
    prometheus: PrometheusSection = PrometheusSection()
    http: HttpSection = HttpSection()
    api: ApiSection = ApiSection()
    webhooks: list[WebhookKeySection] = Field([], description="Keys of signed requests")
    slack: SlackSection | None = Field(None, description="A slash command, buttons, and a message a release")
    forges: dict[Literal["github", "gitlab"], ForgeSection] = Field(
        {}, description="Whose deployments are releases"
    )
    notify: list[NotifySection] = Field([], description="Who is told what happens")
    traces: TracesSection | None = Field(None, description="Needs the extra `otel`")
    alerts: list[AlertSection] = Field([], description="What alerts of Alertmanager do; the first that fits")
    log: LogSection = LogSection()

    def named(self) -> Iterator[tuple[str, str]]:
        """Every service that is named here, with the place."""
        for n, key in enumerate(self.webhooks):
            yield from ((f"webhooks/{n}/services", name) for name in key.services)
        for user, person in self.slack.users.items() if self.slack else ():
            yield from ((f"slack/users/{user}/services", name) for name in person.services)
        for kind, forge in self.forges.items():
            for full_name, project in forge.projects.items():
                yield f"forges/{kind}/projects/{full_name}/service", project.service
        for n, channel in enumerate(self.notify):
            yield from ((f"notify/{n}/services", name) for name in channel.services)
        for n, alert in enumerate(self.alerts):
            if alert.service:
                yield f"alerts/{n}/service", alert.service

    def model_post_init(self, _: Any) -> None:
        """Nothing here may be guessed: a relative state folder would depend on where the daemon starts."""
        if not self.state_dir.is_absolute():
            raise ValueError(f"state_dir: {self.state_dir} must be an absolute path")
        named = {"webhooks: id": [k.id for k in self.webhooks], "notify: name": [n.name for n in self.notify]}
        for what, names in named.items():
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{what} {twice!r} is there twice")
        if self.edges.enabled and not self.redis.url:
            raise ValueError("edges/enabled: other hosts need a Redis that they can reach; set redis/url")
