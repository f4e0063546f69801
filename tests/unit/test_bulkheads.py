"""One service's trouble stays its own: whatever a port raises about it, or if it hangs, the others go on."""

import asyncio
import functools
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

import pytest
import redis.exceptions
import structlog

from orchestrator import ports
from orchestrator.engine import measure
from orchestrator.engine.conductor import Parts
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.measure import Measurer
from orchestrator.engine.tasks import eternal
from orchestrator.intake.stream import CONSUMER, RequestStream
from orchestrator.ports.faults import Fault, Refused
from orchestrator.ports.metrics import ENGINE, MetricQuery, MetricSource
from orchestrator.ports.service import ServicePlan
from orchestrator.rollout.command import QUEUE, handle
from orchestrator.rollout.events import Event, RequestRefused
from orchestrator.rollout.hooks import HookCall
from orchestrator.rollout.model import Outcome, Phase, ServiceState
from orchestrator.rollout.observation import Reading, Sample
from orchestrator.rollout.policy import Hook, Limit, Step
from orchestrator.rollout.told import problems
from orchestrator.store.codec import load_event
from tests.builders import policy, submit, template
from tests.contract.fakes import FakeClock, FakeHooks, FakeMetrics, FakeRuntime, FakeStore, FakeTraffic
from tests.simulation import loop as virtual

BAD, GOOD = "bad", "good"
TICK = 1.0

WALKED = {
    "store.load": "Store.load",
    "store.commit": "Store.commit",
    "store.refuse": "Store.refuse",
    "runtime.observe": "Runtime.observe",
    "runtime.resolve": "Runtime.resolve",
    "runtime.start": "Runtime.start",
    "runtime.supervise": "Runtime.supervise",
    "runtime.stop": "Runtime.stop",
    "images.remove_images": "Images.remove_images",
    "usage.cpu_seconds": "Usage.cpu_seconds",
    "traffic.apply": "Traffic.apply",
    "traffic.observe": "Traffic.observe",
    "traffic.retreat": "Traffic.retreat",
    "hooks.ask": "Hooks.ask",
    "metrics.read": "Metrics.read",
}
"""What the engine awaits for one service: how the part is called there, and the port's method."""

FOR_ALL = {
    "Store.answer": "of `reload`, which is about the files of all; written as refusals are, see Replies",
    "RuntimeEvents.changes": "one stream for all; it only wakes conductors before their tick: courtesy",
    "Board.want": "behind Traffic.apply, whose job ends with its deadline",
    "Board.news": "an edge on another host reads it; no conductor does",
    "Board.report": "an edge on another host writes it; no conductor does",
    "Board.reports": "behind Traffic.apply and Traffic.observe, both of which are walked",
    "EdgeProcess.test": "behind Traffic.apply: one nginx for all services",
    "EdgeProcess.reload": "behind Traffic.apply: one nginx for all services",
    "EdgeProcess.complaint": "behind Traffic.apply: one nginx for all services",
    "EdgeProcess.reopen": "of the request log, which is one for all: courtesy",
    "EdgeProcess.has_lua": "behind Traffic.apply and Traffic.observe: one nginx for all services",
    "EdgeProcess.workers": "behind Traffic.apply and Traffic.observe: one nginx for all services",
    "Journal.load": "of readers: courtesy; for hooks afterwards see tests/door/test_afterwards.py",
    "Journal.last_event_id": "of readers: courtesy",
    "Journal.events_after": "of readers: courtesy",
    "Journal.told": "of who looks at a release over HTTP",
    "Bookmarks.bookmark": "of readers: courtesy; for hooks afterwards see tests/door/test_afterwards.py",
    "Bookmarks.set_bookmark": "of readers: courtesy; for hooks afterwards see tests/door/test_afterwards.py",
    "Tail.follow": "of who listens over HTTP",
    "Inbox.push": "of who asks, over HTTP or by the command line",
    "Inbox.pushed": "of who asks, over HTTP or by the command line",
    "Tokens.create": "who may ask is no service's",
    "Tokens.tokens": "who may ask is no service's",
    "Tokens.reach": "who may ask is no service's",
    "Tokens.revoke": "who may ask is no service's",
    "Tokens.recognise": "who may ask is no service's",
    "Tokens.open_session": "who may ask is no service's",
    "Tokens.session": "who may ask is no service's",
    "Tokens.close_session": "who may ask is no service's",
}
"""What no service's release waits for by itself, with the reason."""

CLOCKS = frozenset({"Clock", "WallClock", "HostClock"})
"""They are asked for the time of the process, and await nothing."""


class Panic(BaseException):
    """As a Rust extension raises it."""


