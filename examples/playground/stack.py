"""The private stack."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self

import aiohttp
import docker
import yaml

from examples.playground.lease import free_port, free_subnet
from orchestrator.daemon.config import load
from orchestrator.daemon.yaml_file import ConfigError
from orchestrator.ports.faults import Fault
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.runtime.labels import OWNER
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import RedisStore, connect
from orchestrator.store.server import PrivateRedis, private_socket

ROOT = Path(__file__).parents[2]

NGINX = """\
daemon on;
worker_processes 2;
worker_shutdown_timeout 20s;
pid {root}/nginx.pid;
error_log {root}/nginx.error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {root}/tmp; proxy_temp_path {root}/tmp; fastcgi_temp_path {root}/tmp;
    uwsgi_temp_path {root}/tmp; scgi_temp_path {root}/tmp;
    include {root}/edge/*.conf;
    {extra}
}}
"""

LUA = "".join(
    f"load_module /usr/lib/nginx/modules/{name}.so;\n" for name in ("ndk_http_module", "ngx_http_lua_module")
)
"""Debian's libnginx-mod-http-lua, before the rest of a configuration."""

PROMETHEUS = """\
global: {{scrape_interval: {scrape}, scrape_timeout: 900ms}}
scrape_configs:
  - job_name: orchestrated
    http_sd_configs: [{{url: "http://127.0.0.1:{port}/targets", refresh_interval: 1s}}]
"""


def _ended(pid: int) -> bool:
    """Whether a process has ended; init may take seconds to see it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Process(Protocol):
    """A daemon's process, as asyncio shows one."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """Of a process that has ended."""

    async def wait(self) -> int:
        """Its exit code, at its end."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless it has ended."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


class Stack:
    """One daemon with everything around it.

    Args:
        services: Service files by name; a `port` of nginx is made for each.
        settings: Merged over the generated orchestrator.yaml.
        scrape: Prometheus' scrape interval.
    """

    module = "orchestrator"

    def __init__(
        self,
        services: Callable[[Callable[[str], int]], Mapping[str, dict[str, Any]]],
        settings: Mapping[str, Any] | None = None,
        scrape: str = "1s",
    ) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="orchestrator-"))
        self.owner = f"t{os.getpid()}-{random.randrange(16**6):06x}"
        self.ports: dict[str, int] = {}
        self.http, self.generation, self.prometheus = free_port(), free_port(), free_port()
        self.door = free_port()
        self.docker = docker.from_env()
        self.daemon: Process | None = None
        self._prometheus: subprocess.Popen[bytes] | None = None
        self._services = dict(services(self._port))
        self._settings = dict(settings or {})
        self._scrape = scrape
        self.subnet = free_subnet(self.docker)
        self._store: RedisStore | None = None
        self._redis: Any = None
        self.write_config()

    def _port(self, name: str) -> int:
        return self.ports.setdefault(name, free_port())

    @property
    def config(self) -> Path:
        """The daemon's configuration file."""
        return self.root / "orchestrator.yaml"

    @property
    def log(self) -> Path:
        """The daemon's log, JSON lines."""
        return self.root / "daemon.log"

    def url(self, service: str, path: str = "/ping") -> str:
        """Where users reach a service."""
        return f"http://127.0.0.1:{self.ports[service]}{path}"

    def write_config(self) -> None:
        """Write orchestrator.yaml and the services' files."""
        settings: dict[str, Any] = {
            "state_dir": str(self.root / "state"),
            "tick": "250ms",
            "docker": {"owner": self.owner, "network": self.owner, "subnet": self.subnet},
            "nginx": {
                "directory": str(self.root / "edge"),
                "listen": f"127.0.0.1:{self.generation}",
                "closing_wait": "200ms",
                "conf": str(self.root / "nginx.conf"),
                "pid_file": str(self.root / "nginx.pid"),
            },
            "prometheus": {"url": f"http://127.0.0.1:{self.prometheus}", "interval": "500ms"},
            "http": {"listen": f"127.0.0.1:{self.http}"},
            "api": {"listen": f"127.0.0.1:{self.door}"},
            "log": {"format": "json"},
        }
        for name, section in self._settings.items():
            settings[name] = {**settings.get(name, {}), **section} if isinstance(section, dict) else section
        (self.root / "services").mkdir(exist_ok=True)
        self.config.write_text(yaml.safe_dump(settings))
        for name, content in self._services.items():
            (self.root / "services" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        problems = load(self.config).problems
        if problems:
            raise ConfigError(list(problems))

    def config_of_another(self) -> str:
        """The configuration with listeners of its own, for a second daemon."""
        text = self.config.read_text()
        for port in (self.http, self.door):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
        return text

    def change(self, service: str, **changes: Any) -> None:
        """Change a service's file; the daemon reads it on SIGHUP or at its next start."""
        self._services[service] = {**self._services[service], **changes}
        self.write_config()

    async def __aenter__(self) -> Self:
        try:
            self.start_nginx()
            self.start_prometheus()
            await self.start_daemon()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            await self.stop_daemon()
        if self._redis is not None:
            await self._redis.aclose()
        await asyncio.gather(
            PrivateRedis(self.root / "state").stop(),
            *map(asyncio.to_thread, (self.stop_nginx, self.stop_prometheus, self._remove_containers)),
        )
        self.docker.close()
        await asyncio.to_thread(shutil.rmtree, self.root, ignore_errors=True)

    def _remove_containers(self) -> None:
        def remove(container: Any) -> None:
            with contextlib.suppress(docker.errors.APIError):
                container.remove(force=True)

        with ThreadPoolExecutor() as pool:
            list(pool.map(remove, self.containers()))
        with contextlib.suppress(docker.errors.APIError):
            self.docker.networks.get(self.owner).remove()
        for volume in self.docker.volumes.list(filters={"label": f"{OWNER}={self.owner}"}):
            volume.remove()

    def containers(self) -> list[Any]:
        """All of this stack's containers, running or not."""
        return self.docker.containers.list(
            all=True, filters={"label": f"{OWNER}={self.owner}"}, ignore_removed=True
        )

    def start_nginx(self, extra: str = "") -> None:
        """Start nginx with the daemon's folder included, with Lua where weights change in its memory."""
        lua = LUA if self._settings.get("nginx", {}).get("mode") == "dynamic" else ""
        (self.root / "edge").mkdir(exist_ok=True)
        (self.root / "tmp").mkdir(exist_ok=True)
        (self.root / "nginx.conf").write_text(lua + NGINX.format(root=self.root, extra=extra))
        if os.geteuid() == 0:  # workers drop to another account and still need their temporary files
            self.root.chmod(0o755)
            (self.root / "tmp").chmod(0o777)
        subprocess.run(["nginx", "-c", str(self.root / "nginx.conf")], check=True, timeout=20)

    def nginx_pid(self) -> int | None:
        """The master's pid."""
        try:
            return int((self.root / "nginx.pid").read_text())
        except (OSError, ValueError):
            return None

    def stop_nginx(self) -> None:
        """End nginx, workers and all."""
        pid = self.nginx_pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        for _ in range(250):
            if _ended(pid):
                return
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def start_prometheus(self) -> None:
        """Start Prometheus with the daemon's service discovery."""
        config = self.root / "prometheus.yml"
        config.write_text(PROMETHEUS.format(port=self.http, scrape=self._scrape))
        with (self.root / "prometheus.log").open("ab") as log:
            self._prometheus = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self.root / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.prometheus}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop_prometheus(self) -> None:
        """Kill Prometheus; there is nothing that it must save."""
        if self._prometheus is not None:
            self._prometheus.kill()
            self._prometheus.wait()
            self._prometheus = None

    async def start_daemon(self, deadline: float = 30.0, **env: str) -> None:
        """Start the daemon and wait until it drives."""
        await self.launch(**env)
        await self.until(self._ready, deadline, "the daemon is ready")

    async def launch(self, **env: str) -> None:
        """Start the daemon and wait for nothing."""
        self.daemon = await self.serve(env)

    async def serve(
        self, env: Mapping[str, str], stdin: int = asyncio.subprocess.DEVNULL, stdout: int | None = None
    ) -> asyncio.subprocess.Process:
        """The program that serves; its output goes to the log, or where it is sent."""
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                "serve",
                "--config",
                str(self.config),
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
                start_new_session=True,
            )

    async def _ready(self) -> bool:
        assert self.daemon is not None
        if self.daemon.returncode is not None:
            raise AssertionError(f"the daemon ended: {self.log.read_text()[-3000:]}")
        try:
            async with aiohttp.ClientSession() as session, session.get(self.api("/readyz")) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    def api(self, path: str) -> str:
        """A URL of the daemon's own HTTP."""
        return f"http://127.0.0.1:{self.http}{path}"

    async def stop_daemon(self, number: int = signal.SIGTERM) -> None:
        """End the daemon with a signal and wait for it."""
        if self.daemon is None or self.daemon.returncode is not None:
            return
        self.daemon.send_signal(number)
        try:
            async with asyncio.timeout(20):
                await self.daemon.wait()
        except TimeoutError:
            self.daemon.kill()
            await self.daemon.wait()

    @property
    def store(self) -> RedisStore:
        """The daemon's store, for looking in."""
        if self._store is None:
            settings = load(self.config).settings
            url = settings.redis.url or f"unix://{private_socket(settings.state_dir)}"
            self._redis = connect(url)
            self._store = RedisStore(self._redis, Keys(settings.redis.prefix))
        return self._store

    @property
    def redis(self) -> Any:
        """The Redis client behind `store`."""
        assert self.store is not None
        return self._redis

    async def state(self, service: str = "api") -> ServiceState:
        """What is committed for a service."""
        return (await self.store.load(service))[0]

    async def events(self) -> list[Event]:
        """All events so far."""
        found: list[Event] = []
        async for _, event in self.store.events("0-0", block=0.01):
            if event is None:
                return found
            found.append(event)
        return found

    async def push(self, service: str, image: str = "", **fields: str) -> str:
        """Append a request as a producer would."""
        named = {"service": service, "image": image, "who": "test", **fields}
        return await self.store.push({k: v for k, v in named.items() if v})

    async def ask_prometheus(self, promql: str) -> Any:
        """The answer to an instant query; None when Prometheus refuses it."""
        url = f"http://127.0.0.1:{self.prometheus}/api/v1/query"
        async with aiohttp.ClientSession() as session, session.post(url, data={"query": promql}) as answer:
            return (await answer.json())["data"]["result"] if answer.status == 200 else None

    async def cli(self, *words: str, deadline: float = 120.0) -> tuple[int, str]:
        """Run the command line; returns exit code and output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "orchestrator",
            *words,
            "--config",
            str(self.config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        )
        try:
            async with asyncio.timeout(deadline):
                output, _ = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def ended(self, release: str, deadline: float = 90.0) -> Any:
        """Wait for the end of a release's latest journey; returns its history entry."""

        async def found() -> Any:
            state = await self.state(release.rpartition("-")[0])
            return next((e for e in reversed(state.history) if e.release.id == release), None)

        return await self.until(found, deadline, f"{release} has ended")

    async def until(self, look: Callable[[], Awaitable[Any]], deadline: float, what: str) -> Any:
        """Wait until something is true.

        Raises:
            AssertionError: It did not come true; holds the end of the daemon's log.
        """
        limit = time.monotonic() + deadline
        while time.monotonic() < limit:
            with contextlib.suppress(Fault):  # a part that is away for a moment is not the answer yet
                found = await look()
                if found:
                    return found
            await asyncio.sleep(0.1)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
        raise AssertionError(f"not within {deadline:.0f} s: {what}\n{tail}")

    def lines(self) -> list[dict[str, Any]]:
        """The daemon's log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found
