"""What the engine needs of the world, as protocols of one to five methods, and the words both sides share.

Every method has a deadline of its own and raises `Fault` when the other side can't do it.
"""

import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.events import Event
from orchestrator.rollout.hooks import HookCall, HookResult
from orchestrator.rollout.model import Route, ServiceState
from orchestrator.rollout.observation import Edge, Image, Instance, LocalRollback, Reading
from orchestrator.rollout.policy import Check, Policy, Template


class Fault(Exception):  # noqa: N818  what goes wrong on the other side, not an error of ours
    """The other side failed or did not answer; the message says what it said."""


class Away(Fault):
    """The other side did not answer: what was asked may be done or not, and can be asked again."""


class Conflict(Fault):
    """What is asked contradicts what was asked before; asking again does not help."""


class Stale(Fault):
    """A newer daemon or a newer generation has taken over; what was asked must not be done."""


Verb = Literal["release", "rollback", "pause", "resume", "approve", "promote", "abort", "freeze", "unfreeze"]


Role = Literal["viewer", "submitter", "operator", "admin"]

MAY: Mapping[Role, frozenset[Verb]] = {
    "viewer": frozenset(),
    "submitter": frozenset({"release"}),
    "operator": frozenset(get_args(Verb)),
    "admin": frozenset(get_args(Verb)),
}
"""What a role may ask for; everyone may look, and an admin gives out tokens too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who knocked and was recognised.

    Attributes:
        name: As the audit trail shows it.
        services: The services that the role is given for; empty is all of them.
    """

    name: str
    role: Role
    services: tuple[str, ...] = ()

    def sees(self, service: str) -> bool:
        """Whether a service is any of their business."""
        return not self.services or service in self.services

    def may(self, verb: Verb, service: str) -> bool:
        """Whether they may ask for this."""
        return verb in MAY[self.role] and self.sees(service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of an API token; its secret is not. Times in seconds since the epoch.

    Attributes:
        expires_at: None is never.
        created_by: Who made it.
    """

    id: str
    principal: Principal
    created_at: float
    created_by: str
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A validated request, from whichever door it came.

    Attributes:
        id: The id of its stream entry.
        release: For `rollback` and `abort`: which release is meant.
        to: For `rollback`: where to go.
        checks: For `release`: what is said for the checklist; yes is 1.
    """

    id: str
    verb: Verb
    service: str
    who: str
    why: str = ""
    image: str = ""
    link: str = ""
    key: str = ""
    strategy: str = ""
    release: str = ""
    to: str = ""
    checks: Mapping[str, float] = field(default_factory=dict)


ENGINE = "docker"
"""What `MetricSource.cpu` says when the Engine is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSource:
    """Where a service's requests are counted.

    Attributes:
        requests: Counter of requests.
        status_label: The label that holds the status code.
        error_pattern: Regular expression of the status codes that are errors.
        latency: Base name of a histogram, without `_bucket`; empty when there is none.
        latency_unit: Seconds that one unit of the histogram's bounds is worth.
        ignore: Label to regular expression: series that are not users' requests.
        path: The path that Prometheus scrapes.
        port: The port that Prometheus scrapes; 0 is the service's own.
        cpu: Counter of CPU seconds, or `ENGINE`.
        at_edge: Whether the daemon counts them, from what nginx tells, and is scraped for each instance.
    """

    requests: str
    status_label: str
    error_pattern: str
    latency: str
    latency_unit: float = 1.0
    ignore: tuple[tuple[str, str], ...] = ()
    path: str = "/metrics"
    port: int = 0
    cpu: str = "process_cpu_seconds_total"
    at_edge: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricQuery:
    """What is to be read for one service.

    Attributes:
        queries: Gate name to PromQL of a value.
        counts: Gate name to PromQL of the operator's counters of all and of the bad ones.
        history: Gate name to how many seconds of the past are asked for.
        cpu: Whether CPU seconds are wanted.
    """

    service: str
    source: MetricSource
    queries: tuple[tuple[str, str], ...] = ()
    counts: tuple[tuple[str, str, str], ...] = ()
    history: tuple[tuple[str, float], ...] = ()
    cpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """What an operator configured for a service, as the engine needs it.

    Attributes:
        images: Repositories that releases may come from.
        require_digest: Whether a tag is refused.
        checklist: What a request must be able to say of itself.
        policies: By strategy name; the default is under the empty name.
    """

    service: str
    images: tuple[str, ...]
    template: Template
    policies: Mapping[str, Policy]
    metrics: MetricSource
    require_digest: bool = False
    checklist: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePlan:
    """A route to be served, and the fallback that must lie beside it first.

    Attributes:
        stable: The release that is stable, told in the file for whoever has to go on from it.
        fallback: What a rollback on the host puts in place; None leaves no such file.
    """

    service: str
    route: Route
    stable: str = ""
    fallback: Route | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One address that Prometheus is to scrape.

    Attributes:
        at_edge: The daemon answers for it, at the path in its labels.
    """

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    at_edge: bool = False


@dataclass(slots=True)
class AnsweredCounts:
    """What nginx has seen of one instance: attempts by status code, and by upper bound of their seconds."""

    bounds: tuple[float, ...]
    codes: Counter[str] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, code: str, seconds: float, number: int) -> None:
        """Count `number` equal attempts."""
        self.codes[code] += number
        self.seconds += seconds * number
        self.buckets[next((b for b in self.bounds if seconds <= b), math.inf)] += number