class Hang(Exception):  # noqa: N818  it is never raised
    """Instead of raising anything the method does not answer, for ever."""


ANYTHING: tuple[Callable[[], BaseException], ...] = (  # one of each kind; more of them in test_tasks.py
    lambda: Fault("no"),
    lambda: Refused("never"),
    lambda: KeyError("Id"),
    TimeoutError,
    asyncio.CancelledError,
    lambda: redis.exceptions.ConnectionError("Connection closed by server."),
    lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
    lambda: SystemExit(2),
    lambda: Panic("called `Option::unwrap()` on a `None` value"),
    Hang,
)
POLICY = policy(
    limits=(Limit(name="cpu", metric="cpu", max=0.9, window=5.0),),
    hooks=tuple(
        Hook(name=at, at=at, kind="command", command=("true",), retries=0)
        for at in ("preflight", "before_step")
    ),
    steps=(Step(weight=20, hold=3.0, deadline=300.0), Step(weight=100, hold=0.0, deadline=300.0)),
    confirm_deadline=60.0,
    keep_previous=0.5,
    start_deadline=60.0,
    preflight_deadline=60.0,
    keep_images=0,
    no_data_after=100.0,
)


def plan(service: str) -> ServicePlan:
    return ServicePlan(
        service=service,
        images=(f"repo/{service}",),
        template=template(instances=1),
        policies={"": POLICY},
        metrics=MetricSource(requests="r", status_label="code", error_pattern="5..", latency="l", cpu=ENGINE),
    )


def protocols() -> dict[str, type]:
    modules = [
        importlib.import_module(f"{ports.__name__}.{m.name}") for m in pkgutil.iter_modules(ports.__path__)
    ]
    found = {n: c for m in modules for n, c in vars(m).items() if inspect.isclass(c)}
    return {
        n: c
        for n, c in found.items()
        if getattr(c, "_is_protocol", False) and c.__module__ in {m.__name__ for m in modules}
    }


def test_each_method_of_each_port_is_walked_or_there_is_a_reason() -> None:
    methods = {
        f"{name}.{method}"
        for name, protocol in protocols().items()
        if name not in CLOCKS
        for method, what in vars(protocol).items()
        if inspect.isfunction(what) and not method.startswith("_")
    }
    assert methods == {*WALKED.values(), *FOR_ALL}
    assert not set(WALKED.values()) & FOR_ALL.keys()


def test_the_walk_reaches_each_port_that_conductors_have() -> None:
    hints = get_type_hints(Parts)
    known = protocols()
    parts = {f.name: hints[f.name].__name__ for f in fields(Parts) if hints[f.name] in known.values()}
    walked = {m.partition(".")[0]: WALKED[m].partition(".")[0] for m in WALKED}
    assert {k: v for k, v in walked.items() if k != "metrics"} == {
        k: v for k, v in parts.items() if v not in CLOCKS
    }


def test_releases_that_wait_for_one_service_do_not_grow_without_end() -> None:
    """All of them are in each of its commits, and the others wait while that is written."""
    state, events = ServiceState(service="api"), tuple[Event, ...]()
    for number in range(1, QUEUE + 3):
        state, events = handle(state, submit(number, policy=policy(on_new_release="queue")), 1000.0)
    assert len(state.queue) == QUEUE
    (refused,) = events
    assert isinstance(refused, RequestRefused)
    assert refused.reason == "100 releases wait already; abort some, or ask again when some have ended"


def concerns(argument: Any, service: str) -> bool:
    """Whether a call is about a service: by its name, or by what names it."""
    if isinstance(argument, str):
        return service in argument
    if isinstance(argument, list | tuple):
        return any(concerns(a, service) for a in argument)
    if isinstance(argument, HookCall):
        return argument.release.service == service
    names = (getattr(argument, name, "") for name in ("service", "name"))
    return any(isinstance(n, str) and concerns(n, service) for n in names)


class Saboteur:
    """A port of which one method raises or hangs, where it is about one service."""

    def __init__(self, port: Any, method: str, house: "House") -> None:
        self._port, self._method, self._house = port, method, house

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._port, name)
        if name != self._method:
            return real

        async def sabotaged(*args: Any, **more: Any) -> Any:
            if self._house.broken is not None and any(concerns(a, BAD) for a in args):
                self._house.raised.append(self._house.clock.now())
                error = self._house.broken()
                if isinstance(error, Hang):
                    await asyncio.Event().wait()
                raise error
            return await real(*args, **more)

        return sabotaged


