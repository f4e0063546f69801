"""All files together: orchestrator.yaml and its services, of which a wrong one stops no other."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.settings import Settings
from orchestrator.daemon.yaml_file import ConfigError, Problem, check, content, document, read
from orchestrator.engine.tasks import bug
from orchestrator.rollout.model import SERVICE_NAME
from orchestrator.rollout.policy import Template

SUFFIXES = (".yaml", ".yml")
_NAMED = re.compile(r"^service:\s*[\"']?([a-z0-9-]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's settings and its services by name.

    Attributes:
        services: Those whose file is right; and those whose file was right before, see `load`.
        problems: What is wrong with any file.
        files: Where each service is, whether its file is right or not.
        gone: Services as they were when their file was there last; each is driven until it is removed.
        bodies: What stood in the file of each service when it was checked.
    """

    path: Path
    settings: Settings
    services: dict[str, ServiceFile]
    problems: tuple[Problem, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    gone: Mapping[str, ServiceFile] = field(default_factory=dict)
    bodies: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def driven(self) -> dict[str, ServiceFile]:
        """What the daemon drives."""
        return {**self.gone, **self.services}

    @property
    def names(self) -> list[str]:
        """Every service that has a file, right or wrong."""
        return sorted({*self.services, *self.files})

    def wrong(self, service: str) -> str:
        """What is wrong with a service's file; '' when nothing is."""
        file = self.files.get(service)
        return "; ".join(str(problem) for problem in self.problems if problem.file == file)

    @property
    def unusable(self) -> dict[str, str]:
        """Services that have a file and no plan, with why."""
        return {name: self.wrong(name) for name in self.names if name not in self.services}

    @property
    def folder(self) -> Path:
        """Where the services' files are."""
        return self.path.parent / self.settings.services_dir

    @property
    def templates(self) -> dict[str, Template | None]:
        """How each service is to be run; None where its file is wrong and was never right."""
        known = self.services
        return {name: known[name].container.template() if name in known else None for name in self.names}


def load(path: Path, before: Config | None = None) -> Config:
    """Read `orchestrator.yaml` and its services.

    A service whose file is wrong is as it was `before`, or absent. Where two services want the same, the one
    that is as before has it, else the first by name.

    Raises:
        ConfigError: orchestrator.yaml is wrong.
    """
    settings = read(path, Settings)
    old = before.services if before else {}
    found, problems = _find(path.parent / settings.services_dir, before)
    files = {name: file.path for name, file in found.items()}
    services: dict[str, ServiceFile] = {}
    for name, file in found.items():
        try:
            services[name] = _service(file, path, settings)
        except ConfigError as error:
            problems += error.problems
            services |= {name: old[name]} if name in old else {}
        except Exception as error:  # noqa: BLE001  likewise
            problems.append(Problem(file.path, bug(error)))
            services |= {name: old[name]} if name in old else {}
    order = sorted(services, key=lambda name: (services[name] != old.get(name), name))
    services = {name: services[name] for name in order}
    while clash := next(_clashes(services, files), None):
        name, text = clash
        problems.append(Problem(files[name], text))
        changed = services.pop(name) != old.get(name)
        services = ({name: old[name]} if changed and name in old else {}) | services
    problems += [
        Problem(path, f"{place}: no service {name!r}; there are: {', '.join(sorted(files)) or 'none'}")
        for place, name in settings.named()
        if name not in files
    ]
    gone = {name: was for name, was in (before.driven if before else {}).items() if name not in files}
    bodies = {name: file.body for name, file in found.items()}
    problems += [
        Problem(
            path.parent / settings.services_dir / f"{name}.yaml",
            f"is gone; {name} is driven as before: put it back, or run orchestrator remove {name}",
        )
        for name in gone
    ]
    services = dict(sorted(services.items()))
    return Config(path, settings, services, tuple(dict.fromkeys(problems)), files, gone, bodies)


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was read. `said`: what it says; a `ConfigError` where that can't be told."""

    path: Path
    said: Any
    body: bytes = b""


def _find(folder: Path, before: Config | None) -> tuple[dict[str, _File], list[Problem]]:
    """File by service; of two files for one service, the one that had it before goes on with it."""
    held = before.files if before else {}
    was = {path: name for name, path in held.items()}
    try:
        paths = [p for p in folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not held:
            return {}, []  # as beside an nginx on another host
        wrong = ConfigError([Problem(folder, error.strerror or str(error))])
        return {name: _File(file, wrong) for name, file in held.items()}, [] if held else wrong.problems
    files = {path: _read(path) for path in sorted(paths)}
    names = {path: _name(file) for path, file in files.items()}
    found: dict[str, _File] = {}
    problems = []
    for path in sorted(files, key=lambda p: (p not in was, not names[p], p.name)):
        name = names[path] or was.get(path) or (path.stem if path.stem not in found else path.name)
        if name in found:
            problems.append(
                Problem(path, f"service: {name!r} is that of {found[name].path}; one of them must go")
            )
        else:
            found[name] = files[path]
    return dict(sorted(found.items())), problems


def _read(path: Path) -> _File:
    body = b""
    try:
        body = content(path)
        return _File(path, document(path, body), body)
    except ConfigError as error:
        return _File(path, error, body)
    except Exception as error:  # noqa: BLE001  it is told with the file, and stops no other one
        return _File(path, ConfigError([Problem(path, bug(error))]), body)


def _name(file: _File) -> str:
    """Whose file it is, as far as that can be told of a wrong one; else ''."""
    if isinstance(file.said, ConfigError):
        found = _NAMED.search(file.body.decode("utf-8", "replace"))
        name = found[1] if found else ""
    else:
        name = str(file.said.get("service", "")) if isinstance(file.said, dict) else ""
    return name if SERVICE_NAME.fullmatch(name) else ""


def _service(file: _File, path: Path, settings: Settings) -> ServiceFile:
    """A service whose file is right.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(file.said, ConfigError):
        raise file.said
    found = check(file.path, file.said, ServiceFile)
    problems = []
    if found.gates and not settings.prometheus.url:
        problems.append(f"gates: need prometheus/url in {path}")
    if found.metrics.preset == "nginx" and settings.edges.enabled:
        problems.append("metrics/preset: nginx counts at this host alone; not with edges/enabled")
    if problems:
        raise ConfigError([Problem(file.path, text) for text in problems])
    return found


def _clashes(services: Mapping[str, ServiceFile], files: Collection[str]) -> Iterator[tuple[str, str]]:
    """Services whose generated `server` blocks stand in the way of those before them, with why."""
    seen: dict[tuple[str, ...], str] = {}
    for name, file in services.items():
        server = file.nginx.server
        if server is None:
            continue
        place: tuple[str, ...] = (server.listen, server.server_name)
        if server.join:
            owner = services.get(server.join)
            block = owner.nginx.server if owner else None
            if (owner is None and server.join not in files) or (owner and (block is None or block.join)):
                yield (
                    name,
                    f"nginx/server/join: {server.join!r} is no service with a server block of its own",
                )
                continue
            place = (server.join, server.path)
            if block is not None and block.path == server.path:
                seen.setdefault(place, server.join)
        if place in seen:
            what = f"path {server.path}" if server.join else f"listen {place[0]}, server_name {place[1]}"
            free = f"{{join: {server.join or seen[place]}, path: /{name}/}}"
            text = (
                f"nginx/server: {what} is that of {seen[place]}; give one another, or join its block at a"
                f" path of its own: {free}"
            )
            yield name, text
        seen.setdefault(place, name)
