"""`decide` and `desired` take whatever is seen: damaged labels, numbers that are none, an odd edge."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.rollout.command import Abort, Freeze, Pause
from orchestrator.rollout.decide import decide, watch
from orchestrator.rollout.desired import desired
from orchestrator.rollout.events import ServiceAdopted
from orchestrator.rollout.hooks import HookResult
from orchestrator.rollout.model import Phase, Release, Route, Server, ServiceState
from orchestrator.rollout.observation import (
    Edge,
    Image,
    Instance,
    LocalRollback,
    Observation,
    OnDisk,
    Reading,
    Sample,
)
from orchestrator.rollout.policy import Comparison, Limit, Preview
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from tests.builders import policy, release, submit, template
from tests.unit.sim import Sim
from tests.unit.test_comparison import ERRORS, P99, compared

GATES = policy(
    limits=(
        Limit(name="errors_limit", metric="error_rate", max=0.1, max_ratio=2.0, min_requests=1),
        Limit(name="slow", metric="latency", max=0.3),
        Limit(name="cpu", metric="cpu", max=0.9),
        Limit(name="query", metric="query", query="x", max=1.0, min=0.1),
    ),
    comparisons=(
        ERRORS,
        P99,
        Comparison(name="pay", metric="counts", total="t", bad="b"),
        Comparison(name="past", metric="error_rate", history=3600.0),
    ),
    steps=compared().steps,
    preview=Preview(hold=3.0),
)
"""Every kind of gate."""


@cache
def stands() -> dict[str, ServiceState]:
    """A state of every kind."""
    sim = Sim()
    found = {"empty": sim.state}
    sim.send(submit(1))
    sim.until_ended("api-1")
    found["idle"] = sim.state
    sim.image_there = False
    sim.send(submit(2, policy=GATES))
    found["queued"] = sim.state
    sim.until_phase(Phase.PREFLIGHT)
    found[Phase.PREFLIGHT] = sim.state
    sim.image_there = True
    sim.unreadable.add("api-2")
    sim.until_phase(Phase.STARTING)
    found[Phase.STARTING] = sim.state
    sim.unreadable.clear()
    sim.until_phase(Phase.PREVIEW)
    found[Phase.PREVIEW] = sim.state
    sim.edge_up = False
    sim.until_phase(Phase.SHIFTING)
    found["unconfirmed"] = sim.state
    sim.edge_up = True
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(3)
    found[Phase.SHIFTING] = sim.state
    assert sim.state.rollout is not None
    assert sim.state.rollout.evidence
    sim.send(Pause(request="5-0", actor="ann"))
    found["paused"] = sim.state
    sim.send(Freeze(request="6-0", actor="ann"))
    sim.edge_up = False
    sim.send(Abort(request="7-0", actor="ann"))
    sim.step()
    found[Phase.ROLLING_BACK] = sim.state
    sim = Sim()
    for number in (1, 2):
        sim.send(submit(number))
        sim.until_ended(f"api-{number}")
    sim.run(2)
    found["warm"] = sim.state
    sim.elder = sim.served + 5
    sim.step()
    found["unknown"] = sim.state
    sim.run(10)
    found["told"] = sim.state
    return found


TURNS = 10
"""The most decisions in a row of which each tells something, while nothing changes."""

NAMES = st.sampled_from(["api-1-0", "api-1-1", "api-2-0", "api-2-1", "api-blue-0", "", "web-1-0"])
RELEASES = st.sampled_from(
    ["api-1", "api-2", "api-3", "api-blue", "", "-", "api-" + "9" * 5000, "api-٣", "api--1"]
)
TIMES = st.sampled_from([0.0, 1000.0, 1001.0, 1010.0, 1e12])
ODD = st.sampled_from([float("nan"), float("inf"), float("-inf"), -1.0, 1e308])
NUMBERS = st.one_of(st.integers(0, 1000).map(float), ODD)


@st.composite
def descriptions(draw: st.DrawFn) -> Release:
    steps = draw(st.sampled_from([(), policy().steps, compared().steps]))
    return release(
        id=draw(RELEASES),
        service=draw(st.sampled_from(["api", "web", ""])),
        digest=draw(st.sampled_from(["", "sha256:1"])),
        template=template(
            instances=draw(st.sampled_from([-1, 0, 1, 2])), cpus=draw(st.sampled_from([0.0, 1.0]))
        ),
        policy=replace(GATES, steps=steps),
    )


instances = st.builds(
    Instance,
    name=NAMES,
    release=RELEASES,
    address=st.sampled_from(["", "10.0.1.10:8080", "nonsense"]),
    container=st.sampled_from(["c1", "c2", ""]),
    started_at=st.sampled_from(["t1", "t2", ""]),
    running=st.booleans(),
    health=st.sampled_from(["ready", "unknown", "unhealthy"]),
    exit_code=st.sampled_from([None, 0, 137]),
    supervised=st.booleans(),
    described=st.one_of(st.none(), descriptions()),
)
samples = st.builds(
    Sample,
    at=st.one_of(TIMES, ODD),
    requests=NUMBERS,
    errors=NUMBERS,
    buckets=st.dictionaries(st.sampled_from([0.1, 0.5, float("inf"), float("nan"), -1.0]), NUMBERS),
    own=st.dictionaries(st.sampled_from(["pay", "?"]), st.tuples(NUMBERS, NUMBERS)),
    cpu=st.one_of(st.none(), st.tuples(NUMBERS, NUMBERS)),
    stamp=st.one_of(st.none(), NUMBERS),
    unseen=st.frozensets(st.sampled_from(["requests", "latency", "counts:pay"])),
)
looks = st.builds(
    Reading,
    at=st.sampled_from([990.0, 1003.0, 1010.0, 1011.0]),
    samples=st.dictionaries(NAMES, samples),
    values=st.dictionaries(st.tuples(st.sampled_from(["query"]), RELEASES), NUMBERS),
    history=st.dictionaries(st.sampled_from(["past"]), NUMBERS),
    error=st.sampled_from(["", "", "away"]),
)
servers = st.builds(
    Server,
    address=st.just("10.0.1.10:8080"),
    weight=st.sampled_from([-1, 0, 1, 95]),
    release=RELEASES,
    instance=NAMES,
    container=st.just("c1"),
    started_at=st.just("t1"),
    backup=st.booleans(),
)
routes = st.builds(Route, generation=st.integers(-1, 50), servers=st.lists(servers, max_size=4).map(tuple))
edges = st.builds(
    Edge,
    served=st.one_of(st.none(), st.integers(-1, 50)),
    confirmed=st.integers(-1, 50),
    file=st.sampled_from(["ours", "edited", "missing"]),
    drained=st.booleans(),
    floor=st.integers(-1, 50),
    error=st.sampled_from(["", "no"]),
    on_disk=st.one_of(
        st.none(),
        st.builds(
            OnDisk,
            route=routes,
            stable=RELEASES,
            local=st.one_of(
                st.none(), st.builds(LocalRollback, to=RELEASES, actor=st.just("a"), reason=st.just(""))
            ),
        ),
    ),
    fallback=st.lists(servers, max_size=2).map(tuple),
    switched_to=RELEASES,
    failed=st.sampled_from(["", "edge b"]),
)
observations = st.builds(
    Observation,
    instances=st.lists(instances, max_size=4).map(tuple),
    runtime_ok=st.booleans(),
    edge=edges,
    images=st.dictionaries(
        st.sampled_from(["repo/api:2", "sha256:2"]), st.builds(Image, digest=st.sampled_from(["", "d"]))
    ),
    start_errors=st.dictionaries(NAMES, st.just("no")),
    readings=st.lists(looks, max_size=4).map(lambda found: tuple(sorted(found, key=lambda r: r.at))),
    hooks=st.dictionaries(st.just("k"), st.just(HookResult(passed=False, text=""))),
    unwatched=st.sampled_from([0.0, 600.0]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(stand=st.sampled_from(sorted(stands())), seen=st.lists(observations, min_size=1, max_size=2))
def test_whatever_is_seen_something_is_decided_that_can_be_kept(stand: str, seen: list[Observation]) -> None:
    state, now = stands()[stand], 1012.0
    for observation in seen:
        now += 1.0
        desired(watch(state, observation, now), now)
        state, events = decide(state, observation, now)
        desired(state, now)
        assert load_state(dump_state(state)) == state
        for event in events:
            assert load_event(dump_event(event)) == event


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(stand=st.sampled_from(sorted(stands())), seen=observations)
def test_what_does_not_change_is_soon_told_no_more(stand: str, seen: Observation) -> None:
    state, events = decide(stands()[stand], seen, 1100.0)
    for _ in range(TURNS):
        if not events:
            return
        state, events = decide(state, replace(seen, unwatched=0.0), 1100.0)
    raise AssertionError(f"told again and again: {events}")


@pytest.mark.parametrize("name", ["api-blue", "api", "api-" + "9" * 5000])
def test_a_release_without_a_number_is_taken_up_all_the_same(name: str) -> None:
    described = release(id=name)
    instance = Instance(
        name=f"{name}-0",
        release=name,
        address="10.0.1.10:8080",
        container="c1",
        started_at="t1",
        running=True,
        health="ready",
        described=described,
    )
    state, events = decide(ServiceState(service="api"), Observation(instances=(instance,)), 1000.0)
    assert state.stable == described
    assert [e.release for e in events if isinstance(e, ServiceAdopted)] == [name]
    assert state.released == 0


@pytest.mark.parametrize(
    "described",
    [
        release(id="api-2"),
        release(service="web"),
        release(policy=policy(steps=())),
        release(template=template(cpus=0.0)),
        release(template=template(instances=0)),
    ],
)
def test_a_description_that_cannot_be_is_as_good_as_none(described: Release) -> None:
    instance = Instance(
        name="api-1-0",
        release="api-1",
        address="10.0.1.10:8080",
        container="c1",
        started_at="t1",
        running=True,
        described=described,
    )
    state, events = decide(ServiceState(service="api"), Observation(instances=(instance,)), 1000.0)
    assert (state, events) == (ServiceState(service="api", released=1), ())
