"""Files that nginx looks for at each request: the rollback switches, and the sign to close connections."""

import contextlib
import os
from pathlib import Path

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.traffic.files import read, remove, write
from orchestrator.traffic.render import check_service, closing_path, switch_path

log = structlog.get_logger()


class Switches:
    """The folder `switch` in ours.

    A switch is the quick way, and never the only one: that it can't be turned on is logged.
    """

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self._closing = Path(closing_path(str(directory)))

    def path(self, service: str) -> Path:
        """The file that takes a service's traffic back while it is there."""
        check_service(service)
        return Path(switch_path(str(self._dir), service))

    def is_on(self, service: str) -> bool:
        """Whether it is there."""
        return os.path.isfile(self.path(service))  # noqa: PTH113  False too where nobody may look

    def turn_on(self, service: str, to: str, generation: int = 0) -> bool:
        """Send all traffic where the served file's rollback leads, which is `to`. Whether that worked.

        `generation`: the one that leads there too, where it is no person's word.
        """
        return _try_to_write(self.path(service), f"{to} {generation}" if generation else to)

    def turned_for(self, service: str) -> int:
        """The generation for which a daemon turned it on; 0 where it is a person's word, or off."""
        _, _, generation = (read(self.path(service)) or "").partition(" ")
        return int(generation) if generation.isdecimal() else 0

    def put_away(self, service: str) -> None:
        """Turn it off."""
        remove(self.path(service))

    def close_connections(self) -> None:
        """Let answers close their connections."""
        _try_to_write(self._closing, "")

    def keep_connections(self) -> None:
        """Let answers keep their connections again; a failure is left for the next time."""
        with contextlib.suppress(Fault):
            remove(self._closing)


def _try_to_write(path: Path, text: str) -> bool:
    try:
        write(path, text)
    except Fault as error:
        log.warning("switch_not_turned_on", path=str(path), reason=str(error))
        return False
    return True
