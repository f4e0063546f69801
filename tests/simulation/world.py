"""What outlives a daemon: Redis, Docker, nginx and its disk, the users; and what must always hold of them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from orchestrator.ports.faults import Away, Stale
from orchestrator.ports.requests import Request
from orchestrator.rollout.events import (
    CommandAccepted,
    PhaseEntered,
    ReleaseAccepted,
    ReleaseEnded,
    RequestRefused,
    RouteChanged,
    ServiceAdopted,
)
from orchestrator.rollout.model import FULL, Outcome, Phase, Route, Server, ServiceState
from orchestrator.rollout.observation import Instance, OnDisk, Sample
from orchestrator.traffic.render import read_header
from tests.contract.fakes import FakeRuntime, FakeStore
from tests.journal import NEXT
from tests.simulation.nginx import SimNginx

T = TypeVar("T")

TTL = 10.0
LONG = 16.0
"""Longer than the lease, and than every deadline of a part."""

GRACE = 0.5
"""Seconds from SIGTERM to an instance's end, and from there until it is removed."""

OUT_OF_ROUTE = 3 * LONG
"""Seconds after which a dead instance has left the route, daemons that sleep or are restarted included."""


class Mode(StrEnum):
    """How one effect goes wrong."""

    CRASH_BEFORE = "crash_before"
    CRASH_AFTER = "crash_after"
    ERROR = "error"
    LOST_REPLY = "lost_reply"
    SLOW = "slow"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Fault:
    """The effect with this number, counted over all daemons, goes wrong in this way."""

    effect: int
    mode: Mode

    def __str__(self) -> str:
        return f"{self.effect}:{self.mode}"


@dataclass(slots=True)
class Host:
    """One daemon's process, as the world sees it; or a person's, whose commands are never made to fail."""

    number: int
    clock: float = 0.0
    token: int = 0
    dead: bool = False
    asleep_until: float = 0.0
    looks: dict[str, int] = field(default_factory=dict)
    person: bool = False


