"""`ports.Runtime`: the fake, Docker and the double of its API pass one suite."""

import asyncio
import contextlib
import gc
import io
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from examples.playground.lease import free_subnet
from orchestrator.ports.faults import Fault, Stale
from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.observation import Instance
from orchestrator.rollout.policy import Probe
from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.docker_events import DockerEvents
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.labels import OWNER, labels
from orchestrator.runtime.network import Network
from tests.builders import release, template
from tests.conftest import Images
from tests.contract.fakes import FakeRuntime
from tests.doubles.engine import double


@pytest.fixture(params=["fake", "docker", "double"])
async def kit(
    request: pytest.FixtureRequest, docker_client: docker.DockerClient, images: Images, tmp_path: Path
) -> AsyncIterator[Any]:
    """(runtime, an image that is there, a function that kills an instance)."""
    if request.param == "fake":
        fake = FakeRuntime()

        def die(name: str) -> None:
            fake.containers[name] = replace(fake.containers[name], running=False, exit_code=137)

        yield fake, "repo/api:1", die
        return
    owner = f"c{random.randrange(16**8):08x}"
    subnet = free_subnet(docker_client)
    if request.param == "double":
        loopback = f"127.{subnet.partition('.')[2]}"
        async with (
            double(tmp_path / "docker.sock", "gin-api:v1") as url,
            driven(url, owner, loopback) as runtime,
        ):
            engine = docker.DockerClient(url)
            yield runtime, "gin-api:v1", lambda name: engine.containers.get(f"{owner}-{name}").kill()
            engine.close()
        return
    async with driven("", owner, subnet) as runtime:
        yield runtime, images("v1"), lambda name: docker_client.containers.get(f"{owner}-{name}").kill()
    for container in docker_client.containers.list(all=True, filters={"label": f"{OWNER}={owner}"}):
        container.remove(force=True)
    docker_client.networks.get(owner).remove()
    for volume in docker_client.volumes.list(filters={"label": f"{OWNER}={owner}"}):
        volume.remove()


@contextlib.asynccontextmanager
async def driven(url: str, owner: str, subnet: str) -> AsyncIterator[DockerRuntime]:
    """A runtime that hears of its Engine's events."""
    client = DockerClient(url)
    runtime = DockerRuntime(client, Network(owner, subnet), owner, lambda: 1)
    await runtime.prepare()

    async def listen() -> None:
        async for _ in DockerEvents(client, owner, runtime.picture).changes():
            pass

    listening = asyncio.create_task(listen())
    yield runtime
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await runtime.close()
    client.close()


def want(digest: str, index: int = 0, **changes: Any) -> Wanted:
    found = release(1, digest=digest, template=template(memory=64 * 1024**2, probe=Probe(successes=2)))
    fields = {"name": f"api-1-{index}", "release": found, "index": index, "create": True, "restart": False}
    return Wanted(**{**fields, **changes})


async def seen(runtime: Any, name: str, **expected: object) -> Instance:
    """Look until the instance is as expected."""
    async with asyncio.timeout(15):
        while True:
            found = {i.name: i for i in await runtime.observe("api")}
            instance: Instance | None = found.get(name)
            if instance and all(getattr(instance, k) == v for k, v in expected.items()):
                return instance
            await asyncio.sleep(0.1)


async def test_an_image_is_resolved_or_the_answer_says_why_not(kit: Any) -> None:
    runtime, image, _ = kit
    assert (await runtime.resolve(image)).digest.startswith("sha256:")
    missing = await runtime.resolve("no-such-image:1")
    assert missing.digest == ""
    assert missing.error


async def test_an_instance_gets_ready_after_enough_probes_and_starting_again_changes_nothing(
    kit: Any,
) -> None:
    runtime, image, _ = kit
    digest = (await runtime.resolve(image)).digest
    await runtime.start(want(digest))
    first = await runtime.observe("api")
    assert [i.health for i in first] == ["unknown"]
    ready = await seen(runtime, "api-1-0", health="ready", running=True)
    assert ready.release == "api-1"
    assert ready.address.endswith(":8080")
    await runtime.start(want(digest))
    again = await seen(runtime, "api-1-0", health="ready")
    assert (again.container, again.started_at) == (ready.container, ready.started_at)


