"""A world in memory that does what `desired` says, and can be told to fail. The core is driven against it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.rollout.command import Command, handle
from orchestrator.rollout.counts import Known, settle
from orchestrator.rollout.decide import decide
from orchestrator.rollout.desired import Wanted, desired
from orchestrator.rollout.events import Event, ReleaseEnded, RouteChanged
from orchestrator.rollout.hooks import HookResult
from orchestrator.rollout.model import FULL, Outcome, Phase, Rollout, Route, ServiceState
from orchestrator.rollout.observation import (
    Edge,
    Image,
    Instance,
    LocalRollback,
    Observation,
    OnDisk,
    Reading,
    Sample,
)


@dataclass(slots=True)
class Behaviour:
    """How a release's instances behave. Rates are a second and instance at 100 % of traffic."""

    rate: float = 100.0
    errors: float = 0.0
    slow: float = 0.0
    start_error: str = ""
    exits: bool = False
    never_ready: bool = False


@dataclass(slots=True)
class Counter:
    requests: float = 0.0
    errors: float = 0.0
    slow: float = 0.0


@dataclass(slots=True)
class Sim:
    """State, clock and world of one service; `run` lets time pass and checks the invariants at every step."""

    now: float = 1000.0
    state: ServiceState = field(default_factory=lambda: ServiceState(service="api"))
    events: list[Event] = field(default_factory=list)
    instances: dict[str, Instance] = field(default_factory=dict)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    counters: dict[str, Counter] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    unwatched: float = 0.0
    edge_up: bool = True
    waited: float = 0.0
    refuses: str = ""
    silence: str = ""
    file: str = "ours"
    drained: bool = True
    switched_to: str = ""
    switched_for: int = 0
    back: str = ""
    failed: str = ""
    runtime_ok: bool = True
    prometheus_up: bool = True
    unreadable: set[str] = field(default_factory=set)
    image_error: str = ""
    image_note: str = ""
    image_there: bool = True
    served: int = 0
    elder: int = 0
    disk: OnDisk | None = None
    fallback: Route | None = None
    starts: int = 0
    hooks: dict[str, HookResult] = field(default_factory=dict)
    runtime_stops: bool = True
    stop_takes: float = 0.0
    stopping: dict[str, float] = field(default_factory=dict)
    lost: bool = False

    def behave(self, release: str) -> Behaviour:
        return self.behaviours.setdefault(release, Behaviour())

    def send(self, command: Command) -> list[Event]:
        before = len(self.events)
        state, events = handle(self.state, command, self.now)
        self.state = state
        self.events += events
        return self.events[before:]

    def observe(self) -> Observation:
        world = desired(self.state, self.now)
        image = {}
        if world.image and self.image_there:
            digest = "" if self.image_error else f"sha256:{world.image.rpartition(':')[2]}"
            image[world.image] = Image(digest=digest, error=self.image_error, note=self.image_note)
        errors = {
            w.name: self.behave(w.release.id).start_error
            for w in world.instances
            if self.behave(w.release.id).start_error
        }
        return Observation(
            # with Docker away the engine shows what it saw last, which need not be all
            instances=tuple(self.instances.values())[: None if self.runtime_ok else 1],
            runtime_ok=self.runtime_ok,
            runtime_error="" if self.runtime_ok else "timed out",
            edge=Edge(
                served=(self.elder or self.served)
                if self.edge_up and not (self.disk and self.disk.route.gone)
                else None,
                confirmed=self.elder or self.served,
                file=self.file,  # type: ignore[arg-type]
                drained=self.drained,
                failed=self.failed,
                error=self.refuses,
                silence=self.silence,
                waited=self.waited,
                floor=self.disk.route.generation if self.disk else 0,
                on_disk=self.disk,
                switched_to=(self.back if self.edge_up and self.elder else "") or self.switched_to,
                switched_for=self.switched_for,
            ),
            images=image,
            start_errors=errors,
            readings=tuple(self.readings),
            hooks={c.key: self.hooks[c.hook.name] for c in world.hooks if c.hook.name in self.hooks},
            unwatched=self.unwatched,
        )

    def step(self, seconds: float = 1.0) -> None:
        """Time passes, users come, the world converges, the core decides."""
        self.now += seconds
        self._users(seconds)
        self._scrape()
        for _ in range(20):
            before = self.state
            self.state, events = decide(self.state, self.observe(), self.now)
            self.unwatched = 0.0
            self.events += events
            self._converge()
            self._check(before)
            if not events:
                return
        raise AssertionError("the core does not come to rest")

    def nobody_drives(self, seconds: float, *, restart: bool) -> None:
        """Users come and nobody decides; `restart`: what only the daemon's memory holds is gone too."""
        for _ in range(int(seconds / 10)):
            self.now += 10.0
            self._users(10.0)
            self._scrape()
        if restart:
            self.readings.clear()
            self.known.clear()
        self.unwatched = seconds

    def store_goes_back(self, to: ServiceState) -> None:
        """The store has what it had at an earlier time; what was told since is lost too."""
        self.state, self.lost = to, True
        self.events.clear()
        self.readings.clear()
        self.known.clear()

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.step()

    def until_ended(self, release: str, seconds: float = 600.0) -> ReleaseEnded:
        for _ in range(int(seconds)):
            found = self.ends(release)
            if found:
                return found[-1]
            self.step()
        raise AssertionError(f"{release} has not ended: {self.state.rollout}")

    def until_phase(self, phase: Phase, step: int = 0, *, held: bool = False) -> Rollout:
        for _ in range(600):
            rollout = self.state.rollout
            if (
                rollout
                and rollout.phase is phase
                and rollout.step == step
                and (rollout.held_since or not held)
            ):
                return rollout
            self.step()
        raise AssertionError(f"never in {phase} {step}: {self.state.rollout}")

    def ends(self, release: str) -> list[ReleaseEnded]:
        return [e for e in self.events if isinstance(e, ReleaseEnded) and e.release == release]

    def outcomes(self) -> dict[str, Outcome]:
        return {e.release: e.outcome for e in self.events if isinstance(e, ReleaseEnded)}

    def kill(self, name: str, code: int = 137) -> None:
        self.instances[name] = replace(
            self.instances[name], running=False, exit_code=code, health="unknown", logs="last words\n"
        )

    def roll_back_on_host(self, *, written: bool = True) -> None:
        """What `orchestrator rollback --local` does to the edge, to its end or only to nginx' memory."""
        assert self.fallback is not None
        assert self.disk is not None
        to = self.fallback.servers[0].release
        route = replace(self.fallback, generation=self.disk.route.generation + 1)
        if not written:
            self.elder, self.back = route.generation, to
            return
        local = LocalRollback(to=to, actor="ann", reason="by hand")
        self.disk = replace(self.disk, route=route, local=local, back=())
        self.elder, self.served = 0, route.generation

    def share(self, release: str) -> float:
        return round(self.state.route.share(release) * FULL, 3)

    def _users(self, seconds: float) -> None:
        for server in self.state.route.servers:
            if server.backup:
                continue
            total = sum(s.weight for s in self.state.route.servers if not s.backup)
            behaviour, counter = (
                self.behave(server.release),
                self.counters.setdefault(server.instance, Counter()),
            )
            requests = behaviour.rate * seconds * server.weight / total
            counter.requests += requests
            counter.errors += requests * behaviour.errors
            counter.slow += requests * behaviour.slow

    def _scrape(self) -> None:
        if not self.prometheus_up:
            self.readings.append(Reading(at=self.now, error="connection refused"))
            return
        samples = {}
        for name, instance in self.instances.items():
            if instance.running and instance.release not in self.unreadable:
                c = self.counters.setdefault(name, Counter())
                buckets = {0.1: c.requests - c.slow, 0.5: c.requests, float("inf"): c.requests}
                samples[name] = Sample(self.now, c.requests, c.errors, buckets)
        self.known, reading = settle(self.known, Reading(at=self.now, samples=samples))
        self.readings.append(reading)

    def _converge(self) -> None:
        world = desired(self.state, self.now)
        ahead = self.disk is not None and self.disk.route.generation > world.route.generation
        if self.edge_up and not self.refuses and world.route.generation > self.elder and not ahead:
            self.elder = 0
            self.served = world.route.generation
            same = world.fallback and world.fallback.servers, self.fallback and self.fallback.servers
            if self.disk is None or world.route.generation > self.disk.route.generation or same[0] != same[1]:
                self.disk = OnDisk(
                    route=world.route,
                    stable=world.stable,
                    back=world.fallback.servers if world.fallback else (),
                    released=self.state.released,
                )
            self.fallback = world.fallback
            if world.repair:
                self.file = "ours"
        if not self.runtime_ok:
            return
        wanted = {w.name: w for w in world.instances}
        for name, want in wanted.items():
            behaviour, found = self.behave(want.release.id), self.instances.get(name)
            if found is not None and want.restart:
                self.instances[name] = found = replace(found, supervised=True)
            missing = found is None and want.create
            dead = found is not None and not found.running and want.restart
            if (missing or dead) and not behaviour.start_error:
                self.starts += 1
                self.counters[name] = Counter()
                self.instances[name] = Instance(
                    name=name,
                    release=want.release.id,
                    address=f"10.0.{want.release.id.rpartition('-')[2]}.{want.index + 10}:8080",
                    container=f"c{self.starts}",
                    started_at=f"t{self.starts}",
                    running=not behaviour.exits,
                    exit_code=1 if behaviour.exits else None,
                    health="unknown" if behaviour.never_ready or behaviour.exits else "ready",
                    logs="boom\n" if behaviour.exits else "",
                    supervised=want.restart,
                    described=want.release,
                )
        for name in world.recreate & self.instances.keys():
            del wanted[name]
        self._stop(wanted, world.recreate)

    def _stop(self, wanted: Mapping[str, Wanted], recreate: frozenset[str]) -> None:
        """What nobody wants ends, and is gone after a while, whoever wants it again by then."""
        routed = {s.instance for s in (*self.state.route.servers, *self.state.route.preview)}
        settled = self.state.confirmed == self.state.route.generation and self.state.unknown is None
        if settled and self.runtime_stops:
            for name in self.instances.keys() - wanted.keys() - (routed - recreate) - self.stopping.keys():
                self.stopping[name] = self.now + self.stop_takes
        for name, until in tuple(self.stopping.items()):
            if self.now >= until:
                del self.stopping[name]
                self.instances.pop(name, None)
            elif self.now >= until - self.stop_takes / 2:
                found = self.instances[name]
                self.instances[name] = replace(found, running=False, exit_code=0, health="unknown")

    def _check(self, before: ServiceState) -> None:
        """I3, I5, I6, I9, I14 of the design, and I8 while the store has lost nothing."""
        route = self.state.route
        assert len({s.release for s in route.servers}) <= 2
        assert route.generation >= before.route.generation
        assert self.state.confirmed >= before.confirmed
        assert self.state.confirmed <= route.generation
        rollout = self.state.rollout
        if rollout and rollout.phase is Phase.SHIFTING:
            limit = rollout.release.policy.steps[rollout.step].weight
            assert self.share(rollout.release.id) <= limit + 1e-6
        if self.state.stable is not None and before.stable is not None and rollout is None:
            assert any(s.release == self.state.stable.id for s in route.servers) or not route.servers
        assert all(e.actor for e in self.events if isinstance(e, RouteChanged))
        if self.lost:
            return
        pending = {r.id for r in self.state.queue} | ({rollout.release.id} if rollout else set())
        ended = {e.release for e in self.events if isinstance(e, ReleaseEnded) and e.journey == "release"}
        everything = {f"api-{n + 1}" for n in range(self.state.released)}
        reverting = {rollout.release.id} if rollout and rollout.kind == "revert" else set()
        assert pending | ended == everything | reverting
        assert not (pending - reverting) & ended
