"""What nginx serves, on one host or on several."""

import math
import re
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
        released: How many release ids have been given out, told for the same purpose.
    """

    service: str
    route: Route
    stable: str = ""
    fallback: Route | None = None
    released: int = 0


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


MASTER = re.compile(r"\S+: master process\b")
"""What nginx, and what is made of it, writes over its master's command line."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Process ids of an nginx's workers: those that accept, and those that only finish what they have.

    Attributes:
        outdated: Masters from before an upgrade in place (USR2) with workers that accept: these do not hear
            of a reload, and have shared memory of their own.
    """

    accepting: frozenset[int] = frozenset()
    retiring: frozenset[int] = frozenset()
    outdated: frozenset[int] = frozenset()

    @classmethod
    def among(cls, processes: Mapping[int, tuple[int, str]]) -> "Workers":
        """Those among processes, by their parents and what nginx writes over their command lines.

        nginx starts a new binary as a child of the old master; a worker too looks like a master until it has
        written its own command line, but has no children.
        """
        workers = {pid: text for pid, (_, text) in processes.items() if "worker process" in text}
        retiring = frozenset(pid for pid, text in workers.items() if "shutting down" in text)
        accepting = frozenset(workers) - retiring
        parents = {parent for parent, _ in processes.values()}
        upgraded = {
            parent for pid, (parent, text) in processes.items() if MASTER.match(text) and pid in parents
        }
        return cls(accepting, retiring, frozenset(upgraded & {processes[pid][0] for pid in accepting}))


@dataclass(frozen=True, slots=True)
class Complaint:
    """What nginx has written of its last reload.

    Attributes:
        words: Its emergencies and alerts; empty when there are none, or they can't be read.
        final: It has refused the reload; it may still try again while this is False.
    """

    words: str = ""
    final: bool = False


REASON = re.compile(r"\[emerg\] (?:[0-9]+#[0-9]+: )?(.*)", re.ASCII)


def reason_first(text: str) -> str:
    """What `nginx -t` has written, without the warnings and the rest around its reason, if it gives one."""
    reasons = dict.fromkeys(REASON.findall(text))
    return f"nginx: [emerg] {'; '.join(reasons)}" if reasons else text


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

    async def news(self, known: str, wait: float = 0.0) -> tuple[str, Mapping[str, str]] | None:
        """The version of what is wanted, and that by service; None when it is the known one.

        Waits up to `wait` seconds for another.
        """
        ...

    async def report(self, edge: str, texts: Mapping[str, str]) -> None:
        """Say what an edge serves, by service."""
        ...

    async def reports(self) -> Mapping[str, Mapping[str, str] | None]:
        """What they have said, by edge and service.

        None for those that are silent and may not have been able to speak, absent for those that are away.
        """
        ...


class EdgeProcess(Protocol):
    """The nginx that serves an edge, wherever it runs."""

    async def test(self) -> None:
        """`nginx -t`; raises `Fault` with its words."""
        ...

    async def reload(self) -> None:
        """Ask for a reload; that it returns does not mean that it took effect."""
        ...

    async def complaint(self) -> Complaint:
        """What it has written since it was asked for a reload last."""
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