async def test_cpu_seconds_grow_and_are_those_of_running_instances(kit: Any) -> None:
    runtime, image, die = kit
    digest = (await runtime.resolve(image)).digest
    await runtime.start(want(digest))
    await seen(runtime, "api-1-0", health="ready", running=True)
    began, first = (await runtime.cpu_seconds("api"))["api-1-0"]
    later, again = (await runtime.cpu_seconds("api"))["api-1-0"]
    assert 0 <= first <= again
    assert began <= later
    die("api-1-0")
    await seen(runtime, "api-1-0", running=False)
    assert await runtime.cpu_seconds("api") == {}


async def test_a_dead_instance_is_seen_and_replaced_by_a_new_process(kit: Any) -> None:
    runtime, image, die = kit
    digest = (await runtime.resolve(image)).digest
    await runtime.start(want(digest))
    old = await seen(runtime, "api-1-0", health="ready")
    die("api-1-0")
    dead = await seen(runtime, "api-1-0", running=False)
    assert dead.exit_code == 137
    await runtime.start(want(digest))
    new = await seen(runtime, "api-1-0", health="ready", running=True)
    assert new.container != old.container


async def test_two_instances_have_two_addresses(kit: Any) -> None:
    runtime, image, _ = kit
    digest = (await runtime.resolve(image)).digest
    await asyncio.gather(runtime.start(want(digest)), runtime.start(want(digest, 1)))
    one, two = await seen(runtime, "api-1-0", running=True), await seen(runtime, "api-1-1", running=True)
    assert one.address != two.address


async def test_stable_instances_are_supervised(kit: Any) -> None:
    runtime, image, _ = kit
    await runtime.start(want((await runtime.resolve(image)).digest))
    assert not (await seen(runtime, "api-1-0", running=True)).supervised
    await runtime.supervise("api-1-0")
    assert (await seen(runtime, "api-1-0", running=True)).supervised


async def test_stopping_removes_and_may_be_said_twice(kit: Any) -> None:
    runtime, image, _ = kit
    await runtime.start(want((await runtime.resolve(image)).digest))
    await runtime.stop("api-1-0")
    await runtime.stop("api-1-0")
    assert await runtime.observe("api") == ()


async def test_another_services_instances_are_not_shown(kit: Any) -> None:
    runtime, image, _ = kit
    await runtime.start(want((await runtime.resolve(image)).digest))
    assert await runtime.observe("web") == ()


async def test_removing_an_image_that_is_not_there_is_no_fault(kit: Any) -> None:
    runtime, _, _ = kit
    await runtime.remove_images(["sha256:" + "0" * 64])
    assert await runtime.observe("api") == ()


@pytest.mark.parametrize("kit", ["docker"], indirect=True)
async def test_the_environment_comes_from_the_file_then_the_template(
    kit: Any, docker_client: docker.DockerClient, tmp_path: Path
) -> None:
    runtime, image, _ = kit
    digest = (await runtime.resolve(image)).digest
    file = tmp_path / "api.env"
    file.write_text("# a comment\nA=from file\nB=from file\n\nexport C='quoted'\n")
    wanted = want(digest)
    settings = replace(wanted.release.template, env=(("B", "from template"),), env_file=str(file))
    await runtime.start(replace(wanted, release=replace(wanted.release, template=settings)))
    seen_instance = await seen(runtime, "api-1-0", running=True)
    env = docker_client.containers.get(seen_instance.container).attrs["Config"]["Env"]
    assert {"A=from file", "B=from template", "C=quoted", "RELEASE=api-1", "SERVICE=api"} <= set(env)
    another = want(digest, 1, release=replace(wanted.release, template=settings))
    file.write_text("A=1\nnot a pair\n")
    with pytest.raises(Fault, match=r"env_file .*api.env: line 2: there is no '='"):
        await runtime.start(another)
    file.unlink()
    with pytest.raises(Fault, match=r"env_file .*api.env: No such file"):
        await runtime.start(another)


