"""One service: commands in, look, decide, commit, converge; again and again."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog

from orchestrator.engine.converge import Converger
from orchestrator.engine.measure import Measurer
from orchestrator.engine.tasks import Jobs, Pace, bug, unless_cancelled, within
from orchestrator.ports.clock import Clock
from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.hooks import Hooks
from orchestrator.ports.metrics import ENGINE, MetricQuery
from orchestrator.ports.requests import Request
from orchestrator.ports.runtime import Images, Runtime, Usage
from orchestrator.ports.service import ServicePlan
from orchestrator.ports.store import Store
from orchestrator.ports.traffic import Traffic
from orchestrator.rollout.command import HANDLED, Abort, Command, Pause, Rollback, handle, refusal
from orchestrator.rollout.counts import Known, settle, thinned
from orchestrator.rollout.decide import decide, watch
from orchestrator.rollout.desired import desired
from orchestrator.rollout.events import Event, ServiceTroubled, StateRestored
from orchestrator.rollout.model import Phase, Rollout, ServiceState, instance_names
from orchestrator.rollout.observation import Edge, Observation, Reading
from orchestrator.rollout.policy import Policy

log = structlog.get_logger()

INBOX = 1000
"""Commands that may wait for one service."""

IDLE_FACTOR = 4
"""How much slower a service without a rollout is looked at; events of Docker still wake it at once."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds after the first turn that met a bug, and the most between two tries."""

LOOK_DEADLINE = 15.0
"""Seconds for one look at the containers, and at the edge; verbs wait for no more than that."""

STORE_DEADLINE = 10.0
"""Seconds for one answer of the store."""

CPU = "cpu"

CPU_DEADLINE = 60.0
"""Seconds for the CPU seconds of all of a service's instances."""

UNSEEN_FOR = 60.0
"""Seconds in which a part could not be looked at, after which people are told."""

URGENT = Rollback | Pause | Abort
"""What stops harm: a queue of others does not keep it out, and it does not wait for a look's end."""

UNWATCHED = 30.0
"""Seconds between two decisions of a process; after more than that nobody has watched meanwhile."""

Origin = tuple[Request, Mapping[str, str]] | None
"""The request that a command was made of, and its fields as they were read."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What every conductor shares. `may_act`: whether the lease is fresh enough to touch the world."""

    store: Store
    runtime: Runtime
    images: Images
    usage: Usage
    traffic: Traffic
    hooks: Hooks
    measurer: Measurer
    clock: Clock
    tick: float
    may_act: Callable[[], bool]
    publish: Callable[[ServiceState, ServicePlan, Observation, tuple[Event, ...]], None]
    pace: Pace = field(default_factory=Pace)


@dataclass(slots=True)
class _Memory:
    """What a conductor knows beyond the committed state; all of it can be seen again after a restart.

    Attributes:
        decided_at: When a decision was last made that could be carried out; None before the first one here on
            the state that was read last.
        loaded_at: When the state was committed that was read last and is another's.
        sent_at: When the state was committed that was written last, whether or not there was a reply.
        unwatched: Seconds without anybody who watched, of which no decision has been told yet.
    """

    readings: list[Reading] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    cpu: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    watched: ServiceState | None = None
    decided_at: float | None = None
    loaded_at: float = 0.0
    sent_at: float = 0.0
    unwatched: float = 0.0
    seen: Observation = field(default_factory=lambda: Observation(runtime_ok=False))


@dataclass(slots=True)
class _Unseen:
    """Why a part can't be looked at, and since when."""

    since: float
    reason: str = ""


def counters_of(plan: ServicePlan, policy: Policy) -> MetricQuery:
    """The counters that the comparisons of a policy need."""
    counts = tuple((g.name, g.total, g.bad) for g in policy.comparisons if g.metric == "counts")
    return MetricQuery(service=plan.service, source=plan.metrics, counts=counts)


def measurements(plan: ServicePlan, rollout: Rollout) -> MetricQuery:
    """What has to be read for the gates of a rollout. The past is asked for until it is known."""
    policy = rollout.release.policy
    known = {e.gate for e in rollout.evidence}
    return replace(
        counters_of(plan, policy),
        queries=tuple((g.name, g.query) for g in policy.limits if g.metric == "query"),
        history=tuple((g.name, g.history) for g in policy.comparisons if g.history and g.name not in known),
        cpu=any(g.metric == "cpu" for g in policy.limits),
        instances=instance_names(rollout.release),
    )


def _goes_back(state: ServiceState) -> bool:
    """Whether users are on their way to a release that was good before."""
    rollout = state.rollout
    return rollout is not None and (rollout.kind == "revert" or rollout.takes_back)


