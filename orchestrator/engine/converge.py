"""Make the world as it is wanted: the only place that starts a container or changes a weight."""

import math

from orchestrator.engine.tasks import Jobs, within
from orchestrator.ports.faults import Away
from orchestrator.ports.hooks import Hooks
from orchestrator.ports.runtime import Images, Runtime
from orchestrator.ports.store import Store
from orchestrator.ports.traffic import RoutePlan, Traffic
from orchestrator.rollout.desired import Wanted, World
from orchestrator.rollout.hooks import HookCall, HookResult
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.observation import Image, Instance, Observation

ROUTE = "route "
IMAGE = "image "
START = "start "
RETREAT = "retreat"
STOP = "stop "
SUPERVISE = "supervise "
IMAGES = "images"
HOOK = "hook "

STOP_DEADLINE = 900.0
"""Seconds for the stop of one instance, its grace included."""

ROUTE_DEADLINE = 600.0
"""Seconds for one route, or for the way back at the edge, its turn among other services included."""

IMAGE_DEADLINE = 86400.0
"""Seconds for one image; it is given up before, with the release that wants it."""

ANSWER_MARGIN = 15.0
"""Seconds beyond its own timeout that each try of a hook may take, the pause before it included."""


class Converger:
    """Starts the jobs that lead from the world seen to the world wanted. Every job may run twice."""

    def __init__(
        self, runtime: Runtime, images: Images, traffic: Traffic, hooks: Hooks, store: Store, jobs: Jobs
    ) -> None:
        self._runtime = runtime
        self._images = images
        self._traffic = traffic
        self._hooks = hooks
        self._store = store
        self._jobs = jobs
        self.resolved: dict[str, Image] = {}
        self.asked: dict[str, HookResult] = {}
        self._removed: frozenset[str] = frozenset()
        self._silent = False

    def converge(self, world: World, state: ServiceState, seen: Observation) -> None:
        """Compare and start what is missing; returns at once."""
        self._image(world)
        self._ask(world)
        self.route(world, state, seen)
        if seen.runtime_ok:
            self._instances(world, state, seen)
            self._stale_images(world, seen)
        self._jobs.forget_others()

    def retreat(self, service: str, actor: str, reason: str) -> None:
        """Take the traffic back at the edge alone, while nothing can be committed or a person has begun."""
        self._jobs.cancel(lambda job: job.startswith(ROUTE))
        self._jobs.start(
            RETREAT,
            lambda: self._traffic.retreat(service, actor, reason, self._store.token),
            ROUTE_DEADLINE,
        )

    def image_error(self) -> str:
        """Why the wanted image is not resolved yet; '' where nothing is known to be wrong."""
        return next((str(e) for name, e in self._jobs.errors.items() if name.startswith(IMAGE)), "")

    def start_errors(self) -> dict[str, str]:
        """Instances that can't be started, with the reason; not those whose answer is still open."""
        failed = {n: e for n, e in self._jobs.errors.items() if not isinstance(e, Away)}
        return {n.removeprefix(START): str(e) for n, e in failed.items() if n.startswith(START)}

    def _image(self, world: World) -> None:
        self.resolved = {ref: found for ref, found in self.resolved.items() if ref == world.image}
        name = f"{IMAGE}{world.image}"
        self._jobs.cancel(lambda job: job.startswith(IMAGE) and job != name)
        if world.image and world.image not in self.resolved:
            self._jobs.start(name, lambda: self._resolve(world.image), IMAGE_DEADLINE)

    async def _resolve(self, reference: str) -> None:
        self.resolved[reference] = await self._runtime.resolve(reference)

    def _ask(self, world: World) -> None:
        wanted = {call.key: call for call in world.hooks}
        self.asked = {key: said for key, said in self.asked.items() if key in wanted}
        self._jobs.cancel(lambda job: job.startswith(HOOK) and job.removeprefix(HOOK) not in wanted)
        for key in sorted(wanted.keys() - self.asked.keys()):
            self._jobs.start(f"{HOOK}{key}", lambda call=wanted[key]: self._ask_one(call), math.inf)  # type: ignore[misc]

    async def _ask_one(self, call: HookCall) -> None:
        """Ask; a hook that outlasts all of its tries has said nothing, whoever runs it."""
        hook = call.hook
        try:
            deadline = (hook.retries + 1) * (hook.timeout + ANSWER_MARGIN)
            said = await within(deadline, lambda: self._hooks.ask(call))
        except Away as error:
            said = HookResult(passed=not hook.required, text=str(error))
        self.asked[call.key] = said

    def route(self, world: World, state: ServiceState, seen: Observation) -> None:
        """Compare what the edge serves and start what is missing; returns at once."""
        route, edge = world.route, seen.edge
        active = {s.release for s in route.servers if not s.backup}
        older = 0 < edge.switched_for < route.generation  # a daemon's own word, which the route replaces
        nginx_alone = (edge.served or 0) > max(route.generation, edge.floor)  # knows where that leads
        by_hand = edge.switched_to and edge.local is None and not (older or nginx_alone)
        heard, self._silent = self._silent and not edge.silence, bool(edge.silence)
        if by_hand and active != {edge.switched_to}:
            self.retreat(world.service, "host", "the rollback switch was turned on by hand")
            return
        if not route.generation or edge.floor > route.generation or state.unknown is not None:
            return
        pending = state.confirmed < route.generation
        other = edge.served is not None and edge.served != route.generation
        lost = edge.file == "missing" or (edge.floor < route.generation and not edge.unread)
        if pending and edge.confirmed == route.generation and edge.file == "ours":
            return
        if edge.file == "edited" and not pending and not world.repair:
            return
        fallback = world.fallback.servers if world.fallback else ()
        if pending or other or lost or world.repair or fallback != edge.fallback:
            plan = RoutePlan(
                service=world.service,
                route=route,
                stable=world.stable,
                fallback=world.fallback,
                released=state.released,
            )
            name = f"{ROUTE}{route.generation}"
            self._jobs.cancel(lambda job: job.startswith(ROUTE) and job != name)
            if heard:
                self._jobs.pause_no_more(name)
            self._jobs.start(name, lambda: self._traffic.apply(plan, self._store.token), ROUTE_DEADLINE)

    def _instances(self, world: World, state: ServiceState, seen: Observation) -> None:
        found = {i.name: i for i in seen.instances}
        for wanted in world.instances:
            self._one(wanted, found.get(wanted.name))
        names = {w.name for w in world.instances}
        settled = state.confirmed == state.route.generation and state.unknown is None
        routed = {s.instance for s in (*state.route.servers, *state.route.preview)}
        if seen.edge.on_disk is not None:
            routed |= {s.instance for s in seen.edge.on_disk.route.servers}
        for name in sorted((found.keys() - names) | (world.recreate & found.keys())):
            if settled and (name not in routed or name in world.recreate):
                self._jobs.start(f"{STOP}{name}", lambda name=name: self._runtime.stop(name), STOP_DEADLINE)  # type: ignore[misc]

    def _one(self, wanted: Wanted, instance: Instance | None) -> None:
        missing = instance is None and wanted.create
        created = instance is not None and not instance.running and instance.exit_code is None
        dead = instance is not None and not instance.running and wanted.restart
        if missing or dead or (created and wanted.create):
            self._jobs.start(f"{START}{wanted.name}", lambda: self._runtime.start(wanted))
        elif instance is not None and instance.running and wanted.restart and not instance.supervised:
            self._jobs.start(f"{SUPERVISE}{wanted.name}", lambda: self._runtime.supervise(wanted.name))

    def _stale_images(self, world: World, seen: Observation) -> None:
        """Docker keeps an image as long as a container of it is there, be it one that has been stopped."""
        used = {i.described.digest for i in seen.instances if i.described is not None}
        self._removed &= world.stale_images
        fresh = world.stale_images - self._removed - used
        if fresh:
            self._jobs.start(IMAGES, lambda: self._remove(fresh))

    async def _remove(self, fresh: frozenset[str]) -> None:
        await self._images.remove_images(sorted(fresh))
        self._removed |= fresh