@pytest.mark.parametrize("kit", ["docker", "double"], indirect=True)
async def test_a_tcp_probe_wants_a_connection_and_a_wrong_path_says_what_it_got(kit: Any) -> None:
    runtime, image, _ = kit
    digest = (await runtime.resolve(image)).digest
    tcp = replace(want(digest).release.template, probe=Probe(kind="tcp", successes=2))
    await runtime.start(want(digest, release=replace(want(digest).release, template=tcp)))
    await seen(runtime, "api-1-0", health="ready")
    wrong = replace(tcp, probe=Probe(path="/nowhere", failures=2))
    await runtime.start(want(digest, 1, release=replace(want(digest).release, template=wrong)))
    unhealthy = await seen(runtime, "api-1-1", health="unhealthy")
    assert unhealthy.detail == "/nowhere answers 404"
    assert "listens on :8080" in unhealthy.logs


@pytest.mark.parametrize("kit", ["docker", "double"], indirect=True)
async def test_whatever_an_older_daemon_wants_is_refused(kit: Any) -> None:
    runtime, image, die = kit
    digest = (await runtime.resolve(image)).digest
    runtime._token = lambda: 7
    await runtime.start(want(digest))
    die("api-1-0")
    assert await runtime.highest_token() == 7
    runtime._token = lambda: 6
    for refused in (
        runtime.start(want(digest)),
        runtime.supervise("api-1-0"),
        runtime.stop("api-1-0"),
        runtime.remove_images([digest]),
        runtime.prepare(),
    ):
        with pytest.raises(Stale, match="seen token 7; token 6 is refused"):
            await refused
    runtime._token = lambda: 8
    await runtime.stop("api-1-0")
    assert await runtime.highest_token() == 8


async def test_a_container_tells_its_release(kit: Any) -> None:
    runtime, image, _ = kit
    digest = (await runtime.resolve(image)).digest
    await runtime.start(want(digest))
    assert (await seen(runtime, "api-1-0", running=True)).described == want(digest).release
    await runtime.start(want(digest))
    other = replace(want(digest).release, author="somebody else")
    with pytest.raises(Fault, match="runs already"):
        await runtime.start(want(digest, release=other))


def test_addresses_go_round_and_never_leave_the_static_half() -> None:
    network = Network("n", "10.9.0.0/28")
    given = [network.free([]) for _ in range(8)]
    assert given[:5] == ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]
    assert given[5] == "10.9.0.2"
    assert network.free(["10.9.0.5"], preferred="10.9.0.4") == "10.9.0.4"
    with pytest.raises(Fault, match=r"choose a larger docker\.subnet"):
        network.free(given)


@pytest.mark.parametrize("kit", ["docker", "double"], indirect=True)
async def test_a_network_with_another_subnet_is_refused(kit: Any) -> None:
    runtime, _, _ = kit
    runtime._network = Network(runtime._network.name, "10.9.0.0/24")
    with pytest.raises(Fault, match=r"not 10.9.0.0/24: set docker.subnet"):
        await runtime.prepare()


@pytest.fixture
def odd_image(docker_client: docker.DockerClient, images: Images) -> Iterator[Callable[..., str]]:
    """The usual image with other lines in its Dockerfile."""
    made: list[str] = []

    def build(*lines: str) -> str:
        dockerfile = "\n".join([f"FROM {images('v1')}", *lines]).encode()
        image, _ = docker_client.images.build(fileobj=io.BytesIO(dockerfile), rm=True)
        made.append(str(image.id))
        return str(image.id)

    yield build
    for image in made:
        with contextlib.suppress(docker.errors.APIError):
            docker_client.images.remove(image, force=True)


