"""What people, CI, operators and bad luck do, in any order, at any time."""

import contextlib
import os
import random
from dataclasses import dataclass
from typing import Literal, get_args

from tests.simulation.journey import Run, planned, tell
from tests.simulation.world import Fault, Mode, World

Kind = Literal[
    "release good",
    "release bad",
    "release over",
    "release again",
    "release elsewhere",
    "rollback",
    "abort",
    "pause",
    "resume",
    "freeze",
    "unfreeze",
    "kill daemon",
    "stop daemon",
    "standby",
    "kill instance",
    "redis down",
    "redis up",
    "redis wiped",
    "redis goes back",
    "docker down",
    "docker up",
    "prometheus down",
    "prometheus up",
    "clock forward",
    "clock back",
    "rollback on the host",
    "rollback twice",
    "switch on",
    "switch off",
    "kill instance of stable",
    "kill instance of candidate",
    "nginx refuses",
    "nginx ignores",
    "nginx dies",
    "nginx mended",
]


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens `after` seconds."""

    kind: Kind
    after: float


async def play(run: Run, script: list[Act]) -> None:
    """Let a script happen, then mend the world and wait until all has come to its end."""
    run.push(1)
    snapshot = dict(run.world.store.states)
    number = 1
    for act in script:
        await run.wait(act.after)
        number += 1
        if act.kind == "abort" or act.kind.startswith("kill instance"):
            run.world.left.clear()  # a rollback that has not begun ends so, and stable keeps its users
        if act.kind == "redis goes back":
            run.world.wipe(snapshot)
        elif act.kind == "rollback on the host":
            before = run.world.users_of()
            if await run.rollback_on_host():
                run.world.left |= before - run.world.users_of()
        elif act.kind in VERBS:
            run.push(number, verb=act.kind)
        elif act.kind.startswith("release"):
            _release(run, number, act.kind)
        elif act.kind == "rollback twice":
            run.push(number, verb="rollback")
            await run.wait(0.3)
            number += 1
            run.push(number, verb="rollback", release=run.world.state().current)
        elif act.kind in OUTAGES:
            setattr(run.world, *OUTAGES[act.kind])
        else:
            _misfortune(run, act.kind)
        snapshot = dict(run.world.store.states)
    run.world.redis_up = run.world.docker_up = run.world.prometheus_up = True
    run.world.nginx.mend()
    run.push(1001, verb="unfreeze")
    run.push(1002, verb="resume")
    await run.quiet(5000.0)
    await run.obeys(1003)
    await run.quiet(5000.0)


VERBS = ("rollback", "abort", "pause", "resume", "freeze", "unfreeze")

OUTAGES = {
    "redis down": ("redis_up", False),
    "redis up": ("redis_up", True),
    "docker down": ("docker_up", False),
    "docker up": ("docker_up", True),
    "prometheus down": ("prometheus_up", False),
    "prometheus up": ("prometheus_up", True),
}


def _release(run: Run, number: int, kind: str) -> None:
    if kind == "release bad":
        run.world.bad.add(f"repo/api:{number}")
    if kind == "release again":
        run.push(number, image="repo/api:1", key="k")
    elif kind == "release over":
        run.push(number, strategy="over")
    elif kind == "release elsewhere":
        run.push(number, image="elsewhere/api:1")
    else:
        run.push(number)


def _misfortune(  # noqa: C901, PLR0912  one case for each
    run: Run, kind: str
) -> None:
    world = run.world
    driving = [h for h in run.hosts if not h.dead and h.token == world.store.holder]
    if kind == "kill daemon":
        for host in driving:
            run.kill(host)
    elif kind == "stop daemon":
        for host in driving:
            if not host.asleep_until:
                run.pause(host)
    elif kind == "standby":
        run.boot()
    elif kind == "redis wiped":
        world.wipe({})
    elif kind == "kill instance":
        running = sorted(n for n, i in world.runtime.containers.items() if i.running)
        for name in running[-1:]:
            world.runtime.die(name)
    elif kind == "kill instance of stable" and world.state().stable:
        run.kill_instance(world.state().stable.id)  # type: ignore[union-attr]
    elif kind == "kill instance of candidate" and world.state().rollout:
        run.kill_instance(world.state().rollout.release.id)  # type: ignore[union-attr]
    elif kind == "switch on":
        with contextlib.suppress(FileNotFoundError):  # no daemon has made the folder yet
            switch, now = world.nginx.switch("api"), world.wall + world.now
            switch.touch()
            os.utime(switch, (now, now))
    elif kind == "switch off":
        world.nginx.switch("api").unlink(missing_ok=True)
    elif kind == "nginx refuses":
        world.nginx.refuses = "nginx -t: unexpected } in another file"
    elif kind == "nginx ignores":
        world.nginx.ignores = True
    elif kind == "nginx dies":
        world.nginx.dead, world.nginx.loaded = True, {}
    elif kind == "nginx mended":
        world.nginx.mend()
    elif kind == "clock forward":
        world.wall += 3600.0
        world.lease_until = world.now  # Redis follows the wall clock
    elif kind == "clock back":
        world.wall -= 3600.0


def script(seed: int) -> World:
    """The script, the faults and the order that a seed stands for."""
    chance = random.Random(seed)
    kinds = get_args(Kind)
    acts = [Act(chance.choice(kinds), round(chance.uniform(0, 8), 2)) for _ in range(chance.randint(3, 25))]
    faults = [Fault(chance.randrange(150), chance.choice(list(Mode))) for _ in range(chance.randint(3, 6))]
    return tell(lambda run: play(run, acts), planned(faults), seed)
