"""In-memory parts that pass the same contract as the real ones. The engine is tested on them."""

import asyncio
import copy
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.ports.faults import Away, Fault, Stale
from orchestrator.ports.metrics import MetricQuery
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.events import Event
from orchestrator.rollout.hooks import HookCall, HookResult
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.observation import Edge, Image, Instance, LocalRollback, OnDisk, Reading, Sample
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from orchestrator.traffic.render import check_server, check_service

_event = functools.lru_cache(maxsize=10_000)(load_event)
"""Many runs of the simulation tell the same in the same words."""


@dataclass(slots=True)
class FakeClock:
    time: float = 1000.0

    def now(self) -> float:
        return self.time

    def not_before(self, then: float) -> None:
        self.time = max(self.time, then)


@dataclass(slots=True)
class FakeStore:
    """What Redis would hold.

    Attributes:
        holder: The token of the lease; 0 when nobody has it.
        written: What each text of a state was written from.
    """

    token: int = 1
    holder: int = 1
    states: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    written: dict[bytes, ServiceState] = field(default_factory=dict)
    stream: list[bytes] = field(default_factory=list)
    pending: set[str] = field(default_factory=set)
    dead: list[dict[str, str]] = field(default_factory=list)
    fail_before: int = 0
    fail_after: int = 0

    async def load(self, service: str) -> tuple[ServiceState, int]:
        if service not in self.states:
            return ServiceState(service=service), 0
        data, version = self.states[service]
        return load_state(data), version

    async def commit(
        self, state: ServiceState, version: int, events: Sequence[Event], acks: Sequence[str] = ()
    ) -> int:
        if self.fail_before:
            self.fail_before -= 1
            raise Fault("Redis: connection refused")
        self._check_lease()
        known = self.states.get(state.service, (b"", 0))[1]
        if known > version:
            raise Stale("another daemon has taken over: version")
        if known < version:
            raise Fault(f"Redis: BEHIND version {known}")
        text = dump_state(state)
        self.states[state.service], self.written[text] = (text, version + 1), state
        self.stream += [dump_event(e) for e in events]
        self.pending -= set(acks)
        if self.fail_after:
            self.fail_after -= 1
            raise Fault("Redis: timeout")
        return version + 1

    def _check_lease(self) -> None:
        if self.holder == 0:
            raise Fault("Redis: AWAY the lease is not there")
        if self.token != self.holder:
            raise Stale("another daemon has taken over")

    async def refuse(self, entry: str, fields: Mapping[str, str], event: Event) -> None:
        self._check_lease()
        if any(letter["entry"] == entry for letter in self.dead):  # the reply was lost
            return
        self.dead.append({"entry": entry, **fields})
        self.stream.append(dump_event(event))
        self.pending.discard(entry)

    async def answer(self, entry: str, event: Event) -> None:
        self._check_lease()
        if entry not in self.pending:  # the reply was lost
            return
        self.stream.append(dump_event(event))
        self.pending.discard(entry)

    async def told(self) -> list[Event]:
        return [_event(e) for e in self.stream]


@dataclass(slots=True)
class FakeRuntime:
    """Containers that are ready as soon as they are looked at twice."""

    images: set[str] = field(default_factory=lambda: {"repo/api:1", "repo/api:2"})
    digests: set[str] = field(default_factory=set)
    containers: dict[str, Instance] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    created: int = 0
    down: bool = False
    resolve_error: str = ""
    removed_images: list[str] = field(default_factory=list)
    cpu: dict[str, tuple[float, float]] = field(default_factory=dict)

    def _up(self) -> None:
        if self.down:
            raise Away("Docker: connection refused")

    async def observe(self, service: str) -> tuple[Instance, ...]:
        self._up()
        found = []
        for name, instance in self.containers.items():
            if not name.startswith(f"{service}-"):
                continue
            if instance.running:
                self.looks[instance.container] = self.looks.get(instance.container, 0) + 1
                if self.looks[instance.container] >= 2:
                    instance = replace(instance, health="ready")  # noqa: PLW2901
            found.append(instance)
        return tuple(found)

    async def resolve(self, image: str) -> Image:
        self._up()
        if self.resolve_error:
            raise Away(self.resolve_error)
        if image in self.digests:
            return Image(digest=image)
        if image in self.images:
            self.digests.add(f"sha256:{image.rpartition(':')[2]}")
            return Image(digest=f"sha256:{image.rpartition(':')[2]}")
        return Image(error=f"no such image: {image}")

    async def start(self, wanted: Wanted) -> None:
        self._up()
        found = self.containers.get(wanted.name)
        if found is not None and found.running:
            if found.described != wanted.release:
                raise Fault(f"{wanted.name} runs already, and it is not {wanted.release.id}")
            return
        self.created += 1
        self.containers[wanted.name] = Instance(
            name=wanted.name,
            release=wanted.release.id,
            address=f"10.0.0.{self.created}:8080",
            container=f"c{self.created}",
            started_at=f"t{self.created}",
            running=True,
            supervised=wanted.restart,
            described=wanted.release,
        )

    def die(self, name: str, code: int = 137) -> None:
        self.containers[name] = replace(self.containers[name], running=False, exit_code=code)

    async def supervise(self, name: str) -> None:
        self._up()
        if name not in self.containers:
            raise Fault(f"Docker: no such container: {name}")
        self.containers[name] = replace(self.containers[name], supervised=True)

    async def stop(self, name: str) -> None:
        self._up()
        self.containers.pop(name, None)

    async def cpu_seconds(self, service: str) -> dict[str, tuple[float, float]]:
        self._up()
        return {name: self.cpu.get(name, (0.0, 0.0)) for name, c in self.containers.items() if c.running}

    async def remove_images(self, digests: Sequence[str]) -> None:
        self._up()
        self.removed_images += digests

    async def changes(self) -> AsyncIterator[str]:
        import asyncio

        while True:
            await asyncio.sleep(3600)
            yield ""


