"""`python -m bench.traffic.life [RELEASES] [NETWORK] [WAIT] [WAY …]`: requests lost over whole lives.

The real daemon with Redis, nginx, Prometheus, Docker and the Gin service releases one image after another:
start, steps, promotion, the end of `keep_previous`, the stop of the previous release, the removal of its
image. One release is aborted at a step, and one is rolled back after its promotion. Meanwhile clients of five
kinds (`bench.traffic.kinds`) count what they lose. WAY is `reload`, `dynamic` (weights by Lua) or `bare`: the
same steps, for fewer releases, by `nginx -s reload` and `docker stop`. NETWORK is `near`, or `far` for
clients behind one of 10 ms round trip, who know as late that the server has closed. WAIT is `closing_wait`.
"""

import asyncio
import contextlib
import functools
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import docker
from docker.models.containers import Container
from rich.console import Console
from rich.table import Table

from bench.handover import sh
from bench.traffic.kinds import CLOCK, KINDS, Lost
from examples.playground import gin
from examples.playground.lease import free_port
from examples.playground.service import service_file
from examples.playground.stack import NGINX, ROOT, Stack
from orchestrator.rollout.events import (
    CommandAccepted,
    Event,
    PhaseEntered,
    ReleaseEnded,
    ReleaseRetired,
    RouteChanged,
    RouteConfirmed,
)
from orchestrator.rollout.model import Outcome
from orchestrator.runtime.labels import RELEASE

out = Console(highlight=False, width=130)

RELEASES = 20
BARE = 5
"""Releases of the bare way, at the most."""

INSTANCES = 2
STEPS = (20, 60, 100)
HOLD = 1.0
KEEP = 2.0
"""Seconds for which the previous release stays warm."""

STREAMS_END = 5.0
"""Seconds after which no stream is under way that began before."""

DEADLINE = 180.0

WAIT = "1s"
"""`nginx/closing_wait`, as by default."""

POLICY = {
    "strategy": {
        "steps": list(STEPS),
        "first_hold": f"{HOLD:g}s",
        "hold": f"{HOLD:g}s",
        "bake": f"{HOLD:g}s",
        "min_requests": 10,
        "step_deadline": "100s",
    },
    "gates": [{"metric": "error_rate", "max": "5%", "for": "1s", "window": "8s", "min_requests": 10}],
    "deadlines": {"start": "60s", "drain": "30s", "confirm": "15s"},
    "keep_previous": f"{KEEP:g}s",
    "keep_images": 1,
}


@dataclass(slots=True)
class Told:
    """What clients heard in one way, and what happened meanwhile, by the wall clock."""

    sent: Counter[str] = field(default_factory=Counter)
    lost: list[Lost] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    summary: str = ""

    def moment(self, lost: Lost) -> tuple[str, float]:
        """The last thing that had happened before it was known to be lost, and how many seconds before."""
        at, what = max(((at, what) for at, what in self.marks if at <= lost.known), default=(lost.known, ""))
        return what, lost.known - at


