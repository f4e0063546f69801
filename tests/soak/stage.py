"""The stage of a soak: an Engine, a Redis behind a proxy, an edge on a small disk, two daemons."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import docker
import yaml
from docker.errors import DockerException

from examples.playground.lease import free_port
from examples.playground.redis import RedisServer
from examples.playground.service import service_file
from examples.playground.stack import ROOT, Stack

TTL = 6.0


class Engine:
    """A second dockerd with folders of its own; containers outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "dockerd.log").open("ab") as log:
            own = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
            folders = [f"--{name}={self.folder}/{place}" for name, place in own.items()]
            network = ["--bridge=none", "--iptables=false", "--ip-masq=false", "--live-restore"]
            self._process = subprocess.Popen(
                ["dockerd", "-H", self.url, *folders, *network],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        limit = time.monotonic() + 60
        while not self.answers():
            assert time.monotonic() < limit, (self.folder / "dockerd.log").read_text()[-2000:]
            time.sleep(0.2)

    def answers(self) -> bool:
        with contextlib.suppress(DockerException):
            client = docker.DockerClient(base_url=self.url, timeout=3)
            try:
                return bool(client.ping())
            finally:
                client.close()
        return False

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            (self.folder / "pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """End it with its containerd, whose shims are gone once their containers are removed."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
            self.kill()
        subprocess.run(["umount", str(self.folder / "data")], check=False)  # dockerd's own bind mount
        pid = self.folder / "exec" / "containerd" / "containerd.pid"
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(pid.read_text()), signal.SIGTERM)


class Redis:
    """A redis-server, and a proxy before it that can be cut or made silent."""

    def __init__(self, folder: Path) -> None:
        self.server, self.port = RedisServer(folder), free_port()
        self.silent = self.cut = False
        self._proxy: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self.server.start()
        self._proxy = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def disconnect(self) -> None:
        for writer in list(self._open):
            writer.close()

    async def stop(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
        self.disconnect()
        self.server.kill()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.close()
            return
        try:
            behind, before = await asyncio.open_connection("127.0.0.1", self.server.port)
        except OSError:
            writer.close()
            return
        self._open |= {writer, before}
        await asyncio.gather(self._pipe(reader, before), self._pipe(behind, writer))
        self._open -= {writer, before}

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                while self.silent:
                    await asyncio.sleep(0.1)
                sink.write(data)
                await sink.drain()
        sink.close()


class SmallDisk:
    """A tmpfs that can be filled up."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)], check=True
        )

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.folder / ".ballast").open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def empty(self) -> None:
        (self.folder / ".ballast").unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=False)


class Stage(Stack):
    """The stack with two daemons that a supervisor starts again whenever they end."""

    def __init__(self, folder: Path, redis: Redis, mode: str) -> None:
        settings = {
            "redis": {"url": f"redis://127.0.0.1:{redis.port}/0", "lease_ttl": f"{TTL:g}s"},
            "nginx": {"mode": mode},
        }
        quick = {
            "strategy": {"steps": [20, 50, 100], "min_step": "3s", "bake": "3s", "step_deadline": "60s"},
            "gates": [
                {"metric": "error_rate", "budget": "5%"},
                {"metric": "latency", "quantile": 0.95, "warm_up": "3s", "budget": "5%"},
                {"metric": "error_rate", "max": "10%", "for": "2s", "window": "8s", "min_requests": 10},
            ],
            "keep_previous": "5s",
            "keep_images": 1000,  # there is no registry to pull from again
            "deadlines": {"drain": "2s", "confirm": "60s", "start": "60s", "pause": "60s"},
        }
        super().__init__(lambda port: {"api": service_file("api", port("api"), **quick)}, settings)
        self.folder = folder
        self.disk = SmallDisk(self.root / "edge", "512k")
        self.daemons: dict[str, asyncio.subprocess.Process] = {}
        self.ends: dict[int, int] = {}
        self._supervising: list[asyncio.Task[None]] = []
        self._second = self.root / "second.yaml"

    async def __aenter__(self) -> Self:
        self.log.touch()
        self.start_nginx()
        self.start_prometheus()
        other = yaml.safe_load(self.config.read_text())
        other["state_dir"] = str(self.root / "state-second")
        other["http"] = {"listen": f"127.0.0.1:{free_port()}"}
        other["api"] = {"listen": f"127.0.0.1:{free_port()}"}
        self._second.write_text(yaml.safe_dump(other))
        for name, config in (("first", self.config), ("second", self._second)):
            work = self._supervise(name, config)
            self._supervising.append(asyncio.create_task(work, name=f"supervise {name}"))
        try:
            await self.until(self.drives, 40, "one of the daemons drives")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._supervising:
            task.cancel()
        await asyncio.gather(*self._supervising, return_exceptions=True)
        for process in self.daemons.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
                await process.wait()
        await super().__aexit__()
        self.disk.unmount()
        shutil.rmtree(self.root, ignore_errors=True)

    async def drives(self) -> bool:
        return any(x["event"] == "ready" for x in self.lines())

    async def _supervise(self, name: str, config: Path) -> None:
        while True:
            with self.log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *["-m", "orchestrator", "serve", "--config", str(config)],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    start_new_session=True,
                )
            self.daemons[name] = process
            code = await process.wait()
            self.ends[code] = self.ends.get(code, 0) + 1
            await asyncio.sleep(1.0)

    def alive(self) -> list[asyncio.subprocess.Process]:
        return [p for p in self.daemons.values() if p.returncode is None]


@contextlib.contextmanager
def scene() -> Iterator[tuple[Path, Engine]]:
    """A folder and an Engine in it, to which everything that follows talks."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-soak-"))
    images = SmallDisk(folder / "redis", "512m")
    engine = Engine(folder)
    try:
        engine.start()
        os.environ["DOCKER_HOST"] = engine.url
        yield folder, engine
    finally:
        os.environ.pop("DOCKER_HOST", None)
        engine.stop()
        images.unmount()
        shutil.rmtree(folder, ignore_errors=True)
