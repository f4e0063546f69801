"""The doors, in `orchestrator.yaml`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from orchestrator.daemon.section import Section, address
from orchestrator.intake.parse import Known
from orchestrator.ports.access import Principal, Role
from orchestrator.rollout.model import Outcome

Kind = Literal[
    "release_accepted",
    "request_refused",
    "release_ended",
    "rollback_started",
    "approval_wanted",
    "rollout_paused",
    "instance_died",
    "edge_drifted",
    "edge_repaired",
    "edge_stuck",
    "service_troubled",
    "state_restored",
]
"""Events that people can be told of."""

USUAL: tuple[Kind, ...] = (
    "release_ended",
    "rollback_started",
    "approval_wanted",
    "rollout_paused",
    "instance_died",
    "edge_drifted",
    "edge_stuck",
    "service_troubled",
    "state_restored",
)
"""Those that they are told of where nothing is said."""


class TlsSection(Section):
    """A certificate by its files, which SIGHUP reads again."""

    certificate: Path
    key: Path


class ApiSection(Section):
    """The HTTP API and the dashboard."""

    listen: str = Field("127.0.0.1:9181", description="address:port, or unix:/path; empty: not served")
    tls: TlsSection | None = Field(None, description="Unset: plain HTTP, for loopback and behind a proxy")
    rate: float = Field(50.0, gt=0, description="Requests a second that one token may make for ever")
    burst: int = Field(100, ge=1, description="Requests that one token may make at once")

    @field_validator("listen")
    @classmethod
    def _right(cls, value: str) -> str:
        if value.startswith("unix:") and not value.startswith("unix:/"):
            raise ValueError(f"{value!r}: the path of a socket is absolute")
        return value if not value or value.startswith("unix:") else address(value)

    @property
    def local(self) -> bool:
        """Whether nobody outside this host can reach it."""
        host = self.listen.rpartition(":")[0].strip("[]")
        return self.listen.startswith("unix:") or host == "::1" or host.startswith("127.") or not self.listen

    def model_post_init(self, _: Any) -> None:
        """Tokens must not cross a network in the clear."""
        if not self.local and self.tls is None:
            raise ValueError(f"listen: {self.listen} can be reached from elsewhere; set tls, or use loopback")


class PrincipalSection(Section):
    """Somebody, and what they may do."""

    role: Role
    services: list[str] = Field([], description="Empty: all of them")

    def principal(self, name: str) -> Principal:
        """As the doors know them."""
        return Principal(name=name, role=self.role, services=tuple(self.services))


class WebhookKeySection(PrincipalSection):
    """A key that requests are signed with. Two for one name let it be exchanged."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$", description="Sent along, to tell which key it is")
    name: Known = Field(description="For the audit trail")
    secret_file: Path = Field(description="At least 32 letters")


class SlackUserSection(PrincipalSection):
    """Somebody of the workspace."""

    name: Known = Field(description="For the audit trail")


class SlackSection(Section):
    """A workspace: what its people may do, and where releases are shown."""

    team: str = Field(pattern=r"^T[A-Z0-9]+$", description="Id of the workspace")
    signing_secret_file: Path
    users: dict[Annotated[str, StringConstraints(pattern=r"^[UW][A-Z0-9]+$")], SlackUserSection] = Field(
        {}, description="By user id; nobody else may do anything"
    )
    token_file: Path | None = Field(None, description="Of the bot, xoxb-...; unset: no messages")
    channel: str = Field("", pattern=r"^([CG][A-Z0-9]+)?$", description="Id of the channel for messages")
    language: Literal["en", "zh"] = "en"
    api_url: str = Field("https://slack.com/api/", pattern=r"^https?://\S+/$")
    hooks_url: str = Field("https://hooks.slack.com/", pattern=r"^https?://\S+/$")

    def model_post_init(self, _: Any) -> None:
        """Messages need both."""
        if (self.token_file is None) != (not self.channel):
            raise ValueError("token_file and channel belong together")


class JiraSection(Section):
    """Where issues are made."""

    url: str = Field(pattern=r"^https?://\S+$")
    project: str = Field(pattern=r"^[A-Z][A-Z0-9_]{0,30}$", description="Its key")
    issue_type: str = Field("Bug", min_length=1)
    user: str = Field("", description="Account of an API token; unset: the token is sent alone, as a bearer")
    token_file: Path


class GrafanaSection(Section):
    """Where annotations are made."""

    url: str = Field(pattern=r"^https?://\S+$")
    token_file: Path = Field(description="Of a service account that may write annotations")


class TracesSection(Section):
    """Where a trace of each release is sent, by OTLP over HTTP."""

    endpoint: str = Field(pattern=r"^https?://\S+$", description="Such as http://127.0.0.1:4318/v1/traces")


class NotifySection(Section):
    """Somewhere that is told what happens."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,40}$", description="Its place in the stream is kept under it"
    )
    urls_file: Path | None = Field(None, description="Addresses of Apprise, one a line; they hold secrets")
    jira: JiraSection | None = None
    grafana: GrafanaSection | None = None
    services: list[str] = Field([], description="Empty: all of them")
    events: list[Kind] = Field(list(USUAL), min_length=1)
    outcomes: list[Outcome] = Field(list(Outcome), min_length=1, description="Of release_ended")
    language: Literal["en", "zh"] = "en"

    def model_post_init(self, _: Any) -> None:
        """One place a channel."""
        if sum(place is not None for place in (self.urls_file, self.jira, self.grafana)) != 1:
            raise ValueError("one of urls_file, jira and grafana is needed")


class ProjectSection(Section):
    """What a deployment of a repository means."""

    service: str
    image: str = Field(
        pattern=r"\{(sha|short_sha|ref)\}", description="With {sha}, {short_sha} or {ref} in it"
    )
    environment: str = "production"


class ForgeSection(Section):
    """A GitHub or GitLab that announces deployments."""

    secret_file: Path
    projects: dict[str, ProjectSection] = Field(min_length=1, description="By full name, team/api")


class AlertSection(Section):
    """What an alert does."""

    match: dict[str, str] = Field(min_length=1, description="Labels that it must have, all of them")
    service: str = Field("", description="Which service it is about; unset: its label `service`")
    do: Literal["rollback", "pause"] = "rollback"
