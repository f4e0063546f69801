"""Checks the invariants from outside: it reads nginx' file, asks Docker, and reads what Redis holds.

It runs beside every acceptance test. `finish` adds the checks that only make sense at the end.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import aiohttp

from examples.playground.stack import Stack
from orchestrator.ports.faults import Fault
from orchestrator.rollout.events import PhaseEntered, ReleaseAccepted, ReleaseEnded, RouteChanged
from orchestrator.rollout.model import FULL, Outcome, Phase
from orchestrator.runtime.labels import INSTANCE, OWNER, RELEASE
from orchestrator.traffic.render import probe_host
from tests.journal import NEXT

INTERVAL = 0.2
DEATH_LIMIT = 3.0
"""I4: seconds until a dead instance has no traffic, while daemon and Docker live."""

SERVER = re.compile(
    r"server (?P<address>[0-9.]+:[0-9]+) weight=(?P<weight>[0-9]+)[^;#]*?(?P<backup> backup)?;"
    r"  # (?P<release>\S+) (?P<instance>\S+)"
)

IN_MEMORY = re.compile(
    r"\[==\[main (?P<host>[0-9.]+) (?P<port>[0-9]+) (?P<weight>[0-9]+)"
    r" (?P<release>\S+) (?P<instance>\S+) (?P<backup>[01])"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One server line of nginx' file."""

    address: str
    weight: int
    backup: bool
    release: str
    instance: str


