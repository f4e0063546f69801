"""What an operator decides beforehand: how a container is run, and how a release of it advances."""

import math
from dataclasses import dataclass, fields
from typing import Literal

Unit = Literal["", "share", "seconds"]
"""Of a measured value: a share is from 0 to 1, '' is the operator's own."""

ERROR_EFFECTS = ((0.005, 0.22), (0.01, 0.18), (0.04, 0.26), (0.4, 0.34))
"""Excesses and the shares of the capital that are on them. A bet on one grows nearly as fast as the best bet
for all excesses from half to twice as large; placed so that no cell of `bench.gates` is slow beside
others."""

P95_EFFECTS = ((0.025, 0.3), (0.07, 0.25), (0.2, 0.3), (0.5, 0.15))
P99_EFFECTS = ((0.0125, 0.3), (0.04, 0.3), (0.1, 0.25), (0.4, 0.15))


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
        user: `uid[:gid]` that the process runs as; empty is the image's own, or nobody where that is root.
        read_only: Whether the root file system is read-only.
        tmpfs: Container paths that get a writable tmpfs.
        memory: Limit in bytes.
        cpus: Limit in CPUs.
        pids: Limit of processes and threads.
        stop_grace: Seconds between the image's stop signal and SIGKILL.
        probe: The readiness probe.
    """

    port: int
    instances: int = 1
    env: tuple[tuple[str, str], ...] = ()
    env_file: str | None = None
    secrets: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    read_only: bool = True
    tmpfs: tuple[str, ...] = ()
    memory: int = 512 * 1024 * 1024
    cpus: float = 1.0
    pids: int = 256
    stop_grace: float = 30.0
    probe: Probe = Probe()


def differences(one: Template, other: Template) -> tuple[str, ...]:
    """The fields in which two templates differ."""
    return tuple(f.name for f in fields(Template) if getattr(one, f.name) != getattr(other, f.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rung of the ladder.

    Attributes:
        weight: The candidate's share in percent, 1 to 100.
        hold: Seconds that the share must hold after nginx has confirmed it.
        max_hold: Seconds after which the step may be left without certified safety if nothing speaks against
            the candidate; None: certified safety is not asked for.
        min_requests: Requests that the candidate must have answered in this step.
        deadline: Seconds that the step may take in all, `hold` included.
        approve: Whether a person must approve before the next step.
        bake: Seconds that `hold` and `deadline` are longer where a person's `promote` has skipped the step in
            which the release would have baked.
    """

    weight: int
    hold: float
    max_hold: float | None = None
    min_requests: int = 0
    deadline: float = 3600.0
    approve: bool = False
    bake: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A gate that compares a value with a limit.

    A limit is broken when the value is above `max`, above the relative limit, or below `min`; the gate fails
    when a limit has been broken for `sustained` seconds without a break.

    Attributes:
        name: Names the gate in verdicts and events.
        metric: `error_rate` (a share, 0 to 1), `latency` (seconds at `quantile`), `cpu` (a share of the
            container's limit, 0 to 1, the highest of all instances), or `query`.
        quantile: For `latency`, 0 < q < 1.
        max: Absolute limit in the metric's unit.
        min: Absolute lower limit in the metric's unit.
        max_ratio: Limit relative to stable: value > baseline x ratio + margin breaks it.
        margin: Absolute slack of the relative limit, in the metric's unit.
        sustained: Seconds that a limit must stay broken.
        window: Seconds of history that a value is computed over.
        min_requests: Candidate requests in the window below which the verdict is inconclusive.
        query: PromQL of a `query` gate; one sample, or one per release.
        dry_run: Whether the gate reports and never decides.
    """

    name: str
    metric: Literal["error_rate", "latency", "cpu", "query"]
    quantile: float = 0.99
    max: float | None = None
    min: float | None = None
    max_ratio: float | None = None
    margin: float = 0.0
    sustained: float = 0.0
    window: float = 60.0
    min_requests: int = 0
    query: str = ""
    dry_run: bool = False

    @property
    def unit(self) -> Unit:
        """Of its value."""
        return "seconds" if self.metric == "latency" else "" if self.metric == "query" else "share"

    @property
    def counts_requests(self) -> bool:
        """Whether its value is made of requests, so that few of them say little."""
        return self.metric in ("error_rate", "latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A gate that compares the share of bad requests on both sides, on evidence: see `rollout/evidence.py`.

    Attributes:
        name: Names the gate in verdicts and events.
        metric: `error_rate`, `latency` (bad: slower than stable's `quantile`, rounded up to a bound of the
            histogram), or `counts` (the operator's own counters).
        quantile: For `latency`, 0 < q < 1.
        total: For `counts`, PromQL of the counter of all, per instance.
        bad: For `counts`, PromQL of the counter of the bad ones, per instance.
        history: Seconds of stable's own past that a candidate is compared with instead of stable now; 0 for
            stable now.
        ratio: A good release is bad at most `ratio` times as often as stable, plus `margin`.
        margin: Additive slack, a share of requests.
        budget: Harm budget: by how much worse a release may be at full traffic, a share of all requests.
        effects: Excesses over what is good that are bet on, with weights that sum to 1.
        weight: The part of the capital that this comparison gets.
        usual: What stable's share is thought to be before anything is known.
        warm_up: Seconds from the candidate's first request that are not judged.
        dry_run: Whether the gate reports and never decides.
    """

    name: str
    metric: Literal["error_rate", "latency", "counts"]
    quantile: float = 0.99
    total: str = ""
    bad: str = ""
    history: float = 0.0
    ratio: float = 1.0
    margin: float = 0.001
    budget: float = 0.005
    effects: tuple[tuple[float, float], ...] = ERROR_EFFECTS
    weight: float = 0.48
    usual: float = 0.001
    warm_up: float = 0.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """How sure the comparisons must be.

    Attributes:
        alpha: The chance that a good release is rolled back, over the whole rollout, at most.
        beta: The chance that a step is called safe when it is worse than the budget, at most.
        suspicion: Evidence of harm from which on no step is left.
        dispersion: By how much counts vary more than those of independent requests; 1 or more.
        no_traffic: Minus the logarithm of the chance of a candidate without requests that is a failure: at
            small shares, the requests that it should have had.
        sticky: Whether users stay with a release, so that requests are not independent; verdicts tell it.
    """

    alpha: float = 0.01
    beta: float = 0.05
    suspicion: float = 10.0
    dispersion: float = 1.0
    no_traffic: float = 20.0
    sticky: bool = False

    @property
    def most_a_block(self) -> float:
        """Logarithm of the most by which one block may change a bet: a single scrape never decides.

        Scrapes of the two sides that lie seconds apart make a shared outage look like harm for one block.
        """
        return math.log(1.0 / self.alpha) - 0.1


Action = Literal["hold", "pause", "rollback"]
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


HookPhase = Literal["preflight", "before_step", "after_promotion", "after_rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Somebody who is asked, or told, at a phase of a release.

    Attributes:
        at: Before `preflight` ends and before each step it can stop the rollout; afterwards it is only told.
        kind: `command` passes with exit code 0, `http` with 200 to 202, `opa` when its result allows it.
        command: Program and arguments, with `{image}` and the like; no shell.
        url: For `http` and `opa`.
        secret_file: Path of a secret that the body is signed with; '' signs nothing.
        timeout: Seconds for one try.
        retries: Further tries after one that failed without an answer.
        required: Whether a failure stops the rollout.
    """

    name: str
    at: HookPhase
    kind: Literal["command", "http", "opa"]
    command: tuple[str, ...] = ()
    url: str = ""
    secret_file: str = ""
    timeout: float = 10.0
    retries: int = 2
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A line of the checklist that a request must carry: at least so much; yes is 1."""

    name: str
    least: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a release of a service advances. All times in seconds.

    Attributes:
        kind: `canary` climbs `steps`; `blue_green` has the single step of 100 %.
        steps: The ladder; the last step has weight 100 and is the bake.
        preview: An optional look before any traffic.
        limits: Gates on values; all must pass to advance.
        comparisons: Gates on evidence, judged while stable has traffic.
        certainty: How sure the comparisons must be.
        no_data_after: How long measurements may be missing in a step before `on_no_data` decides.
        on_no_data: What happens then.
        on_inconclusive: What happens at a step's deadline when there is data and it does not suffice.
        on_new_release: What happens to this service's rollout when a newer release arrives.
        sample_max_age: The oldest sample that counts as data.
        queue_deadline: How long a release may wait in the queue.
        preflight_deadline: How long resolving and pulling the image may take.
        start_deadline: How long all instances may take to get ready.
        pause_deadline: How long a pause or a wait for approval may last before it is rolled back.
        confirm_deadline: How long nginx may take to confirm a change.
        drain_deadline: How long in-flight requests get before SIGTERM.
        keep_previous: How long the previous release stays warm after a promotion.
        hooks: Who is asked before it goes on.
        keep_images: Images of ended releases that are kept beside stable's and previous'.
    """

    kind: Literal["canary", "blue_green"]
    steps: tuple[Step, ...]
    preview: Preview | None = None
    limits: tuple[Limit, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    certainty: Certainty = Certainty()
    no_data_after: float = 120.0
    on_no_data: Action = "rollback"
    on_inconclusive: Action = "pause"
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
    hooks: tuple[Hook, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether anything is judged at all."""
        return bool(self.limits or self.comparisons)

    @property
    def counted(self) -> bool:
        """Whether requests of single instances are counted, so that each must be scraped."""
        return bool(self.comparisons) or any(limit.counts_requests for limit in self.limits)
