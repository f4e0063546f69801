"""Reading the files: YAML to checked models, every problem with the file and the path to it."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.settings import Settings
from orchestrator.rollout.policy import Template

M = TypeVar("M", bound=BaseModel)


class ConfigError(Exception):
    """What is wrong with the configuration; one line a problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's settings and its services by name."""

    path: Path
    settings: Settings
    services: dict[str, ServiceFile]

    @property
    def folder(self) -> Path:
        """Where the services' files are."""
        return self.path.parent / self.settings.services_dir

    @property
    def templates(self) -> dict[str, Template]:
        """How each service is to be run."""
        return {name: file.container.template() for name, file in self.services.items()}


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that is there twice, of which plain YAML silently drops one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((k for k in keys if keys.count(k) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load(path: Path) -> Config:
    """Read `orchestrator.yaml` and its services.

    Raises:
        ConfigError: With every problem of every file.
    """
    settings = read(path, Settings)
    folder = settings.services_dir
    if not folder.is_absolute():
        folder = path.parent / folder
    problems: list[str] = []
    services: dict[str, ServiceFile] = {}
    files = sorted(folder.glob("*.yaml"))
    for file in files:
        try:
            found = read(file, ServiceFile)
        except ConfigError as error:
            problems += error.problems
            continue
        if found.service in services:
            problems.append(f"{file}: service: {found.service!r} is in another file too")
        if found.gates and not settings.prometheus.url:
            problems.append(f"{file}: gates: need prometheus/url in {path}")
        if found.metrics.preset == "nginx" and settings.edges.enabled:
            problems.append(
                f"{file}: metrics/preset: nginx counts at this host alone; not with edges/enabled"
            )
        services[found.service] = found
    problems += _clashes(services)
    problems += [
        f"{path}: {place}: no service {name!r}" for place, name in settings.named() if name not in services
    ]
    if problems:
        raise ConfigError(problems)
    return Config(path, settings, services)


def _clashes(services: dict[str, ServiceFile]) -> list[str]:
    """Services whose generated `server` blocks would stand in each other's way."""
    seen: dict[tuple[str, ...], str] = {}
    problems = []
    for name, file in services.items():
        server = file.nginx.server
        if server is None:
            continue
        place: tuple[str, ...] = (server.listen, server.server_name)
        if server.join:
            owner = services.get(server.join)
            if owner is None or owner.nginx.server is None or owner.nginx.server.join:
                problems.append(
                    f"{name}: nginx/server/join: {server.join!r} is no service with a server block of its own"
                )
                continue
            place = (server.join, server.path)
            if owner.nginx.server.path == server.path:
                seen.setdefault(place, server.join)
        if place in seen:
            what = f"path {server.path}" if server.join else f"listen {place[0]}, server_name {place[1]}"
            problems.append(
                f"{name}: nginx/server: {what} is that of {seen[place]}; give one another, or join its block"
                f" at a path of its own: {{join: {seen[place]}, path: /{name}/}}"
            )
        seen.setdefault(place, name)
    return problems


def read(path: Path, model: type[M]) -> M:
    """One file as a model.

    Raises:
        ConfigError: It can't be read, or says something that the model does not take.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {getattr(error, 'strerror', None) or error}"]) from error
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: {' '.join(str(error).split())}"]) from error
    try:
        return model.model_validate({} if data is None else data)
    except ValidationError as error:
        raise ConfigError([f"{path}: {_problem(e)}" for e in error.errors()]) from error


def _problem(error: Any) -> str:
    place = "/".join(str(p) for p in error["loc"] if not str(p).startswith(("function-", "(")))
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        text = "is not a key that is known here"
    return f"{place}: {text}" if place else text
