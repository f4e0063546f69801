"""Probes of instances that answer late or never: the look goes on, and each answer counts once."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.rollout.policy import Probe
from orchestrator.runtime import probe as module
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.last_words import LastWords
from orchestrator.runtime.probe import Prober


class Slow:
    """A server that answers 200 once it is let to."""

    def __init__(self) -> None:
        self.asked, self.answer, self.address = 0, asyncio.Event(), ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await reader.readuntil(b"\r\n\r\n")
        await self.answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    found = Slow()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    found.address = f"{host}:{port}"
    yield found
    found.answer.set()
    server.close()
    await asyncio.sleep(0.05)


@pytest.fixture
async def prober(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Prober]:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    found = Prober()
    yield found
    await found.close()


async def test_a_look_does_not_wait_as_long_as_a_probe_may_take(prober: Prober, slow: Slow) -> None:
    patient = Probe(timeout=60.0, successes=1)
    async with asyncio.timeout(20):
        for _ in range(3):
            assert await prober.probe("c", "t", slow.address, patient) == ("unknown", "")
        assert slow.asked == 1
        slow.answer.set()
        while (await prober.probe("c", "t", slow.address, patient))[0] != "ready":
            pass


async def test_a_probe_that_times_out_between_looks_counts_as_one_failure(prober: Prober, slow: Slow) -> None:
    short = Probe(timeout=0.2, failures=2)
    said, looks = "", 0
    async with asyncio.timeout(20):
        while not said:
            health, said = await prober.probe("c", "t", slow.address, short)
            looks += 1
    assert (health, slow.asked) == ("unknown", 1)
    assert looks > 1
    assert said == f"no answer from {slow.address} within 0.2 s"


async def test_probes_of_processes_that_are_gone_are_given_up(prober: Prober, slow: Slow) -> None:
    await prober.probe("c", "t", slow.address, Probe(timeout=60.0))
    prober.forget({("another", "t"), ("c", "another start")})
    assert not slow.answer.is_set()
    assert [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("probe")] != []
    prober.forget({("c", "t")})
    await asyncio.sleep(0)
    assert [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("probe")] == []


async def test_however_often_somebody_looks_probes_in_a_row_are_apart(slow: Slow) -> None:
    slow.answer.set()
    prober, probe = Prober(every=0.2), Probe(successes=3)
    loop = asyncio.get_running_loop()
    began, health = loop.time(), ""
    async with asyncio.timeout(20):
        while health != "ready":
            health, _ = await prober.probe("c", "t", slow.address, probe)
            assert slow.asked <= 1 + (loop.time() - began) / 0.2
            await asyncio.sleep(0.01)
    assert slow.asked == 3
    await prober.probe("c", "another start", slow.address, probe)
    assert slow.asked == 4
    await prober.close()


async def test_a_look_at_one_service_gives_no_probe_of_another_up(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_client: Any = None
    network: Any = SimpleNamespace(name="net")
    runtime = DockerRuntime(no_client, network, "t", lambda: 1)
    host, port = slow.address.split(":")
    attrs = {
        "Id": "c",
        "NetworkSettings": {"Networks": {"net": {"IPAddress": host}}},
        "State": {"Running": True, "StartedAt": "t", "Status": "running", "ExitCode": 0},
        "HostConfig": {"RestartPolicy": {"Name": "no"}},
    }
    identity = SimpleNamespace(
        instance="api-1-0", release="api-1", port=port, probe=Probe(timeout=60.0, successes=1), described=None
    )

    async def inspected(_: DockerRuntime, service: str) -> list[Any]:
        return [(identity, attrs)] if service == "api" else []

    async def silent(_: LastWords, __: str, ___: Any) -> str:
        return ""

    monkeypatch.setattr(DockerRuntime, "_inspected", inspected)
    monkeypatch.setattr(LastWords, "of", silent)
    monkeypatch.setattr(LastWords, "keep", lambda *_: None)
    look = asyncio.create_task(runtime.observe("api"))
    while not slow.asked:
        await asyncio.sleep(0)
    assert await runtime.observe("web") == ()
    slow.answer.set()
    assert [i.health for i in await look] == ["ready"]
    await runtime._prober.close()