@pytest.mark.parametrize("kit", ["docker"], indirect=True)
@pytest.mark.parametrize(
    ("lines", "asked", "user"),
    [
        (["USER 1000:1000"], "", "1000:1000"),
        (["USER root"], "", "65534:65534"),
        (["USER 0:0"], "", "65534:65534"),
        (["USER 1000:1000"], "33:33", "33:33"),
    ],
)
async def test_the_images_own_user_runs_it_unless_that_is_root_or_another_is_asked_for(
    kit: Any,
    docker_client: docker.DockerClient,
    odd_image: Callable[..., str],
    lines: list[str],
    asked: str,
    user: str,
) -> None:
    runtime, _, _ = kit
    wanted = want(odd_image(*lines))
    template = replace(wanted.release.template, user=asked)
    await runtime.start(replace(wanted, release=replace(wanted.release, template=template)))
    instance = await seen(runtime, "api-1-0", running=True)
    assert docker_client.containers.get(instance.container).attrs["Config"]["User"] == user


@pytest.mark.parametrize("kit", ["docker"], indirect=True)
async def test_the_images_stop_signal_is_sent_and_its_volumes_go_with_the_container(
    kit: Any, docker_client: docker.DockerClient, odd_image: Callable[..., str]
) -> None:
    runtime, _, die = kit
    wanted = want(odd_image("STOPSIGNAL SIGINT", "VOLUME /data"))
    names = []
    for _ in range(2):
        await runtime.start(wanted)
        instance = await seen(runtime, "api-1-0", running=True)
        attrs = docker_client.containers.get(instance.container).attrs
        assert attrs["Config"]["StopSignal"] == "SIGINT"
        names += [mount["Name"] for mount in attrs["Mounts"]]
        die("api-1-0")
    await runtime.stop("api-1-0")
    assert len(names) == 2
    left = {volume.name for volume in docker_client.volumes.list()}
    assert not left & set(names)


@pytest.mark.parametrize("kit", ["docker"], indirect=True)
async def test_a_renamed_container_is_still_the_instance_that_its_labels_say(
    kit: Any, docker_client: docker.DockerClient
) -> None:
    runtime, image, _ = kit
    wanted = want((await runtime.resolve(image)).digest)
    await runtime.start(wanted)
    first = await seen(runtime, "api-1-0", health="ready")
    docker_client.containers.get(first.container).rename(f"{runtime._owner}-old")
    await runtime.start(wanted)
    await runtime.supervise("api-1-0")
    (again,) = await runtime.observe("api")
    assert (again.container, again.supervised) == (first.container, True)
    docker_client.containers.get(first.container).kill()
    await runtime.start(wanted)
    new = await seen(runtime, "api-1-0", running=True)
    assert new.container != first.container
    assert new.address == first.address
    assert len(await runtime.observe("api")) == 1
    docker_client.containers.get(new.container).rename(f"{runtime._owner}-old")
    await runtime.stop("api-1-0")
    assert await runtime.observe("api") == ()


@pytest.mark.parametrize("kit", ["docker"], indirect=True)
async def test_a_second_container_of_an_instance_is_seen_apart_and_stopped_alone(
    kit: Any, docker_client: docker.DockerClient
) -> None:
    runtime, image, _ = kit
    wanted = want((await runtime.resolve(image)).digest)
    await runtime.start(wanted)
    first = await seen(runtime, "api-1-0", running=True)
    labels = docker_client.containers.get(first.container).labels
    copy = docker_client.containers.create(image, labels=labels, name=f"{runtime._owner}-copy")
    both = {i.name: i for i in await runtime.observe("api")}
    other = f"api-1-0@{str(copy.id)[:12]}"
    assert both.keys() == {"api-1-0", other}
    assert (both["api-1-0"].container, both[other].running) == (first.container, False)
    await runtime.stop(other)
    assert [i.container for i in await runtime.observe("api")] == [first.container]


@pytest.mark.parametrize("kit", ["docker"], indirect=True)
async def test_a_name_that_somebody_else_has_is_a_fault(kit: Any, docker_client: docker.DockerClient) -> None:
    runtime, image, _ = kit
    other = docker_client.containers.create(image, name=f"{runtime._owner}-api-1-0")
    with pytest.raises(Fault, match="is taken by a container that is not ours"):
        await runtime.start(want((await runtime.resolve(image)).digest))
    await runtime.stop("api-1-0")
    other.remove(force=True)


