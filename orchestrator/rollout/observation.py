"""What was seen of the world at one instant: the other input of `decide`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.rollout.hooks import HookResult
from orchestrator.rollout.model import Release, Route, Server

COUNTABLE = 2.0**53
"""The most that a counter can say exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One container as Docker and its probe show it.

    Attributes:
        name: `service-n-index`.
        release: The release id on its label.
        address: `ip:port` on the project's network; empty when it has none yet.
        started_at: Docker's StartedAt; a new value means a new process at the same address.
        health: `ready` after enough probes in a row on an unchanged StartedAt, `unhealthy` after enough
            failures in a row, `unknown` in between.
        supervised: Whether Docker restarts it by itself.
        logs: The last log lines of a container that is not running, or not ready.
        described: The release as the container's own label tells it; None when it is damaged.
    """

    name: str
    release: str
    address: str
    container: str
    started_at: str
    running: bool
    health: Literal["ready", "unknown", "unhealthy"] = "unknown"
    exit_code: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    supervised: bool = False
    detail: str = ""
    logs: str = ""
    described: Release | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRollback:
    """A rollback that was made at the edge alone, because the store could not be asked.

    Attributes:
        to: The release that has all traffic since.
    """

    to: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDisk:
    """What the edge's file says of itself: enough to go on from when the store has lost the state.

    Attributes:
        route: The route that the file serves; after a removal, that it is gone.
        stable: The release that was stable when it was written.
        local: Set when the file was put in place by a rollback on the host.
        back: Where all traffic goes while the rollback switch is on; empty is no different from off.
        released: How many release ids had been given out when it was written.
    """

    route: Route
    stable: str = ""
    local: LocalRollback | None = None
    back: tuple[Server, ...] = ()
    released: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What nginx serves and what lies on its disk for one service.

    Attributes:
        served: The generation that a fresh request to nginx showed; None when nginx did not answer.
        confirmed: The generation that enough fresh requests in a row have shown since the last reload.
        file: Whether the file on the disk is the one that was last written.
        drained: Whether no nginx worker from before the last confirmed reload is left.
        floor: The highest generation that the disk remembers; what is served never goes below it.
        error: Why the last apply failed; empty when it did not.
        unread: The edge could not be looked at; nothing else here says anything, but for `error`. Of several
            edges: not all could; that there is no trouble, or none any more, is not known.
        on_disk: What the file says of itself; None when there is none or it can't be read.
        fallback: The servers of the file that a rollback on the host would put in place.
        switched_to: The release that has all traffic because the rollback switch is on; empty when it is off.
        switched_for: The generation for which a daemon turned it on; 0 where it is a person's word.
        switched_everywhere: Whether that is so at all edges.
        failed: Why a rollout has to go back, because one of several edges can't follow; empty when all can.
        silence: Why nginx does not say what it serves, though its file is there; empty when it does.
        waited: Seconds for which the change that was asked for last has waited for other services' changes.
    """

    served: int | None = None
    confirmed: int = 0
    file: Literal["ours", "edited", "missing"] = "ours"
    drained: bool = False
    floor: int = 0
    error: str = ""
    unread: bool = False
    on_disk: OnDisk | None = None
    fallback: tuple[Server, ...] = ()
    switched_to: str = ""
    switched_for: int = 0
    switched_everywhere: bool = True
    failed: str = ""
    silence: str = ""
    waited: float = 0.0

    @property
    def highest(self) -> int:
        """The highest generation that the disk remembers or nginx serves, which takes only one above it."""
        return max(self.floor, self.served or 0)

    @property
    def local(self) -> LocalRollback | None:
        """The rollback on the host that the file stands for; None when the daemon wrote it."""
        return self.on_disk.local if self.on_disk else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The answer to resolving an image reference: a digest, or why there is none.

    Attributes:
        note: What a person should know of a digest that was found.
    """

    digest: str = ""
    error: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Raw counters of one instance at its last scrape.

    Attributes:
        at: When Prometheus scraped it.
        requests: Requests counted so far.
        errors: Bad ones among them so far.
        buckets: Cumulative histogram: upper bound in seconds to requests counted so far.
        own: The operator's counters: gate to all and bad ones counted so far; absent when they are not known.
        cpu: When CPU seconds were counted, and how many had been used so far; None when they are not known.
        stamp: What tells scrapes apart: Prometheus' own time of it; `at` may differ by the time of an answer.
        unseen: Of what counters are missing that were seen before, see `counts.settle`.
        counted: Requests that were counted since the instance was first seen, as far as is known; likewise.
    """

    at: float
    requests: float
    errors: float
    buckets: Mapping[float, float] = field(default_factory=dict)
    own: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cpu: tuple[float, float] | None = None
    stamp: float | None = None
    unseen: frozenset[str] = frozenset()
    counted: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether all counters are numbers that something can have counted up to."""
        own = (value for pair in self.own.values() for value in pair)
        return all(
            0.0 <= value <= COUNTABLE for value in (self.requests, self.errors, *self.buckets.values(), *own)
        )

    def later_than(self, other: "Sample") -> bool:
        """Whether it is of a later scrape."""
        if self.stamp is None or other.stamp is None:
            return self.at > other.at
        return self.stamp > other.stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at the metrics of one service.

    Attributes:
        at: When it was asked.
        samples: Per instance; an instance whose target is not up is absent.
        values: Results of `query` gates: (gate, release) to value; release is empty for a bare number.
        history: For comparisons with the past: gate to the share of bad requests in it.
        refused: Gate to why its own query or counters have no answer.
        unread: Instances that are not scraped, to why as Prometheus says it; empty when it does not say.
        error: Why there is no answer; empty when there is one.
    """

    at: float
    samples: Mapping[str, Sample] = field(default_factory=dict)
    values: Mapping[tuple[str, str], float] = field(default_factory=dict)
    history: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything that one decision may look at.

    Attributes:
        runtime_ok: False when Docker did not answer; then `instances` says nothing.
        runtime_error: Why Docker did not answer; empty when it did.
        images: Answers to resolving, by reference.
        image_error: Why there is no answer yet; empty where nothing is known to be wrong.
        start_errors: Instance name to why it could not be created or started.
        readings: The looks since the step began, oldest first.
        hooks: What hooks have said, by `HookCall.key`.
        unwatched: Seconds before this look in which nobody drove the service: no daemon ran, none had the
            lease, or nothing could be committed.
    """

    instances: tuple[Instance, ...] = ()
    runtime_ok: bool = True
    runtime_error: str = ""
    edge: Edge = Edge()
    images: Mapping[str, Image] = field(default_factory=dict)
    image_error: str = ""
    start_errors: Mapping[str, str] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    hooks: Mapping[str, HookResult] = field(default_factory=dict)
    unwatched: float = 0.0

    def of(self, release: str) -> tuple[Instance, ...]:
        """The instances of one release."""
        return tuple(i for i in self.instances if i.release == release)

    def instance(self, name: str) -> Instance | None:
        """The instance with this name, if there is one."""
        return next((i for i in self.instances if i.name == name), None)

    def described(self, service: str) -> dict[str, Release]:
        """A service's releases as the containers' labels tell them, by id.

        Only those that can be: anybody may have written a label.
        """
        found = {i.release: i.described for i in self.instances if i.described is not None}
        return {
            name: release
            for name, release in found.items()
            if (release.service, release.id) == (service, name)
            and release.policy.steps
            and release.template.instances > 0
            and release.template.cpus > 0
        }
