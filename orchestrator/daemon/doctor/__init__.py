"""`doctor`: is everything there that the daemon needs, and if not, what mends it."""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor import files
from orchestrator.daemon.doctor.check import Check, get
from orchestrator.daemon.doctor.edges import edges
from orchestrator.daemon.doctor.nginx import nginx
from orchestrator.daemon.doctor.prometheus import prometheus
from orchestrator.ports.addresses import masked
from orchestrator.ports.faults import Fault
from orchestrator.ports.given import read_given
from orchestrator.runtime.client import DockerClient
from orchestrator.store.redis_store import connect
from orchestrator.store.server import PrivateRedis, check_settings, private_socket

Examination = Callable[[Config], Awaitable[list[Check]]]


async def examine(config: Config) -> list[Check]:
    """Run every check; none of them changes anything, and what goes wrong with one is its finding."""
    checks: dict[str, Examination] = {
        "config": _config,
        "folders": files.folders,
        "files": files.services,
        "secrets": files.secrets,
        "redis": _redis,
        "docker": _docker,
        "docker credentials": _credentials,
        "nginx": nginx,
        "edges": edges,
        "prometheus": prometheus,
        "daemon": _daemon,
    }
    found = await asyncio.gather(*(guarded(name, check, config) for name, check in checks.items()))
    return [c for group in found for c in group]


async def guarded(name: str, check: Examination, config: Config) -> list[Check]:
    """What a check finds, without what may be secret; an exception of its own is a finding too."""
    try:
        found = await check(config)
    except Exception as error:  # noqa: BLE001  the others are still wanted
        words = f"can't be looked at: {type(error).__name__}: {error}"
        found = [Check(name, False, words, "correct what it names; otherwise it is a bug of the doctor")]
    return [replace(c, detail=masked(c.detail)) for c in found]


async def _config(config: Config) -> list[Check]:
    if not config.problems:
        return [Check("config", True, f"{config.path} and {len(config.services)} services")]
    return [Check("config", False, str(problem), "correct the file") for problem in config.problems]


async def _redis(config: Config) -> list[Check]:
    section = config.settings.redis
    if not section.url:
        socket = private_socket(config.settings.state_dir)
        if wrong := await PrivateRedis(config.settings.state_dir).wrong():
            mend = "where no daemon runs: systemctl start orchestrator, which ends one that can't be reached"
            return [Check("redis", False, f"private redis-server: {wrong}", mend)]
        found = shutil.which("redis-server") is not None
        mend = "apt-get install redis-server, or set redis/url"
        running = "running" if os.access(socket, os.F_OK) else "started by the daemon"
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
    other = "or set redis/durability to relaxed"
    relaxed = section.durability == "relaxed"
    return [Check("redis", relaxed, p, f"{p.rpartition(': ')[2]}, {other}") for p in problems]


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


async def _credentials(_: Config) -> list[Check]:
    try:
        folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    except RuntimeError:  # an account without a home
        return []
    return credentials(folder / "config.json")


def credentials(file: Path) -> list[Check]:
    """Helpers that Docker's `config.json` names and that are not there: without them nothing is pulled."""
    try:
        text = read_given(file)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [
            Check("docker credentials", False, f"{file}: {error.strerror}", f"chown {os.getuid()} {file}")
        ]
    try:
        found: dict[str, Any] = json.loads(text)
        store = found.get("credsStore")
        named = {"credsStore": store} if store else {}
        named |= {
            f"credHelpers/{registry}": helper for registry, helper in found.get("credHelpers", {}).items()
        }
    except (ValueError, AttributeError):
        return [Check("docker credentials", False, f"{file}: is no JSON object", "correct it: docker login")]
    programs = {key: f"docker-credential-{helper}" for key, helper in named.items()}
    return [
        Check(
            "docker credentials",
            False,
            f"{file}: {key}: there is no program {program} on the PATH",
            f"install {program}, or remove {key} from {file} and docker login again",
        )
        for key, program in programs.items()
        if shutil.which(program) is None
    ]


async def _daemon(config: Config) -> list[Check]:
    url = f"http://{config.settings.http.listen}/readyz"
    return answered(config, url, await get(url))


def answered(config: Config, url: str, text: str) -> list[Check]:
    """What the daemon says of itself, and files that it has not read since they were corrected."""
    try:
        body: dict[str, Any] = json.loads(text)
        reason = str(body.get("reason", ""))
    except (ValueError, AttributeError):
        words = f"{url} answers {text[:200]!r}" if text else f"no answer at {url}"
        return [Check("daemon", False, words, "systemctl start orchestrator")]
    if reason:
        return [Check("daemon", False, f"runs, and does not drive: {reason}", "correct what it names")]
    now = {str(problem) for problem in config.problems}
    old = [problem for problem in body.get("problems", ()) if problem not in now]
    mend = "orchestrator reload, or systemctl reload orchestrator, reads the files again"
    return [
        Check("daemon", True, "drives"),
        *(Check("daemon", False, f"has read: {p}", mend) for p in old),
    ]
