"""The values of a rollout: releases, policies, what is committed for a service."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

FULL = 100
"""The whole of a service's traffic, in percent."""


class Phase(StrEnum):
    """Where the journey of a release stands. A queued release has no rollout yet; a done one is `Ended`."""

    PREFLIGHT = "preflight"
    STARTING = "starting"
    PREVIEW = "preview"
    SHIFTING = "shifting"
    BAKING = "baking"
    ROLLING_BACK = "rolling_back"


class Outcome(StrEnum):
    """How a journey ended. Every accepted release reaches exactly one."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    ABORTED = "aborted"
    FAILED = "failed"


class Result(StrEnum):
    """What a gate says of the measurements."""

    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NO_DATA = "no_data"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How an instance is asked whether it is ready.

    Attributes:
        kind: `http` wants a 2xx from `path`; `tcp` wants a connection.
        path: The URL path for `http`.
        timeout: Seconds that one probe may take.
        successes: Probes in a row that make an instance ready.
        failures: Probes in a row that make a ready instance unhealthy.
    """

    kind: Literal["http", "tcp"] = "http"
    path: str = "/health"
    timeout: float = 1.0
    successes: int = 3
    failures: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a container of a service is run. Part of a release: it is frozen with the release.

    Attributes:
        port: The port that the service listens on inside its container.
        instances: Containers of one release.
        env: Plain environment; it is visible in `docker inspect`, so no secrets belong here.
        env_file: Host path of `KEY=value` lines, read when a container is created.
        secrets: Pairs (host path, container path), mounted read-only.
        command: Arguments that replace the image's own command; empty keeps it.
        user: `uid[:gid]` that the process runs as.
        read_only: Whether the root file system is read-only.
        tmpfs: Container paths that get a writable tmpfs.
        memory: Limit in bytes.
        cpus: Limit in CPUs.
        pids: Limit of processes and threads.
        stop_grace: Seconds between SIGTERM and SIGKILL.
        probe: The readiness probe.
    """

    port: int
    instances: int = 1
    env: tuple[tuple[str, str], ...] = ()
    env_file: str | None = None
    secrets: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    user: str = "65534:65534"
    read_only: bool = True
    tmpfs: tuple[str, ...] = ()
    memory: int = 512 * 1024 * 1024
    cpus: float = 1.0
    pids: int = 256
    stop_grace: float = 30.0
    probe: Probe = Probe()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rung of the ladder.

    Attributes:
        weight: The candidate's share in percent, 1 to 100.
        hold: Seconds that the share must hold after nginx has confirmed it.
        min_requests: Requests that the candidate must have answered in this step.
        deadline: Seconds that the step may take in all, `hold` included.
        approve: Whether a person must approve before the next step.
    """

    weight: int
    hold: float
    min_requests: int = 0
    deadline: float = 3600.0
    approve: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A rule over measurements of candidate and stable.

    A limit is broken when the value is above it; the gate fails when a limit has been broken for
    `sustained` seconds without a break.

    Attributes:
        name: Names the gate in verdicts and events.
        metric: `error_rate` (a share, 0 to 1), `latency` (seconds at `quantile`), or `query`.
        quantile: For `latency`, 0 < q < 1.
        max: Absolute limit in the metric's unit.
        max_ratio: Limit relative to stable: value > baseline x ratio + margin breaks it.
        margin: Absolute slack of the relative limit, in the metric's unit.
        sustained: Seconds that a limit must stay broken.
        window: Seconds of history that a value is computed over.
        min_requests: Candidate requests in the window below which the verdict is inconclusive.
        query: PromQL of a `query` gate; one sample, or one per release.
    """

    name: str
    metric: Literal["error_rate", "latency", "query"]
    quantile: float = 0.99
    max: float | None = None
    max_ratio: float | None = None
    margin: float = 0.0
    sustained: float = 0.0
    window: float = 60.0
    min_requests: int = 0
    query: str = ""


NoDataAction = Literal["hold", "pause", "rollback"]
NewReleaseAction = Literal["supersede", "queue", "reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A time in which the candidate is up without traffic, for people or tests to look at.

    Attributes:
        hold: Seconds that the candidate must stay healthy.
        approve: Whether a person must approve before any traffic.
    """

    hold: float = 0.0
    approve: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a release of a service advances. All times in seconds.

    Attributes:
        kind: `canary` climbs `steps`; `blue_green` has the single step of 100 %.
        steps: The ladder; the last step has weight 100 and is the bake.
        preview: An optional look before any traffic.
        gates: The rules; all must pass to advance.
        no_data_after: How long measurements may be missing in a step before `on_no_data` decides.
        on_no_data: What happens then, and at a step's deadline without enough data.
        on_new_release: What happens to this service's rollout when a newer release arrives.
        sample_max_age: The oldest sample that counts as data.
        queue_deadline: How long a release may wait in the queue.
        preflight_deadline: How long resolving and pulling the image may take.
        start_deadline: How long all instances may take to get ready.
        pause_deadline: How long a pause or a wait for approval may last before it is rolled back.
        confirm_deadline: How long nginx may take to confirm a change.
        drain_deadline: How long in-flight requests get before SIGTERM.
        keep_previous: How long the previous release stays warm after a promotion.
        keep_images: Images of ended releases that are kept beside stable's and previous'.
    """

    kind: Literal["canary", "blue_green"]
    steps: tuple[Step, ...]
    preview: Preview | None = None
    gates: tuple[Gate, ...] = ()
    no_data_after: float = 120.0
    on_no_data: NoDataAction = "rollback"
    on_new_release: NewReleaseAction = "supersede"
    sample_max_age: float = 60.0
    queue_deadline: float = 86400.0
    preflight_deadline: float = 600.0
    start_deadline: float = 120.0
    pause_deadline: float = 86400.0
    confirm_deadline: float = 60.0
    drain_deadline: float = 30.0
    keep_previous: float = 3600.0
    keep_images: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One immutable version of a service: an image and the template it is run with.

    Attributes:
        id: `service-n`, unique for the service.
        image: The reference as it was asked for.
        digest: What runs: `repository@sha256:...` or a local image id; empty until preflight.
        author: Who asked.
        reason: Why.
        link: Where the build can be seen.
        submitted_at: When it was accepted.
        request: The id of the request that it came by.
    """

    id: str
    service: str
    image: str
    template: Template
    policy: Policy
    author: str
    reason: str
    submitted_at: float
    request: str
    link: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One address that nginx sends traffic to, and the instance that must answer there."""

    address: str
    weight: int
    release: str
    instance: str
    container: str
    started_at: str
    backup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What nginx must serve for a service. `generation` grows with every change and never goes down."""

    generation: int = 0
    servers: tuple[Server, ...] = ()
    preview: tuple[Server, ...] = ()
    changed_at: float = 0.0

    def share(self, release: str) -> float:
        """The share of traffic that a release gets, 0 to 1; backups get none."""
        total = sum(s.weight for s in self.servers if not s.backup)
        mine = sum(s.weight for s in self.servers if s.release == release and not s.backup)
        return mine / total if total else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one gate said at one look.

    Attributes:
        value: The candidate's value in the metric's unit, None without data.
        limit: The limit that was compared with; the broken one if one is broken.
        baseline: Stable's value, None when there is none.
        samples: Candidate requests in the window.
        baseline_samples: Stable's requests in the window.
        generation: The generation served when it was measured.
        broken: Whether the value is above the limit at this look.
        text: One plain sentence.
    """

    gate: str
    result: Result
    value: float | None = None
    limit: float | None = None
    baseline: float | None = None
    samples: int = 0
    baseline_samples: int = 0
    generation: int = 0
    broken: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A stop that a person or the daemon put on a phase, with who, why and since when."""

    kind: Literal["paused", "awaiting_approval", "frozen"]
    actor: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A limit that is broken since a moment."""

    gate: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retreat:
    """Why a rollout goes back, and what its outcome will be once stable is confirmed."""

    outcome: Outcome
    actor: str
    reason: str
    verdict: Verdict | None = None
    logs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The journey of one release.

    Attributes:
        kind: `release` climbs the ladder; `revert` takes an earlier release back by the fast path.
        entered_at: When the phase, or the step in it, was entered.
        held_since: When nginx confirmed the step's weight, or the preview began; None before.
        measured_at: When the gates last had data in this step; None before.
        breaches: Limits that are broken now.
        verdicts: What the gates said at the last look.
        baselines: Stable's last measured value per gate, for when stable has no traffic.
        approved: Whether the current step has been approved.
        mark: Paused, or waiting for approval.
        retreat: Set in `rolling_back`.
        actor: Who caused the last move, for the audit of the route.
    """

    release: Release
    kind: Literal["release", "revert"] = "release"
    phase: Phase = Phase.PREFLIGHT
    step: int = 0
    began_at: float
    entered_at: float
    held_since: float | None = None
    measured_at: float | None = None
    breaches: tuple[Breach, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    baselines: tuple[tuple[str, float], ...] = ()
    approved: bool = False
    mark: Mark | None = None
    retreat: Retreat | None = None
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retiring:
    """A release that lost its traffic and waits for its last requests to end.

    Attributes:
        generation: The first generation that does not name it; None until the route has been made anew.
        confirmed_at: When that generation was confirmed; None before.
    """

    release: Release
    generation: int | None = None
    confirmed_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One finished journey, as history keeps it."""

    release: Release
    kind: Literal["release", "revert"]
    outcome: Outcome
    reason: str
    actor: str
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An idempotency key that was used, and the release that it made."""

    key: str
    image: str
    release: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """All that is committed for one service. Replaced whole, in one atomic step with its events.

    Attributes:
        previous: The release before stable; warm until `previous_until`.
        confirmed: The highest generation that nginx was seen to serve.
        released: How many release ids have been given out.
        handled: Ids of the last requests that were carried out or refused, against a second delivery.
        drifted_since: When the edge's file was first seen to differ from ours; None when it does not.
        stuck_since: When the edge began to refuse or not confirm; None when it does not.
        dead: Instances of stable and previous whose death has been told.
    """

    service: str
    stable: Release | None = None
    previous: Release | None = None
    previous_until: float | None = None
    rollout: Rollout | None = None
    queue: tuple[Release, ...] = ()
    history: tuple[Ended, ...] = ()
    retiring: tuple[Retiring, ...] = ()
    frozen: Mark | None = None
    route: Route = Route()
    confirmed: int = 0
    released: int = 0
    receipts: tuple[Receipt, ...] = ()
    handled: tuple[str, ...] = ()
    drifted_since: float | None = None
    stuck_since: float | None = None
    dead: tuple[str, ...] = ()


def instance_name(release: Release, index: int) -> str:
    """The deterministic name of an instance: `service-n-index`."""
    return f"{release.id}-{index}"


def instance_names(release: Release) -> tuple[str, ...]:
    """The names of all instances that a release wants."""
    return tuple(instance_name(release, i) for i in range(release.template.instances))
