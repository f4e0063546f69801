"""Files that nginx looks for at each request: the rollback switches, and the sign to close connections."""

import contextlib
from pathlib import Path

from orchestrator.ports.faults import Fault
from orchestrator.traffic.files import read, remove, write
from orchestrator.traffic.render import check_service, closing_path, switch_path

PASS = 0o011
"""What nginx' workers need of a folder to look for files in it."""


class Switches:
    """The folder `switch` in ours."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self._closing = Path(closing_path(str(directory)))

    def prepare(self) -> None:
        """Create the folder, and let workers pass, whatever the umask. Raises OSError."""
        self._closing.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._dir, self._closing.parent):
            mode = folder.stat().st_mode
            if mode & PASS != PASS:
                with contextlib.suppress(PermissionError):  # somebody else's; the doctor names it
                    folder.chmod(mode | PASS)
        self._closing.unlink(missing_ok=True)  # of a process that was killed while it reloaded

    def path(self, service: str) -> Path:
        """The file that takes a service's traffic back while it is there."""
        check_service(service)
        return Path(switch_path(str(self._dir), service))

    def is_on(self, service: str) -> bool:
        """Whether it is there."""
        return self.path(service).exists()

    def turn_on(self, service: str, to: str) -> None:
        """Send all traffic where the served file's rollback leads, which is `to`."""
        write(self.path(service), to)

    def written(self, service: str) -> str:
        """The release that it was turned on for; empty when a person did it, or when it is off."""
        return (read(self.path(service)) or "").strip()

    def put_away(self, service: str) -> None:
        """Turn it off."""
        remove(self.path(service))

    def close_connections(self) -> None:
        """Let answers close their connections."""
        write(self._closing, "")

    def keep_connections(self) -> None:
        """Let answers keep their connections again; a failure is left for the next time."""
        with contextlib.suppress(Fault):
            remove(self._closing)