@dataclass(slots=True)
class World:
    """Shared by all daemons of one run.

    Attributes:
        applied: Generation and token of the last change that was confirmed; one that was not may be put back.
        left: Releases that users were taken away from, for good.
    """

    faults: Mapping[int, Mode]
    store: FakeStore = field(default_factory=FakeStore)
    stopping: set[str] = field(default_factory=set)
    runtime: FakeRuntime = field(
        default_factory=lambda: FakeRuntime(images={f"repo/api:{n}" for n in range(100)})
    )
    nginx: SimNginx = field(default_factory=SimNginx)
    bad: set[str] = field(default_factory=set)
    requests: dict[str, Request] = field(default_factory=dict)
    counters: dict[str, tuple[float, float]] = field(default_factory=dict)
    effects: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lease_until: float = 0.0
    epoch: int = 0
    engine_token: int = 0
    wall: float = 4e9
    wiped: bool = False
    prometheus_up: bool = True
    docker_up: bool = True
    redis_up: bool = True
    kill: Callable[[Host], None] = lambda _: None
    pause: Callable[[Host], None] = lambda _: None
    left: set[str] = field(default_factory=set)
    over: bool = False
    applied: tuple[int, int] = (0, 0)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _graves: list[asyncio.Future[None]] = field(default_factory=list)
    _wrong_since: dict[str, float] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def effect(self, host: Host, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Let a daemon do something to the world, or let it go wrong as planned."""
        await self.alive(host)
        number = len(self.effects)
        self.effects.append(name)
        mode = self.faults.get(number)
        await asyncio.sleep(LONG if mode is Mode.SLOW else 0.02)
        if mode is Mode.CRASH_BEFORE:
            self.kill(host)
        if mode is Mode.PAUSE:
            self.pause(host)
        if mode is Mode.ERROR:
            raise Away("injected error")
        await self.alive(host, waking=False)
        found = await work()
        self.check()
        if mode is Mode.CRASH_AFTER:
            self.kill(host)
        await self.alive(host)
        if mode is Mode.LOST_REPLY:
            raise Away("injected loss of the reply")
        return found

    async def stop_instance(self, name: str) -> None:
        """SIGTERM, its end, and its removal; Docker ends it although nobody waits for that any more."""
        found = self.runtime.containers.get(name)
        if found is None:
            return
        self.stopping.add(found.container)
        try:
            await asyncio.sleep(GRACE if found.running else 0.0)
        finally:
            if self._is(found):
                self.runtime.die(name, 0)
        await asyncio.sleep(GRACE)
        if self._is(found):
            await self.runtime.stop(name)

    def _is(self, instance: Instance) -> bool:
        """Whether it is still there."""
        now = self.runtime.containers.get(instance.name)
        return now is not None and now.container == instance.container

    async def alive(self, host: Host, *, waking: bool = True) -> None:
        """Wait as long as the process does not run. A call that was sent before a pause still lands after."""
        if host.dead:
            await self._for_ever()
        while (waking or host.asleep_until) and self.now < host.asleep_until:
            await asyncio.sleep(max(host.asleep_until - self.now, 0.001))  # less may not advance the time

    async def _for_ever(self) -> None:
        """What a killed process waits for: no timer and no handler of it runs, nor garbage collection."""
        while not self.over:
            self._graves.append(asyncio.get_running_loop().create_future())
            with contextlib.suppress(asyncio.CancelledError):
                await self._graves[-1]
        raise asyncio.CancelledError

    # the lease

    def holder(self) -> int:
        if self.now >= self.lease_until:
            self.store.holder = 0
        return self.store.holder

    def floor(self) -> int:
        texts = [path.read_text() for path in self.nginx.folder.glob("[a-z]*.conf")]
        headers = [header for text in texts if (header := read_header(text)) is not None]
        return max([self.engine_token, *(header.token for header in headers)])

    def acquire(self, known_dead: int) -> int:
        """A new token, or 0 while another daemon holds the lease."""
        if self.holder() not in (0, known_dead):
            return 0
        clock = int(self.wall + self.now)
        self.epoch = self.store.holder = max(self.epoch, self.floor(), clock) + 1
        self.lease_until = self.now + TTL
        return self.epoch

    def renew(self, token: int) -> tuple[bool, bool]:
        """Whether the lease is this token's, and whether it had been lost in between."""
        if self.holder() == token:
            self.lease_until = self.now + TTL
            return True, False
        if self.holder() or max(self.epoch, self.floor()) > token:
            return False, False
        self.epoch = self.store.holder = token
        self.lease_until = self.now + TTL
        return True, True

    def fence(self, token: int) -> None:
        """Docker's own memory of the highest token."""
        if token < self.engine_token:
            raise Stale(f"the Engine has seen {self.engine_token}")
        self.engine_token = token

    # what others do

    def push(self, request: Request) -> None:
        self.requests[request.id] = request
        self.store.pending.add(request.id)
        self._arrived.set()
        self._arrived.clear()

    async def arrival(self) -> None:
        """Wait for the next request."""
        await self._arrived.wait()

    def users(self, seconds: float) -> None:
        """Requests are answered according to what nginx serves."""
        servers = self.nginx.weighted("api")
        total = sum(s.weight for s in servers)
        for server in servers:
            requests, errors = self.counters.get(server.instance, (0.0, 0.0))
            more = 100.0 * seconds * server.weight / total
            image = f"repo/api:{self.digest(server.instance)}"
            failed = more * (0.3 if image in self.bad else 0.0)
            self.counters[server.instance] = (requests + more, errors + failed)

    def digest(self, instance: str) -> str:
        """The tag of the image that an instance runs."""
        found = self.runtime.containers.get(instance)
        return found.described.digest.removeprefix("sha256:") if found and found.described else ""

    def answers(self, address: str) -> bool:
        """Whether an instance runs there."""
        return any(i.running and i.address == address for i in self.runtime.containers.values())

    def users_of(self) -> set[str]:
        """The releases that have users' traffic."""
        return {s.release for s in self.nginx.weighted("api")}

    def promoted(self) -> set[str]:
        """The requests whose release was promoted."""
        return {e.release.request for e in self.state().history if e.outcome is Outcome.PROMOTED}

    def wipe(self, states: Mapping[str, tuple[bytes, int]]) -> None:
        """Redis comes up empty, or with what it had at an earlier time: events and requests are lost."""
        self.store.states.clear()
        self.store.states.update(states)
        self.store.stream.clear()
        self.store.pending.clear()
        self.store.holder = self.epoch = 0
        self.lease_until = 0.0
        self.wiped = True

    def samples(self, at: float) -> dict[str, Sample]:
        return {
            name: Sample(at, *self.counters.get(name, (0.0, 0.0)))
            for name, instance in self.runtime.containers.items()
            if instance.running
        }

    def state(self) -> ServiceState:
        data = self.store.states.get("api")
        return self.store.written[data[0]] if data else ServiceState(service="api")

    # what must hold

    def violated(self, what: str) -> None:
        self.violations.append(f"{self.now:.2f} s, after {self.effects[-1:]}: {what}")

    def check(self) -> None:
        """I1, I2, I3, I5, I6 and where users are, from outside, at this instant."""
        disk, state = self.nginx.told("api"), self.state()
        if disk is None:
            return
        serves = self.nginx.loaded["api"].generation, self.nginx.loaded["api"].token
        # of one generation a reload that nginx ignores can't be told from one that it took
        if serves[0] < self.applied[0] or (serves[0] > self.applied[0] and serves[1] < self.applied[1]):
            self.violated(f"I6: nginx serves generation and token {serves} after {self.applied}")
        named, weighted = self.nginx.named("api"), self.nginx.weighted("api")
        if len({s.release for s in named}) > 2:
            self.violated(f"I3: {named}")
        # a store that has lost its tokens gives one out twice where its clock was set back too
        for container in set() if self.wiped else self.stopping & {s.container for s in named}:
            self.violated(f"handover: nginx names {container}, which stops")
        if self.left & self.users_of():
            self.violated(f"L3: users are on {self.users_of()} again")
        self._check_claims(weighted)
        self._check_users(state, disk)
        rollout = state.rollout
        if rollout is None or rollout.kind == "revert" or state.stable is None:
            return
        if self.wiped and disk.route.generation > state.route.generation:
            return  # the store has lost the step that this share was committed for
        if rollout.phase in (Phase.SHIFTING, Phase.BAKING):
            limit = rollout.release.policy.steps[rollout.step].weight
            share = Route(servers=weighted).share(rollout.release.id)
            if share * FULL > limit + 0.01:
                self.violated(f"I5: {share} of {limit} %")

    def _check_users(self, state: ServiceState, disk: OnDisk) -> None:
        """Users are on stable or on what is on its way, unless a person on the host has said otherwise."""
        if state.stable is None or self.wiped or disk.local or self.nginx.by_hand("api"):
            return
        meant = {state.stable.id, *([state.rollout.release.id] if state.rollout else [])}
        if elsewhere := self.users_of() - meant:
            self.violated(f"L2: users are on {elsewhere}, and {meant} is meant")

    def _check_claims(self, weighted: Sequence[Server]) -> None:
        wrong = [s for s in weighted if not self._claimed(s)]
        for server in weighted:
            if server not in wrong or not (self.docker_up and self.redis_up and self.nginx.takes_changes):
                self._wrong_since.pop(server.instance, None)
        for server in wrong if len(wrong) < len(weighted) else []:
            since = self._wrong_since.setdefault(server.instance, self.now)
            if self.now - since > OUT_OF_ROUTE:
                self.violated(
                    f"I1, I2, I4: {server.instance} has had traffic since {since:.1f} s and is dead"
                )

    def _claimed(self, server: Server) -> bool:
        """Whether the instance that the route claims runs at this address."""
        found = self.runtime.containers.get(server.instance)
        return found is not None and found.running and found.container == server.container

    async def finish(self) -> None:
        """I8, I9, I10, I11, I14 at the end."""
        events, state = await self.store.told(), self.state()
        if not self.wiped:  # else the journal has gaps that nobody can fill
            self._requests(events)
            self._journal(events)
        weighted = self.users_of()
        if state.stable is not None and weighted != {state.stable.id}:
            self.violated(f"I9, L2: {weighted} have traffic, stable is {state.stable.id}")
        if on := self.nginx.switches("api"):
            self.violated(f"L2: {on} are on")
        kept = [r.id for r in (state.stable, state.previous) if r is not None]
        running = {i.release for i in self.runtime.containers.values() if i.running}
        if running != set(kept):
            self.violated(f"I10: {running} run, {kept} should")

    def _requests(self, events: Sequence[object]) -> None:
        """I8: every request has one answer, every accepted release one end."""
        accepted = [e.request for e in events if isinstance(e, ReleaseAccepted) and not e.duplicate]
        others = [e.request for e in events if isinstance(e, RequestRefused | CommandAccepted)]
        for entry, request in self.requests.items():
            answers = accepted.count(entry) + others.count(entry)
            if not request.key and answers != 1:
                self.violated(f"I8, L3: request {entry} was answered {answers} times")
        if sum(bool(self.requests[entry].key) for entry in accepted) > 1:
            self.violated("I8: one key made two releases")
        if self.store.pending:
            self.violated(f"I8: still pending {self.store.pending}")
        releases = {e.release for e in events if isinstance(e, ReleaseAccepted)}
        ended = [e.release for e in events if isinstance(e, ReleaseEnded) and e.journey == "release"]
        if sorted(ended) != sorted(releases):
            self.violated(f"I8: accepted {sorted(releases)}, ended {ended}")

    def _journal(self, events: Sequence[object]) -> None:
        last: dict[str, Phase | None] = {}
        generation = 0
        for event in events:
            if isinstance(event, PhaseEntered):
                before = last.get(event.release)
                if event.phase not in NEXT[before]:
                    self.violated(f"I11: {event.release} went from {before} to {event.phase}")
                last[event.release] = event.phase
            elif isinstance(event, ReleaseEnded):
                if event.outcome is Outcome.PROMOTED and last.get(event.release) is not Phase.BAKING:
                    self.violated(f"I11: {event.release} was promoted from {last.get(event.release)}")
                last[event.release] = None
            elif isinstance(event, ServiceAdopted):
                last[event.candidate] = Phase.SHIFTING
            elif isinstance(event, RouteChanged):
                if event.generation <= generation:
                    self.violated(f"I6: generation {event.generation} after {generation}")
                if not event.actor:
                    self.violated(f"I14: {event}")
                generation = event.generation
