"""A daemon in the simulation: the real engine on ports that go through the world."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from orchestrator.engine.conductor import Parts
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.measure import Measurer
from orchestrator.engine.tasks import eternal
from orchestrator.ports.faults import Away, Fault, Stale
from orchestrator.ports.metrics import MetricQuery
from orchestrator.ports.service import ServicePlan
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.observation import Edge, Image, Instance, LocalRollback, Reading
from tests.contract.fakes import FakeHooks
from tests.simulation.nginx import PROCESS, edge_of
from tests.simulation.world import TTL, Host, World


class Ports:
    """Store, runtime, images, traffic, metrics and clock of one daemon."""

    def __init__(self, world: World, host: Host) -> None:
        self.world, self.host = world, host
        self.edge = edge_of(world, host)

    @property
    def token(self) -> int:
        return self.host.token

    def now(self) -> float:
        return self.host.clock + self.world.now

    def not_before(self, then: float) -> None:
        self.host.clock += max(then - self.now(), 0.0)

    # store

    async def load(self, service: str) -> tuple[ServiceState, int]:
        await self._read()
        if not self.world.redis_up:
            raise Away("Redis: connection refused")
        return await self.world.store.load(service)

    async def commit(
        self, state: ServiceState, version: int, events: Sequence[Event], acks: Sequence[str] = ()
    ) -> int:
        async def work() -> int:
            self._reach_redis()
            return await self.world.store.commit(state, version, events, acks)

        return await self.world.effect(self.host, "commit", work)

    async def refuse(self, entry: str, fields: Mapping[str, str], event: Event) -> None:
        async def work() -> None:
            self._reach_redis()
            await self.world.store.refuse(entry, fields, event)

        await self.world.effect(self.host, "refuse", work)

    async def answer(self, entry: str, event: Event) -> None:
        async def work() -> None:
            self._reach_redis()
            await self.world.store.answer(entry, event)

        await self.world.effect(self.host, "answer", work)

    def _reach_redis(self) -> None:
        if not self.world.redis_up:
            raise Away("Redis: connection refused")
        self.world.holder()
        self.world.store.token = self.host.token

    # runtime

    async def observe_containers(self, service: str) -> tuple[Instance, ...]:
        await self._read()
        self._reach_docker()
        found = []
        for instance in await self.world.runtime.observe(service):
            looks = self.host.looks[instance.container] = self.host.looks.get(instance.container, 0) + 1
            health: Literal["ready", "unknown"] = "ready" if instance.running and looks >= 2 else "unknown"
            found.append(instance if instance.health == health else replace(instance, health=health))
        return tuple(found)

    async def resolve(self, image: str) -> Image:
        async def work() -> Image:
            self._reach_docker()
            return await self.world.runtime.resolve(image)

        return await self.world.effect(self.host, "resolve", work)

    async def start(self, wanted: Wanted) -> None:
        async def work() -> None:
            self._reach_docker()
            self.world.fence(self.host.token)
            await self.world.runtime.start(wanted)

        await self.world.effect(self.host, f"start {wanted.name}", work)

    async def supervise(self, name: str) -> None:
        async def work() -> None:
            self._reach_docker()
            self.world.fence(self.host.token)
            await self.world.runtime.supervise(name)

        await self.world.effect(self.host, f"supervise {name}", work)

    async def stop(self, name: str) -> None:
        async def work() -> None:
            self._reach_docker()
            self.world.fence(self.host.token)
            if name in {s.instance for s in self.world.nginx.named("api")}:
                self.world.violated(f"handover: {name} is stopped while nginx names it")
            await self.world.stop_instance(name)

        await self.world.effect(self.host, f"stop {name}", work)

    async def cpu_seconds(self, service: str) -> dict[str, tuple[float, float]]:
        self._reach_docker()
        return await self.world.runtime.cpu_seconds(service)

    async def remove_images(self, digests: Sequence[str]) -> None:
        async def work() -> None:
            self._reach_docker()
            self.world.fence(self.host.token)
            await self.world.runtime.remove_images(digests)

        await self.world.effect(self.host, "remove images", work)

    def _reach_docker(self) -> None:
        if not self.world.docker_up:
            raise Away("Docker: connection refused")

    # edge

    async def apply(self, plan: RoutePlan, token: int) -> None:
        PROCESS.set(self.host)
        await self.edge.apply(plan, token)
        self.world.applied = plan.route.generation, token

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        PROCESS.set(self.host)
        return await self.edge.retreat(service, actor, reason, token)

    async def observe_edge(self, service: str) -> Edge:
        await self._read()
        return await self.edge.observe(service)

    # metrics

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        await self._read()
        if not self.world.prometheus_up:
            return {q.service: Reading(at=self.now(), error="connection refused") for q in queries}
        now = self.now()
        return {q.service: Reading(at=now, samples=self.world.samples(now)) for q in queries}

    async def _read(self) -> None:
        await self.world.alive(self.host)
        await asyncio.sleep(0.005)
        await self.world.alive(self.host)


class _Runtime:
    """`observe` means containers here and nginx there, so each gets an object of its own."""

    def __init__(self, ports: Ports) -> None:
        self.observe = ports.observe_containers
        self.resolve, self.start, self.supervise, self.stop = (
            ports.resolve,
            ports.start,
            ports.supervise,
            ports.stop,
        )


class _Traffic:
    def __init__(self, ports: Ports) -> None:
        self.observe, self.apply, self.retreat = ports.observe_edge, ports.apply, ports.retreat


class Daemon:
    """Waits for the lease, then drives until it is superseded."""

    def __init__(self, world: World, host: Host, plan: ServicePlan, *, known_dead: int = 0) -> None:
        self.world, self.host, self.plan, self._known_dead = world, host, plan, known_dead
        self._renewed = 0.0

    async def run(self) -> None:
        world, host = self.world, self.host
        while not host.token:
            await world.alive(host)
            self._renewed = world.now
            if world.redis_up:
                host.token = world.acquire(self._known_dead)
            await asyncio.sleep(0.5)
        ports = Ports(world, host)
        measurer = Measurer(ports, ports, 0.5)
        parts = Parts(
            store=ports,
            runtime=_Runtime(ports),
            images=ports,
            usage=ports,
            traffic=_Traffic(ports),
            hooks=FakeHooks(),
            measurer=measurer,
            clock=ports,
            tick=1.0,
            may_act=lambda: world.now - self._renewed < TTL / 2,
            publish=lambda *_: None,
        )
        dispatcher = Dispatcher(parts, ports)
        with contextlib.suppress(BaseExceptionGroup):  # superseded: the process ends
            async with asyncio.TaskGroup() as group:
                dispatcher.configure({"api": self.plan}, group)
                group.create_task(eternal("lease", lambda: self._keep(dispatcher)))
                group.create_task(eternal("measure", measurer.run))
                group.create_task(eternal("requests", lambda: self._feed(dispatcher)))

    async def _keep(self, dispatcher: Dispatcher) -> None:
        while True:
            await asyncio.sleep(TTL / 3)
            await self.world.alive(self.host)
            sent = self.world.now
            if not self.world.redis_up:
                continue
            mine, retaken = self.world.renew(self.host.token)
            if not mine:
                raise Stale("another daemon holds the lease")
            self._renewed = sent
            if retaken:
                dispatcher.doubt()

    async def _feed(self, dispatcher: Dispatcher) -> None:
        delivered: set[str] = set()
        while True:
            await self.world.alive(self.host)
            for entry in sorted(
                self.world.store.pending - delivered, key=lambda entry: int(entry.partition("-")[0])
            ):
                if not self.world.redis_up:
                    break
                request = self.world.requests[entry]
                with contextlib.suppress(Fault):
                    await dispatcher.dispatch(request, {"service": request.service})
                    delivered.add(entry)
            if self.world.store.pending <= delivered:
                await self.world.arrival()
            else:
                await asyncio.sleep(0.1)
