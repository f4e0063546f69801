"""What goes wrong around the daemon, and what it does about it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import aiohttp
import docker
import pytest

from examples.playground.lease import free_port
from examples.playground.load import Load
from examples.playground.redis import DURABLE, RedisServer
from examples.playground.service import service_file
from examples.playground.stack import NGINX, ROOT, Stack
from orchestrator.rollout.events import EdgeDrifted, EdgeRepaired, EdgeStuck
from orchestrator.rollout.model import Outcome
from orchestrator.runtime.labels import INSTANCE, RELEASE
from tests.acceptance.observer import Observer
from tests.conftest import QUICK, Images, Stacks
from tests.forks import ForkedStack
from tests.nginx_image import NGINX_IMAGE, nginx_image


async def _shifting(s: Stack, release: str) -> None:
    async def look() -> bool:
        state = await s.state()
        return bool(state.rollout and state.rollout.held_since and state.route.share(release) > 0)

    await s.until(look, 30, f"{release} holds traffic")


async def test_kill_9_in_a_hold_moves_no_traffic_and_does_not_shorten_it(
    stack: Stacks, images: Images
) -> None:
    s = await stack(strategy={"steps": [20, 100], "first_hold": "8s", "bake": "2s", "step_deadline": "40s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        file = (s.root / "edge" / "api.conf").read_text()
        assert s.daemon is not None
        killed = time.monotonic()
        s.daemon.kill()
        await s.daemon.wait()
        before = await s.state()  # Redis lives on, and nobody commits any more
        assert (s.root / "edge" / "api.conf").read_text() == file
        await s.start_daemon()
        after = await s.state()
        assert after.rollout is not None
        assert before.rollout is not None
        assert after.rollout.held_since is not None
        assert before.rollout.held_since is not None
        unwatched = time.monotonic() - killed + 1.0  # since the look before the kill
        assert 0 <= after.rollout.held_since - before.rollout.held_since <= unwatched
        assert after.route == before.route
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
    assert load.seen.failed == 0, load.seen
    entered = [x for x in s.lines() if x["event"] == "phase_entered" and x.get("release") == "api-2"]
    assert [x["weight"] for x in entered if x["weight"]] == [20, 100]


async def test_a_stop_leaves_the_traffic_and_ends_the_private_redis(stack: Stacks, images: Images) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    pid = next(x["pid"] for x in s.lines() if x["event"] == "private_redis_started")
    async with Load(s.url("api"), 50) as load:
        assert s.daemon is not None
        s.daemon.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await s.daemon.wait() == 0
        await asyncio.sleep(1)
    assert load.seen.failed == 0
    assert load.seen.good["api-1"] > 20
    assert not Path(f"/proc/{pid}").exists() or "redis" not in Path(f"/proc/{pid}/cmdline").read_text()
    await s.start_daemon()
    state = await s.state()
    assert state.stable is not None
    assert state.stable.id == "api-1"


async def test_a_second_daemon_stands_by_and_takes_over(stack: Stacks, images: Images) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    other = s.root / "standby.yaml"
    other.write_text(s.config_of_another())
    command = [sys.executable, "-m", "orchestrator", "serve", "--config", str(other)]
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(s.root / "notify"))
    notified.settimeout(5)
    with (s.root / "standby.log").open("wb") as log:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(s.root / "notify")}
        standby = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=env)

    async def says(word: str) -> bool:
        return f'"event": "{word}"' in (s.root / "standby.log").read_text()

    try:
        await s.until(lambda: says("standby"), 15, "the second stands by")
        await asyncio.sleep(2)
        assert not await says("ready")
        assert notified.recv(200).startswith(b"READY=1")  # systemd must not take a standby for a failed start
        standby.send_signal(signal.SIGHUP)
        await s.stop_daemon()
        await s.until(lambda: says("ready"), 10, "the second drives")
        await s.push("api", images("v2", FAIL_RATE="many"))
        assert (await s.ended("api-2")).outcome is Outcome.FAILED
    finally:
        notified.close()
        standby.terminate()
        await standby.wait()
        await s.start_daemon()


async def test_an_edited_file_is_noticed_and_repaired_only_when_idle(stack: Stacks, images: Images) -> None:
    s = await stack(strategy={"steps": [20, 100], "first_hold": "2s", "bake": "1s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    file = s.root / "edge" / "api.conf"
    ours = file.read_text()
    async with Load(s.url("api"), 60):
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        file.write_text(file.read_text().replace("keepalive 32;", "keepalive 33;"))

        async def told() -> bool:
            return any(isinstance(e, EdgeDrifted) for e in await s.events())

        await s.until(told, 10, "the edit is noticed")
        await asyncio.sleep(4)  # twice its hold
        state = await s.state()
        assert state.rollout is not None
        assert state.rollout.step == 0
        code, text = await s.cli("rollback", "api", "--wait")
        assert code == 0, text
    assert "keepalive 33;" in file.with_suffix(".edited").read_text()
    assert "keepalive 32;" in file.read_text()

    async def quiet() -> bool:
        state = await s.state()
        served = not state.retiring and state.confirmed == state.route.generation
        return served and {c.labels[RELEASE] for c in s.containers()} == {"api-1"}

    await s.until(quiet, 30, "nothing is left to do")
    file.write_text(ours + "# mine\n")

    async def repaired() -> bool:
        kept = file.with_suffix(".edited")
        return "# mine" not in file.read_text() and "# mine" in kept.read_text()

    await asyncio.sleep(5)
    assert "# mine" in file.read_text()
    await s.until(repaired, 45, "the file is repaired")
    assert any(isinstance(e, EdgeRepaired) for e in await s.events())


async def test_nginx_that_can_not_take_a_change_keeps_the_old_and_the_release_goes_back(
    stack: Stacks, images: Images
) -> None:
    s = await stack(deadlines={"confirm": "4s", "start": "25s", "drain": "2s"})
    await s.push("api", images("v1"))
    await s.ended("api-1")
    broken = s.root / "edge" / "zz-operator.conf"
    async with Load(s.url("api"), 60) as load:
        broken.write_text("this is not nginx;\n")
        await s.push("api", images("v2"))

        async def stuck() -> bool:
            return any(isinstance(e, EdgeStuck) for e in await s.events())

        await s.until(stuck, 40, "the daemon says that nginx is stuck")
        await asyncio.sleep(5)
        broken.unlink()
        ended = await s.ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "nginx did not confirm" in ended.reason
    assert load.seen.failed == 0, load.seen
    assert load.seen.good["api-2"] == 0


async def test_secrets_stay_secret_and_containers_are_hardened(
    stack: Stacks, images: Images, tmp_path: Path
) -> None:
    secret = "hunter2-planted-secret"
    source = tmp_path / "db-password"
    source.write_text(secret)
    tmp_path.chmod(0o755)
    container = {
        "port": 8080,
        "memory": "64MiB",
        "pids": 64,
        "secrets": [{"source": str(source), "target": "/run/secrets/db"}],
        "env": {"LOG_LEVEL": "info"},
        "probe": {"successes": 2},
    }
    s = await stack(container=container)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    (found,) = s.containers()
    host = found.attrs["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["Memory"], host["PidsLimit"]) == (64 * 1024**2, 64)
    assert host["LogConfig"]["Config"]["max-size"] == "10m"
    assert found.attrs["Config"]["User"] == "65534:65534"
    assert [m["Destination"] for m in found.attrs["Mounts"] if not m["RW"]] == ["/run/secrets/db"]

    async def supervised() -> bool:
        return bool(s.containers()[0].attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped")

    await s.until(supervised, 10, "Docker starts it again by itself")
    assert secret not in str(found.attrs)
    assert secret not in s.log.read_text()
    assert secret not in str(await s.events())
    assert secret not in (await s.cli("status", "--output", "json"))[1]


async def test_foreign_containers_are_never_touched_and_orphans_are_reaped(
    stack: Stacks, images: Images, docker_client: docker.DockerClient
) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    template = s.containers()[0]
    foreign = docker_client.containers.create(images("v1"), name=f"{s.owner}-api-2-0", labels={"mine": "yes"})
    orphan = docker_client.containers.create(
        images("v1"), name=f"{s.owner}-orphan", labels={**template.labels, INSTANCE: "orphan"}
    )
    try:
        await s.push("api", images("v2"))
        ended = await s.ended("api-2")
        assert ended.outcome is Outcome.FAILED
        assert "is taken by a container that is not ours" in ended.reason
        foreign.reload()
        assert foreign.status == "created"

        async def reaped() -> bool:
            return "orphan" not in {c.labels[INSTANCE] for c in s.containers()}

        await s.until(reaped, 20, "the orphan is reaped")
    finally:
        foreign.remove(force=True)
        with contextlib.suppress(docker.errors.NotFound):
            orphan.remove(force=True)


@pytest.mark.parametrize("safe", [True, False])
async def test_a_given_redis_must_keep_what_it_acknowledges(
    images: Images, tmp_path: Path, safe: bool
) -> None:
    server = RedisServer(tmp_path, DURABLE if safe else ())
    server.start()
    s = ForkedStack(lambda p: {"api": service_file("api", p("api"))}, {"redis": {"url": server.url}})
    try:
        await asyncio.sleep(0.5)
        s.start_nginx()
        s.start_prometheus()
        if safe:
            await s.start_daemon()
            await s.push("api", images("v1"))
            assert (await s.ended("api-1")).outcome is Outcome.PROMOTED
        else:
            with pytest.raises(AssertionError, match="the daemon ended"):
                await s.start_daemon()
            log = s.log.read_text()
            assert "CONFIG SET appendonly yes" in log
            assert "CONFIG SET appendfsync always" in log
    finally:
        await s.__aexit__()
        server.kill()


async def test_the_endpoints(stack: Stacks, images: Images) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with aiohttp.ClientSession() as session:
        async with session.get(s.api("/healthz")) as answer:
            assert answer.status == 200
        async with session.get(s.api("/targets")) as answer:
            found = await answer.json()
        assert {t["labels"]["instance"] for t in found} == {"api-1-0", "api-1-1"}
        assert {t["labels"]["track"] for t in found} == {"stable"}
        async with session.get(s.api("/metrics")) as answer:
            text = await answer.text()
    assert 'orchestrator_weight_percent{release="api-1",service="api"} 100.0' in text
    assert 'orchestrator_release_seconds_count{outcome="promoted",service="api"} 1.0' in text
    assert 'orchestrator_phase{phase="idle",service="api"} 1.0' in text


async def test_sighup_reads_a_new_configuration_and_refuses_a_wrong_one(
    stack: Stacks, images: Images
) -> None:
    s = await stack(observe=False)
    assert s.daemon is not None
    file = s.root / "services" / "api.yaml"
    right = file.read_text()
    file.write_text(right + "\nnonsense: 1\n")
    os.kill(s.daemon.pid, signal.SIGHUP)

    async def refused() -> bool:
        return any(x["event"] == "config_refused" and "nonsense" in x["problem"] for x in s.lines())

    await s.until(refused, 10, "the wrong file is refused")
    s.change("api", on_new_release="queue")
    os.kill(s.daemon.pid, signal.SIGHUP)

    async def taken() -> bool:
        return any(x["event"] == "config_reloaded" and x.get("changes") for x in s.lines())

    await s.until(taken, 10, "the new file is taken")
    await s.push("api", images("v1"))
    ended = await s.ended("api-1")
    assert ended.release.policy.on_new_release == "queue"


async def test_a_second_signal_forces_the_exit(stack: Stacks) -> None:
    s = await stack(observe=False)
    assert s.daemon is not None
    os.kill(s.daemon.pid, signal.SIGSTOP)
    s.daemon.send_signal(signal.SIGTERM)
    s.daemon.send_signal(signal.SIGINT)
    os.kill(s.daemon.pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        assert await s.daemon.wait() in (0, 130, 143)


class ContainerStack(ForkedStack):
    """The stack with its nginx in a container on the host's network."""

    name = ""

    def start_nginx(self, extra: str = "") -> None:
        (self.root / "edge").mkdir(exist_ok=True)
        (self.root / "tmp").mkdir(exist_ok=True)
        self.root.chmod(0o755)
        (self.root / "tmp").chmod(0o777)
        text = NGINX.format(root=self.root, extra=extra).replace("daemon on;", "daemon off;")
        (self.root / "nginx.conf").write_text(text)
        nginx_image(self.docker)
        self.docker.containers.run(
            NGINX_IMAGE,
            ["/usr/sbin/nginx", "-c", "/etc/nginx/nginx.conf"],
            name=self.name,
            detach=True,
            network_mode="host",
            volumes={
                str(self.root / "nginx.conf"): {"bind": "/etc/nginx/nginx.conf", "mode": "ro"},
                str(self.root): {"bind": str(self.root), "mode": "rw"},
            },
        )

    def stop_nginx(self) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            self.docker.containers.get(self.name).remove(force=True)