@pytest.mark.parametrize("kit", ["docker"], indirect=True)
@pytest.mark.parametrize("whose", ["somebody else's", "ours"])
async def test_a_name_that_is_taken_while_the_container_is_made_is_a_fault_unless_it_is_ours_and_runs(
    kit: Any, docker_client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    runtime, image, _ = kit
    wanted, free = want((await runtime.resolve(image)).digest), runtime._network.free
    made: list[Any] = []

    def just_before(taken: list[str], preferred: str) -> str:
        if not made:
            label = labels(wanted, runtime._owner, 1) if whose == "ours" else {}
            name = f"{runtime._owner}-api-1-0"
            made.append(docker_client.containers.run(image, name=name, labels=label, detach=True))
        return str(free(taken, preferred))

    monkeypatch.setattr(runtime._network, "free", just_before)
    try:
        if whose == "ours":
            await runtime.start(wanted)
            assert [i.container for i in await runtime.observe("api")] == [made[0].id]
        else:
            with pytest.raises(Fault, match="is taken by a container that is not ours"):
                await runtime.start(wanted)
    finally:
        made[0].remove(force=True)


@pytest.mark.parametrize("kit", ["docker", "double"], indirect=True)
async def test_eight_pulls_from_a_slow_registry_keep_no_instance_from_starting_or_stopping(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, image, _ = kit
    digest = (await runtime.resolve(image)).digest
    answers = threading.Event()
    monkeypatch.setattr(runtime, "_pull_image", lambda *_: answers.wait(60))
    pulls = [asyncio.create_task(runtime.resolve(f"no-such:{n}"), name="pull") for n in range(8)]
    try:
        async with asyncio.timeout(30):
            await runtime.start(want(digest))
            await seen(runtime, "api-1-0", running=True)
            assert (await runtime.resolve(image)).digest == digest
            await runtime.stop("api-1-0")
        assert not any(pull.done() for pull in pulls)
    finally:
        answers.set()
    assert all("is gone again" in found.error for found in await asyncio.gather(*pulls))


@pytest.mark.filterwarnings("ignore:docker-credential-nowhere not installed")
@pytest.mark.parametrize("kit", ["docker"], indirect=True)
async def test_a_helper_for_credentials_that_is_not_there_is_told_at_once(
    kit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime, _, _ = kit
    (tmp_path / "config.json").write_text('{"credsStore": "nowhere"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert "docker-credential-nowhere" in (await runtime.resolve("no-such-image:1")).error


async def test_a_network_that_gives_our_addresses_to_others_is_refused(
    docker_client: docker.DockerClient,
) -> None:
    name, subnet = f"c{random.randrange(16**8):08x}", free_subnet(docker_client)
    begins = subnet.removesuffix(".0/24")
    client = DockerClient()
    for given in ("", f"{begins}.64/26"):
        pool = docker.types.IPAMPool(subnet=subnet, iprange=given or None)
        made = docker_client.networks.create(name, ipam=docker.types.IPAMConfig(pool_configs=[pool]))
        words = f"an address of {given or subnet}, .*--ip-range {begins}.128/25"
        with pytest.raises(Fault, match=words):
            await client.call(Network(name, subnet).ensure)
        made.remove()
    pool = docker.types.IPAMPool(subnet=subnet, iprange=f"{begins}.128/25")
    made = docker_client.networks.create(name, ipam=docker.types.IPAMConfig(pool_configs=[pool]))
    await client.call(Network(name, subnet).ensure)
    made.remove()
    client.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK's own socket
async def test_docker_that_is_away_is_a_fault(tmp_path: Path) -> None:
    client = DockerClient(f"unix://{tmp_path}/none.sock", timeout=2.0)
    runtime = DockerRuntime(client, Network("n", "10.9.0.0/24"), "n", lambda: 1)
    with pytest.raises(Fault, match="Docker"):
        await runtime.observe("api")
    await runtime.close()
    client.close()
    for thread in threading.enumerate():  # what they still hold would be collected in another test
        if thread.name.startswith("docker-"):
            await asyncio.to_thread(thread.join, 5.0)
    gc.collect()
