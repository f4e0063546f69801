"""Folders and files: who can read and write them, and what room there is."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor.check import Check, status, writable_by_us
from orchestrator.daemon.yaml_file import Problem
from orchestrator.ports.faults import Fault
from orchestrator.runtime.docker_runtime import NOBODY
from orchestrator.runtime.env_file import read_env_file
from orchestrator.traffic.shared import Shared

SECRET_FILES = frozenset(
    {"secret_file", "signing_secret_file", "token_file", "urls_file", "bearer_file", "env_file"}
)

LEAST_SHARE, LEAST_BYTES = 0.05, 200 * 1024**2
"""Of a disk, what must be free: on a full one Redis takes no writes, and no file of nginx is written."""

ENOUGH_BYTES = 10 * 1024**3
"""Free bytes that are enough whatever share of the disk they are."""


async def folders(config: Config) -> list[Check]:
    """Whether the folders of the daemon can be written, and have room."""
    settings = config.settings
    checks = []
    for name, path in (("state_dir", settings.state_dir), ("nginx/directory", settings.nginx.directory)):
        place = _existing(path)
        checks.append(_written(name, path, place))
        disk = os.statvfs(place)
        checks.append(
            room(
                f"{name} disk",
                path,
                disk.f_bavail * disk.f_frsize,
                disk.f_blocks * disk.f_frsize,
                inodes=disk.f_favail / disk.f_files if disk.f_files else 1.0,
            )
        )
    edge, *inside = Shared(settings.nginx.directory).folders
    if os.access(edge, os.W_OK):  # else these share its fate
        found = (_written("nginx/directory", path, path) for path in inside if path.is_dir())
        checks += [check for check in found if not check.ok]
    return checks


def _written(name: str, path: Path, place: Path) -> Check:
    """Whether a folder can be written. `place`: it, or the nearest folder above it that there is."""
    made = place in (path, path.parent)
    ok = made and place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    why, mend = ("", "") if ok else writable_by_us(path, place)
    can = f"{path} can be written" if place == path else f"{path} is made at the first start"
    detail = can if ok else f"{path} can't be written by uid {os.getuid()}"
    return Check(name, ok, ": ".join(filter(None, (detail, why))), mend)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that there is."""
    return next(p for p in (path, *path.parents) if not isinstance(status(p), OSError))


def room(name: str, path: Path, free: int, total: int, inodes: float = 1.0) -> Check:
    """Whether a disk has room: bytes that are free and in all, and the share of inodes that is free."""
    part = free / total if total else 1.0
    detail = f"{path}: {_size(free)} of {_size(total)} free, {part:.0%}"
    if inodes < LEAST_SHARE:
        detail += f"; {inodes:.0%} of the inodes"
    ok = free >= LEAST_BYTES and (part >= LEAST_SHARE or free >= ENOUGH_BYTES) and inodes >= LEAST_SHARE
    if not ok:
        least = f"{_size(LEAST_BYTES)} and {LEAST_SHARE:.0%} (or {_size(ENOUGH_BYTES)})"
        detail += f"; wanted: {least}, and {LEAST_SHARE:.0%} of the inodes"
    mend = (
        f"make room there (what fills it: du -xh {path} | sort -h | tail, docker system df), or set"
        f" {name.removesuffix(' disk')} to a folder on a larger disk"
    )
    return Check(name, ok, detail, mend)


def _size(number: float) -> str:
    """Bytes as people read them."""
    return f"{number / 1024**2:,.1f} MiB" if number < 1024**3 else f"{number / 1024**3:,.1f} GiB"


async def services(config: Config) -> list[Check]:
    """Whether the files that containers get are there, and can be read by who reads them."""
    checks = []
    for name, service in config.services.items():
        container, label = service.container, f"services/{name} file"
        checks += [_seen_by_container(label, Path(s.source), container.user) for s in container.secrets]
        if container.env_file is not None:
            checks.append(_env_file(label, Path(container.env_file)))
        tls = service.nginx.server.tls if service.nginx.server else None
        if tls and not config.settings.nginx.container:  # else they are where nginx sees them
            found = {path: status(path) for path in map(Path, (tls.certificate, tls.key))}
            checks += [_absent(label, p, s) for p, s in found.items() if not _is_file(s)]
    return checks


def _seen_by_container(name: str, path: Path, user: str) -> Check:
    """A mounted file: its owner and mode decide; containers have no capability to pass them by."""
    found = status(path)
    if isinstance(found, OSError) or not stat.S_ISREG(found.st_mode):
        return _absent(name, path, found)
    uid, _, gid = (user or NOBODY).partition(":")
    if found.st_uid == int(uid):
        readable = found.st_mode & stat.S_IRUSR
    elif found.st_gid == int(gid or 0):
        readable = found.st_mode & stat.S_IRGRP
    else:
        readable = found.st_mode & stat.S_IROTH
    detail = "can be read" if readable else "can't be read"
    mend = f"chown {uid} {path} && chmod 400 {path}"
    who = "container/user" if user else "who runs an image without a USER; else set container/user"
    return Check(name, bool(readable), f"{path} {detail} by uid {uid}, {who}", mend)


def _env_file(name: str, path: Path) -> Check:
    """A file that the daemon reads."""
    found = status(path)
    if isinstance(found, OSError) or not stat.S_ISREG(found.st_mode):
        return _absent(name, path, found)
    try:
        read_env_file(path)
    except Fault as error:
        denied = not os.access(path, os.R_OK)
        mend = f"chown {os.getuid()} {path} && chmod 400 {path}" if denied else "correct the line"
        return Check(name, False, str(error), mend)
    return Check(name, True, f"{path} can be read")


def _is_file(found: os.stat_result | OSError) -> bool:
    return not isinstance(found, OSError) and stat.S_ISREG(found.st_mode)


def _absent(name: str, path: Path, found: os.stat_result | OSError) -> Check:
    if isinstance(found, FileNotFoundError | NotADirectoryError):
        return Check(name, False, f"{path} is not there", f"create {path}")
    if isinstance(found, OSError):
        return Check(name, False, f"{path}: {found.strerror}", f"let uid {os.getuid()} reach it")
    return Check(name, False, f"{path} is no file", f"remove it, and create {path} as a file")


def env_problems(config: Config) -> list[Problem]:
    """Lines of env files that would stop a release. Files that can't be read here are the doctor's."""
    problems = []
    for name, service in config.services.items():
        path = service.container.env_file
        if path is None or not os.access(path, os.R_OK) or not Path(path).is_file():
            continue
        try:
            read_env_file(Path(path))
        except Fault as error:
            problems.append(Problem(config.files[name], f"container/{error}"))
    return problems


async def secrets(config: Config) -> list[Check]:
    """Whether only those read a secret who should."""
    files = dict(_secret_files("", config.settings.model_dump()))
    for name, service in config.services.items():
        files |= {f"services/{name} {path}": f for path, f in _secret_files("", service.model_dump())}
    checks = []
    for path, file in files.items():
        found = status(file)
        if not isinstance(found, OSError) and stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IRWXO:
            checks.append(Check(path, False, f"{file} can be read by everybody here", f"chmod o= {file}"))
    return checks


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