async def test_nginx_in_a_container(docker_client: docker.DockerClient, images: Images) -> None:
    name = f"edge-{os.getpid()}-{free_port()}"
    ContainerStack.name = name
    quick = {"strategy": QUICK["strategy"], "keep_previous": "1s", "deadlines": {"drain": "3s"}}
    s = ContainerStack(
        lambda port: {"api": service_file("api", port("api"), **quick)}, {"nginx": {"container": name}}
    )
    async with s, Observer(s) as observer:
        await s.push("api", images("v1"))
        await s.ended("api-1")
        async with Load(s.url("api"), 100) as load:
            await s.push("api", images("v2"))
            assert (await s.ended("api-2")).outcome is Outcome.PROMOTED

            async def gone() -> bool:
                return {c.labels["io.release-orchestrator.release"] for c in s.containers()} == {"api-2"}

            await s.until(gone, 30, "the previous release is gone")
        assert load.seen.failed == 0, load.seen
        await observer.finish()


async def test_redis_killed_in_mid_rollout_loses_nothing(stack: Stacks, images: Images) -> None:
    s = await stack()
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        pid = next(x["pid"] for x in s.lines() if x["event"] == "private_redis_started")
        os.kill(pid, signal.SIGKILL)
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
        assert (await s.cli("release", "api", images("v3"), "--key", "k"))[0] == 0
        assert (await s.cli("abort", "api"))[0] == 0
    assert load.seen.failed == 0, load.seen


async def test_one_touch_takes_the_traffic_back_while_the_daemon_is_dead(
    stack: Stacks, images: Images
) -> None:
    """The worst night: no daemon, no command, a shell. The daemon follows when it is back."""
    steps = {"steps": [50, 100], "first_hold": "60s", "bake": "1s", "min_requests": 0}
    s = await stack(strategy=steps, gates=[])
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        await _shifting(s, "api-2")
        await s.stop_daemon(signal.SIGKILL)
        (s.root / "edge" / "switch" / "api").touch()
        await asyncio.sleep(0.3)
        before = load.seen.good["api-2"]
        await asyncio.sleep(2)
        assert load.seen.good["api-2"] == before > 0
        await s.start_daemon()
        ended = await s.ended("api-2", 30)
        assert load.seen.good["api-2"] == before
    assert (ended.outcome, ended.actor) == (Outcome.ROLLED_BACK, "host")
    assert ended.reason == "the rollback switch was turned on by hand"
    assert load.seen.failed == 0, load.seen

    async def put_away() -> bool:
        return not (s.root / "edge" / "switch" / "api").exists()

    await s.until(put_away, 15, "the switch is put away")
