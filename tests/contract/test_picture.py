"""What is kept of a real Engine's containers: nothing that has changed, nothing while it is silent."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import docker
import pytest

from examples.playground.lease import free_subnet
from orchestrator.ports.faults import Away
from orchestrator.rollout.observation import Instance
from orchestrator.runtime import docker_events, docker_runtime
from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.docker_events import DockerEvents
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.labels import OWNER
from orchestrator.runtime.network import Network
from tests.conftest import Images
from tests.contract.test_runtime import want

ENGINE = "/var/run/docker.sock"


class Wire:
    """Everything between the daemon and the Engine; it can be held up, and cut."""

    def __init__(self) -> None:
        self.goes = asyncio.Event()
        self.goes.set()
        self.tells = asyncio.Event()
        self.tells.set()
        self.asked: list[str] = []
        self._carrying: set[asyncio.Task[None]] = set()

    def take(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._carrying.add(asyncio.get_running_loop().create_task(self.carry(here, back)))

    async def carry(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_unix_connection(ENGINE)
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(self._copy(here, onward, self.asked), self._copy(there, back, []))
        finally:
            back.close()
            onward.close()

    async def _copy(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, asked: list[str]) -> None:
        while data := await source.read(65536):
            await self.goes.wait()
            if b"/events?" in data.split(b"\r\n", 1)[0]:
                await self.tells.wait()
            asked.append(data.split(b"\r\n", 1)[0].decode(errors="replace"))
            to.write(data)
            await to.drain()
        to.close()

    async def cut(self) -> None:
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        self._carrying.clear()


class Host:
    """A runtime behind a wire, with one instance that runs."""

    def __init__(self, wire: Wire, runtime: DockerRuntime, engine: docker.DockerClient, owner: str) -> None:
        self.wire, self.runtime, self.owner = wire, runtime, owner
        self.engine = engine
        self.woken = asyncio.Event()

    @property
    def container(self) -> Any:
        return self.engine.containers.get(f"{self.owner}-api-1-0")

    async def look(self) -> Instance | None:
        """The instance, as the next look shows it."""
        return next((i for i in await self.runtime.observe("api") if i.name == "api-1-0"), None)

    async def becomes(self, expected: Callable[[Instance | None], bool]) -> None:
        async with asyncio.timeout(10):
            while not expected(await self.look()):
                await asyncio.sleep(0.05)

    async def is_kept(self) -> None:
        """Until looks ask the Engine for nothing."""
        async with asyncio.timeout(10):
            while self.runtime.picture.of("api") is None:
                await self.look()
                await asyncio.sleep(0.05)


@pytest.fixture
async def host(
    docker_client: docker.DockerClient, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Host]:
    monkeypatch.setattr(docker_events, "EVERY", 0.3)
    monkeypatch.setattr(docker_events, "LIST_DEADLINE", 1.0)
    monkeypatch.setattr(docker_runtime, "LOOK_DEADLINE", 1.0)
    wire, owner = Wire(), f"c{random.randrange(16**8):08x}"
    server = await asyncio.start_unix_server(wire.take, tmp_path / "engine")
    client = DockerClient(f"unix://{tmp_path}/engine")
    network = Network(owner, free_subnet(docker_client))
    runtime = DockerRuntime(client, network, owner, lambda: 1)
    await runtime.prepare()
    found = Host(wire, runtime, docker_client, owner)

    async def listen() -> None:
        async for _ in DockerEvents(client, owner, runtime.picture).changes():
            found.woken.set()

    listening = asyncio.create_task(listen())
    await runtime.start(want((await runtime.resolve(images("v1"))).digest))
    await found.becomes(lambda i: i is not None and i.health == "ready")
    await found.is_kept()
    yield found
    wire.goes.set()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    for container in docker_client.containers.list(all=True, filters={"label": f"{OWNER}={owner}"}):
        container.remove(force=True)
    docker_client.networks.get(owner).remove()
    await runtime.close()
    client.close()
    server.close()
    await wire.cut()


async def test_a_look_asks_the_engine_for_nothing_while_nothing_has_changed(host: Host) -> None:
    inspected = sum("/json" in line and "/containers/json" not in line for line in host.wire.asked)
    before = await host.look()
    for _ in range(50):
        assert await host.look() == before
        await asyncio.sleep(0.02)
    after = sum("/json" in line and "/containers/json" not in line for line in host.wire.asked)
    assert after == inspected


CHANGES: dict[str, tuple[Callable[[Host], object], Callable[[Instance | None], bool]]] = {
    "killed": (lambda h: h.container.kill(), lambda i: i is not None and i.exit_code == 137),
    "restarted": (lambda h: h.container.restart(timeout=0), lambda i: i is not None and i.running),
    "supervised": (
        lambda h: h.container.update(restart_policy={"Name": "unless-stopped", "MaximumRetryCount": 0}),
        lambda i: i is not None and i.supervised,
    ),
    "removed": (lambda h: h.container.remove(force=True), lambda i: i is None),
    "paused": (lambda h: h.container.pause(), lambda i: i is not None and i.health != "ready"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_changes_wakes_and_is_seen_by_the_next_look(
    host: Host, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(docker_events, "EVERY", 1000.0)
    await asyncio.sleep(0.5)  # what was to be compared has been
    before = await host.look()
    assert before is not None
    act, expected = CHANGES[change]
    await asyncio.to_thread(act, host)
    async with asyncio.timeout(5):
        while host.runtime.picture.of("api") is not None:
            await asyncio.sleep(0.01)
        await host.becomes(lambda i: expected(i) and i != before)


async def test_a_change_without_an_event_of_the_container_is_found_by_the_list(host: Host) -> None:
    host.woken.clear()
    network = host.engine.networks.get(host.owner)
    await asyncio.to_thread(network.disconnect, host.container)
    async with asyncio.timeout(5):
        await host.woken.wait()
    await host.becomes(lambda i: i is not None and not i.address)


async def test_while_the_engine_is_silent_nothing_is_seen(host: Host) -> None:
    host.wire.goes.clear()
    async with asyncio.timeout(10):
        while not isinstance((await asyncio.gather(host.look(), return_exceptions=True))[0], Away):
            await asyncio.sleep(0.05)
    host.wire.goes.set()
    await host.becomes(lambda i: i is not None and i.health == "ready")
    await host.is_kept()


async def test_what_happens_while_no_event_can_come_is_seen_at_once(host: Host) -> None:
    host.wire.tells.clear()
    await host.wire.cut()
    async with asyncio.timeout(5):
        while host.runtime.picture.of("api") is not None:
            await asyncio.sleep(0.01)
    await host.becomes(lambda i: i is not None and i.health == "ready")
    await asyncio.to_thread(host.container.kill)
    seen = await host.look()
    assert seen is not None
    assert not seen.running
    host.wire.tells.set()
    await host.is_kept()
    await asyncio.to_thread(host.container.start)
    await host.becomes(lambda i: i is not None and i.running)
