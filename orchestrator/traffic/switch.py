"""Files that nginx looks for at each request: the rollback switches, and the sign to close connections."""

import contextlib
import os
from pathlib import Path

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.traffic.files import names_in, read, remove, write
from orchestrator.traffic.render import check_service, closing_path, switch_path
from orchestrator.traffic.shared import ASIDE

log = structlog.get_logger()

A_PERSONS = 10**9
"""A switch that was changed in this second of the epoch or later is a person's; generations are smaller."""


class Switches:
    """The folder `switch` in ours.

    A person's `touch` of a service's switch takes its traffic wherever a rollback leads by what nginx serves.
    The daemon's own names the release that it leads to, and does nothing in an nginx whose rollback leads
    elsewhere, as in one that has not read the newest file. It is empty, for a full disk has no room for a
    text, and its time of change is the generation that it was turned on for. It is the quick way, and never
    the only one: that it can't be turned on is logged.
    """

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self._closing = Path(closing_path(str(directory)))

    def path(self, service: str, to: str = "") -> Path:
        """The file that takes a service's traffic back, to the given release alone, while it is there."""
        check_service(service)
        return Path(switch_path(str(self._dir), service, to))

    def by_hand(self, service: str) -> bool:
        """Whether a person has turned it on."""
        return _is_there(self.path(service))

    def told_at(self, service: str) -> float:
        """When a person has turned one on, in seconds of the epoch; 0 where none has."""
        times = [changed_at(path) for path in self.all(service)]
        return max((at for at in times if at >= A_PERSONS), default=0.0)

    def all(self, service: str) -> tuple[Path, ...]:
        """Those that are on, wherever they lead."""
        own = self.path(service)
        names = (name for name in names_in(own.parent) if name.startswith(f"{own.name}.to."))
        named = (path for name in names if not (path := own.with_name(name)).suffix.startswith(ASIDE))
        return tuple(filter(_is_there, (own, *named)))

    def is_on(self, service: str, to: str) -> bool:
        """Whether an nginx whose rollback leads to a release takes all traffic there; '' is nowhere."""
        return bool(to) and (self.by_hand(service) or _is_there(self.path(service, to)))

    def turn_on(self, service: str, to: str, generation: int = 0) -> bool:
        """Send all traffic to a release wherever nginx' rollback leads there. Whether that worked.

        `generation`: the one that leads there too, where it is no person's word.
        """
        return _try_to_make(self.path(service, to), generation or None)

    def turned_for(self, service: str, to: str) -> int:
        """The generation for which a daemon turned it on; 0 where it is a person's word, or off.

        A daemon of an older version has written it into the file.
        """
        path = self.path(service, to)
        if self.by_hand(service):
            return 0
        try:
            generation = int(read(path) or path.stat().st_mtime)
        except (OSError, Fault, ValueError):
            return 0
        return generation if 0 < generation < A_PERSONS else 0

    def put_away(self, service: str) -> None:
        """Turn all of them off. Raises `Fault` where some stay."""
        stay: list[str] = []
        for path in self.all(service):
            try:
                remove(path)
            except Fault as error:
                stay.append(str(error))
        if stay:
            raise Fault("; ".join(stay))

    def close_connections(self) -> None:
        """Let answers close their connections."""
        _try_to_make(self._closing)

    def keep_connections(self) -> None:
        """Let answers keep their connections again; a failure is left for the next time."""
        with contextlib.suppress(Fault):
            remove(self._closing)


def _is_there(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  False too where nobody may look


def changed_at(path: Path) -> float:
    """When a file was changed last, in seconds of the epoch; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _try_to_make(path: Path, modified: int | None = None) -> bool:
    try:
        write(path, "", modified=modified)
    except Fault as error:
        log.warning("switch_not_turned_on", path=str(path), reason=str(error))
        return False
    return True
