"""The threads that wait for the Engine: calls about one service leave the others theirs."""

import asyncio
import threading
from typing import Any

import pytest

from orchestrator.ports.faults import Away
from orchestrator.rollout.desired import Wanted
from orchestrator.runtime.client import SHARE, DockerClient
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.network import Network
from tests.builders import release, template


@pytest.fixture
def client() -> DockerClient:
    client = DockerClient()
    client._client = SDK
    return client


class Sdk:
    def close(self) -> None:
        pass


SDK: Any = Sdk()


async def test_calls_of_one_service_that_hang_leave_threads_to_the_others(client: DockerClient) -> None:
    answer = threading.Event()
    for _ in range(5):
        hung = [client.call(lambda _: answer.wait(), 0.01, about="bad") for _ in range(10)]
        found = await asyncio.gather(*hung, return_exceptions=True)
        assert {type(f) for f in found} == {Away}
    assert await client.call(lambda _: "seen", 20.0, about="good") == "seen"
    answer.set()
    assert await client.call(lambda _: "seen", 20.0, about="bad") == "seen"
    client.close()


async def test_a_service_has_no_more_threads_at_once_than_its_share(client: DockerClient) -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def work(_: Any) -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        threading.Event().wait(0.005)
        with lock:
            busy -= 1

    await asyncio.gather(*(client.call(work, 20.0, about="api") for _ in range(3 * SHARE)))
    assert 0 < most <= SHARE
    client.close()


class Engine:
    """An Engine that creates no container of one service until it is told to."""

    def __init__(self) -> None:
        self.created: dict[str, str] = {}
        self.answer = threading.Event()
        self.api = self.containers = self.images = self

    def __call__(self, **_: Any) -> list[Any]:
        return []

    def create_endpoint_config(self, ipv4_address: str) -> str:
        return ipv4_address

    def create(self, _: str, **settings: Any) -> str:
        if "bad" in settings["name"]:
            self.answer.wait()
        (address,) = settings["networking_config"].values()
        self.created[settings["name"]] = str(address)
        return str(address)


async def test_a_container_whose_creation_hangs_keeps_no_other_from_its_address(client: DockerClient) -> None:
    runtime = DockerRuntime(client, Network("n", "10.9.0.0/24"), "o", lambda: 1)
    engine: Any = Engine()

    def create(service: str) -> asyncio.Future[Any]:
        made = release(1, service=service, id=f"{service}-1", template=template(user="1:1"))
        wanted = Wanted(name=f"{service}-1-0", release=made, index=0, create=True, restart=False)
        return asyncio.ensure_future(asyncio.to_thread(runtime._create, engine, wanted, ""))

    hung = create("bad")
    async with asyncio.timeout(20):
        while not runtime._given:
            await asyncio.sleep(0.01)
        await create("good")
    engine.answer.set()
    await hung
    assert len(set(engine.created.values())) == 2
    assert runtime._given == set()
    await runtime.close()
    client.close()
