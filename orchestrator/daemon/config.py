"""All files together: orchestrator.yaml and its services, of which a wrong one stops no other."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.daemon.nginx_section import ServerSection
from orchestrator.daemon.places import Place, obstacle, places, served
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
        held: Where the file of each service was last.
        bodies: What stood in the file of each service when it was checked.
    """

    path: Path
    settings: Settings
    services: dict[str, ServiceFile]
    problems: tuple[Problem, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    gone: Mapping[str, ServiceFile] = field(default_factory=dict)
    held: Mapping[str, Path] = field(default_factory=dict)
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
    that is driven or served there has it, else the first by name.

    Raises:
        ConfigError: orchestrator.yaml is wrong.
    """
    settings = read(path, Settings)
    driven = before.driven if before else {}
    found, problems = _find(path.parent / settings.services_dir, before)
    files = {name: file.path for name, file in found.items()}
    right: dict[str, ServiceFile] = {}
    for name, file in found.items():
        try:
            right[name] = _service(file, path, settings)
        except ConfigError as error:
            problems += error.problems
        except Exception as error:  # noqa: BLE001  likewise
            problems.append(Problem(file.path, bug(error)))
    taken, clashes = admitted(right, driven, files, served(settings.nginx.directory))
    problems += [Problem(files[name], text) for name, text in clashes.items()]
    problems += [
        Problem(path, f"{place}: no service {name!r}; there are: {', '.join(sorted(files)) or 'none'}")
        for place, name in settings.named()
        if name not in files
    ]
    gone = {name: was for name, was in driven.items() if name not in files}
    held = {**{name: file for name, file in (before.held if before else {}).items() if name in gone}, **files}
    problems += [_gone(name, held.get(name), files, path.parent / settings.services_dir) for name in gone]
    services = {name: taken[name] for name in sorted(taken) if name in files}
    bodies = {name: file.body for name, file in found.items()}
    return Config(path, settings, services, tuple(dict.fromkeys(problems)), files, gone, held, bodies)


def _gone(service: str, held: Path | None, files: Mapping[str, Path], folder: Path) -> Problem:
    """What is to be done about a service that is driven without its file."""
    mend = f"{service} is driven as before: put it back, or run orchestrator remove {service}"
    new = next((name for name, file in files.items() if file in (held, folder / f"{service}.yaml")), "")
    if not new:
        return Problem(held or folder / f"{service}.yaml", f"is gone; {mend}")
    text = f"{files[new].name} says `service: {new}`, which is a new service, not {service} by another name"
    return Problem(folder, f"{text}; the file of {service} is gone; {mend}")


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was read. `said`: what it says; a `ConfigError` where that can't be told."""

    path: Path
    said: Any
    body: bytes = b""


def _find(folder: Path, before: Config | None) -> tuple[dict[str, _File], list[Problem]]:
    """File by service.

    A service is that of the file that held it before; one that nobody held is that of the file that is called
    like it, else of the first by name. A file that holds one takes none that is driven.
    """
    known = before.files if before else {}
    try:
        paths = [p for p in folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not known:
            return {}, []  # as beside an nginx on another host
        wrong = ConfigError([Problem(folder, error.strerror or str(error))])
        return {name: _File(file, wrong) for name, file in known.items()}, [] if known else wrong.problems
    files = {path: _read(path) for path in sorted(paths)}
    held, driven = (before.held, before.driven) if before else ({}, {})
    was = {path: name for name, path in held.items()}
    own = {path: name for path, name in was.items() if name in driven}
    claims = {path: name for path, file in files.items() if (name := _name(file) or was.get(path, ""))}
    winners: dict[str, Path] = {}
    for path, name in sorted(claims.items(), key=lambda c: (held.get(c[1]) != c[0], c[0].stem != c[1], c[0])):
        if held.get(name) == path or name not in driven or path not in own:
            winners.setdefault(name, path)
    stay = {own[path]: path for path, name in claims.items() if winners.get(name) != path and path in own}
    winners |= stay  # each is the wrong file of its own service
    lost = {path: name for path, name in claims.items() if winners.get(name) != path}
    problems = {
        path: Problem(path, _not_its(name, winners, held, own.get(path))) for path, name in lost.items()
    }
    found = {
        name: _File(path, ConfigError([problems[path]]), files[path].body) if path in lost else files[path]
        for name, path in winners.items()
    }
    for path in files.keys() - claims.keys():
        found[path.stem if path.stem not in found else path.name] = files[path]
    told = [problem for path, problem in problems.items() if path not in stay.values()]
    return dict(sorted(found.items())), told


def _not_its(name: str, winners: Mapping[str, Path], held: Mapping[str, Path], own: str | None) -> str:
    """That a file names a service that is not its own."""
    by = winners.get(name) or held.get(name)
    text = f"service: {name!r} is that of {by}"
    return f"{text}; this is the file of {own!r}" if own else f"{text}; one of them must go"


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
    listener = places("", ServerSection.model_construct(listen=settings.nginx.listen, server_name="edge"))
    problems = []
    if any(mine.same_address(own) for mine in places("", found.nginx.server) for own in listener):
        problems.append(f"nginx/server/listen: is nginx/listen of {path}, where the daemon asks nginx")
    if found.gates and not settings.prometheus.url:
        problems.append(f"gates: need prometheus/url in {path}")
    if found.metrics.preset == "nginx" and settings.edges.enabled:
        problems.append("metrics/preset: nginx counts at this host alone; not with edges/enabled")
    if problems:
        raise ConfigError([Problem(file.path, text) for text in problems])
    return found


def admitted(
    right: Mapping[str, ServiceFile],
    driven: Mapping[str, ServiceFile],
    files: Collection[str],
    nginx: Mapping[str, tuple[Place, ...]],
) -> tuple[dict[str, ServiceFile], dict[str, str]]:
    """What is driven from now on, and why a file is not what its service is driven by.

    A file comes in where it takes nothing of what is driven or served; until then its service stays as it is.

    Args:
        right: What the files say.
        driven: What is driven, with a file or without one.
        files: Every service that has a file.
        nginx: See `served`.
    """
    taken, clashes = dict(driven), dict[str, str]()
    waiting = sorted(name for name in right if right[name] != driven.get(name))
    while waiting:
        for name in waiting:
            others = {*taken, *nginx} - {name}
            why = _obstacle(name, right[name], taken, others, right, files, nginx, driven.get(name))
            if why:
                clashes[name] = why
            else:
                taken[name] = right[name]
                clashes.pop(name, None)
        before, waiting = waiting, sorted(clashes)
        if waiting == before:  # else what has come in may have made room
            break
    for name in (right.keys() & driven.keys()) - clashes.keys():  # an older daemon may have let them in
        others = {other for other in taken if other < name}
        if why := _obstacle(name, right[name], taken, others, right, files, {}, None):
            clashes[name] = why
    return taken, dict(sorted(clashes.items()))


def _obstacle(
    name: str,
    file: ServiceFile,
    taken: Mapping[str, ServiceFile],
    others: Collection[str],
    right: Mapping[str, ServiceFile],
    files: Collection[str],
    nginx: Mapping[str, tuple[Place, ...]],
    old: ServiceFile | None,
) -> str:
    """Why a file can't be beside others that are taken, or ''; what is so of the old file is no reason."""
    server, was = file.nginx.server, old.nginx.server if old else None
    if server is not None and server.join:
        owner = taken.get(server.join) or right.get(server.join)
        block = owner.nginx.server if owner else None
        if (owner is None and server.join not in files) or (owner and (block is None or block.join)):
            return f"nginx/server/join: {server.join!r} is no service with a server block of its own"
    if was is not None and not was.join and (server is None or server.join):
        for other, its in taken.items():
            if other != name and its.nginx.server is not None and its.nginx.server.join == name:
                return f"nginx/server: {other} joins the block of {name}, which must stay until it does not"
    for other in sorted(others):
        block = taken[other].nginx.server if other in taken else None
        what = obstacle(name, server, other, block, nginx)
        if what and not (old and obstacle(name, was, other, block, nginx)):
            return f"nginx/server: {what}; {_way_out(name, other, server, files)}"
    return ""


def _way_out(name: str, other: str, server: ServerSection | None, files: Collection[str]) -> str:
    if other not in files:
        return (
            f"the file of {other} is gone, and it is driven and served as before: put it back; or, where"
            f" {name} is {other} by another name, which is a new service: orchestrator remove {other}, then"
            f" orchestrator reload; from then until {name} is released nobody answers"
        )
    joined = server.join if server and server.join else other
    return f"give one another, or join its block at a path of its own: {{join: {joined}, path: /{name}/}}"