class LoopClock(FakeClock):
    """The virtual time of the loop."""

    def now(self) -> float:
        return 1000.0 + asyncio.get_running_loop().time()


@dataclass
class Scraped(FakeMetrics):
    """Samples of all containers that there are."""

    runtime: FakeRuntime = field(default_factory=FakeRuntime)

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        now = self.clock.now()
        samples = {name: Sample(now, now, 0.0, stamp=now) for name in self.runtime.containers}
        return {q.service: Reading(at=now, samples=samples) for q in queries}


@dataclass
class Used(FakeRuntime):
    """Containers that each use a tenth of a CPU."""

    clock: FakeClock = field(default_factory=LoopClock)

    async def cpu_seconds(self, service: str) -> dict[str, tuple[float, float]]:
        now = self.clock.now()
        return {name: (now, now / 10) for name in self.containers if name.startswith(f"{service}-")}


class Requests:
    """The stream of requests as the reader sees it; the store acknowledges."""

    def __init__(self, store: FakeStore) -> None:
        self._entries: list[tuple[str, dict[str, str]]] = []
        self._store = store
        self._read = 0

    def push(self, **fields: str) -> str:
        entry = f"{len(self._entries) + 1}-0"
        self._entries.append((entry, {"who": "ci", **fields}))
        return entry

    async def xautoclaim(self, *_: Any, **__: Any) -> tuple[str, list[Any], list[Any]]:
        return "0-0", [], []

    async def xreadgroup(
        self, _: str, who: str, streams: dict[str, str], *, block: int | None, **__: Any
    ) -> Any:
        assert who == CONSUMER
        (after,) = streams.values()
        if after == ">":
            found = self._entries[self._read :]
            self._read = len(self._entries)
            self._store.pending |= {entry for entry, _ in found}
            if not found:
                assert block is not None
                await asyncio.sleep(0.25)
        else:
            found = [
                e
                for e in self._entries[: self._read]
                if e[0] in self._store.pending and int(e[0][:-2]) > int(after.partition("-")[0])
            ]
        return [("requests", found)] if found else []


async def _nothing() -> str:
    return "0-0"


