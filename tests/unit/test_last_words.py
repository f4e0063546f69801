"""A look and the logs of what it sees dead: none waits for them, and none of them is lost."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from orchestrator.ports.faults import Away
from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.observation import Instance
from orchestrator.runtime import docker_runtime, last_words
from orchestrator.runtime.client import SHARE, DockerClient
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.labels import labels
from orchestrator.runtime.last_words import TRIES, LastWords
from orchestrator.runtime.network import Network
from tests.builders import release, template

I4 = 3.0
"""Seconds until a dead instance has no traffic."""


class Engine:
    """An Engine with dead containers of `api`, whose logs are what a test makes of them."""

    def __init__(self, dead: int) -> None:
        self.api, self.dead, self.asked = self, dead, dict[str, int]()
        self.together = threading.Barrier(1)
        self.log: Callable[[int], bytes] = lambda _: b""
        self.state: dict[str, Any] = {"Running": False, "Status": "exited", "ExitCode": 137}

    def containers(self, **_: Any) -> list[dict[str, str]]:
        return [{"Id": f"id{index}"} for index in range(self.dead)]

    def inspect_container(self, container: str) -> dict[str, Any]:
        self.together.wait(20)
        index = int(container[2:])
        made = release(1, template=template(instances=self.dead))
        wanted = Wanted(name=f"api-1-{index}", release=made, index=index, create=True, restart=False)
        return {
            "Id": container,
            "Name": f"/o-{wanted.name}",
            "Config": {"Labels": labels(wanted, "o", 1)},
            "State": {"StartedAt": "t", "Restarting": False, **self.state},
            "NetworkSettings": {"Networks": {}},
            "HostConfig": {"RestartPolicy": {"Name": "no"}},
        }

    def logs(self, container: str, **_: Any) -> bytes:
        self.asked[container] = asked = self.asked.get(container, 0) + 1
        return self.log(asked)

    def close(self) -> None:
        pass


@pytest.fixture
async def look(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[Engine], Any]]:
    """Looks at an Engine, again and again."""
    monkeypatch.setattr(last_words, "PAUSE", 0.01)
    client = DockerClient()
    runtime = DockerRuntime(client, Network("n", "10.9.0.0/24"), "o", lambda: 1)

    async def found(engine: Any) -> tuple[Instance, ...]:
        client._client = engine
        return await runtime.observe("api")

    yield found
    await runtime.close()
    client.close()


async def until(look: Callable[[], Any], seen: Callable[[tuple[Instance, ...]], bool]) -> None:
    async with asyncio.timeout(20):
        while not seen(await look()):
            await asyncio.sleep(0.01)


async def test_deaths_are_seen_in_time_while_no_log_is_to_be_had(look: Callable[[Engine], Any]) -> None:
    engine, answer = Engine(dead=6), threading.Event()
    engine.log = lambda _: bytes(answer.wait(20))
    async with asyncio.timeout(I4):
        found = await look(engine)
    assert [(i.running, i.exit_code, i.logs) for i in found] == [(False, 137, "")] * 6
    answer.set()


async def test_containers_are_inspected_at_the_same_time(look: Callable[[Engine], Any]) -> None:
    engine = Engine(dead=2 * SHARE)
    engine.together = threading.Barrier(SHARE)
    assert len(await look(engine)) == 2 * SHARE


async def test_a_container_that_is_not_inspected_in_time_ends_the_look(
    look: Callable[[Engine], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_runtime, "LOOK_DEADLINE", 0.2)
    engine = Engine(dead=1)
    engine.together = threading.Barrier(2)
    with pytest.raises(Away, match="Docker did not answer within"):
        await look(engine)
    engine.together.abort()


async def test_a_look_waits_once_for_the_log_of_a_death(
    look: Callable[[Engine], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, answer = Engine(dead=2), threading.Event()
    engine.log = lambda _: b"goodbye" if answer.wait(20) else b""
    await look(engine)
    monkeypatch.setattr(last_words, "PATIENCE", 1000.0)
    async with asyncio.timeout(20):
        await look(engine)
    answer.set()
    await until(lambda: look(engine), lambda found: [i.logs for i in found] == ["goodbye"] * 2)


async def test_the_look_that_sees_a_death_has_its_last_words(look: Callable[[Engine], Any]) -> None:
    engine = Engine(dead=4)
    engine.log = lambda _: b"goodbye\n"
    assert [i.logs for i in await look(engine)] == ["goodbye\n"] * 4
    assert [i.logs for i in await look(engine)] == ["goodbye\n"] * 4
    assert set(engine.asked.values()) == {1}


async def test_a_log_that_is_written_after_the_exit_is_seen(look: Callable[[Engine], Any]) -> None:
    engine = Engine(dead=1)
    engine.log = lambda asked: b"late words" if asked == TRIES else b""
    await until(lambda: look(engine), lambda found: found[0].logs == "late words")
    assert set(engine.asked.values()) == {TRIES}


async def test_a_death_without_words_is_asked_for_them_a_few_times_and_never_again(
    look: Callable[[Engine], Any],
) -> None:
    engine = Engine(dead=3)
    await until(lambda: look(engine), lambda _: min(engine.asked.values(), default=0) >= TRIES)
    for _ in range(5):
        await look(engine)
    assert set(engine.asked.values()) == {TRIES}


async def test_what_was_said_while_it_ran_is_not_taken_for_the_last_words(
    look: Callable[[Engine], Any],
) -> None:
    engine = Engine(dead=1)
    engine.state = {"Running": True, "Status": "running", "ExitCode": 0}
    engine.log = lambda _: b"listening"
    assert [i.logs for i in await look(engine)] == ["listening"]
    engine.state = {"Running": False, "Status": "exited", "ExitCode": 3}
    engine.log = lambda _: b"listening\ngoodbye"
    assert [i.logs for i in await look(engine)] == ["listening\ngoodbye"]


async def test_what_was_well_in_between_is_read_anew(look: Callable[[Engine], Any]) -> None:
    client, engine = DockerClient(), Engine(dead=1)
    client._client = cast("Any", engine)
    engine.log = lambda asked: f"trouble {asked}".encode()
    (instance,) = await look(engine)
    words = LastWords(client)
    assert await words.of("api", instance) == "trouble 2"
    words.keep("web", [])
    assert await words.of("api", instance) == "trouble 2"
    words.keep("api", [])
    assert await words.of("api", instance) == "trouble 3"
    await words.close()
    client.close()


async def test_the_look_that_finds_it_unhealthy_has_what_it_said_until_then(
    look: Callable[[Engine], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, engine, slow = DockerClient(), Engine(dead=1), threading.Event()
    engine.state = {"Running": True, "Status": "running", "ExitCode": 0}
    client._client = cast("Any", engine)
    engine.log = lambda _: b""
    (instance,) = await look(engine)
    words = LastWords(client)
    assert await words.of("api", instance) == ""
    engine.log = lambda _: b"no database"
    assert await words.of("api", replace(instance, health="unhealthy")) == "no database"
    words.keep("api", [])
    engine.log = lambda _: b"listening"
    assert await words.of("api", instance) == "listening"
    engine.log = lambda _: b"no database" if slow.wait(20) else b""
    monkeypatch.setattr(last_words, "PATIENCE", 0.01)
    assert await words.of("api", replace(instance, health="unhealthy")) == "listening"
    slow.set()
    await words.close()
    client.close()


async def test_the_log_of_what_is_only_created_is_not_asked_for(look: Callable[[Engine], Any]) -> None:
    engine = Engine(dead=1)
    engine.state = {"Running": False, "Status": "created", "ExitCode": 0}
    assert [i.logs for i in await look(engine)] == [""]
    assert engine.asked == {}
