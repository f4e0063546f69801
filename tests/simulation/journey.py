"""A story that is told again for every schedule of faults, and the supervisor that starts daemons again."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.ports.faults import Fault as Refused
from orchestrator.ports.metrics import MetricSource
from orchestrator.ports.requests import Request
from orchestrator.ports.service import ServicePlan
from orchestrator.rollout.policy import Comparison, Limit, Policy, Step
from tests.builders import policy, template
from tests.simulation import loop
from tests.simulation.daemon import Daemon
from tests.simulation.nginx import PROCESS, edge_of, virtual_files
from tests.simulation.world import LONG, Fault, Host, Mode, World

RESTART = 0.5
"""Seconds until the service manager starts a killed daemon again."""

GATE = Limit(name="errors", metric="error_rate", max=0.02, window=10.0, min_requests=5)
EVIDENCE = Comparison(name="evidence", metric="error_rate")
LADDER = (
    Step(weight=20, hold=3.0, min_requests=5, deadline=200.0),
    Step(weight=100, hold=2.0, deadline=200.0),
)
POLICY: Policy = policy(
    steps=LADDER,
    limits=(GATE,),
    comparisons=(EVIDENCE,),
    no_data_after=120.0,
    start_deadline=120.0,
    preflight_deadline=120.0,
    confirm_deadline=120.0,
    drain_deadline=2.0,
    keep_previous=4.0,
    on_new_release="queue",
)
WARM: Policy = replace(POLICY, keep_previous=60.0, confirm_deadline=20.0)
PLAN = ServicePlan(
    service="api",
    images=("repo/api",),
    template=template(instances=1),
    policies={"": POLICY, "over": replace(POLICY, on_new_release="supersede")},
    metrics=MetricSource(requests="r", status_label="code", error_pattern="5..", latency=""),
)
PLANS = {
    "revert": replace(PLAN, template=template(instances=2), policies={"": WARM}),
    "third": replace(PLAN, policies={"": WARM}),
    "newcomer": replace(PLAN, policies={"": replace(POLICY, confirm_deadline=30.0)}),
}
"""Of stories that need another than `PLAN`."""


@dataclass
class Run:
    """One schedule: a world, its daemons, and what people do."""

    world: World
    plan: ServicePlan = PLAN
    hosts: list[Host] = field(default_factory=list)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def boot(self, *, after: float = 0.0, known_dead: int = 0) -> None:
        host = Host(len(self.hosts), clock=self.world.wall)
        self.hosts.append(host)

        async def life() -> None:
            await asyncio.sleep(after)
            await Daemon(self.world, host, self.plan, known_dead=known_dead).run()
            host.dead = True  # superseded; the service manager starts it again, as a standby
            self.boot(after=RESTART)

        self.tasks.add(asyncio.get_running_loop().create_task(life(), name=f"daemon {host.number}"))

    def kill(self, host: Host) -> None:
        """SIGKILL: nothing of it is ever run again. The service manager starts another one."""
        if not host.dead:
            host.dead = True
            self.boot(after=RESTART, known_dead=host.token)

    def pause(self, host: Host) -> None:
        """SIGSTOP for longer than the lease, while a standby waits on another host."""
        host.asleep_until = self.world.now + LONG
        self.boot()

    def push(self, number: int, image: str = "", verb: str = "release", **fields: str) -> None:
        image = image or (f"repo/api:{number}" if verb == "release" else "")
        self.world.push(
            Request(id=f"{number}-0", verb=verb, service="api", who="ci", image=image, **fields)  # type: ignore[arg-type]
        )

    def kill_instance(self, release: str) -> None:
        """The last one of a release that runs, if any does."""
        running = sorted(i.name for i in self.world.runtime.containers.values() if i.running)
        for name in [n for n in running if n.startswith(f"{release}-")][-1:]:
            self.world.runtime.die(name)

    async def wait(self, seconds: float) -> None:
        """Let time pass, with users."""
        deadline = self.world.now + seconds
        while self.world.now < deadline:
            self.world.users(0.25)
            self.world.check()
            await asyncio.sleep(0.25)

    async def rollback_on_host(self) -> None:
        """Somebody runs `orchestrator rollback --local` on nginx' host."""
        ann = Host(-1, person=True)
        PROCESS.set(ann)
        with contextlib.suppress(Refused):
            await edge_of(self.world, ann).retreat("api", "ann", f"by hand at {self.world.now:.0f}")
        self.world.check()

    async def until(self, look: Callable[[], bool], limit: float, what: str) -> None:
        deadline = self.world.now + limit
        while not look():
            if self.world.now > deadline:
                self.world.violated(f"not within {limit:.0f} s: {what}; {self.world.state().rollout}")
                return
            self.world.users(0.25)
            self.world.check()
            await asyncio.sleep(0.25)

    async def ended(self, *releases: str, limit: float = 500.0) -> None:
        def look() -> bool:
            return {e.release.id for e in self.world.state().history} >= set(releases)

        await self.until(look, limit, f"{releases} have ended")

    async def quiet(self, limit: float = 300.0) -> None:
        """Nothing is left to do."""

        def look() -> bool:
            state = self.world.state()
            kept = {r.id for r in (state.stable, state.previous) if r is not None}
            running = {i.release for i in self.world.runtime.containers.values() if i.running}
            busy = state.rollout or state.queue or state.retiring or self.world.store.pending
            return not busy and running == kept and not state.previous

        await self.until(look, limit, "quiet")

    async def obeys(self, number: int) -> None:
        """L3: a good release is promoted, a rollback leads back, an abort has nothing to end and says so."""
        before = self.world.state().stable
        self.push(number + 9, verb="unfreeze")  # a store that was written again is as frozen as it was
        self.push(number, image="repo/api:99")
        promoted = self.world.promoted
        await self.until(lambda: f"{number}-0" in promoted(), 600.0, f"the release of {number}-0 is promoted")
        if before is not None and self.world.state().previous is not None:
            self.push(number + 1, verb="rollback")
            await self.until(lambda: self._stands(before.id), 300.0, f"a rollback leads to {before.id}")
        self.push(number + 2, verb="abort")
        await self.until(lambda: not self.world.store.pending, 60.0, "an abort is answered")

    def _stands(self, release: str) -> bool:
        state = self.world.state()
        return state.rollout is None and state.stable is not None and state.stable.id == release


