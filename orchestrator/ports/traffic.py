"""What nginx serves, on one host or on several."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.rollout.model import Route
from orchestrator.rollout.observation import Edge, LocalRollback


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePlan:
    """A route to be served, and the fallback that must lie beside it first.

    Attributes:
        stable: The release that is stable, told in the file for whoever has to go on from it.
        fallback: What a rollback on the host puts in place; None leaves no such file.
    """

    service: str
    route: Route
    stable: str = ""
    fallback: Route | None = None


@dataclass(slots=True)
class AnsweredCounts:
    """What nginx has seen of one instance: attempts by status code, and by upper bound of their seconds."""

    bounds: tuple[float, ...]
    codes: Counter[str] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, code: str, seconds: float, number: int) -> None:
        """Count `number` equal attempts."""
        self.codes[code] += number
        self.seconds += seconds * number
        self.buckets[next((b for b in self.bounds if seconds <= b), math.inf)] += number


@dataclass(frozen=True, slots=True)
class Workers:
    """Process ids of an nginx' workers: those that accept, and those that only finish what they have."""

    accepting: frozenset[int] = frozenset()
    retiring: frozenset[int] = frozenset()

    @classmethod
    def by_title(cls, titles: Mapping[int, str]) -> "Workers":
        """Those among processes, by what nginx writes over their command lines."""
        workers = {pid for pid, text in titles.items() if "worker process" in text}
        retiring = frozenset(pid for pid in workers if "shutting down" in titles[pid])
        return cls(frozenset(workers) - retiring, retiring)


def mentions_lua(text: str) -> bool:
    """Whether what nginx tells of itself (`-V`, `-T`) has the Lua module, loaded or built in."""
    return "ngx_http_lua_module" in text or "/ngx_lua" in text


class Traffic(Protocol):
    """One edge."""

    async def apply(self, plan: RoutePlan, token: int) -> None:
        """Serve a route; returns once it is confirmed, raises `Fault` with the old one still served."""
        ...

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        """Serve the fallback that lies on the disk; needs no store and no lease.

        With a token it is refused as `Stale` where somebody newer has driven; a person needs none. Raises
        `Fault` when there is no fallback or it is not confirmed.
        """
        ...

    async def observe(self, service: str) -> Edge:
        """What is served, and what lies on the disk."""
        ...


class Board(Protocol):
    """Where several edges are told what to serve, and say what they do."""

    async def want(self, service: str, text: str) -> None:
        """Tell all edges; raises `Stale` where somebody newer drives."""
        ...

    async def news(self, known: str) -> tuple[str, Mapping[str, str]] | None:
        """The version of what is wanted, and that by service; None when it is the known one."""
        ...

    async def report(self, edge: str, texts: Mapping[str, str]) -> None:
        """Say what an edge serves, by service."""
        ...

    async def reports(self) -> Mapping[str, Mapping[str, str]]:
        """What they have said, by edge and service; those that are away are absent."""
        ...


class EdgeProcess(Protocol):
    """The nginx that serves an edge, wherever it runs."""

    async def test(self) -> None:
        """`nginx -t`; raises `Fault` with its words."""
        ...

    async def reload(self) -> None:
        """Ask for a reload; that it returns does not mean that it took effect."""
        ...

    async def reopen(self) -> None:
        """Let it open its logs again; raises `Fault` when it can't be asked."""
        ...

    async def has_lua(self) -> bool:
        """Whether it can choose servers by Lua; raises `Fault` when its configuration can't be read."""
        ...

    async def workers(self) -> Workers:
        """The worker processes; none where they can't be seen."""
        ...