@dataclass(slots=True)
class FakeHooks:
    """Hooks that pass, but for those of which something else is said; it is told who was asked."""

    says: dict[str, HookResult] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def ask(self, call: HookCall) -> HookResult:
        self.asked.append(call.key)
        await asyncio.sleep(0)
        return self.says.get(call.hook.name, HookResult(passed=True, text="fine"))


@dataclass(slots=True)
class FakeTraffic:
    """An edge that serves what it is given, unless it is broken."""

    plans: dict[str, RoutePlan] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    local: dict[str, LocalRollback] = field(default_factory=dict)
    refuses: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    switched: set[str] = field(default_factory=set)

    async def apply(self, plan: RoutePlan, token: int) -> None:
        check_service(plan.service)
        for server in plan.route.servers:
            check_server(server)
        old = self.plans.get(plan.service)
        if old is not None:
            known, new = old.route.generation, plan.route.generation
            if self.tokens[plan.service] > token:
                raise Stale("a newer token is known")
            if known > new or (plan.service in self.local and known == new):
                raise Fault("a newer generation is served")
        if plan.service in self.switched:
            raise Fault("the switch is on")
        self._refuse(plan.service)
        self.plans[plan.service], self.tokens[plan.service] = copy.copy(plan), token
        self.local.pop(plan.service, None)

    def _refuse(self, service: str) -> None:
        if self.refuses:
            self.errors[service] = self.refuses
            raise Fault(self.refuses)
        self.errors.pop(service, None)

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        plan = self.plans.get(service)
        fallback = plan.fallback if plan else None
        if plan is None or fallback is None:
            raise Fault("nothing to go back to")
        if token is not None and self.tokens[service] > token:
            raise Stale("a newer token is known")
        if {s.instance for s in plan.route.servers if not s.backup} == {s.instance for s in fallback.servers}:
            return self.local.get(service) or LocalRollback(
                to=fallback.servers[0].release, actor=actor, reason=reason
            )
        self._refuse(service)
        self.switched.discard(service)
        route = replace(fallback, generation=plan.route.generation + 1)
        self.plans[service] = replace(plan, route=route)
        self.local[service] = LocalRollback(to=fallback.servers[0].release, actor=actor, reason=reason)
        return self.local[service]

    async def observe(self, service: str) -> Edge:
        plan = self.plans.get(service)
        if plan is None:
            return Edge(error=self.errors.get(service, ""), drained=True)
        generation = plan.route.generation
        return Edge(
            served=None if plan.route.gone else generation,
            confirmed=generation,
            drained=True,
            floor=generation,
            error=self.errors.get(service, ""),
            on_disk=OnDisk(
                route=plan.route,
                stable=plan.stable,
                local=self.local.get(service),
                released=plan.released,
            ),
            fallback=plan.fallback.servers if plan.fallback else (),
            switched_to=plan.fallback.servers[0].release
            if plan.fallback and service in self.switched
            else "",
        )


@dataclass(slots=True)
class FakeMetrics:
    """Readings as a test has set them."""

    clock: FakeClock
    samples: dict[str, Sample] = field(default_factory=dict)
    error: str = ""

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        now = self.clock.now()
        return {q.service: Reading(at=now, samples=dict(self.samples), error=self.error) for q in queries}
