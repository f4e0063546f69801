"""What is under way when an instance is let go: it ends by itself, or at the drain deadline."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import docker
import pytest

from examples.playground.load import Load
from examples.playground.stack import Stack
from orchestrator.rollout.model import Outcome
from orchestrator.runtime.labels import RELEASE
from tests.conftest import Images, Stacks

PART = 64 * 1024
QUICK = {"steps": [50, 100], "first_hold": "1s", "hold": "1s", "bake": "1s", "min_requests": 0}


@dataclass
class Stream:
    """One answer that takes its time."""

    release: str = ""
    received: int = 0
    parts: int = 0
    cut: bool = False
    ended: float = 0.0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, url: str) -> None:
        began = time.monotonic()
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=90)) as session,
                session.get(url) as answer,
            ):
                self.release = answer.headers["X-Release"]
                self.begun.set()
                async for data in answer.content.iter_any():
                    self.received += len(data)
                    self.parts += data.count(b"\n\n")
        except aiohttp.ClientError:
            self.cut = True
        self.ended = time.monotonic() - began


class Log:
    """What the containers of a release write, to their ends."""

    def __init__(self, client: docker.DockerClient, s: Stack, release: str) -> None:
        self._streams: list[Iterator[bytes]] = [
            c.logs(stream=True, follow=True) for c in s.containers() if c.labels[RELEASE] == release
        ]

    async def text(self) -> str:
        """All of it, once they have ended."""
        async with asyncio.timeout(60):
            parts = await asyncio.gather(
                *(asyncio.to_thread(lambda s=s: b"".join(s)) for s in self._streams)  # type: ignore[misc]
            )
        return b"".join(parts).decode()


async def only(s: Stack, release: str) -> None:
    async def look() -> bool:
        return {c.labels[RELEASE] for c in s.containers()} == {release}

    await s.until(look, 60, f"only {release} runs")


@pytest.mark.parametrize("mode", ["reload", "dynamic"])
async def test_what_is_under_way_ends_before_its_instance_is_stopped(
    stack: Stacks, images: Images, docker_client: docker.DockerClient, mode: str
) -> None:
    s = await stack(
        {"nginx": {"mode": mode}}, gates=[], strategy=QUICK, keep_previous="1s", deadlines={"drain": "30s"}
    )
    await s.push("api", images("v1"))
    await s.ended("api-1")
    log = Log(docker_client, s, "api-1")
    assert log._streams
    events, download = Stream(), Stream()
    reading = [
        asyncio.create_task(events.read(s.url("api", "/events?parts=240"))),
        asyncio.create_task(download.read(s.url("api", "/download?parts=240"))),
    ]
    await events.begun.wait()
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
        assert not any(task.done() for task in reading)
        await asyncio.gather(*reading)
        await only(s, "api-2")
    assert (events.release, events.parts, events.cut) == ("api-1", 240, False)
    assert (download.release, download.received, download.cut) == ("api-1", 240 * PART, False)
    assert load.seen.failed == 0, load.seen
    assert "asked after SIGTERM" not in await log.text()


@pytest.mark.parametrize("mode", ["reload", "dynamic"])
async def test_what_does_not_end_is_cut_at_the_drain_deadline(
    stack: Stacks, images: Images, mode: str
) -> None:
    s = await stack(
        {"nginx": {"mode": mode}},
        gates=[],
        strategy=QUICK,
        keep_previous="1s",
        deadlines={"drain": "3s"},
        container={"port": 8080, "memory": "64MiB", "stop_grace": "2s", "probe": {"successes": 2}},
    )
    await s.push("api", images("v1"))
    await s.ended("api-1")
    events = Stream()
    reading = asyncio.create_task(events.read(s.url("api", "/events?parts=1200")))
    await events.begun.wait()
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        promoted = await s.ended("api-2")
        before = events.parts
        await only(s, "api-2")
        await reading
    assert promoted.outcome is Outcome.PROMOTED
    assert before < events.parts < 1200
    assert events.parts - before >= 50, "it had 1 s of keeping and 3 s of draining"
    assert load.seen.failed == 0, load.seen
