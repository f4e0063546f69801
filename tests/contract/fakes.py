"""In-memory parts that pass the same contract as the real ones. The engine is tested on them."""

import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.ports import Away, Fault, MetricQuery, RoutePlan, Stale
from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.observation import Edge, Image, Instance, Reading, Sample
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from orchestrator.traffic.render import check_server, check_service


@dataclass(slots=True)
class FakeClock:
    time: float = 1000.0

    def now(self) -> float:
        return self.time


@dataclass(slots=True)
class FakeStore:
    """What Redis would hold. `holder`: the token of the lease."""

    token: int = 1
    holder: int = 1
    states: dict[str, tuple[bytes, int]] = field(default_factory=dict)
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
        if self.token != self.holder:
            raise Stale("another daemon has taken over")
        if self.states.get(state.service, (b"", 0))[1] != version:
            raise Stale("another daemon has taken over: version")
        self.states[state.service] = (dump_state(state), version + 1)
        self.stream += [dump_event(e) for e in events]
        self.pending -= set(acks)
        if self.fail_after:
            self.fail_after -= 1
            raise Fault("Redis: timeout")
        return version + 1

    async def refuse(self, entry: str, fields: Mapping[str, str], event: Event) -> None:
        if self.token != self.holder:
            raise Stale("another daemon has taken over")
        self.dead.append({"entry": entry, **fields})
        self.stream.append(dump_event(event))
        self.pending.discard(entry)

    async def told(self) -> list[Event]:
        return [load_event(e) for e in self.stream]


@dataclass(slots=True)
class FakeRuntime:
    """Containers that are ready as soon as they are looked at twice."""

    images: set[str] = field(default_factory=lambda: {"repo/api:1", "repo/api:2"})
    containers: dict[str, Instance] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    created: int = 0
    down: bool = False
    removed_images: list[str] = field(default_factory=list)

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
                ready = self.looks[instance.container] >= 2
                instance = replace(instance, health="ready" if ready else "unknown")  # noqa: PLW2901
            found.append(instance)
        return tuple(found)

    async def resolve(self, image: str) -> Image:
        self._up()
        if image in self.images:
            return Image(digest=f"sha256:{image.rpartition(':')[2]}")
        return Image(error=f"no such image: {image}")

    async def start(self, wanted: Wanted) -> None:
        self._up()
        found = self.containers.get(wanted.name)
        if found is not None and found.running:
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
        )

    async def supervise(self, name: str) -> None:
        self._up()
        self.containers[name] = replace(self.containers[name], supervised=True)

    async def stop(self, name: str) -> None:
        self._up()
        self.containers.pop(name, None)

    async def remove_images(self, digests: Sequence[str]) -> None:
        self._up()
        self.removed_images += digests

    async def changes(self) -> AsyncIterator[str]:
        import asyncio

        while True:
            await asyncio.sleep(3600)
            yield ""


@dataclass(slots=True)
class FakeTraffic:
    """An edge that serves what it is given, unless it is broken."""

    plans: dict[str, RoutePlan] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    refuses: str = ""
    errors: dict[str, str] = field(default_factory=dict)

    async def apply(self, plan: RoutePlan, token: int) -> None:
        check_service(plan.service)
        for server in plan.route.servers:
            check_server(server)
        old = self.plans.get(plan.service)
        if old is not None and (
            self.tokens[plan.service] > token or old.route.generation > plan.route.generation
        ):
            raise Stale("a newer generation is served")
        if self.refuses:
            self.errors[plan.service] = self.refuses
            raise Fault(self.refuses)
        self.errors.pop(plan.service, None)
        self.plans[plan.service], self.tokens[plan.service] = copy.copy(plan), token

    async def observe(self, service: str) -> Edge:
        plan = self.plans.get(service)
        generation = plan.route.generation if plan else 0
        return Edge(
            served=generation if plan else None,
            confirmed=generation,
            drained=True,
            floor=generation,
            error=self.errors.get(service, ""),
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