@dataclass(frozen=True, slots=True)
class Workers:
    """Process ids of an nginx' workers: those that accept, and those that only finish what they have."""

    accepting: frozenset[int] = frozenset()
    retiring: frozenset[int] = frozenset()

    @classmethod
    def by_title(cls, titles: Mapping[int, str]) -> "Workers":
        """Those among processes, by what nginx writes over their command lines."""
        workers = {pid for pid, text in titles.items() if "worker process" in text}
        retiring = frozenset(pid for pid in workers if "shutting down" in titles[pid])
        return cls(frozenset(workers) - retiring, retiring)


def mentions_lua(text: str) -> bool:
    """Whether what nginx tells of itself (`-V`, `-T`) has the Lua module, loaded or built in."""
    return "ngx_http_lua_module" in text or "/ngx_lua" in text


class Clock(Protocol):
    """The time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def not_before(self, then: float) -> None:
        """Go on from a time that was told before, if the clock has been set back behind it since."""
        ...


class Runtime(Protocol):
    """Containers."""

    async def observe(self, service: str) -> tuple[Instance, ...]:
        """Every labelled container of a service, probed."""
        ...

    async def resolve(self, image: str) -> Image:
        """The digest of a reference, pulled if it is not there; the registry's words if that fails."""
        ...

    async def start(self, wanted: Wanted) -> None:
        """Make an instance run; a dead one of the same name is replaced. May be called twice."""
        ...

    async def supervise(self, name: str) -> None:
        """Let Docker start the instance again by itself after a crash or a reboot."""
        ...

    async def stop(self, name: str) -> None:
        """SIGTERM, the grace on its label, then removal. May be called twice."""
        ...


class Usage(Protocol):
    """What containers use of the host."""

    async def cpu_seconds(self, service: str) -> Mapping[str, tuple[float, float]]:
        """When they were counted, and CPU seconds used so far, by instance, of the running ones."""
        ...


class Images(Protocol):
    """The images on the host."""

    async def remove_images(self, digests: Sequence[str]) -> None:
        """Remove images that nothing needs; one that is in use or gone already is left alone."""
        ...


class RuntimeEvents(Protocol):
    """What Docker tells by itself."""

    def changes(self) -> AsyncIterator[str]:
        """The name of a service whenever one of its containers starts or dies; endless."""
        ...


class Traffic(Protocol):
    """One edge."""

    async def apply(self, plan: RoutePlan, token: int) -> None:
        """Serve a route; returns once it is confirmed, raises `Fault` with the old one still served."""
        ...

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        """Serve the fallback that lies on the disk; needs no store and no lease.

        With a token it is refused as `Stale` where somebody newer has driven; a person needs none. Raises
        `Fault` when there is no fallback or it is not confirmed.
        """
        ...

    async def observe(self, service: str) -> Edge:
        """What is served, and what lies on the disk."""
        ...


class Board(Protocol):
    """Where several edges are told what to serve, and say what they do."""

    async def want(self, service: str, text: str) -> None:
        """Tell all edges; raises `Stale` where somebody newer drives."""
        ...

    async def news(self, known: str) -> tuple[str, Mapping[str, str]] | None:
        """The version of what is wanted, and that by service; None when it is the known one."""
        ...

    async def report(self, edge: str, texts: Mapping[str, str]) -> None:
        """Say what an edge serves, by service."""
        ...

    async def reports(self) -> Mapping[str, Mapping[str, str]]:
        """What they have said, by edge and service; those that are away are absent."""
        ...


