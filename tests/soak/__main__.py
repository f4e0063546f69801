"""`python -m tests.soak [MINUTES] [MODE] [SEED]`: a fault every 20 seconds under load, then a table.

MODE is how weights change: `reload` or `dynamic`. Needs root: it mounts small disks and starts an Engine of
its own. Exits with 1 when an invariant was violated, a request was lost outside a fault that kills nginx
itself, or something did not come to its end.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import docker
from rich.console import Console
from rich.table import Table

from examples.playground import gin
from examples.playground.lease import free_port
from examples.playground.load import Load
from orchestrator.ports.faults import Fault
from orchestrator.rollout.events import ReleaseEnded
from tests.acceptance.observer import Observer
from tests.soak.stage import TTL, Engine, Redis, Stage, scene

EVERY = 20.0
RATE = 50
STARTING = 8
"""Open files that a daemon has before it is up; such looks say nothing of leaks."""
out = Console(highlight=False, width=110)


class Footprint(NamedTuple):
    """What daemons hold: memory in MiB and open files."""

    resident: float
    files: int


def footprint(pid: int) -> Footprint | None:
    with contextlib.suppress(OSError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return Footprint(pages / 256, len(list(Path(f"/proc/{pid}/fd").iterdir())))
    return None


@dataclass
class Soak:
    """One run."""

    stage: Stage
    engine: Engine
    redis: Redis
    load: Load
    chance: random.Random
    images: list[str]
    faults: Counter[str] = field(default_factory=Counter)
    excused: list[tuple[float, float]] = field(default_factory=list)
    losses: list[tuple[float, int]] = field(default_factory=list)
    fault: str = "none yet"
    pairs: list[Footprint] = field(default_factory=list)
    lives: dict[int, list[Footprint]] = field(default_factory=dict)

    # faults: each returns when the world is whole again

    async def daemon_killed(self) -> None:
        for process in self.stage.alive():
            process.kill()

    async def daemon_stopped(self) -> None:
        self.chance.choice(self.stage.alive()).terminate()
        await asyncio.sleep(2.0)

    async def daemon_asleep(self) -> None:
        process = self.chance.choice(self.stage.alive())
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2 * TTL)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)

    async def redis_killed(self) -> None:
        self.redis.server.kill()
        await asyncio.sleep(3.0)
        self.redis.server.start()

    async def redis_cut_off(self) -> None:
        self.redis.cut = True
        self.redis.disconnect()
        await asyncio.sleep(TTL)
        self.redis.cut = False

    async def redis_silent(self) -> None:
        self.redis.silent = True
        await asyncio.sleep(TTL * 1.5)
        self.redis.silent = False

    async def redis_disk_full(self) -> None:
        disk = self.redis.server.folder
        with contextlib.suppress(OSError), (disk / ".ballast").open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
        await asyncio.sleep(5.0)
        (disk / ".ballast").unlink()
        if self.redis.server.dead():
            self.redis.server.start()

    async def edge_disk_full(self) -> None:
        self.stage.disk.fill()
        await asyncio.sleep(6.0)
        self.stage.disk.empty()

    async def nginx_killed(self) -> None:
        began = time.monotonic()
        pid = self.stage.nginx_pid()
        assert pid is not None
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for victim in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        await asyncio.sleep(2.0)
        self.stage.start_nginx()
        self.excused.append((began, time.monotonic() + 2.0))

    async def port_taken(self) -> None:
        port = free_port()
        conf = self.stage.root / "edge" / "zz-operator.conf"
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            conf.write_text(f"server {{ listen 127.0.0.1:{port}; return 204; }}\n")
            await asyncio.sleep(8.0)
            conf.unlink()

    async def operator_breaks_nginx(self) -> None:
        conf = self.stage.root / "edge" / "zz-broken.conf"
        conf.write_text("this is not nginx;\n")
        await asyncio.sleep(8.0)
        conf.unlink()

    async def prometheus_killed(self) -> None:
        self.stage.stop_prometheus()
        await asyncio.sleep(8.0)
        self.stage.start_prometheus()

    async def docker_killed(self) -> None:
        self.engine.kill()
        await asyncio.sleep(4.0)
        await asyncio.to_thread(self.engine.start)

    async def docker_asleep(self) -> None:
        self.engine.signal(signal.SIGSTOP)
        await asyncio.sleep(10.0)
        self.engine.signal(signal.SIGCONT)

    async def instance_killed(self) -> None:
        with contextlib.suppress(docker.errors.DockerException):
            running = [c for c in await asyncio.to_thread(self.stage.containers) if c.status == "running"]
            if running:
                await asyncio.to_thread(self.chance.choice(running).kill)

    async def instance_hangs(self) -> None:
        with contextlib.suppress(docker.errors.DockerException):
            running = [c for c in await asyncio.to_thread(self.stage.containers) if c.status == "running"]
            if running:
                victim = self.chance.choice(running)
                began = time.monotonic()
                await asyncio.to_thread(victim.pause)
                await asyncio.sleep(5.0)
                with contextlib.suppress(docker.errors.DockerException):
                    await asyncio.to_thread(victim.unpause)
                self.excused.append((began, time.monotonic() + 11.0))

    @property
    def kinds(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.daemon_killed,
            self.daemon_stopped,
            self.daemon_asleep,
            self.redis_killed,
            self.redis_cut_off,
            self.redis_silent,
            self.redis_disk_full,
            self.edge_disk_full,
            self.nginx_killed,
            self.port_taken,
            self.operator_breaks_nginx,
            self.prometheus_killed,
            self.docker_killed,
            self.docker_asleep,
            self.instance_killed,
            self.instance_hangs,
        ]

    # the run

    async def releases(self) -> None:
        """People and CI, who try again when Redis does not take it."""
        number = 0
        while True:
            number += 1
            image = self.chance.choice(self.images)
            with contextlib.suppress(Fault):
                await self.stage.push("api", image, key=f"soak-{number}")
                if self.chance.random() < 0.25:
                    await asyncio.sleep(self.chance.uniform(1, 12))
                    await self.stage.push("api", verb="rollback")
            await asyncio.sleep(self.chance.uniform(8, 30))

    async def watch(self) -> None:
        """When requests were lost, and what the daemons weigh."""
        lost = 0
        while True:
            now = self.load.seen.lost + self.load.seen.bad_gateway
            if now > lost:
                self.losses.append((time.monotonic(), now - lost))
                out.print(f"{time.strftime('%X')} {now - lost} lost, the last fault was {self.fault}")
                lost = now
            found = {p.pid: footprint(p.pid) for p in self.stage.alive()}
            held = [f for f in found.values() if f is not None and f.files > STARTING]
            for pid, one in found.items():
                if one in held:
                    self.lives.setdefault(pid, []).append(one)
            if len(held) == len(self.stage.daemons):
                self.pairs.append(Footprint(sum(f.resident for f in held), sum(f.files for f in held)))
            await asyncio.sleep(0.5)

    def unexcused(self) -> int:
        return sum(n for at, n in self.losses if not any(a <= at <= b for a, b in self.excused))

    async def run(self, minutes: float) -> None:
        working = [asyncio.create_task(self.releases()), asyncio.create_task(self.watch())]
        queue: list[Callable[[], Awaitable[None]]] = []
        deadline = time.monotonic() + minutes * 60
        while time.monotonic() < deadline:
            if not queue:
                queue = self.kinds
                self.chance.shuffle(queue)
            fault = queue.pop()
            began = time.monotonic()
            out.print(f"{time.strftime('%X')} {fault.__name__}", style="dim")
            self.faults[fault.__name__] += 1
            self.fault = fault.__name__
            await fault()
            await asyncio.sleep(max(EVERY - (time.monotonic() - began), 1.0))
        working[0].cancel()
        await self.stage.until(self.idle, 300, "everything has come to its end")
        working[1].cancel()
        await asyncio.gather(*working, return_exceptions=True)

    async def idle(self) -> bool:
        state = await self.stage.state()
        if state.rollout or state.queue or state.retiring or state.stable is None:
            return False
        kept = {r.id for r in (state.stable, state.previous) if r is not None}
        found = await asyncio.to_thread(self.stage.containers)
        return {c.labels["io.release-orchestrator.release"] for c in found} == kept


def report(soak: Soak, observer: Observer, outcomes: Counter[str], title: str) -> bool:
    """Print the table; whether all is well."""
    table = Table(title=title, show_header=False)
    for kind, number in sorted(soak.faults.items()):
        table.add_row(kind.replace("_", " "), str(number))
    table.add_section()
    for outcome, number in sorted(outcomes.items()):
        table.add_row(f"releases {outcome}", str(number))
    for code, number in sorted(soak.stage.ends.items()):
        table.add_row(f"daemons that ended with {code}", str(number))
    table.add_section()
    seen, lost = soak.load.seen, soak.unexcused()
    table.add_row("requests", str(seen.total))
    table.add_row("lost while nginx was killed or an instance hung", str(seen.lost + seen.bad_gateway - lost))
    table.add_row("lost otherwise", str(lost))
    table.add_row("why", ", ".join(f"{why}: {number}" for why, number in seen.reasons.items()) or "-")
    table.add_row("looks of the observer", str(observer.looks))
    table.add_row("invariants violated", str(len(observer.violations)))
    table.add_section()
    longest = max(soak.lives.values(), key=len, default=[])
    for whose, looks in (("both daemons", soak.pairs), ("the daemon that lived longest", longest)):
        third = len(looks) // 3
        for what, column in (("resident MiB", 0), ("open files", 1)):
            ends = [sorted(f[column] for f in part) for part in (looks[:third], looks[-third:])]
            first, last = (f"{part[len(part) // 2]:.0f}" if part else "-" for part in ends)
            table.add_row(f"{what} of {whose}, median of the first and last third", f"{first}, {last}")
    out.print(table)
    for violation in observer.violations:
        out.print(f"[red]{violation}[/]")
    return not observer.violations and not lost


async def main(minutes: float, mode: str, seed: int) -> bool:
    with scene() as (folder, engine):
        client = docker.from_env()
        images = [gin.build(client, "v1"), gin.build(client, "v2")] * 2
        images += [
            gin.build(client, "v3", {"FAIL_RATE": "0.2"}),
            gin.build(client, "v4", {"DIE_AFTER": "6s"}),
        ]
        client.close()
        redis = Redis(folder / "redis")
        await redis.start()
        stage = Stage(folder, redis, mode)
        try:
            async with stage:
                await stage.push("api", images[0])
                await stage.ended("api-1")
                observer = Observer(stage, limit=60.0)
                async with Load(stage.url("api"), RATE, limit=minutes * 60 + 600) as load:
                    soak = Soak(stage, engine, redis, load, random.Random(seed), images)
                    async with observer:
                        try:
                            await soak.run(minutes)
                            with contextlib.suppress(AssertionError):
                                await observer.finish()
                        finally:
                            (Path("/tmp") / "soak-daemon.log").write_bytes(stage.log.read_bytes())
                events = await stage.events()
                outcomes = Counter(str(e.outcome) for e in events if isinstance(e, ReleaseEnded))
                return report(soak, observer, outcomes, f"{minutes:g} minutes, {mode}, seed {seed}")
        except BaseException:
            out.print_exception()
            raise
        finally:
            await redis.stop()


if __name__ == "__main__":
    for program in ("dockerd", "redis-server", "prometheus", "nginx"):
        subprocess.run(["which", program], check=True, stdout=subprocess.DEVNULL)
    minutes, mode, seed, *_ = [*sys.argv[1:], "", "", ""]
    chosen = int(seed) if seed else random.randrange(2**32)
    sys.exit(0 if asyncio.run(main(float(minutes or 30), mode or "reload", chosen)) else 1)