@dataclass(slots=True)
class Observer:
    """Looks every fifth of a second; collects what is violated."""

    stack: Stack
    service: str = "api"
    limit: float = DEATH_LIMIT
    violations: list[str] = field(default_factory=list)
    looks: int = 0
    _generation: int = 0
    _token: int = 0
    _lower: int = 0
    _dead_since: dict[str, float] = field(default_factory=dict)
    _mismatch: dict[str, int] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _stopping: bool = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="observer")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        if self._task is None:
            return
        self._stopping = True
        done, _ = await asyncio.wait({self._task}, timeout=20.0)
        assert done, "the observer does not end"
        self._task.result()
        self._task = None

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.0)) as session:
            while not self._stopping:
                await self._look(session)
                self.looks += 1
                await asyncio.sleep(INTERVAL)

    @property
    def file(self) -> Path:
        return self.stack.root / "edge" / f"{self.service}.conf"

    def lines(self) -> list[Line]:
        """The servers of the service's upstream, as nginx reads them."""
        try:
            text = self.file.read_text()
        except FileNotFoundError:
            return []
        start = text.find(f"upstream {self.service} {{")
        block = text[start : text.find("\n}", start)]
        if "balancer_by_lua_block" in block:
            return [
                Line(
                    f"{m['host']}:{m['port']}",
                    int(m["weight"]),
                    m["backup"] == "1",
                    m["release"],
                    m["instance"],
                )
                for m in IN_MEMORY.finditer(block)
            ]
        return [
            Line(m["address"], int(m["weight"]), bool(m["backup"]), m["release"], m["instance"])
            for m in SERVER.finditer(block)
        ]

    async def _look(self, session: aiohttp.ClientSession) -> None:
        lines = self.lines()
        await self._floors(session)
        if len({line.release for line in lines}) > 2:
            self._violated(f"I3: more than two releases in {lines}")
        running = await asyncio.to_thread(self._running)
        if running is None:
            return
        await self._identity(session, lines, running)
        now = time.monotonic()
        weighted = [line for line in lines if not line.backup]
        for line in weighted:
            if line.instance in running:
                self._dead_since.pop(line.instance, None)
            elif now - self._dead_since.setdefault(line.instance, now) > self.limit:
                others = any(name in running for name in (o.instance for o in weighted))
                if others:
                    self._violated(f"I4: {line.instance} is dead and has had traffic for {self.limit} s")
        await self._share(lines)

    async def _floors(self, session: aiohttp.ClientSession) -> None:
        """I6, of what nginx serves. One step back is a change that was not confirmed and was put back."""
        url, host = f"http://127.0.0.1:{self.stack.generation}/generation", probe_host(self.service)
        try:
            async with session.get(url, headers={"Host": host}) as answer:
                name, generation, token = (await answer.text()).split()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return
        if name != self.service:
            return
        lower = int(generation) < self._generation - 1 or int(token) < self._token
        self._lower = self._lower + 1 if lower else 0
        if self._lower >= 2:  # right after a reload an old worker may still answer
            floor = f"generation {self._generation}, token {self._token}"
            self._violated(f"I6: generation {generation}, token {token} is served after {floor}")
        self._generation = max(self._generation, int(generation))
        self._token = max(self._token, int(token))

    def _running(self) -> dict[str, tuple[str, str]] | None:
        """Running instances: name to (release, ip); None when Docker does not answer."""
        owned = {"label": f"{OWNER}={self.stack.owner}"}
        try:  # one question, where the SDK's list asks for each container again
            found = self.stack.docker.api.containers(filters=owned)
        except Exception:  # noqa: BLE001  a test may have stopped Docker; then there is nothing to compare
            return None
        running = {}
        for container in found:
            if container["State"] == "running":
                endpoint = container["NetworkSettings"]["Networks"].get(self.stack.owner) or {}
                ip = str(endpoint.get("IPAddress") or "")
                running[container["Labels"][INSTANCE]] = (container["Labels"][RELEASE], ip)
        return running

    async def _identity(
        self, session: aiohttp.ClientSession, lines: list[Line], running: dict[str, tuple[str, str]]
    ) -> None:
        """I2: whoever answers at an address is who the file says. Twice in a row, as the file may move on."""
        for line in lines:
            wrong = ""
            if line.instance in running and running[line.instance][1] != line.address.partition(":")[0]:
                wrong = f"{line.instance} lives at {running[line.instance][1]}"
            try:
                async with session.get(f"http://{line.address}/version") as answer:
                    release = answer.headers.get("X-Release", line.release)
                    if release != line.release:
                        wrong = f"{line.address} is answered by {release}, the file says {line.release}"
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            self._mismatch[line.address] = self._mismatch.get(line.address, 0) + 1 if wrong else 0
            if self._mismatch[line.address] >= 2 and line in self.lines():
                self._violated(f"I2: {wrong}")

    async def _share(self, lines: list[Line]) -> None:
        """I5: the candidate's share in the file never exceeds what was committed for it."""
        total = sum(line.weight for line in lines if not line.backup)
        try:
            state = await self.stack.state(self.service)
        except Fault:
            return
        rollout = state.rollout
        if rollout is None or not total or rollout.phase not in (Phase.SHIFTING, Phase.BAKING):
            return
        if rollout.kind == "revert" or state.stable is None:
            return
        limit = rollout.release.policy.steps[rollout.step].weight
        mine = sum(line.weight for line in lines if line.release == rollout.release.id and not line.backup)
        if mine / total * FULL > limit + 0.01:
            self._violated(
                f"I5: {rollout.release.id} has {mine / total * FULL:.2f} %, committed is {limit} %"
            )

    def _violated(self, what: str) -> None:
        self.violations.append(f"{time.strftime('%H:%M:%S')} {what}")

    async def finish(self) -> None:
        """Stop looking; check the journal; fail if anything was violated."""
        await self._stop()
        events = await self.stack.events()
        state = await self.stack.state(self.service)
        accepted = {e.release for e in events if isinstance(e, ReleaseAccepted) and not e.duplicate}
        ends = [e for e in events if isinstance(e, ReleaseEnded) and e.journey == "release"]
        ended = {e.release for e in ends}
        pending = {r.id for r in state.queue}
        if state.rollout is not None and state.rollout.kind == "release":
            pending.add(state.rollout.release.id)
        if accepted != ended | pending or ended & pending or len(ends) != len(ended):
            self._violated(f"I8: accepted {accepted}, ended {ended}, pending {pending}")
        last: dict[str, Phase | None] = {}
        for event in events:
            if isinstance(event, PhaseEntered):
                before = last.get(event.release)
                if event.phase not in NEXT[before]:
                    self._violated(f"I11: {event.release} went from {before} to {event.phase}")
                last[event.release] = event.phase
            elif isinstance(event, ReleaseEnded):
                last[event.release] = None
            elif isinstance(event, RouteChanged) and not event.actor:
                self._violated(f"I14: {event} names no actor")
        if ends and state.rollout is None and ends[-1].outcome is Outcome.ROLLED_BACK and state.stable:
            weighted = {line.release for line in self.lines() if not line.backup}
            if weighted != {state.stable.id}:
                self._violated(f"I9: after a rollback {weighted} have traffic, stable is {state.stable.id}")
        assert self.looks > 0
        assert not self.violations, "\n".join(self.violations)