@contextlib.asynccontextmanager
async def clients(port: int, told: Told, *, far: bool) -> AsyncIterator[None]:
    """Load while the block lasts, and a little longer."""
    relay = None
    if far:
        behind, port = port, free_port()
        way = ["bench.traffic.relay", str(port), f"127.0.0.1:{behind}", "5"]
        relay = subprocess.Popen([sys.executable, "-m", *way], cwd=ROOT)  # noqa: ASYNC220  returns at once
        await asyncio.sleep(2.0)
    what = [sys.executable, "-m", "bench.traffic.kinds", f"127.0.0.1:{port}"]
    load = subprocess.Popen(what, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    try:
        await asyncio.sleep(STREAMS_END)
        yield
        await asyncio.sleep(STREAMS_END)
    finally:
        load.terminate()
        said, _ = await asyncio.to_thread(load.communicate, timeout=60)
        if relay is not None:
            relay.kill()
            relay.wait()
    heard = json.loads(said)
    told.sent.update(heard["sent"])
    told.lost += [Lost(*one) for one in heard["lost"]]


@contextlib.contextmanager
def images(number: int) -> Iterator[list[str]]:
    """So many images of one good service, of which none has the digest of another."""
    client = docker.from_env()
    base, mark, made = gin.build(client, "v1"), uuid4().hex[:8], list[str]()
    try:
        for n in range(1, number + 1):
            text = f"FROM {base}\nLABEL life={mark}-{n}\n"
            made.append(f"{gin.REPOSITORY}:life-{mark}-{n}")
            client.images.build(fileobj=io.BytesIO(text.encode()), tag=made[-1], rm=True)
        yield made
    finally:
        for name in filter(functools.partial(gin.there, client), made):
            client.images.remove(name, force=True)
        client.close()


class Lives:
    """Of releases of one service, one after the other."""

    def __init__(self, stack: Stack, made: list[str]) -> None:
        self._stack, self._images = stack, made

    async def promoted(self, number: int) -> None:
        """From the request to the promotion."""
        await self._stack.push("api", self._images[number - 1])
        await self._ended(number, Outcome.PROMOTED)

    async def whole(self, number: int) -> None:
        """Until nothing is left of the release before."""
        await self.promoted(number)
        await self._alone()

    async def aborted(self, number: int) -> None:
        """Taken back at a step."""
        await self._stack.push("api", self._images[number - 1])

        async def stepping() -> bool:
            state = await self._stack.state()
            return state.confirmed == state.route.generation and state.route.share(f"api-{number}") > 0

        await self._stack.until(stepping, DEADLINE, f"api-{number} has traffic")
        await self._stack.push("api", verb="abort")
        await self._ended(number, Outcome.ABORTED)
        await self._alone()

    async def rolled_back(self, number: int) -> None:
        """Promoted, and taken back while the release before is warm."""
        await self.promoted(number)
        before = len((await self._stack.state()).history)
        await self._stack.push("api", verb="rollback")

        async def back() -> bool:
            return len((await self._stack.state()).history) > before

        await self._stack.until(back, DEADLINE, f"api-{number} is rolled back")
        await self._alone()

    async def _ended(self, number: int, outcome: Outcome) -> None:
        entry = await self._stack.ended(f"api-{number}", DEADLINE)
        assert entry.outcome is outcome, entry

    async def _alone(self) -> None:
        """Until the containers are stable's and no others."""

        async def alone() -> bool:
            state = await self._stack.state()
            found = await asyncio.to_thread(self._stack.containers)
            return state.stable is not None and {c.labels[RELEASE] for c in found} == {state.stable.id}

        await self._stack.until(alone, DEADLINE, "stable's containers are the only ones")


async def by_daemon(number: int, mode: str, wait: str, *, far: bool) -> Told:
    """The lives of so many releases."""
    told = Told()
    settings = {"nginx": {"closing_wait": wait, "mode": mode}}
    with images(number) as made:
        async with Stack(lambda port: {"api": service_file("api", port("api"), **POLICY)}, settings) as stack:
            lives = Lives(stack, made)
            await lives.promoted(1)
            began = time.monotonic()
            others = {number // 3: lives.aborted, number * 2 // 3: lives.rolled_back}
            async with clients(stack.ports["api"], told, far=far):
                for n in range(2, number + 1):
                    await others.get(n, lives.whole)(n)
            seconds = time.monotonic() - began
            history = (await stack.state()).history
            told.marks += [(event.at, words) for event in await stack.events() if (words := said_of(event))]
            removed = sum(not gin.there(stack.docker, name) for name in made)
    ends = Counter(entry.outcome.value if entry.kind == "release" else "taken back" for entry in history)
    ended = ", ".join(f"{n} {end}" for end, n in ends.items())
    told.summary = f"{ended}; {removed} of {number} images removed; {seconds:.0f} s"
    return told


def said_of(event: Event) -> str:
    """An event in a few words; empty for one that tells nothing of the life."""
    words = ""
    match event:
        case RouteChanged(generation=generation, shares=shares):
            words = f"generation {generation} is wanted: {', '.join(f'{r} {s:g} %' for r, s in shares)}"
        case RouteConfirmed(generation=generation):
            words = f"generation {generation} is confirmed"
        case PhaseEntered(release=release, phase=phase, weight=weight):
            words = f"{release} is {phase.value} at {weight} %"
        case ReleaseEnded(release=release, outcome=outcome):
            words = f"{release} has ended: {outcome.value}"
        case ReleaseRetired(release=release):
            words = f"{release} has retired, its containers are stopped"
        case CommandAccepted(verb=verb):
            words = f"{verb} is accepted"
    return words


class Script:
    """What a deploy script does: start, write weights, `nginx -s reload`, `docker stop`."""

    def __init__(self, root: Path, client: docker.DockerClient, told: Told) -> None:
        self._root, self._client, self._told = root, client, told
        self.port = free_port()
        self._containers: list[Container] = []
        self._network = client.networks.create(root.name)

    def _tell(self, what: str) -> None:
        self._told.marks.append((CLOCK.now(), what))

    async def start(self, image: str) -> list[Container]:
        """The containers of a release, once they are healthy."""
        started = [await asyncio.to_thread(self._run, image) for _ in range(INSTANCES)]
        self._containers += started
        for container in started:
            container.reload()
            async with asyncio.timeout(DEADLINE):
                while await _answer(f"http://{self._address(container)}/health") != "200":
                    await asyncio.sleep(0.1)
        return started

    def _run(self, image: str) -> Container:
        return self._client.containers.run(image, detach=True, network=self._network.name)

    def _address(self, container: Container) -> str:
        return f"{container.attrs['NetworkSettings']['Networks'][self._network.name]['IPAddress']}:8080"

    def write(self, weights: list[tuple[Container, int]]) -> None:
        """The upstream and its server block."""
        servers = " ".join(f"server {self._address(c)} weight={weight};" for c, weight in weights if weight)
        (self._root / "edge" / "api.conf").write_text(
            f"upstream api {{ {servers} keepalive 32; }}\n"
            f"server {{ listen 127.0.0.1:{self.port}; location / {{ proxy_http_version 1.1;"
            ' proxy_set_header Connection ""; proxy_pass http://api; } }\n'
        )

    async def nginx(self, *words: str) -> None:
        """Run it."""
        await sh("nginx", "-c", str(self._root / "nginx.conf"), *words)

    async def release(self, image: str, old: list[Container]) -> list[Container]:
        """By the same steps, with as long between them; returns the new containers."""
        new = await self.start(image)
        for step in STEPS:
            self.write([*((c, 100 - step) for c in old), *((c, step) for c in new)])
            await self.nginx("-s", "reload")
            self._tell(f"reload to {step} %")
            await asyncio.sleep(HOLD)
        await asyncio.sleep(KEEP)
        self._tell("docker stop")
        await sh("docker", "stop", "-t", "30", *(str(c.id) for c in old))
        return new

    def remove(self) -> None:
        """Leave nothing."""
        for container in self._containers:
            container.remove(force=True)
        self._network.remove()


async def by_script(number: int, *, far: bool) -> Told:
    """The same for so many releases, all of them promoted."""
    told, client = Told(), docker.from_env()
    with images(number) as made, tempfile.TemporaryDirectory(prefix="bench-life-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "edge").mkdir()
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o777)
        (root / "nginx.conf").write_text(NGINX.format(root=root, extra=""))
        script = Script(root, client, told)
        try:
            running = await script.start(made[0])
            script.write([(c, 1) for c in running])
            await script.nginx()
            began = time.monotonic()
            async with clients(script.port, told, far=far):
                for image in made[1:]:
                    running = await script.release(image, running)
            told.summary = f"{number} promoted; {time.monotonic() - began:.0f} s"
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                await script.nginx("-s", "stop")
            script.remove()
            client.close()
    return told


async def _answer(url: str) -> str:
    with contextlib.suppress(subprocess.CalledProcessError):
        return await sh("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url)
    return ""


WAYS = {
    "reload": "this daemon, weights by a reload",
    "dynamic": "this daemon, weights by Lua",
    "bare": "nginx -s reload, docker stop",
}


async def main(number: int, network: str, wait: str, ways: list[str]) -> None:
    """Print the table, and when in the lives requests were lost."""
    shares, far = ", ".join(map(str, STEPS)), network == "far"
    where = "behind a network of 10 ms" if far else "near"
    table = Table(title=f"{number} releases by {shares} %, closing_wait {wait}, clients {where}")
    for column in ("way", "clients", "requests", "lost", "what was lost"):
        table.add_column(column, justify="right" if column in ("requests", "lost") else "left")
    moments = Table(title="when they were lost")
    for column in ("way", "lost", "clients", "seconds after", "what had happened"):
        moments.add_column(column, justify="right" if column in ("lost", "seconds after") else "left")
    for way in ways:
        if way == "bare":
            told = await by_script(min(number, BARE), far=far)
        else:
            told = await by_daemon(number, way, wait, far=far)
        out.print(f"{WAYS[way]}: {told.summary}")
        for kind in KINDS:
            lost = [one for one in told.lost if one.kind == kind]
            why = ", ".join(f"{n} {reason}" for reason, n in Counter(one.why for one in lost).items())
            table.add_row(WAYS[way], kind, str(told.sent[kind]), str(len(lost)), why)
            by_moment: dict[str, list[float]] = {}
            for what, after in map(told.moment, lost):
                by_moment.setdefault(what, []).append(after)
            for what, seconds in by_moment.items():
                span = f"{min(seconds):.2f} to {max(seconds):.2f}"
                moments.add_row(WAYS[way], str(len(seconds)), kind, span, what)
    out.print(table)
    if moments.row_count:
        out.print(moments)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    count = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else RELEASES
    place = arguments.pop(0) if arguments and arguments[0] in ("near", "far") else "near"
    pause = arguments.pop(0) if arguments and arguments[0][0].isdigit() else WAIT
    asyncio.run(main(count, place, pause, arguments or list(WAYS)))