@dataclass
class House:
    """A daemon's engine with two services, of which one has trouble."""

    method: str = ""
    broken: Callable[[], BaseException] | None = None
    raised: list[float] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    clock: FakeClock = field(default_factory=LoopClock)
    store: FakeStore = field(default_factory=FakeStore)
    runtime: Used = field(
        default_factory=lambda: Used(images={f"repo/{s}:{s}{n}" for s in (BAD, GOOD) for n in range(9)})
    )
    traffic: FakeTraffic = field(default_factory=FakeTraffic)
    parts: Parts = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    requests: Requests = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Requests(self.store)
        metrics = self._port("metrics", Scraped(self.clock, runtime=self.runtime))
        self.parts = Parts(
            store=self._port("store", self.store),
            runtime=self._port("runtime", self.runtime),
            images=self._port("images", self.runtime),
            usage=self._port("usage", self.runtime),
            traffic=self._port("traffic", self.traffic),
            hooks=self._port("hooks", FakeHooks()),
            measurer=Measurer(metrics, self.clock, TICK),
            clock=self.clock,
            tick=TICK,
            may_act=lambda: True,
            publish=lambda *_: None,
        )
        self.dispatcher = Dispatcher(self.parts, self.parts.store)

    def _port(self, name: str, port: Any) -> Any:
        part, _, method = self.method.partition(".")
        return Saboteur(port, method, self) if name == part else port

    def release(self, service: str, number: int) -> str:
        return self.requests.push(service=service, image=f"repo/{service}:{service}{number}")

    def stream(self) -> RequestStream:
        replies = self.dispatcher.replies
        redis: Any = self.requests
        return RequestStream(
            redis, "s", "g", replies.refuse, self.clock, self.dispatcher.dispatch, _nothing, lambda: None
        )

    async def state(self, service: str) -> ServiceState:
        text, _ = self.store.states.get(service, (b"", 0))
        return self.store.written.get(text, ServiceState(service=service))

    async def until(self, look: Callable[[], Any], what: str, seconds: float = 300.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not (await found if inspect.isawaitable(found := look()) else found):
                    await asyncio.sleep(0.25)
        except TimeoutError:
            told = [e for e in await self.store.told() if e.kind != "gates_looked"]
            raise AssertionError(f"not within {seconds:g} s: {what}: {told[-20:]}") from None

    async def promoted(self, service: str, request: str, seconds: float = 300.0) -> None:
        async def look() -> bool:
            ended = [e for e in (await self.state(service)).history if e.release.request == request]
            return any(e.outcome is Outcome.PROMOTED for e in ended)

        await self.until(look, f"{service} {request} is promoted", seconds)

    async def handled(self, entry: str, seconds: float = 300.0) -> None:
        async def look() -> bool:
            return entry in (await self.state(BAD)).handled

        await self.until(look, f"{entry} is answered", seconds)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@functools.cache
def _undisturbed() -> float:
    return virtual.run(_story(House()))


LATE = {"metrics.read": measure.LOOK_DEADLINE}
"""Seconds for which a look that is shared has to be waited for, once."""

SEEN = {"runtime.observe", "traffic.observe"}
LASTING = {*SEEN, "runtime.supervise", "runtime.stop", "images.remove_images", "usage.cpu_seconds"}
"""Where nothing else tells of a fault that lasts."""

BUG = "internal error, see the daemon's log"

MUTE = {"store.load", "store.commit", "store.refuse"}
"""Where nothing can be told by an event as long as it fails."""


@pytest.mark.parametrize("error", ANYTHING, ids=lambda e: type(e()).__name__)
@pytest.mark.parametrize("method", WALKED)
def test_whatever_one_service_meets_the_others_release_on_time_and_it_recovers(
    method: str, error: Callable[[], BaseException]
) -> None:
    house = House(method)
    took = virtual.run(_story(house, error))
    assert house.raised, f"{method} was never called: this shows nothing"
    late = LATE.get(method, 0.0) if isinstance(error(), Hang) else 0.0
    assert took <= _undisturbed() + TICK + late


async def _story(house: House, error: Callable[[], BaseException] | None = None) -> float:
    """Seconds that the good service's release took while the other one was in trouble."""
    dispatcher, requests, now = house.dispatcher, house.requests, house.clock.now
    async with asyncio.TaskGroup() as daemon:
        dispatcher.configure({s: plan(s) for s in (BAD, GOOD)}, daemon)
        vital = [
            daemon.create_task(eternal("measure", house.parts.measurer.run)),
            daemon.create_task(eternal("requests", house.stream().run)),
        ]
        for service in (BAD, GOOD):
            await house.promoted(service, house.release(service, 1))
        house.broken = error
        await _provoke(house)
        began = now()
        await house.promoted(GOOD, house.release(GOOD, 2))
        took = now() - began
        if error is not None:
            await _lives_with_it(house, error())
        house.broken = None
        house.traffic.switched.clear()
        await house.handled(requests.push(service=BAD, verb="abort"))
        await house.promoted(BAD, house.release(BAD, 3), 2000)
        await house.until(lambda: _untroubled(house), "no trouble is told any more", 2000)
        await house.until(lambda: not house.store.pending, "all requests are answered")
        dispatcher.configure({}, daemon)
        for task in vital:
            task.cancel()
    return took


async def _provoke(house: House) -> None:
    """Let the broken method be called."""
    house.release(BAD, 2)
    if house.method == "store.load":
        house.dispatcher.doubt()
    if house.method == "store.refuse":
        house.requests.push(service=BAD, image="elsewhere/bad:1")
    if house.method == "traffic.retreat":
        await house.until(lambda: _shifting(house), "the candidate has traffic")
        house.traffic.switched.add(BAD)
    if house.broken is not None:
        await house.until(lambda: house.raised, f"{house.method} is called")


async def _lives_with_it(house: House, error: BaseException) -> None:
    """Verbs are obeyed, people are told, and it is tried again with growing pauses."""
    if house.method.startswith("store.") and house.method != "store.refuse":
        await house.until(lambda: len(house.raised) > 3, "it is tried again", 900)
        return
    await house.handled(house.requests.push(service=BAD, verb="freeze"), 60)
    await house.handled(house.requests.push(service=BAD, verb="unfreeze"), 60)
    if house.method not in MUTE and not isinstance(error, Fault | Hang):
        await house.until(lambda: _told(house, BUG), "its people are told")
    if house.method in LASTING and isinstance(error, Fault):
        await house.until(lambda: _told(house, str(error)), "its people are told")
    if house.method in SEEN and isinstance(error, Hang):
        await house.until(lambda: _told(house, "no answer within"), "its people are told")


async def _told(house: House, words: str) -> bool:
    house.told += map(load_event, house.store.stream[len(house.told) :])
    return any(e.service == BAD and words in getattr(e, "reason", "") for e in house.told)


async def _shifting(house: House) -> bool:
    rollout = (await house.state(BAD)).rollout
    return rollout is not None and rollout.phase is Phase.SHIFTING and rollout.held_since is not None


async def _untroubled(house: House) -> bool:
    return not problems(await house.state(BAD))
