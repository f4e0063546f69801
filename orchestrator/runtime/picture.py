"""What each service's containers were when they were last inspected, for as long as nothing has changed."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.runtime.labels import SERVICE, Identity

FRESH = 10.0
"""Seconds since the last list of all containers after which nothing that is kept counts."""

KEPT = 30.0
"""Seconds for which a service's containers are kept, whatever is told of them."""

Containers = list[tuple[Identity, dict[str, Any]]]
"""Containers, as `docker inspect` shows them."""


@dataclass(frozen=True, slots=True)
class _Kept:
    containers: Containers
    at: float


@dataclass(slots=True)
class Picture:
    """Docker's events, and a list of all containers every few seconds, tell what has changed.

    Without either of them nothing is kept, and each look inspects. It is told from several threads.
    """

    now: Callable[[], float] = time.monotonic
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _changes: dict[str, object] = field(default_factory=dict)
    _compared_at: float = -FRESH

    def of(self, service: str) -> Containers | None:
        """A service's containers; None when they have to be inspected."""
        kept, now = self._kept.get(service), self.now()
        if kept is None or now - self._compared_at >= FRESH or now - kept.at >= KEPT:
            return None
        return kept.containers

    def mark(self, service: str) -> object:
        """What `keep` wants to know of the time before the look."""
        return self._changes.setdefault(service, object())

    def keep(self, service: str, containers: Containers, mark: object) -> None:
        """Keep what an inspection has shown, unless something has changed since the mark."""
        self._kept[service] = _Kept(containers, self.now())
        if self._changes.get(service) is not mark:
            self._kept.pop(service, None)

    def changed(self, service: str) -> None:
        """One of a service's containers may not be as it was."""
        self._changes[service] = object()
        self._kept.pop(service, None)

    def lost(self) -> None:
        """Changes may have been missed: nothing is known of any service."""
        self._compared_at = -FRESH
        for service in list(self._changes):
            self.changed(service)

    def stale(self) -> None:
        """Docker does not answer: what is kept does not count until it does."""
        self._compared_at = -FRESH

    def compare(self, listed: Sequence[Mapping[str, Any]]) -> Iterable[str]:
        """Compare with a list of all containers; the services of which some are not as they are kept."""
        shown: dict[str, set[tuple[Any, ...]]] = {}
        for summary in listed:
            shown.setdefault(summary["Labels"].get(SERVICE, ""), set()).add(_summarised(summary))
        differ = []
        for service, kept in list(self._kept.items()):
            if {_inspected(attrs) for _, attrs in kept.containers} != shown.get(service, set()):
                self.changed(service)
                differ.append(service)
        self._compared_at = self.now()
        return differ


def _addresses(attrs: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    networks = attrs["NetworkSettings"]["Networks"] or {}
    return tuple(sorted((name, end.get("IPAddress") or "") for name, end in networks.items()))


def _summarised(summary: Mapping[str, Any]) -> tuple[Any, ...]:
    return summary["Id"], summary["State"], min(summary["Names"], key=len), _addresses(summary)


def _inspected(attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    return attrs["Id"], attrs["State"]["Status"], attrs["Name"], _addresses(attrs)
