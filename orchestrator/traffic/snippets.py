"""What `server` blocks include: how to proxy to a service, and services at a path of another's block."""

import os
from pathlib import Path

from orchestrator.ports.faults import Fault
from orchestrator.traffic.files import matching, read, remove, write
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.render import joined_location, location_snippet
from orchestrator.traffic.shared import make_folder


class Snippets:
    """The folders `snippets` and `locations` in ours, which is `folder` as nginx sees it."""

    def __init__(self, directory: Path, folder: str) -> None:
        self._dir = directory
        self._folder = folder

    def keep(self, service: str, options: EdgeOptions, *, dynamic: bool) -> None:
        """Let those of a service say what its options say; none is left elsewhere. Blocks."""
        name = f"{service}.conf"
        words = (location_snippet, joined_location)
        texts = {
            place: text(service, self._folder, options, dynamic=dynamic)
            for place, text in zip(self._places(service, options), words, strict=False)
        }
        left = [path for path in matching(self._dir, f"locations/*/{name}") if path not in texts]
        for path, text in texts.items():
            _keep(path, text)
        for path in left:
            remove(path)

    def texts(self, service: str, options: EdgeOptions) -> dict[Path, str | None]:
        """What lies where `keep` writes or removes something; None for nothing."""
        left = matching(self._dir, f"locations/*/{service}.conf")
        return {path: read(path) for path in (*self._places(service, options), *left)}

    def missing(self, service: str, options: EdgeOptions) -> list[Path]:
        """Those of a service that are not there."""
        return [place for place in self._places(service, options) if not os.path.isfile(place)]  # noqa: PTH113

    def _places(self, service: str, options: EdgeOptions) -> list[Path]:
        """Of the snippet, and of the location in another service's block if it has one."""
        name = f"{service}.conf"
        joined = [options.server.join] if options.server and options.server.join else []
        return [self._dir / "snippets" / name, *(self._dir / "locations" / host / name for host in joined)]


def _keep(path: Path, text: str) -> None:
    if read(path) == text:
        return
    try:
        make_folder(path.parent)
    except OSError as error:
        raise Fault(f"{path.parent}: {error.strerror}") from error
    write(path, text)