class Conductor:
    """Drives one service. Nothing outside it changes that service's state."""

    def __init__(self, plan: ServicePlan, parts: Parts) -> None:
        self.plan = plan
        self._parts = parts
        self._inbox: deque[Command] = deque()
        self._waiting: dict[str, Origin] = {}
        self._wake = asyncio.Event()
        self._pressing = asyncio.Event()
        self._jobs = Jobs(self.wake)
        self._converger = Converger(
            parts.runtime, parts.images, parts.traffic, parts.hooks, parts.store, self._jobs
        )
        self._memory = _Memory()
        self._state = ServiceState(service=plan.service)
        self._version = 0
        self._loaded = False
        self._bugs: list[str] = []
        self._unseen: dict[str, _Unseen] = {}
        self._looked = False

    def wake(self) -> None:
        """Something has happened: look now."""
        self._wake.set()

    def submit(self, command: Command, origin: Origin = None) -> bool:
        """Take a command; False when too many wait already. One that waits already is not taken twice."""
        if command.request in self._waiting:
            return True
        urgent = isinstance(command, URGENT)
        if len(self._inbox) >= INBOX * (1 + urgent):
            return False
        self._inbox.append(command)
        self._waiting[command.request] = origin
        if urgent:
            self._pressing.set()
        self.wake()
        return True

    def left(self) -> list[tuple[Request, Mapping[str, str]]]:
        """The requests that are not known to be carried out, in their order."""
        return [origin for origin in self._waiting.values() if origin is not None]

    async def run(self) -> None:
        """Drive, for ever. A bug in a turn or a job is this service's own: it is told, and tried again.

        Raises:
            Stale: Another daemon has taken over.
        """
        pause = FIRST_PAUSE
        try:
            while True:
                self._wake.clear()
                moved = False
                try:
                    moved = await unless_cancelled(self._turn)
                    await self._note_trouble(self._trouble())
                    pause = FIRST_PAUSE
                except Stale:
                    raise
                except Fault as error:
                    log.warning("turn_failed", service=self.plan.service, reason=str(error))
                    await self._survive()
                except Exception as error:
                    log.exception("turn_failed", service=self.plan.service, next_try_s=pause)
                    await self._survive(bug(error))
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
                if not moved:
                    await self._rest()
        finally:
            await self._jobs.stop()
            self._parts.measurer.forget(self.plan.service)

    def _trouble(self) -> str:
        """What people are to be told: a bug, or what has failed for so long that it does not mend itself."""
        now, jobs = self._parts.clock.now(), self._jobs
        unseen = [f"{part}: {u.reason}" for part, u in self._unseen.items() if now - u.since >= UNSEEN_FOR]
        return next(iter((*self._bugs, *jobs.bugs.values(), *unseen, *jobs.lasting.values())), "")

    async def _survive(self, trouble: str = "") -> None:
        """After a fault or a bug: a bad candidate still goes back, and people are told, as far as may be."""
        steps = [self._fail_static, *([lambda: self._note_trouble(trouble)] if trouble else [])]
        for step in steps:
            try:
                await unless_cancelled(step)
            except Stale:
                raise
            except Exception as further:  # noqa: BLE001  the first one has been logged
                log.warning("turn_failed", service=self.plan.service, reason=bug(further))

    async def _note_trouble(self, reason: str) -> None:
        if not self._loaded:
            await self._load()
        if reason == self._state.trouble:
            return
        told = ServiceTroubled(service=self.plan.service, at=self._parts.clock.now(), reason=reason)
        await self._commit(replace(self._state, trouble=reason), (told,))

    async def _rest(self) -> None:
        idle = self._state.rollout is None and not self._state.retiring
        pause = self._parts.tick * (IDLE_FACTOR if idle else 1)
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _turn(self) -> bool:
        """One round. True when something was told, so that the next round should follow at once.

        After a commit whose reply was lost it begins by reading what was written.
        """
        if self._jobs.stale is not None:
            raise self._jobs.stale
        if not self._loaded:
            await self._load()
        self._memory.unwatched = self._unwatched()
        ready = bool(self._version) and self._looked
        told = ready and await self._obey()
        seen, obeyed = await self._look_and_obey(ready=ready)
        if not ready:  # the store may know less than what runs: that comes first
            if not self._version and not seen.runtime_ok:
                return False
            self._looked = True
            await self._decide(seen)
            obeyed = await self._obey()
        decided = await self._decide(seen)
        if self._parts.may_act():
            self._converger.converge(desired(self._state, self._parts.clock.now()), self._state, seen)
        self._memory.watched = None
        return told or obeyed or decided

    async def _look_and_obey(self, *, ready: bool) -> tuple[Observation, bool]:
        """Look; where commands may be carried out, an urgent one overtakes the look, which goes on.

        Returns:
            What is seen, and whether there were commands.
        """
        told = False
        look = asyncio.create_task(unless_cancelled(self._look), name=f"look {self.plan.service}")
        look.add_done_callback(lambda _: self._pressing.set())
        try:
            while not look.done():
                self._pressing.clear()
                await self._pressing.wait()
                if ready and not look.done():
                    told |= await self._obey()
            return look.result(), told
        finally:
            look.cancel()
            await asyncio.gather(look, return_exceptions=True)

    def _unwatched(self) -> float:
        """Seconds until now in which nobody drove the service, neither this daemon nor the one before it.

        Of that one it is known only when it last committed something.
        """
        now, memory = self._parts.clock.now(), self._memory
        if memory.decided_at is None:
            return max(now - memory.loaded_at, 0.0) if self._version else 0.0
        gap = now - memory.decided_at
        return gap if gap > max(UNWATCHED, 10 * self._parts.tick) else 0.0

    async def _obey(self) -> bool:
        """Carry out the commands that wait. True when there were any."""
        told = bool(self._inbox)
        while self._inbox:
            command = self._inbox[0]
            state, events = self._handle(command)
            ahead = self._ahead(state) if isinstance(command, URGENT) and _goes_back(state) else None
            if ahead is not None:
                state, events = ahead[0], (*events, *ahead[1])
            try:
                await self._commit(state, events, acks=(command.request,))
            except Fault:
                raise
            except Exception as error:
                log.exception("command_failed", service=self.plan.service, request=command.request)
                await self._load()
                state, events, ahead = *self._refused(command, bug(error)), None
                await self._commit(state, events, acks=(command.request,))
            self._inbox.popleft()
            del self._waiting[command.request]
            if ahead is not None:
                self._take_back()
        return told

    def _ahead(self, state: ServiceState) -> tuple[ServiceState, tuple[Event, ...]] | None:
        """What comes next by what was seen last: one commit is sooner than two with a look between them.

        None where that meets a bug, which is met again, and told, after the look.
        """
        try:
            return self._next(state, self._memory.seen)
        except Exception:
            log.exception("turn_failed", service=self.plan.service)
            return None

    def _take_back(self) -> None:
        """Send users back. Only the route is made so; what was no longer true is put right after a look."""
        self._note_decision()
        if self._parts.may_act():
            world = desired(self._state, self._parts.clock.now())
            self._converger.route(world, self._state, self._memory.seen)

    def _handle(self, command: Command) -> tuple[ServiceState, tuple[Event, ...]]:
        """What a command does; one that meets a bug is refused, and does not keep the others waiting."""
        now = self._parts.clock.now()
        try:
            return handle(self._state, command, now)
        except Exception as error:
            log.exception("command_failed", service=self.plan.service, request=command.request)
            return self._refused(command, bug(error))

    def _refused(self, command: Command, reason: str) -> tuple[ServiceState, tuple[Event, ...]]:
        handled = (*self._state.handled, command.request)[-HANDLED:]
        told = refusal(self.plan.service, command, reason, self._parts.clock.now())
        return replace(self._state, handled=handled), (told,)

    async def _decide(self, seen: Observation) -> bool:
        state, events = self._next(self._state, seen)
        if state != self._state:
            await self._commit(state, events)
        self._note_decision()
        return bool(events)

    def _next(self, state: ServiceState, seen: Observation) -> tuple[ServiceState, tuple[Event, ...]]:
        return decide(state, replace(seen, unwatched=self._memory.unwatched), self._parts.clock.now())

    def _note_decision(self) -> None:
        """What has been decided is committed, and with it for how long nobody watched."""
        if self._parts.may_act() or self._memory.unwatched:
            self._memory.decided_at = self._parts.clock.now()
        self._memory.unwatched = 0.0

    async def _load(self) -> None:
        """Read what is committed; what the store has lost since is written again.

        What is newer was committed here, without a reply, or by a daemon that had the lease meanwhile, as the
        store had forgotten whose it was; its clock may be another.
        """
        state, version = await within(STORE_DEADLINE, lambda: self._parts.store.load(self.plan.service))
        self._parts.clock.not_before(state.at)
        if version > self._version and state.at != self._memory.sent_at:
            self._memory.loaded_at, self._memory.decided_at = state.at, None
        if version >= self._version:
            self._state, self._version, self._loaded = state, version, True
            return
        log.error("store_lost_commits", service=self.plan.service, found=version, remembered=self._version)
        told = StateRestored(
            service=self.plan.service,
            at=self._parts.clock.now(),
            found=version,
            remembered=self._version,
        )
        await self._commit(self._state, (told,), after=version)

    async def _commit(
        self,
        state: ServiceState,
        events: tuple[Event, ...],
        *,
        acks: tuple[str, ...] = (),
        after: int | None = None,
    ) -> None:
        self._loaded = False  # until the reply is here, what Redis holds is not known
        state = replace(state, at=self._parts.clock.now())
        self._memory.sent_at = state.at
        version = self._version if after is None else after
        commit = self._parts.store.commit
        self._version = await within(STORE_DEADLINE, lambda: commit(state, version, events, acks))
        self._loaded = True
        self._state = state
        self._parts.publish(state, self.plan, self._memory.seen, events)

    async def _fail_static(self) -> None:
        """Without the store nothing is committed, so no step is taken; but a bad candidate still goes back.

        What is decided now is forgotten when the store is back, and decided again from what is seen then.
        """
        if not self._version:
            return
        seen = await self._look()
        before = self._state.rollout
        watched = watch(self._memory.watched or self._state, seen, self._parts.clock.now())
        self._memory.watched, after = watched, watched.rollout
        if before is None or after is None or after.retreat is None or seen.edge.local is not None:
            return
        stable = self._state.stable.id if self._state.stable else ""
        leads_there = {s.release for s in seen.edge.fallback} == {stable}
        if before.phase is not Phase.ROLLING_BACK and leads_there:
            self._converger.retreat(self.plan.service, after.retreat.actor, after.retreat.reason)

    def doubt(self) -> None:
        """The store may have lost something: read it again before anything else."""
        self._loaded = False
        self.wake()

    async def _look(self) -> Observation:
        parts, service = self._parts, self.plan.service
        self._bugs.clear()
        async with parts.pace.place():
            instances = await self._ask(lambda: parts.runtime.observe(service), "runtime")
            edge = await self._ask(lambda: parts.traffic.observe(service), "edge")
        if isinstance(edge, Fault):
            edge = Edge(error=str(edge), file=self._memory.seen.edge.file, unread=True)
        self._measure()
        seen = Observation(
            instances=self._memory.seen.instances if isinstance(instances, Fault) else instances,
            runtime_ok=not isinstance(instances, Fault),
            runtime_error=str(instances) if isinstance(instances, Fault) else "",
            edge=edge,
            images=dict(self._converger.resolved),
            image_error=self._converger.image_error(),
            start_errors=self._converger.start_errors(),
            readings=tuple(self._memory.readings),
            hooks=dict(self._converger.asked),
        )
        self._memory.seen = seen
        parts.publish(self._state, self.plan, seen, ())
        return seen

    async def _ask(self, question: Callable[[], Awaitable[T]], part: str) -> T | Fault:
        """What a part sees, or why it sees nothing. A bug of it is told once, with its traceback."""
        service = self.plan.service
        unseen = self._unseen.setdefault(part, _Unseen(self._parts.clock.now()))
        try:
            answer = await within(LOOK_DEADLINE, question)
        except Stale:
            raise
        except Fault as error:
            found, told = error, str(error)
            if unseen.reason != told:
                log.warning("not_seen", service=service, part=part, reason=told)
        except Exception as error:
            found, told = Fault(bug(error)), bug(error)
            self._bugs.append(told)
            if unseen.reason != told:
                log.exception("not_seen", service=service, part=part)
        else:
            del self._unseen[part]
            return answer
        unseen.reason = told
        return found

    def _measure(self) -> None:
        """Watch the metrics while a rollout is under way, and keep what its step may look back on."""
        rollout, readings, service = self._state.rollout, self._memory.readings, self.plan.service
        if rollout is None or not rollout.release.policy.measured:
            self._parts.measurer.forget(service)
            readings.clear()
            self._memory.known.clear()
            return
        query = measurements(self.plan, rollout)
        self._parts.measurer.watch(query, self.wake)
        self._jobs.keep(CPU)
        latest = self._parts.measurer.latest(service)
        if latest is not None and (not readings or readings[-1].at < latest.at):
            self._memory.known, latest = settle(self._memory.known, latest)
            readings.append(self._with_cpu(latest) if query.cpu and query.source.cpu == ENGINE else latest)
            windows = [limit.window for limit in rollout.release.policy.limits]
            recent = self._parts.clock.now() - max(windows, default=0.0)
            began, needed = rollout.held_since or rollout.entered_at, (rollout.block_from, rollout.looked_at)
            readings[:] = thinned(readings, began, recent, needed)

    def _with_cpu(self, reading: Reading) -> Reading:
        """With the CPU seconds that the Engine has counted last; it is asked again meanwhile."""

        async def ask() -> None:
            self._memory.cpu = await self._parts.usage.cpu_seconds(self.plan.service)

        self._jobs.start(CPU, ask, CPU_DEADLINE)
        used = self._memory.cpu
        samples = {name: replace(s, cpu=used.get(name)) for name, s in reading.samples.items()}
        return replace(reading, samples=samples)
