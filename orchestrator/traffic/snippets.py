"""What `server` blocks include: how to proxy to a service, and services at a path of another's block."""

from pathlib import Path

from orchestrator.ports.faults import Fault
from orchestrator.traffic.files import read, remove, write
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.render import HTTP, PROXY_SNIPPET, joined_location, location_snippet

HTTP_FILE = "_http.conf"
"""Beside the services' files; no service can have that name."""


class Snippets:
    """The folders `snippets` and `locations` in ours, which is `folder` as nginx sees it."""

    def __init__(self, directory: Path, folder: str) -> None:
        self._dir = directory
        self._folder = folder

    def prepare(self) -> None:
        """Write what all services share."""
        _keep(self._dir / HTTP_FILE, HTTP)
        _keep(self._dir / "snippets" / "proxy.conf", PROXY_SNIPPET)

    def keep(self, service: str, options: EdgeOptions, *, dynamic: bool) -> None:
        """Let those of a service say what its options say; none is left elsewhere. Blocks."""
        name = f"{service}.conf"
        texts = {
            self._dir / "snippets" / name: location_snippet(service, self._folder, options, dynamic=dynamic)
        }
        if options.server and options.server.join:
            place = self._dir / "locations" / options.server.join / name
            texts[place] = joined_location(service, self._folder, options, dynamic=dynamic)
        left = [path for path in self._dir.glob(f"locations/*/{name}") if path not in texts]
        for path, text in texts.items():
            _keep(path, text)
        for path in left:
            remove(path)


def _keep(path: Path, text: str) -> None:
    if read(path) == text:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"{path.parent}: {error.strerror}") from error
    write(path, text)
