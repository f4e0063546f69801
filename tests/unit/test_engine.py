"""The engine on the fakes: committing before acting, redelivery, failing parts, bounded queues."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orchestrator.engine.conductor import INBOX, Conductor, Parts
from orchestrator.engine.converge import Converger
from orchestrator.engine.dispatcher import Dispatcher, to_command
from orchestrator.engine.measure import Measurer
from orchestrator.engine.tasks import AT_ONCE, JOB_DEADLINE, Jobs, beside, eternal
from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.metrics import MetricSource
from orchestrator.ports.requests import Request
from orchestrator.ports.service import ServicePlan
from orchestrator.rollout.command import Abort, Freeze, Remove, Restart, Rollback, handle
from orchestrator.rollout.desired import Wanted, desired
from orchestrator.rollout.events import (
    Event,
    ReleaseAccepted,
    ReleaseEnded,
    RequestRefused,
    ServiceRemoved,
    ServiceTroubled,
)
from orchestrator.rollout.model import Anew, Outcome, Phase, Route, ServiceState
from orchestrator.rollout.observation import Edge, Instance, Observation, Sample
from orchestrator.rollout.policy import Comparison, Limit, Step
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from tests.builders import LADDER, policy, release, server, submit, template
from tests.contract.fakes import FakeClock, FakeHooks, FakeMetrics, FakeRuntime, FakeStore, FakeTraffic

PLAN = ServicePlan(
    service="api",
    images=("repo/api",),
    template=template(instances=1),
    policies={"": policy(limits=())},
    metrics=MetricSource(requests="r", status_label="code", error_pattern="5..", latency="l"),
)


@dataclass
class Kit:
    clock: FakeClock = field(default_factory=FakeClock)
    store: FakeStore = field(default_factory=FakeStore)
    runtime: FakeRuntime = field(default_factory=FakeRuntime)
    traffic: FakeTraffic = field(default_factory=FakeTraffic)
    hooks: FakeHooks = field(default_factory=FakeHooks)
    published: list[Event] = field(default_factory=list)
    metrics: FakeMetrics = field(init=False)
    parts: Parts = field(init=False)
    conductor: Conductor = field(init=False)

    def __post_init__(self) -> None:
        def publish(_: ServiceState, __: Any, ___: Any, events: tuple[Event, ...]) -> None:
            self.published.extend(events)
            self.clock.time += 0.1

        self.metrics = FakeMetrics(self.clock)
        measurer = Measurer(self.metrics, self.clock, 0.01)
        self.parts = Parts(
            store=self.store,
            runtime=self.runtime,
            images=self.runtime,
            usage=self.runtime,
            traffic=self.traffic,
            hooks=self.hooks,
            measurer=measurer,
            clock=self.clock,
            tick=0.01,
            may_act=lambda: True,
            publish=publish,
        )
        self.conductor = Conductor(PLAN, self.parts)

    async def state(self) -> ServiceState:
        return (await self.store.load("api"))[0]

    async def until(self, look: Callable[[ServiceState], bool]) -> ServiceState:
        async with asyncio.timeout(10):
            while True:
                state = await self.state()
                if look(state):
                    return state
                await asyncio.sleep(0.01)


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = Kit()
    task = asyncio.create_task(eternal("conductor", kit.conductor.run, pause=0.01), name="conductor")
    yield kit
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def ended(release: str) -> Callable[[ServiceState], bool]:
    return lambda state: any(e.release.id == release for e in state.history)


def small(number: int, **changes: Any) -> Any:
    return submit(number, template=template(instances=1), policy=policy(limits=(), **changes))


async def test_a_release_is_started_routed_and_promoted(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    state = await kit.until(ended("api-1"))
    assert state.stable is not None
    assert kit.runtime.containers["api-1-0"].running
    assert [s.instance for s in kit.traffic.plans["api"].route.servers] == ["api-1-0"]
    async with asyncio.timeout(5):
        while not kit.runtime.containers["api-1-0"].supervised:
            await asyncio.sleep(0.01)


async def test_a_look_waits_for_its_turn_and_what_is_urgent_does_not(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, observe = 0, FakeRuntime.observe

    async def counted(runtime: FakeRuntime, service: str) -> tuple[Instance, ...]:
        nonlocal looks
        looks += 1
        return await observe(runtime, service)

    monkeypatch.setattr(FakeRuntime, "observe", counted)
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.conductor.submit(small(2, steps=(Step(weight=5, hold=600.0),)))
    await kit.until(lambda state: state.rollout is not None)
    async with contextlib.AsyncExitStack() as busy:
        for _ in range(AT_ONCE):
            await kit.parts.pace._places.acquire()
            busy.callback(kit.parts.pace._places.release)
        await asyncio.sleep(0.05)
        before = looks
        kit.conductor.submit(Abort(request="9-0", actor="ann"))
        await kit.until(lambda state: "9-0" in state.handled)
        assert looks == before
    await kit.until(ended("api-2"))


async def test_a_commit_that_failed_is_made_again_and_nothing_is_told_twice(kit: Kit) -> None:
    kit.store.fail_before = 3
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    told = await kit.store.told()
    assert sum(isinstance(e, ReleaseAccepted) for e in told) == 1


async def test_a_commit_whose_reply_was_lost_is_not_made_again(kit: Kit) -> None:
    kit.store.fail_after = 1
    kit.conductor.submit(small(1))
    state = await kit.until(ended("api-1"))
    assert state.released == 1
    told = await kit.store.told()
    assert sum(isinstance(e, ReleaseAccepted) for e in told) == 1


async def test_a_request_that_is_delivered_again_is_one_release(kit: Kit) -> None:
    for _ in range(3):
        kit.conductor.submit(small(1))
    state = await kit.until(ended("api-1"))
    assert state.released == 1


async def test_a_store_that_went_back_is_corrected_before_the_first_command_is_obeyed() -> None:
    kit = Kit()
    state = ServiceState(service="api", released=1, handled=("0-1",))
    await kit.store.commit(state, 0, ())
    await kit.runtime.start(Wanted(name="api-4-0", release=release(4), index=0, create=True, restart=False))
    kit.conductor.submit(small(1))
    task = asyncio.create_task(eternal("conductor", kit.conductor.run, pause=0.01), name="conductor")
    await kit.until(lambda state: state.released > 4)
    accepted = [e.release for e in await kit.store.told() if isinstance(e, ReleaseAccepted)]
    assert accepted == ["api-5"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_docker_away_stops_nothing_that_serves(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    before = await kit.until(ended("api-1"))
    kit.runtime.down = True
    await asyncio.sleep(0.2)
    assert (await kit.state()).route == before.route
    kit.runtime.down = False
    kit.conductor.submit(Abort(request="9-0", actor="ann"))
    await kit.until(lambda s: "9-0" in s.handled)


async def test_docker_away_while_starting_is_waited_for(kit: Kit) -> None:
    kit.runtime.looks["c1"] = -20  # long enough in starting for that to be seen
    kit.conductor.submit(small(1))
    kit.runtime.down = True
    await asyncio.sleep(0.1)
    kit.runtime.down = False
    await kit.until(lambda s: s.rollout is not None and s.rollout.phase is Phase.STARTING)
    kit.runtime.down = True
    await asyncio.sleep(0.1)
    kit.runtime.down = False
    state = await kit.until(ended("api-1"))
    assert state.history[-1].outcome is Outcome.PROMOTED


async def test_nginx_that_refuses_ends_the_rollout_and_leaves_stable(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.traffic.refuses = "nginx -t: no"
    kit.conductor.submit(small(2, confirm_deadline=1.0))
    await kit.until(lambda s: s.stuck_since is not None)
    await asyncio.sleep(0.3)
    kit.traffic.refuses = ""
    state = await kit.until(ended("api-2"))
    assert state.history[-1].outcome is Outcome.ROLLED_BACK
    assert state.stable is not None
    assert state.stable.id == "api-1"


async def test_another_daemon_that_took_over_ends_this_one() -> None:
    kit = Kit()
    kit.store.holder = 2
    kit.conductor.submit(small(1))
    with pytest.raises(Stale):
        async with asyncio.timeout(5):
            await kit.conductor.run()


async def test_what_the_store_has_lost_is_written_again(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    before = await kit.until(ended("api-1"))
    kit.store.states.clear()
    kit.store.stream.clear()
    kit.conductor.doubt()
    state = await kit.until(ended("api-1"))
    assert (state.stable, state.history, state.route) == (before.stable, before.history, before.route)
    assert [e.kind for e in await kit.store.told()] == ["state_restored"]


async def test_a_candidate_that_dies_while_the_store_is_away_loses_its_traffic(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.conductor.submit(small(2, steps=(Step(weight=20, hold=900.0, deadline=901.0), LADDER[-1])))
    await kit.until(lambda s: s.rollout is not None and s.rollout.held_since is not None)
    before = await kit.state()
    kit.store.fail_before = 10**6
    kit.runtime.die("api-2-0")
    async with asyncio.timeout(5):
        while "api" not in kit.traffic.local:
            await asyncio.sleep(0.01)
    assert {s.release for s in kit.traffic.plans["api"].route.servers} == {"api-1"}
    assert await kit.state() == before
    kit.store.fail_before = 0
    state = await kit.until(ended("api-2"))
    assert state.history[-1].outcome is Outcome.ROLLED_BACK
    assert "died" in state.history[-1].reason
    await kit.until(lambda s: s.confirmed == s.route.generation and "api" not in kit.traffic.local)


async def test_a_switch_that_a_person_turned_is_followed(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.conductor.submit(small(2, steps=(Step(weight=20, hold=900.0, deadline=901.0), LADDER[-1])))
    await kit.until(lambda s: s.rollout is not None and s.rollout.held_since is not None)
    kit.traffic.switched.add("api")
    state = await kit.until(ended("api-2"))
    last = state.history[-1]
    assert (last.outcome, last.actor) == (Outcome.ROLLED_BACK, "host")
    assert last.reason == "the rollback switch was turned on by hand"


async def test_a_rollback_that_nginx_alone_knows_of_is_followed_and_no_switch_is_named(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.conductor.submit(small(2, steps=(Step(weight=20, hold=900.0, deadline=901.0), LADDER[-1])))
    shifting = await kit.until(lambda s: s.rollout is not None and s.rollout.held_since is not None)
    observe, told = FakeTraffic.observe, shifting.route.generation + 1

    async def ahead(traffic: FakeTraffic, service: str) -> Edge:
        edge = await observe(traffic, service)
        return edge if edge.floor > told else replace(edge, served=told, switched_to="api-1")

    monkeypatch.setattr(FakeTraffic, "observe", ahead)
    last = (await kit.until(ended("api-2"))).history[-1]
    assert (last.outcome, last.actor) == (Outcome.ROLLED_BACK, "host")
    assert last.reason.startswith(f"nginx serves route {told} and its file is of route {told - 1}")


async def test_a_switch_that_a_daemon_left_on_for_an_older_route_ends_no_release(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    observe = FakeTraffic.observe

    async def left_on(traffic: FakeTraffic, service: str) -> Edge:
        return replace(await observe(traffic, service), switched_to="api-1", switched_for=1)

    monkeypatch.setattr(FakeTraffic, "observe", left_on)
    kit.conductor.submit(small(2, steps=(Step(weight=100, hold=0.0, deadline=60.0),)))
    state = await kit.until(ended("api-2"))
    assert state.history[-1].outcome is Outcome.PROMOTED


async def test_a_file_that_the_edge_has_lost_is_laid_down_again_within_one_look(kit: Kit) -> None:
    """Also one that was lost while no daemon ran: the edge remembers less than was confirmed then."""
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    before = kit.traffic.plans.pop("api")
    await kit.until(lambda _: "api" in kit.traffic.plans)
    assert kit.traffic.plans["api"].route == before.route


async def test_gates_go_on_gathering_evidence_while_the_store_is_away(kit: Kit) -> None:
    metrics = kit.metrics
    measuring = asyncio.create_task(kit.parts.measurer.run())
    rule = Comparison(name="errors", metric="error_rate")
    steps = (Step(weight=20, hold=900.0, max_hold=900.0, deadline=9e5), LADDER[-1])
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    metrics.samples = {name: Sample(kit.clock.now(), 0, 0, stamp=0.0) for name in ("api-1-0", "api-2-0")}
    kit.conductor.submit(small(2, steps=steps, comparisons=(rule,), sample_max_age=1e9))
    await kit.until(lambda s: s.rollout is not None and bool(s.rollout.verdicts))
    before = await kit.state()
    kit.store.fail_before = 10**6
    try:
        async with asyncio.timeout(5):
            for scrape in itertools.count(1):
                at = kit.clock.now()
                metrics.samples = {
                    "api-1-0": Sample(at, 400.0 * scrape, 0, stamp=float(scrape)),
                    "api-2-0": Sample(at, 100.0 * scrape, 50.0 * scrape, stamp=float(scrape)),
                }
                await asyncio.sleep(0.1)
                if "api" in kit.traffic.local:
                    break
    finally:
        measuring.cancel()
    assert scrape >= 2
    assert {s.release for s in kit.traffic.plans["api"].route.servers} == {"api-1"}
    assert await kit.state() == before


async def test_without_a_fresh_lease_the_world_is_not_touched() -> None:
    kit = Kit()
    fresh: list[bool] = []
    conductor = Conductor(PLAN, replace(kit.parts, may_act=lambda: bool(fresh)))
    task = asyncio.create_task(conductor.run(), name="conductor")
    conductor.submit(small(1))
    await kit.until(lambda s: s.rollout is not None)
    await asyncio.sleep(0.1)
    state = await kit.state()
    assert state.rollout is not None
    assert state.rollout.phase is Phase.PREFLIGHT
    assert not kit.runtime.containers
    fresh.append(True)
    conductor.wake()
    await kit.until(ended("api-1"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_refusal_at_the_resource_ends_the_daemon(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.traffic.tokens["api"] = 9
    conductor = Conductor(PLAN, kit.parts)
    conductor.submit(small(2))
    with pytest.raises(Stale, match="newer token"):
        async with asyncio.timeout(5):
            await eternal("conductor", conductor.run)


async def test_a_bug_in_a_job_is_told_in_the_state_and_the_job_is_tried_again(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: FakeRuntime, image: str) -> Any:
        raise ZeroDivisionError(image)

    with monkeypatch.context() as patched:
        patched.setattr(FakeRuntime, "resolve", broken)
        kit.conductor.submit(small(1))
        state = await kit.until(lambda s: bool(s.trouble))
        assert state.trouble == "internal error, see the daemon's log: ZeroDivisionError: repo/api:1"
        kit.conductor.submit(Freeze(request="2-0", actor="ann"))
        await kit.until(lambda s: s.frozen is not None)
    state = await kit.until(lambda s: bool(s.history) and not s.trouble)
    assert state.history[-1].outcome is Outcome.PROMOTED
    told = [e.reason for e in await kit.store.told() if isinstance(e, ServiceTroubled)]
    assert told == ["internal error, see the daemon's log: ZeroDivisionError: repo/api:1", ""]


async def test_a_bug_in_deciding_leaves_verbs_and_the_daemon_alive(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("a bug")

    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.engine.conductor.decide", broken)
        state = await kit.until(lambda s: "IndexError" in s.trouble)
        patched.setattr("orchestrator.engine.conductor.handle", broken)
        kit.conductor.submit(Freeze(request="2-0", actor="ann"))
        await kit.until(lambda s: "2-0" in s.handled)
    (refused,) = [e for e in await kit.store.told() if isinstance(e, RequestRefused)]
    assert refused.reason == "internal error, see the daemon's log: IndexError: a bug"
    state = await kit.until(lambda s: not s.trouble)
    assert state.frozen is None


async def test_a_command_that_cannot_be_committed_is_refused_and_holds_no_other(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    commit = FakeStore.commit

    async def picky(store: FakeStore, state: ServiceState, *more: Any) -> int:
        if any(r.image == "repo/api:2" for r in state.queue):
            raise ValueError("can't be written")
        return await commit(store, state, *more)

    monkeypatch.setattr(FakeStore, "commit", picky)
    kit.conductor.submit(small(2))
    kit.conductor.submit(Freeze(request="3-0", actor="ann"))
    await kit.until(lambda s: s.frozen is not None)
    (refused,) = [e for e in await kit.store.told() if isinstance(e, RequestRefused)]
    assert refused.reason == "internal error, see the daemon's log: ValueError: can't be written"


def test_text_that_is_no_unicode_is_committed_with_question_marks() -> None:
    state, events = handle(ServiceState(service="api"), submit(1, reason="odd \ud800"), 1000.0)
    assert load_state(dump_state(state)).queue[0].reason == "odd ?"
    assert [load_event(dump_event(e)).kind for e in events] == ["release_accepted"]


def test_what_lacks_in_a_damaged_event_is_named_by_its_own_kind() -> None:
    with pytest.raises(Fault, match="route_confirmed/generation: Field required"):
        load_event(b'{"service": "api", "at": 1.0, "kind": "route_confirmed"}')


async def test_a_pull_that_never_ends_is_told_with_the_words_of_the_last_try(kit: Kit) -> None:
    kit.runtime.images.clear()
    kit.runtime.down = True
    kit.conductor.submit(small(1, preflight_deadline=3.0))
    kit.runtime.down = False
    kit.runtime.resolve_error = "Docker: no end within 600 s"
    state = await kit.until(ended("api-1"))
    assert "image repo/api:1 was not there after 3 s: Docker: no end within 600 s" in state.history[-1].reason


async def test_a_job_that_is_cancelled_before_it_begins_can_begin_again() -> None:
    jobs, ran = Jobs(lambda: None), asyncio.Event()
    jobs.start("route 7", lambda: asyncio.sleep(60))
    jobs.cancel(lambda _: True)
    await asyncio.sleep(0.01)

    async def work() -> None:
        ran.set()

    jobs.start("route 7", work)
    await asyncio.wait_for(ran.wait(), 5)
    assert ran.is_set()
    await jobs.stop()


async def test_a_conductor_takes_only_so_many_commands() -> None:
    conductor = Kit().conductor
    for number in range(INBOX):
        assert conductor.submit(Freeze(request=f"{number}-0", actor="ann"))
    assert not conductor.submit(Freeze(request="x", actor="ann"))
    for number in range(INBOX):  # what stops harm is not kept out by a queue of others
        assert conductor.submit(Rollback(request=f"{number}-1", actor="ann"))
    assert not conductor.submit(Rollback(request="x", actor="ann"))


async def test_requests_find_their_conductor_or_the_dead_letters() -> None:
    kit = Kit()
    dispatcher = Dispatcher(kit.parts, kit.store)
    async with asyncio.TaskGroup() as group:
        dispatcher.configure({"api": PLAN}, group)
        good = Request(id="1-0", verb="release", service="api", who="ci", image="repo/api:1")
        await dispatcher.dispatch(good, {"service": "api"})
        await kit.until(ended("api-1"))
        for request in (
            Request(id="2-0", verb="release", service="web", who="ci", image="repo/api:1"),
            Request(id="3-0", verb="release", service="api", who="ci", image="evil/api:1"),
        ):
            await dispatcher.dispatch(request, {"service": request.service})
        assert [letter["entry"] for letter in kit.store.dead] == ["2-0", "3-0"]
        assert (
            "there are: api (orchestrator reload, or systemctl reload orchestrator, reads new files)"
            in kit.store.dead[0]["error"]
        )
        dispatcher.configure({}, group, {"api": "/s/api.yaml: images: is required"})
        await dispatcher.dispatch(good, {"service": "api"})
        assert kit.store.dead[-1]["entry"] == "1-0"
        wrong = "service: 'api' is not driven: /s/api.yaml: images: is required"
        assert kit.store.dead[-1]["error"] == wrong
    assert kit.runtime.containers["api-1-0"].running
    assert any(isinstance(e, ReleaseEnded) for e in kit.published)


@pytest.mark.parametrize("again", [False, True], ids=["refused", "driven again"])
async def test_what_waits_for_a_service_that_is_dropped_is_answered(
    again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engine.dispatcher.AGAIN", 0.01)
    kit = Kit()
    dispatcher = Dispatcher(kit.parts, kit.store)
    async with asyncio.TaskGroup() as group:
        dispatcher.configure({"api": PLAN}, group)
        await asyncio.sleep(0.05)
        kit.store.fail_before = 1000
        kit.store.pending |= {"1-0", "2-0"}
        for number in (1, 2):
            request = Request(id=f"{number}-0", verb="freeze", service="api", who="ann")
            await dispatcher.dispatch(request, {"service": "api"})
        await asyncio.sleep(0.05)
        dispatcher.configure({}, group, {"api": "its file is wrong"})
        if again:
            dispatcher.configure({"api": PLAN}, group)
        await asyncio.sleep(0.05)
        kit.store.fail_before = 0
        async with asyncio.timeout(10):
            while kit.store.pending:
                await asyncio.sleep(0.01)
        told = [] if again else ["service: 'api' is not driven: its file is wrong"] * 2
        assert [letter["error"] for letter in kit.store.dead] == told
        assert ((await kit.state()).frozen is not None) == again
        dispatcher.configure({}, group)


async def test_a_restart_runs_stables_image_as_the_file_has_it_today(kit: Kit) -> None:
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    plan = replace(PLAN, template=template(instances=2))
    asked = Request(id="2-0", verb="restart", service="api", who="ann")
    command = to_command(asked, plan)
    assert isinstance(command, Restart)
    kit.conductor.submit(command)
    state = await kit.until(lambda s: s.rollout is not None and s.rollout.phase is Phase.SHIFTING)
    assert state.rollout is not None
    assert state.rollout.release.digest == "sha256:1"
    assert {n for n in kit.runtime.containers if n.startswith("api-2")} == {"api-2-0", "api-2-1"}
    unknown = to_command(replace(asked, strategy="fast"), plan)
    assert unknown == "strategy: 'fast' is not an override of api; there are: none"


async def test_a_removal_goes_on_with_the_next_daemon() -> None:
    kit = Kit()
    task = asyncio.create_task(eternal("conductor", kit.conductor.run, pause=0.01), name="conductor")
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.traffic.refuses = "nginx -t: no"
    command = to_command(Request(id="2-0", verb="remove", service="api", who="ann"), PLAN)
    assert isinstance(command, Remove)
    kit.conductor.submit(command)
    await kit.until(lambda s: s.stuck_since is not None)
    assert kit.runtime.containers["api-1-0"].running
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    kit.traffic.refuses = ""
    following = Conductor(PLAN, kit.parts)
    task = asyncio.create_task(eternal("conductor", following.run, pause=0.01), name="conductor")
    state = await kit.until(lambda s: s.removal is not None and s.removal.kind == "removed")
    assert (state.stable, state.history, state.released) == (None, (), 1)
    assert (kit.runtime.containers, kit.traffic.plans["api"].route.gone) == ({}, True)
    assert isinstance((await kit.store.told())[-1], ServiceRemoved)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_service_that_is_closed_takes_no_release_and_every_other_verb() -> None:
    kit = Kit()
    dispatcher = Dispatcher(kit.parts, kit.store)
    async with asyncio.TaskGroup() as group:
        dispatcher.configure({"api": PLAN}, group)
        await dispatcher.dispatch(
            Request(id="1-0", verb="release", service="api", who="ci", image="repo/api:1"), {"service": "api"}
        )
        await kit.until(ended("api-1"))
        dispatcher.configure({"api": PLAN}, group, {"api": "its file is gone"})
        for number, verb in enumerate(("release", "restart", "freeze"), 2):
            request = Request(id=f"{number}-0", verb=verb, service="api", who="ann", image="repo/api:1")  # type: ignore[arg-type]
            await dispatcher.dispatch(request, {"service": "api"})
        assert [letter["error"] for letter in kit.store.dead] == ["service: 'api': its file is gone"] * 2
        await kit.until(lambda s: s.frozen is not None)
        dispatcher.configure({}, group)


async def test_a_background_task_may_not_return() -> None:
    async def returns() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="task t returned"):
        await eternal("t", returns)


async def test_a_fault_starts_the_task_again_and_anything_else_ends_it() -> None:
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise Fault("not yet")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await eternal("t", work, pause=0.0)
    assert len(tries) == 3


async def test_jobs_run_one_at_a_time_and_wait_longer_after_each_failure() -> None:
    woken: list[int] = []
    jobs = Jobs(lambda: woken.append(1), first_pause=0.05, longest_pause=0.1)
    runs: list[int] = []

    async def fails() -> None:
        runs.append(1)
        raise Fault("no")

    jobs.start("a", fails)
    jobs.start("a", fails)
    await asyncio.sleep(0.02)
    assert (len(runs), str(jobs.errors["a"]), len(woken)) == (1, "no", 1)
    jobs.start("a", fails)
    await asyncio.sleep(0.01)
    assert len(runs) == 1
    await asyncio.sleep(0.05)
    jobs.start("a", fails)
    await asyncio.sleep(0.01)
    assert len(runs) == 2
    jobs.forget_others()
    assert jobs.errors
    jobs.forget_others()
    assert jobs.errors == {}
    jobs.start("b", lambda: asyncio.sleep(60))
    jobs.cancel(lambda name: name == "b")
    await asyncio.sleep(0.01)
    jobs.start("b", lambda: asyncio.sleep(60))
    await jobs.stop()


@pytest.mark.parametrize(
    ("confirmed", "routed", "stopped"), [(7, False, True), (6, False, False), (7, True, False)]
)
async def test_only_what_nginx_has_let_go_is_stopped(confirmed: int, routed: bool, stopped: bool) -> None:
    kit = Kit()
    await kit.runtime.start(Wanted(name="api-9-0", release=release(9), index=0, create=True, restart=False))
    (instance,) = await kit.runtime.observe("api")
    route = Route(generation=7, servers=(server("api-9", instance.address),) if routed else ())
    state = ServiceState(service="api", route=route, confirmed=confirmed)
    jobs = Jobs(lambda: None)
    converger = Converger(kit.runtime, kit.runtime, kit.traffic, kit.hooks, kit.store, jobs)
    seen = Observation(instances=(instance,), edge=Edge(served=7, confirmed=confirmed))
    converger.converge(desired(state, 0.0), state, seen)
    await asyncio.sleep(0.05)
    assert ("api-9-0" not in kit.runtime.containers) == stopped
    await jobs.stop()


async def test_a_change_that_failed_is_tried_at_once_when_nginx_speaks_again() -> None:
    kit = Kit()
    state = ServiceState(
        service="api", route=Route(generation=7, servers=(server("api-9", "10.0.0.9:80"),)), confirmed=6
    )
    jobs = Jobs(lambda: None, first_pause=60.0)
    converger = Converger(kit.runtime, kit.runtime, kit.traffic, kit.hooks, kit.store, jobs)
    kit.traffic.refuses = "nginx does not run"
    tried = []
    for silence in ("", "nothing listens", "nothing listens", ""):
        seen = Observation(edge=Edge(served=6, confirmed=6, floor=7, silence=silence))
        converger.converge(desired(state, 0.0), state, seen)
        await asyncio.sleep(0.02)
        tried.append("api" in kit.traffic.plans)
        kit.traffic.refuses = ""
    assert tried == [False, False, False, True]
    await jobs.stop()


async def test_an_image_is_removed_once_its_containers_are_gone_and_again_when_that_failed() -> None:
    kit = Kit()
    old = release(1, digest="sha256:1")
    await kit.runtime.start(Wanted(name="api-1-0", release=old, index=0, create=True, restart=False))
    instances = await kit.runtime.observe("api")
    state = ServiceState(service="api")
    world = replace(desired(state, 0.0), stale_images=frozenset({"sha256:1", "sha256:2"}))
    jobs = Jobs(lambda: None, first_pause=0.01)
    converger = Converger(kit.runtime, kit.runtime, kit.traffic, kit.hooks, kit.store, jobs)
    removed = []
    for seen, down in ((instances, False), ((), True), ((), False), ((), False)):
        kit.runtime.down = down
        converger.converge(world, state, Observation(instances=seen, edge=Edge()))
        await asyncio.sleep(0.05)
        removed.append(list(kit.runtime.removed_images))
    assert removed == [["sha256:2"], ["sha256:2"], ["sha256:2", "sha256:1"], ["sha256:2", "sha256:1"]]
    await jobs.stop()


@pytest.mark.parametrize(
    ("routed", "hung", "stopped"),
    [
        (False, ("api-1-0",), True),
        (True, ("api-1-0",), False),
        (True, ("api-1-0", "api-1-1"), True),  # nobody else is there to send users to
    ],
)
async def test_an_instance_that_hangs_is_stopped_once_nginx_has_let_it_go(
    routed: bool, hung: tuple[str, ...], stopped: bool
) -> None:
    kit = Kit()
    stable = release(1, template=template(instances=2))
    for index in range(2):
        wanted = Wanted(name=f"api-1-{index}", release=stable, index=index, create=True, restart=True)
        await kit.runtime.start(wanted)
    instances = await kit.runtime.observe("api")
    names = ["api-1-0", "api-1-1"] if routed else ["api-1-1"]
    servers = tuple(server("api-1", i.address, instance=i.name) for i in instances if i.name in names)
    route = Route(generation=7, servers=servers)
    state = ServiceState(service="api", stable=stable, route=route, confirmed=7)
    anew = (Anew(release="api-1", instance="api-1-0", tries=1, at=61.0),)
    state = replace(state, hung=tuple((name, 0.0) for name in hung), anew=anew)
    jobs = Jobs(lambda: None)
    converger = Converger(kit.runtime, kit.runtime, kit.traffic, kit.hooks, kit.store, jobs)
    seen = Observation(instances=instances, edge=Edge(served=7, confirmed=7))
    converger.converge(desired(state, 61.0), state, seen)
    await asyncio.sleep(0.05)
    assert ("api-1-0" not in kit.runtime.containers) == stopped
    assert "api-1-1" in kit.runtime.containers
    await jobs.stop()


async def test_the_way_back_at_the_edge_may_wait_for_its_turn_for_as_long_as_a_route() -> None:
    deadlines: dict[str, float] = {}

    class Recorder(Jobs):
        def start(self, name: str, work: Any, deadline: float = JOB_DEADLINE) -> None:
            deadlines[name.split(maxsplit=1)[0]] = deadline

    kit = Kit()
    state = ServiceState(service="api", route=Route(generation=7))
    converger = Converger(kit.runtime, kit.runtime, kit.traffic, kit.hooks, kit.store, Recorder(lambda: None))
    converger.converge(desired(state, 0.0), state, Observation(edge=Edge()))
    converger.retreat("api", "host", "the store does not answer")
    assert deadlines["retreat"] == deadlines["route"] > JOB_DEADLINE


async def test_work_beside_a_block_ends_with_it_and_its_bugs_end_the_block() -> None:
    running: list[str] = []

    async def works() -> None:
        running.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            running.append("ended")

    async def breaks() -> None:
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    async with beside({"works": works}):
        await asyncio.sleep(0.01)
    assert running == ["begun", "ended"]
    with pytest.raises(ZeroDivisionError):
        async with beside({"works": works, "breaks": breaks}):
            await asyncio.sleep(60)
    assert running == ["begun", "ended"] * 2


async def test_a_block_that_is_cancelled_is_cancelled_whatever_runs_beside() -> None:
    async def works() -> None:
        await asyncio.sleep(60)

    async def block() -> None:
        async with beside({"works": works}):
            await asyncio.sleep(60)

    task = asyncio.create_task(block())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@dataclass
class Driven:
    """A service whose conductor can be taken away for a while."""

    kit: Kit = field(default_factory=Kit)
    task: asyncio.Task[None] | None = None
    measuring: asyncio.Task[None] | None = None

    def start(self) -> None:
        conductor = Conductor(PLAN, self.kit.parts)
        self.kit.conductor = conductor
        self.task = asyncio.create_task(eternal("conductor", conductor.run, pause=0.01), name="conductor")

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


HELD = Step(weight=20, hold=300.0, deadline=301.0)


@pytest.fixture
async def driven() -> AsyncIterator[Driven]:
    """A release that holds its first step, before Prometheus has answered the new process once."""
    driven = Driven()
    kit = driven.kit
    driven.measuring = asyncio.create_task(kit.parts.measurer.run(), name="measure")
    driven.start()
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    strict = policy(
        limits=(Limit(name="q", metric="query", query="x", max=1.0),),
        steps=(HELD, LADDER[-1]),
        on_no_data="rollback",
        on_inconclusive="rollback",
        no_data_after=120.0,
    )
    kit.conductor.submit(submit(2, template=template(instances=1), policy=strict))
    await kit.until(lambda s: s.rollout is not None and bool(s.rollout.verdicts))
    yield driven
    driven.measuring.cancel()
    await driven.stop()


async def _stands(kit: Kit) -> None:
    """A good while of decisions later nothing has gone back."""
    async with asyncio.timeout(5):
        version = (await kit.store.load("api"))[1]
        while (await kit.store.load("api"))[1] < version + 5:
            await asyncio.sleep(0.01)
    state = await kit.state()
    assert state.rollout is not None
    assert state.rollout.phase is Phase.SHIFTING


@pytest.mark.parametrize("seconds", [600.0, 3600.0])
async def test_time_without_a_daemon_is_no_time_of_the_release(driven: Driven, seconds: float) -> None:
    kit = driven.kit
    await driven.stop()
    before = await kit.state()
    kit.clock.time += seconds
    driven.start()
    await _stands(kit)
    after = await kit.state()
    assert before.rollout is not None
    assert after.rollout is not None
    assert after.rollout.entered_at - before.rollout.entered_at >= seconds
    assert after.rollout.silent < 120


async def test_time_without_a_store_is_no_time_of_the_release(driven: Driven) -> None:
    kit = driven.kit
    kit.store.fail_before = 10**6
    async with asyncio.timeout(5):
        while kit.store.fail_before == 10**6:
            await asyncio.sleep(0.01)
    kit.clock.time += 600.0
    await asyncio.sleep(0.1)
    assert "api" not in kit.traffic.local
    kit.store.fail_before = 0
    await _stands(kit)


async def test_a_command_that_waits_for_the_daemon_does_not_hide_that_it_was_away(driven: Driven) -> None:
    kit = driven.kit
    await driven.stop()
    before = await kit.state()
    kit.clock.time += 600.0
    driven.start()
    kit.conductor.submit(Freeze(request="9-0", actor="ann"))
    await kit.until(lambda s: s.frozen is not None)
    await _stands(kit)
    after = await kit.state()
    assert before.rollout is not None
    assert after.rollout is not None
    assert after.rollout.entered_at - before.rollout.entered_at >= 600.0
    assert after.rollout.silent < 120


class Hanging:
    """A question that is never answered, once somebody has begun to ask it."""

    def __init__(self) -> None:
        self.asked = 0
        self.begun = asyncio.Event()

    async def __call__(self, *_: Any) -> Any:
        self.asked += 1
        self.begun.set()
        await asyncio.Event().wait()


@pytest.fixture
async def climbing(kit: Kit) -> Kit:
    """A candidate that holds a fifth of the traffic."""
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.conductor.submit(small(2, steps=(HELD, LADDER[-1])))
    await kit.until(lambda s: s.rollout is not None and s.rollout.held_since is not None)
    return kit


async def _leads_to(kit: Kit, release: str) -> None:
    """Wait for less than a look may take; what is served must have been committed by then."""
    async with asyncio.timeout(5):
        while {s.release for s in kit.traffic.plans["api"].route.servers if not s.backup} != {release}:
            await asyncio.sleep(0.001)
    assert kit.traffic.plans["api"].route == (await kit.state()).route


@pytest.mark.parametrize("command", [Rollback, Abort])
@pytest.mark.parametrize("under_way", [True, False], ids=["under way", "to come"])
@pytest.mark.parametrize("part", [FakeRuntime, FakeTraffic], ids=["docker", "edge"])
async def test_users_are_taken_back_while_a_look_hangs(
    climbing: Kit, monkeypatch: pytest.MonkeyPatch, part: type, under_way: bool, command: Any
) -> None:
    hanging = Hanging()
    monkeypatch.setattr(part, "observe", lambda _, service: hanging(service))
    if under_way:
        await asyncio.wait_for(hanging.begun.wait(), 5)
    climbing.conductor.submit(command(request="9-0", actor="ann"))
    await _leads_to(climbing, "api-1")
    assert "9-0" in (await climbing.state()).handled


async def test_users_are_taken_back_to_the_release_before_while_a_look_hangs(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        kit.conductor.submit(small(number, steps=(Step(weight=100, hold=0.0, deadline=60.0),)))
        await kit.until(ended(f"api-{number}"))
    await kit.until(lambda s: s.confirmed == s.route.generation)
    hanging = Hanging()
    monkeypatch.setattr(FakeRuntime, "observe", lambda _, service: hanging(service))
    await asyncio.wait_for(hanging.begun.wait(), 5)
    kit.conductor.submit(Rollback(request="9-0", actor="ann"))
    await _leads_to(kit, "api-1")
    assert "9-0" in (await kit.state()).handled


async def test_a_bug_in_deciding_refuses_no_rollback_that_would_be_decided_on_at_once(
    climbing: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.engine.conductor.decide", broken)
        climbing.conductor.submit(Rollback(request="9-0", actor="ann"))
        state = await climbing.until(lambda s: "9-0" in s.handled)
        assert state.rollout is not None
        assert state.rollout.phase is Phase.ROLLING_BACK
    state = await climbing.until(ended("api-2"))
    assert (state.history[-1].outcome, state.history[-1].actor) == (Outcome.ROLLED_BACK, "ann")


async def test_a_rollback_and_its_route_are_one_commit(
    climbing: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[tuple[tuple[str, ...], set[str]]] = []
    commit = FakeStore.commit

    async def noted(store: FakeStore, state: ServiceState, version: int, events: Any, acks: Any = ()) -> int:
        commits.append((tuple(acks), {e.kind for e in events}))
        return await commit(store, state, version, events, acks)

    monkeypatch.setattr(FakeStore, "commit", noted)
    climbing.conductor.submit(Rollback(request="9-0", actor="ann"))
    await climbing.until(ended("api-2"))
    (kinds,) = (kinds for acks, kinds in commits if acks == ("9-0",))
    assert {"command_accepted", "rollback_started", "route_changed"} <= kinds


async def test_commands_do_not_make_a_look_begin_again(
    climbing: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever asks again and again could keep the service from being looked at."""
    hanging = Hanging()
    monkeypatch.setattr(FakeRuntime, "observe", lambda _, service: hanging(service))
    await asyncio.wait_for(hanging.begun.wait(), 5)
    for number in range(5):
        climbing.conductor.submit(Rollback(request=f"9-{number}", actor="ann"))
        await climbing.until(lambda s, number=number: f"9-{number}" in s.handled)  # type: ignore[misc]
    assert hanging.asked == 1


async def test_without_a_fresh_lease_nobody_is_taken_back_ahead_of_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kit, fresh = Kit(), [True]
    kit.conductor = Conductor(PLAN, replace(kit.parts, may_act=lambda: bool(fresh)))
    task = asyncio.create_task(kit.conductor.run(), name="conductor")
    kit.conductor.submit(small(1))
    await kit.until(ended("api-1"))
    kit.conductor.submit(small(2, steps=(HELD, LADDER[-1])))
    await kit.until(lambda s: s.rollout is not None and s.rollout.held_since is not None)
    hanging = Hanging()
    monkeypatch.setattr(FakeRuntime, "observe", lambda _, service: hanging(service))
    await asyncio.wait_for(hanging.begun.wait(), 5)
    before = kit.traffic.plans["api"]
    fresh.clear()
    kit.conductor.submit(Rollback(request="9-0", actor="ann"))
    await kit.until(lambda s: s.route.generation > before.route.generation)
    await asyncio.sleep(0.05)
    assert kit.traffic.plans["api"] == before
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
