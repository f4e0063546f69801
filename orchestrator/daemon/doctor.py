"""`doctor`: is everything there that the daemon needs, and if not, what mends it."""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from orchestrator.analysis.prometheus import Prometheus
from orchestrator.daemon.adapters import make_process
from orchestrator.daemon.clock import SystemClock
from orchestrator.daemon.config import Config
from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import mentions_lua
from orchestrator.runtime.client import DockerClient
from orchestrator.store.redis_store import connect
from orchestrator.store.server import check_settings, disk_full, private_socket
from orchestrator.traffic.process import run

SECRET_FILES = frozenset(
    {"secret_file", "signing_secret_file", "token_file", "urls_file", "bearer_file", "env_file"}
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `mend`: what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


async def examine(config: Config) -> list[Check]:
    """Run every check; none of them changes anything, none takes longer than its deadline."""
    checks: list[Callable[[Config], Awaitable[list[Check]]]] = [
        _folders,
        _secrets,
        _redis,
        _docker,
        _nginx,
        _prometheus,
        _daemon,
    ]
    found = await asyncio.gather(*(check(config) for check in checks))
    return [c for group in found for c in group]


async def _folders(config: Config) -> list[Check]:
    settings = config.settings
    checks = []
    for name, path in (("state_dir", settings.state_dir), ("nginx/directory", settings.nginx.directory)):
        place = path if path.exists() else path.parent
        ok = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        detail = f"{path} can be written" if ok else f"{path} can't be written by uid {os.getuid()}"
        checks.append(Check(name, ok, detail, f"mkdir -p {path} && chown {os.getuid()} {path}"))
        full = disk_full(place) if ok else ""
        if full:
            checks.append(Check(f"{name} disk", False, full, "make room"))
    for name, service in config.services.items():
        container = service.container
        for source in [*(s.source for s in container.secrets), container.env_file]:
            if source is None:
                continue
            ok = Path(source).is_file()
            detail = f"{source} is there" if ok else f"{source} is not there"
            checks.append(Check(f"services/{name} file", ok, detail, f"create {source}"))
    return checks


async def _secrets(config: Config) -> list[Check]:
    """Whether only those read a secret who should. Files that are not there are named by `config check`."""
    files = dict(_secret_files("", config.settings.model_dump()))
    for name, service in config.services.items():
        files |= {f"services/{name} {path}": f for path, f in _secret_files("", service.model_dump())}
    open_to_all = {p: f for p, f in files.items() if f.is_file() and f.stat().st_mode & stat.S_IRWXO}
    return [
        Check(path, False, f"{file} can be read by everybody here", f"chmod o= {file}")
        for path, file in open_to_all.items()
    ]


def _secret_files(path: str, value: Any) -> Iterator[tuple[str, Path]]:
    """Every file of a configuration that holds a secret, with its path in it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            where = f"{path}/{name}".lstrip("/")
            if inner and (name in SECRET_FILES or where.endswith("tls/key")):
                yield where, Path(inner)
            else:
                yield from _secret_files(where, inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _secret_files(f"{path}/{place}", inner)


async def _redis(config: Config) -> list[Check]:
    section = config.settings.redis
    if not section.url:
        socket = private_socket(config.settings.state_dir)
        found = await asyncio.to_thread(_which, "redis-server")
        mend = "apt-get install redis-server, or set redis/url"
        running = "running" if socket.exists() else "started by the daemon"
        return [Check("redis", found, f"private redis-server, {running}: {socket}", mend)]
    redis = connect(section.url, timeout=3.0)
    try:
        problems = await check_settings(redis)
    except Fault as error:
        return [Check("redis", False, str(error), "start it, or correct redis/url")]
    finally:
        await redis.aclose()
    if not problems:
        return [Check("redis", True, "keeps what it acknowledges")]
    return [
        Check(
            "redis",
            section.durability == "relaxed",
            problem,
            f"{problem.rpartition(': ')[2]}, or set redis/durability to relaxed",
        )
        for problem in problems
    ]


def _which(program: str) -> bool:
    return any((Path(p) / program).is_file() for p in os.environ.get("PATH", "").split(os.pathsep))


async def _docker(config: Config) -> list[Check]:
    section = config.settings.docker
    client = DockerClient(section.url, timeout=5.0)

    try:
        info = await client.call(lambda sdk: sdk.info(), 10.0)
    except Fault as error:
        return [Check("docker", False, str(error), "start dockerd, or add this user to the docker group")]
    finally:
        client.close()
    live = "" if info.get("LiveRestoreEnabled") else ", without live-restore (containers stop with dockerd)"
    return [Check("docker", True, f"Engine {info['ServerVersion']}{live}")]


async def _nginx(config: Config) -> list[Check]:
    section = config.settings.nginx
    client = DockerClient(config.settings.docker.url, timeout=5.0)
    process = make_process(config.settings, client)
    checks = []
    try:
        await process.test()
        checks.append(Check("nginx -t", True, "passes"))
    except Fault as error:
        checks.append(Check("nginx -t", False, str(error), "correct what it names"))
    finally:
        client.close()
    if not section.container:
        conf = ["-c", section.conf] if section.conf else []
        try:
            whole = await run([section.binary, "-T", "-q", *conf], 10.0)
        except Fault as error:
            return [*checks, Check("nginx -T", False, str(error), "correct what it names")]
        included = f"{section.directory}/*.conf" in whole
        mend = f"add to http {{}}: include {section.directory}/*.conf;"
        shown = "reads" if included else "does not read"
        checks.append(Check("nginx include", included, f"{shown} {section.directory}/*.conf", mend))
        checks.append(_weights(section.mode, whole))
        blocked = _closed_to_others(section.directory)
        mend = f"chmod o+x {blocked}" if blocked else ""
        shown = f"nginx' workers can't reach {blocked}" if blocked else "nginx' workers see it"
        checks.append(Check("nginx switch", not blocked, shown, mend))
        bounded = "worker_shutdown_timeout" in whole
        mend = "add to the main context: worker_shutdown_timeout 60s;"
        checks.append(Check("nginx old workers", bounded, "bounded" if bounded else "may pile up", mend))
    return checks


def _weights(mode: str, whole: str) -> Check:
    """How weights change, by nginx' whole configuration."""
    lua = mentions_lua(whole)
    if mode == "dynamic" and not lua:
        mend = "apt-get install libnginx-mod-http-lua, or set nginx/mode: auto"
        return Check("nginx weights", False, "nginx/mode is dynamic and nginx has no Lua module", mend)
    if mode == "reload" or not lua:
        hint = "" if lua else "; with libnginx-mod-http-lua without one"
        return Check("nginx weights", True, f"change by a reload{hint}")
    return Check("nginx weights", True, "change in nginx' memory, without a reload")


def _closed_to_others(folder: Path) -> Path | None:
    """The first folder on the way that an unprivileged worker can't pass through."""
    way = [p for p in (*reversed(folder.parents), folder, folder / "switch") if p.is_dir()]
    return next((p for p in way if not p.stat().st_mode & stat.S_IXOTH), None)


async def _prometheus(config: Config) -> list[Check]:
    section = config.settings.prometheus
    if not section.url:
        return [Check("prometheus", True, "not configured: no gates")]
    prometheus = Prometheus(section.url, SystemClock(), timeout=section.timeout)
    try:
        await prometheus.ask("vector(1)")
    except Fault as error:
        return [Check("prometheus", False, f"{section.url}: {error}", "start it, or correct prometheus/url")]
    finally:
        prometheus.close()
    text = await _get(f"{section.url.rstrip('/')}/api/v1/status/config")
    known = "/targets" in text and "http_sd_configs" in text
    mend = f"add a scrape job with http_sd_configs: [{{url: http://{config.settings.http.listen}/targets}}]"
    detail = f"answers at {section.url}" + ("" if known else ", but has no http_sd_configs of ours")
    return [Check("prometheus", known, detail, mend)]


async def _daemon(config: Config) -> list[Check]:
    url = f"http://{config.settings.http.listen}/readyz"
    text = await _get(url)
    ok = '"ready"' in text
    return [Check("daemon", ok, text[:200] or f"no answer at {url}", "systemctl start orchestrator")]


async def _get(url: str) -> str:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session,
            session.get(url) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""
