"""The last right file of each service, kept beside the daemon's state.

A daemon that starts again drives a service whose file has gone, or is wrong, as it did before: its rollout
comes to an end, its instances are kept up, and people can roll back.
"""

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import structlog

from orchestrator.daemon.config import Config, load
from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.yaml_file import ConfigError, read
from orchestrator.ports.faults import Fault
from orchestrator.ports.given import read_given
from orchestrator.traffic.files import LARGEST, remove, text_of, write

log = structlog.get_logger()

_FROM = "# kept from: "
"""Begins a kept file; the name of the file follows, which holds the service."""


class KeptFiles:
    """The folder `services` in the daemon's state."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "services"

    def path(self, service: str) -> Path:
        """Where a service's file is kept."""
        return self._folder / f"{service}.yaml"

    @property
    def readable(self) -> bool:
        """Whether this account may read all of them."""
        return all(os.access(path, os.R_OK) for path in self._folder.glob("*.yaml"))

    def held(self, folder: Path) -> dict[str, Path]:
        """Which file in a folder each service was kept from; not those that a kept file does not tell."""
        found: dict[str, Path] = {}
        for path in sorted(self._folder.glob("*.yaml")):
            with contextlib.suppress(OSError, ValueError):
                first = read_given(path, LARGEST).decode().partition("\n")[0]
                if first.startswith(_FROM):
                    found[path.stem] = folder / str(json.loads(first.removeprefix(_FROM)))
        return found

    def before(self, config: Config) -> Config:
        """What was driven last, for a daemon that starts."""
        return replace(config, services=self.services(), files={}, gone={}, held=self.held(config.folder))

    def services(self) -> dict[str, ServiceFile]:
        """Those that can be read; one that can't be is of another version, and as good as none."""
        found: dict[str, ServiceFile] = {}
        for path in sorted(self._folder.glob("*.yaml")):
            try:
                found[path.stem] = read(path, ServiceFile)
            except ConfigError as error:
                log.warning("kept_file_unread", problem=str(error))
        return found

    def keep(self, config: Config) -> None:
        """Keep what was checked and is right; a failure is logged, and costs nothing until the next start.

        It waits for the disk, and is not to be called on the loop.
        """
        for service, body in config.bodies.items():
            if service in config.services and not config.wrong(service):
                try:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    origin = f"{_FROM}{json.dumps(config.files[service].name)}\n"
                    self._keep(self.path(service), origin + body.decode("utf-8-sig"))
                except (OSError, Fault) as error:
                    log.warning("files_not_kept", service=service, reason=str(error))

    @staticmethod
    def _keep(path: Path, text: str) -> None:
        if text_of(path) != text:
            write(path, text, private=True)

    def forget(self, service: str) -> None:
        """A service has been removed; a failure is logged."""
        try:
            remove(self.path(service))
        except Fault as error:
            log.warning("files_not_kept", reason=str(error))


def load_as_driven(path: Path) -> Config:
    """The files as the daemon on this host takes them, as far as what it keeps can be read; right ones alone.

    Raises:
        ConfigError: orchestrator.yaml is wrong.
    """
    found = load(path)
    kept = KeptFiles(found.settings.state_dir)
    same = not found.problems and all(found.files.get(n) == p for n, p in kept.held(found.folder).items())
    if same or not kept.readable:
        return found
    driven = load(path, kept.before(found))
    return replace(driven, services={n: s for n, s in driven.services.items() if not driven.wrong(n)})
