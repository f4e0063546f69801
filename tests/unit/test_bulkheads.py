"""One service's trouble stays its own: whatever a port raises about it, the others do not notice."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from orchestrator.engine.conductor import Parts
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.measure import Measurer
from orchestrator.engine.tasks import eternal
from orchestrator.ports.faults import Away, Fault, Refused
from orchestrator.ports.metrics import MetricSource
from orchestrator.ports.requests import Request
from orchestrator.ports.service import ServicePlan
from orchestrator.rollout.hooks import HookCall
from orchestrator.rollout.model import Outcome, ServiceState
from orchestrator.rollout.policy import Hook, Step
from orchestrator.rollout.told import problems
from tests.builders import LADDER, policy, template
from tests.contract.fakes import FakeClock, FakeHooks, FakeMetrics, FakeRuntime, FakeStore, FakeTraffic
from tests.simulation import loop as virtual

METHODS = (
    "store.commit",
    "runtime.observe",
    "runtime.resolve",
    "runtime.start",
    "runtime.supervise",
    "traffic.apply",
    "traffic.observe",
    "hooks.ask",
)
ANYTHING: tuple[Callable[[], BaseException], ...] = (
    lambda: Fault("no"),
    lambda: Away("not now"),
    lambda: Refused("never"),
    lambda: KeyError("Id"),
    lambda: AttributeError("'NoneType' object has no attribute 'attrs'"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: OSError(28, "No space left on device"),
    TimeoutError,
    asyncio.CancelledError,
    lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
)
BAD, GOOD = "bad", "good"
POLICY = policy(
    limits=(),
    hooks=(Hook(name="ask", at="preflight", kind="command", command=("true",)),),
    steps=(Step(weight=20, hold=0.02, deadline=300.0), LADDER[-1]),
    confirm_deadline=300.0,
    keep_previous=0.5,
    start_deadline=300.0,
    preflight_deadline=300.0,
)


def plan(service: str) -> ServicePlan:
    return ServicePlan(
        service=service,
        images=(f"repo/{service}",),
        template=template(instances=1),
        policies={"": POLICY},
        metrics=MetricSource(requests="r", status_label="code", error_pattern="5..", latency="l"),
    )


def concerns(argument: Any, service: str) -> bool:
    """Whether a call is about a service: by its name, or by what names it."""
    if isinstance(argument, str):
        return argument == service or argument.startswith((f"{service}-", f"repo/{service}:"))
    if isinstance(argument, list | tuple):
        return any(concerns(a, service) for a in argument)
    if isinstance(argument, HookCall):
        return argument.release.service == service
    names = (getattr(argument, name, "") for name in ("service", "name"))
    return any(isinstance(n, str) and concerns(n, service) for n in names)


class Saboteur:
    """A port of which one method raises, where it is about one service."""

    def __init__(self, port: Any, method: str, house: "House") -> None:
        self._port, self._method, self._house = port, method, house

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._port, name)
        if name != self._method:
            return real

        async def sabotaged(*args: Any, **more: Any) -> Any:
            if self._house.broken is not None and any(concerns(a, BAD) for a in args):
                self._house.raised += 1
                raise self._house.broken()
            return await real(*args, **more)

        return sabotaged


@dataclass
class House:
    """A daemon's engine with two services, of which one has trouble."""

    method: str
    broken: Callable[[], BaseException] | None = None
    raised: int = 0
    clock: FakeClock = field(default_factory=FakeClock)
    store: FakeStore = field(default_factory=FakeStore)
    runtime: FakeRuntime = field(
        default_factory=lambda: FakeRuntime(images={f"repo/{s}:1" for s in (BAD, GOOD)})
    )
    traffic: FakeTraffic = field(default_factory=FakeTraffic)

    def parts(self) -> Parts:
        part, _, method = self.method.partition(".")
        metrics = self._port("metrics", FakeMetrics(self.clock), part, method)
        runtime = self._port("runtime", self.runtime, part, method)
        return Parts(
            store=self._port("store", self.store, part, method),
            runtime=runtime,
            images=self._port("images", runtime, part, method),
            usage=self._port("usage", runtime, part, method),
            traffic=self._port("traffic", self.traffic, part, method),
            hooks=self._port("hooks", FakeHooks(), part, method),
            measurer=Measurer(metrics, self.clock, 1.0),
            clock=self.clock,
            tick=1.0,
            may_act=lambda: True,
            publish=lambda *_: None,
        )

    def _port(self, name: str, port: Any, broken: str, method: str) -> Any:
        return Saboteur(port, method, self) if name == broken else port

    async def state(self, service: str) -> ServiceState:
        return (await self.store.load(service))[0]

    async def until(self, look: Callable[[], Any], what: str) -> None:
        try:
            async with asyncio.timeout(300):
                while not await look():
                    self.clock.time += 0.25
                    await asyncio.sleep(0.25)
        except TimeoutError:
            states = [await self.state(s) for s in (BAD, GOOD)]
            raise AssertionError(f"{what}: {states}") from None

    async def promoted(self, service: str, request: str) -> None:
        async def look() -> bool:
            ended = [e for e in (await self.state(service)).history if e.release.request == request]
            return any(e.outcome is Outcome.PROMOTED for e in ended)

        await self.until(look, f"{service} {request} is promoted")


def request(number: int, service: str, verb: str = "release") -> Request:
    image = f"repo/{service}:1" if verb == "release" else ""
    return Request(id=f"{number}-0", verb=verb, service=service, who="ci", image=image)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("error", ANYTHING, ids=lambda e: type(e()).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_whatever_one_service_meets_the_others_release_and_it_recovers(
    method: str, error: Callable[[], BaseException]
) -> None:
    house = House(method)
    virtual.run(_story(house, error))
    assert house.raised, f"{method} was never called: this shows nothing"


async def _story(house: House, error: Callable[[], BaseException]) -> None:
    parts = house.parts()
    dispatcher = Dispatcher(parts, parts.store)
    async with asyncio.TaskGroup() as daemon:
        dispatcher.configure({s: plan(s) for s in (BAD, GOOD)}, daemon)
        measuring = daemon.create_task(eternal("measure", parts.measurer.run))
        for service in (BAD, GOOD):
            await dispatcher.dispatch(request(1, service), {"service": service})
            await house.promoted(service, "1-0")
        house.broken = error
        for service in (BAD, GOOD):
            await dispatcher.dispatch(request(2, service), {"service": service})
        await house.promoted(GOOD, "2-0")
        house.broken = None
        await dispatcher.dispatch(request(3, BAD, "abort"), {"service": BAD})
        await house.until(lambda: _handled(house, "3-0"), "the abort is answered")
        await dispatcher.dispatch(request(4, BAD), {"service": BAD})
        await house.promoted(BAD, "4-0")
        await house.until(lambda: _untroubled(house), "no trouble is told any more")
        dispatcher.configure({}, daemon)
        measuring.cancel()


async def _handled(house: House, entry: str) -> bool:
    return entry in (await house.state(BAD)).handled


async def _untroubled(house: House) -> bool:
    return not problems(await house.state(BAD))