class EdgeProcess(Protocol):
    """The nginx that serves an edge, wherever it runs."""

    async def test(self) -> None:
        """`nginx -t`; raises `Fault` with its words."""
        ...

    async def reload(self) -> None:
        """Ask for a reload; that it returns does not mean that it took effect."""
        ...

    async def reopen(self) -> None:
        """Let it open its logs again; raises `Fault` when it can't be asked."""
        ...

    async def has_lua(self) -> bool:
        """Whether it can choose servers by Lua; raises `Fault` when its configuration can't be read."""
        ...

    async def workers(self) -> Workers:
        """The worker processes; none where they can't be seen."""
        ...


class Hooks(Protocol):
    """Who is asked before a release goes on."""

    async def ask(self, call: HookCall) -> HookResult:
        """What one hook says, after its retries; never raises."""
        ...


class Metrics(Protocol):
    """Measurements."""

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        """One look for all services at once; a failure is in the readings, never raised."""
        ...


class Store(Protocol):
    """What is committed."""

    async def load(self, service: str) -> tuple[ServiceState, int]:
        """The state of a service and its version; an empty state and 0 for a new one."""
        ...

    async def commit(
        self, state: ServiceState, version: int, events: Sequence[Event], acks: Sequence[str] = ()
    ) -> int:
        """Write state, events and acknowledgements in one step; returns the next version.

        Raises:
            Stale: The lease or the version is not ours any more; nothing was written.
        """
        ...

    async def refuse(self, entry: str, fields: Mapping[str, str], event: Event) -> None:
        """Move a request that can't be carried out to the dead letters, and tell it."""
        ...

    @property
    def token(self) -> int:
        """The fencing token of the lease."""
        ...


class Inbox(Protocol):
    """Where requests are put down."""

    async def push(self, fields: Mapping[str, str]) -> str:
        """Append a request; returns its id once it is durable.

        Raises:
            Conflict: Its key has been used for something else.
            Fault: It may have been appended or not.
        """
        ...

    async def pushed(self, request: str) -> Mapping[str, str] | None:
        """The fields of a request by its id; None when there is none."""
        ...


class Journal(Protocol):
    """What readers see: states, and what happened. Each raises `Fault` when it can't be read."""

    async def load(self, service: str) -> tuple[ServiceState, int]:
        """The state of a service and its version."""
        ...

    async def last_event_id(self) -> str:
        """The id of the newest event."""
        ...

    async def events_after(self, after: str, limit: int = 100) -> list[tuple[str, Event]]:
        """Events after an id, oldest first."""
        ...

    async def told(self, release: str, since: float, until: float = math.inf) -> list[Event]:
        """The events of a release that began at `since`, told up to `until`."""
        ...


class Bookmarks(Protocol):
    """How far readers of the event stream have come. Each raises `Fault` when Redis does not answer."""

    async def bookmark(self, reader: str) -> str:
        """The id of the last event that a reader has dealt with; '' for a new one."""
        ...

    async def set_bookmark(self, reader: str, entry: str) -> None:
        """A reader has dealt with everything up to this event."""
        ...


class Tail(Protocol):
    """The event stream for many listeners at once."""

    def follow(self, after: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Event] | None]]:
        """Events after an id, for ever; None when there is none for a while. Ends where one is too slow."""
        ...


class Tokens(Protocol):
    """Who may knock."""

    async def create(
        self, principal: Principal, by: str, now: float, expires_at: float | None
    ) -> tuple[Token, str]:
        """A new token and its secret, which is shown once."""
        ...

    async def tokens(self) -> list[Token]:
        """All that were not revoked, by name."""
        ...

    async def revoke(self, token: str) -> bool:
        """Take a token back, by its id; whether there was one. Elsewhere it works for a second more."""
        ...

    async def recognise(self, secret: str, now: float) -> Token | None:
        """Whose secret this is; None where nobody's, or where it has expired."""
        ...

    async def open_session(self, token: Token, seconds: float) -> str:
        """The secret of a session that ends with its token, or after `seconds`."""
        ...

    async def session(self, secret: str, now: float) -> Token | None:
        """Whose session this is."""
        ...

    async def close_session(self, secret: str) -> None:
        """End a session."""
        ...

    async def first_time(self, nonce: str, seconds: float) -> bool:
        """Whether a nonce has not been seen for as long."""
        ...

    async def forget(self, nonce: str) -> None:
        """A nonce may come again: what came with it was not taken."""
        ...