def simulate(story: str, faults: Iterable[Fault] = (), seed: int | None = None) -> World:
    """Tell a story under faults; the world that it leaves, with what was violated."""
    return tell(STORIES[story], planned(faults), seed, PLANS.get(story, PLAN))


def planned(faults: Iterable[Fault]) -> Mapping[int, Mode]:
    """How each effect goes wrong that does."""
    return {f.effect: f.mode for f in faults}


def tell(
    story: Callable[[Run], Awaitable[None]],
    faults: Mapping[int, Mode],
    seed: int | None,
    plan: ServicePlan = PLAN,
) -> World:
    """Any story, as `simulate` tells one of those that have a name."""
    world = World(faults)

    async def work() -> None:
        found = Run(world, plan)
        world.kill, world.pause = found.kill, found.pause
        found.boot()
        await story(found)
        await world.finish()
        world.over = True

    with virtual_files(world.nginx, world.answers):
        loop.run(work(), seed)
    return world


async def good(run: Run) -> None:
    """A first release, a good one after it."""
    run.push(1)
    await run.ended("api-1")
    run.push(2)
    await run.ended("api-2")
    await run.quiet()


async def bad(run: Run) -> None:
    """A first release, a bad one that goes back by itself, a request that is refused."""
    run.world.bad.add("repo/api:2")
    run.push(1)
    await run.ended("api-1")
    run.push(2)
    run.push(3, image="elsewhere/api:1")
    await run.ended("api-2")
    await run.quiet()


async def people(run: Run) -> None:
    """Two releases, a rollback while the second has traffic, then it again, then back after promotion."""
    run.push(1)
    await run.ended("api-1")
    run.push(2)
    await run.until(lambda: run.world.state().route.share("api-2") > 0, 400.0, "api-2 has traffic")
    run.push(3, verb="rollback")
    await run.ended("api-2")
    run.push(4, image="repo/api:2")
    await run.ended("api-3")
    run.push(5, verb="rollback")
    await run.until(
        lambda: any(e.kind == "revert" for e in run.world.state().history), 400.0, "the revert has ended"
    )
    await run.quiet()


async def revert(run: Run) -> None:
    """nginx refuses everything while two people go back from a promoted release, and an instance dies."""
    world = run.world
    run.push(1)
    await run.ended("api-1")
    run.push(2)
    await run.ended("api-2")
    world.nginx.refuses = "nginx -t: unexpected } in another file"
    run.push(3, verb="rollback")
    await run.until(lambda: world.users_of() == {"api-1"}, 100.0, "users are on api-1, by the switch")
    world.left.add("api-2")
    run.push(4, verb="rollback", release=world.state().meant)
    run.kill_instance("api-1")
    await run.wait(30.0)  # longer than any confirmation is waited for
    world.nginx.mend()
    await run.until(lambda: run._stands("api-1"), 100.0, "api-1 is stable")
    await run.quiet(500.0)


async def third(run: Run) -> None:
    """A third release is aborted before nginx has read its first step, and the first one is still warm."""
    world = run.world
    run.push(1)
    await run.ended("api-1")
    run.push(2)
    await run.ended("api-2")
    run.push(3)
    await run.until(lambda: world.nginx.is_written("api", "api-3"), 400.0, "api-3 is in nginx' file")
    run.push(4, verb="abort")
    await run.ended("api-3")
    await run.quiet(500.0)


async def newcomer(run: Run) -> None:
    """nginx refuses the first release of a service, and takes the second."""
    run.world.nginx.refuses = "nginx -t: duplicate upstream in another file"
    run.push(1)
    await run.ended("api-1")
    run.world.nginx.mend()
    run.push(2)
    await run.ended("api-2")
    await run.quiet()


async def removal(run: Run) -> None:
    """A service is taken down, and released again."""
    world = run.world
    run.push(1)
    await run.ended("api-1")
    run.push(2, verb="remove")

    def gone() -> bool:
        removal = world.state().removal
        return removal is not None and removal.kind == "removed"

    await run.until(gone, 300.0, "api is removed")
    files = [path for path in world.nginx.folder.rglob("*api*") if path.suffix != ".gone"]
    if left := [*files, *world.nginx.loaded, *world.runtime.containers]:
        world.violated(f"left of api: {left}")
    run.push(3)
    await run.ended("api-2")
    await run.quiet()


STORIES = {
    "good": good,
    "bad": bad,
    "people": people,
    "revert": revert,
    "third": third,
    "newcomer": newcomer,
    "removal": removal,
}
