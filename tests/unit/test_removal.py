"""Taking a service down: out of the route, drained, stopped, out of nginx; its counters stay."""

from dataclasses import replace

import pytest

from orchestrator.rollout.command import Abort, Freeze, Remove, Rollback, Unfreeze, offers
from orchestrator.rollout.decide import decide
from orchestrator.rollout.desired import desired
from orchestrator.rollout.events import (
    CommandAccepted,
    EdgeStuck,
    ReleaseAccepted,
    ReleaseEnded,
    ReleaseRetired,
    RequestRefused,
    RouteChanged,
    ServiceAdopted,
    ServiceRemoved,
)
from orchestrator.rollout.model import Outcome, Phase, Route, ServiceState
from orchestrator.rollout.observation import OnDisk
from orchestrator.rollout.removal import LOST, is_going, kept, waits_for
from orchestrator.rollout.told import told
from tests.builders import policy, submit
from tests.unit.sim import Sim

REMOVE = Remove(request="7-0", actor="ann", reason="nobody uses it")


def removed(sim: Sim, seconds: int = 60) -> ServiceRemoved:
    for _ in range(seconds):
        found = [e for e in sim.events if isinstance(e, ServiceRemoved)]
        if found:
            return found[-1]
        sim.step()
    raise AssertionError(f"never removed: {sim.state}")


def test_a_removal_empties_the_route_then_stops_then_clears_nginx(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    before = sim.state.route.generation
    (accepted,) = sim.send(REMOVE)
    assert isinstance(accepted, CommandAccepted)
    assert accepted.verb == "remove"
    assert {w.name for w in desired(sim.state, sim.now).instances} == {
        "api-1-0",
        "api-1-1",
        "api-2-0",
        "api-2-1",
    }
    told = removed(sim)
    assert (told.actor, told.reason) == ("ann", "nobody uses it")
    assert sim.instances == {}
    assert sim.disk is not None
    assert (sim.disk.route.gone, sim.disk.released) == (True, 2)
    kinds = [e for e in sim.events if isinstance(e, RouteChanged | ReleaseRetired | ServiceRemoved)][-5:]
    assert [type(e).__name__ for e in kinds] == [
        "RouteChanged",
        "ReleaseRetired",
        "ReleaseRetired",
        "RouteChanged",
        "ServiceRemoved",
    ]
    routes = [e for e in kinds if isinstance(e, RouteChanged)]
    assert [(r.generation, r.shares, r.actor) for r in routes] == [
        (before + 1, (), "ann"),
        (before + 2, (), "ann"),
    ]


def test_what_is_left_of_a_removed_service_is_that_and_its_counters(sim: Sim) -> None:
    sim.send(REMOVE)
    removed(sim)
    state = sim.state
    assert state.removal is not None
    assert state.removal.kind == "removed"
    kept = ServiceState(
        service="api",
        at=state.at,
        route=state.route,
        confirmed=state.route.generation,
        released=1,
        handled=("1-0", "7-0"),
        removal=state.removal,
    )
    assert state == kept
    sim.run(30)
    assert sim.state == kept
    (refused,) = sim.send(Remove(request="8-0", actor="bob"))
    assert isinstance(refused, RequestRefused)
    assert refused.reason == "api was removed already, by ann: nobody uses it"


def test_a_release_after_a_removal_starts_from_nothing_with_the_next_id(sim: Sim) -> None:
    sim.send(REMOVE)
    removed(sim)
    generation = sim.state.route.generation
    sim.send(submit(2))
    assert sim.state.removal is None
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert sim.share("api-2") == 100
    assert sim.state.route.generation > generation
    (refused,) = sim.send(Rollback(request="9-0", actor="ann"))
    assert isinstance(refused, RequestRefused)
    assert "api has no earlier promoted release to go back to; release an image" in refused.reason


def test_what_is_on_its_way_has_to_be_aborted_first(sim: Sim) -> None:
    sim.send(submit(2))
    (refused,) = sim.send(REMOVE)
    assert isinstance(refused, RequestRefused)
    assert refused.reason == "api-2 is on its way; abort it first"
    sim.until_phase(Phase.SHIFTING)
    (refused,) = sim.send(Remove(request="8-0", actor="ann"))
    assert isinstance(refused, RequestRefused)
    assert refused.reason == "api-2 is on its way; abort it first"


def test_while_a_service_is_removed_nothing_else_is_carried_out(sim: Sim) -> None:
    sim.edge_up = False
    sim.send(REMOVE)
    for command in (
        Rollback(request="8-0", actor="bob"),
        Freeze(request="9-0", actor="bob"),
        Remove(request="10-0", actor="bob"),
        Abort(request="11-0", actor="bob", release="api-1"),
    ):
        (refused,) = sim.send(command)
        assert isinstance(refused, RequestRefused)
        assert refused.reason == (
            "api is being removed, by ann: nobody uses it; nginx has not confirmed yet that it sends nothing"
            " there; abort it to keep the service, or release an image"
        )
    assert offers(sim.state, "") == ()


def test_what_a_removal_waits_for_is_said_with_the_words_of_nginx(sim: Sim) -> None:
    sim.refuses = "nginx -t: host not found in upstream api"
    sim.send(REMOVE)
    sim.run(5)
    assert waits_for(sim.state).endswith(f"sends nothing there: {sim.refuses}")
    sim.refuses, sim.drained, sim.stop_takes = "", False, 5.0
    found = set()
    for _ in range(60):
        sim.step()
        if sim.state.confirmed == sim.state.route.generation and is_going(sim.state):
            found.add(waits_for(sim.state))
    assert found == {"its last requests end", "its instances stop"}


@pytest.mark.parametrize("silent", [True, False])
def test_a_removal_is_called_off_while_nothing_is_gone(sim: Sim, silent: bool) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.edge_up = not silent
    sim.send(REMOVE)
    sim.run(5 if silent else 0)
    assert sim.state.stable is None
    (accepted, *_) = sim.send(Abort(request="8-0", actor="bob"))
    assert isinstance(accepted, CommandAccepted)
    assert (accepted.verb, accepted.note) == ("abort", "the removal by ann is called off: api-2 stays")
    assert told(accepted).endswith("; the removal by ann is called off: api-2 stays")
    sim.edge_up = True
    sim.run(20)
    assert (sim.share("api-2"), sim.state.removal, sim.state.retiring) == (100, None, ())
    assert sim.state.confirmed == sim.state.route.generation
    assert sim.state.previous is not None
    assert len(sim.instances) == 4
    assert sim.send(Rollback(request="9-0", actor="bob"))
    sim.run(10)
    assert sim.share("api-1") == 100


def test_a_release_calls_a_removal_off_too_and_says_so(sim: Sim) -> None:
    sim.edge_up = False
    sim.send(REMOVE)
    sim.run(5)
    (accepted, *_) = sim.send(submit(2))
    assert isinstance(accepted, ReleaseAccepted)
    assert accepted.note == "the removal by ann is called off: api-1 stays"
    assert accepted.note in told(accepted)
    sim.edge_up = True
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert sim.state.previous is not None
    assert sim.state.previous.id == "api-1"


def test_a_removal_that_has_let_go_is_not_called_off_and_a_release_begins_anew(sim: Sim) -> None:
    sim.stop_takes = 30.0
    sim.send(REMOVE)
    while sim.state.retiring:
        sim.step()
    (refused,) = sim.send(Abort(request="8-0", actor="bob"))
    assert isinstance(refused, RequestRefused)
    assert refused.reason == (
        "api is being removed, by ann: nobody uses it; its instances stop; no stable release is left to keep;"
        " release an image to have it again"
    )
    (accepted, *_) = sim.send(submit(2))
    assert isinstance(accepted, ReleaseAccepted)
    assert accepted.note == ""
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    sim.run(60)
    assert {i.release for i in sim.instances.values()} == {"api-2"}


def test_what_keeps_no_service_is_not_offered_where_stable_is_let_go_before_its_previous_release(
    sim: Sim,
) -> None:
    sim.send(submit(2, policy=policy(drain_deadline=1.0)))
    sim.until_ended("api-2")
    state = sim.state
    assert state.previous is not None
    lasting = replace(state.previous.policy, drain_deadline=600.0)
    sim.state = replace(state, previous=replace(state.previous, policy=lasting))
    sim.drained = False
    sim.send(REMOVE)
    sim.run(6)
    assert kept(sim.state).keys() == {"previous"}
    (refused,) = sim.send(Abort(request="8-0", actor="bob"))
    assert isinstance(refused, RequestRefused)
    assert refused.reason == (
        "api is being removed, by ann: nobody uses it; its last requests end; no stable release is"
        " left to keep; release an image to have it again"
    )


def test_a_service_that_never_had_a_release_is_removed_too() -> None:
    sim = Sim()
    sim.send(REMOVE)
    removed(sim)
    assert sim.state.removal is not None
    assert sim.state.released == 0


def test_no_instance_is_stopped_before_nginx_has_let_it_go(sim: Sim) -> None:
    sim.edge_up = False
    sim.send(REMOVE)
    sim.run(60)
    assert len(sim.instances) == 2
    sim.edge_up = True
    removed(sim)
    assert sim.instances == {}


def test_nginx_files_stay_while_docker_cannot_say_what_runs(sim: Sim) -> None:
    sim.stop_takes = 5.0
    sim.send(REMOVE)
    sim.step()
    sim.runtime_ok = False
    sim.run(60)
    assert sim.disk is not None
    sim.runtime_ok = True
    removed(sim)


def test_an_nginx_that_refuses_holds_the_removal_until_it_is_mended(sim: Sim) -> None:
    sim.stop_takes = 5.0
    sim.send(REMOVE)
    sim.step()
    sim.refuses = "nginx -t: host not found in upstream api"
    sim.run(30)
    assert (sim.instances, sim.state.route.gone) == ({}, True)
    assert sim.disk is not None
    assert [e.reason for e in sim.events if isinstance(e, EdgeStuck)] == [sim.refuses]
    sim.refuses = ""
    removed(sim)


def test_a_rollback_on_the_host_does_not_hold_a_removal_up(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.step()
    assert sim.fallback is not None
    sim.edge_up = False
    sim.send(REMOVE)
    sim.step()
    sim.roll_back_on_host()
    sim.run(3)
    sim.edge_up = True
    removed(sim)
    assert sim.instances == {}


def test_a_removal_goes_on_where_the_edge_is_ahead_of_what_is_committed(sim: Sim) -> None:
    sim.send(REMOVE)
    assert sim.disk is not None
    sim.disk = replace(sim.disk, route=replace(sim.disk.route, generation=sim.state.route.generation + 3))
    removed(sim)
    assert [e for e in sim.events if isinstance(e, ServiceAdopted)] == []
    assert sim.instances == {}


def test_what_was_removed_is_not_taken_up_for_a_container_that_was_left_behind(sim: Sim) -> None:
    left = dict(sim.instances)
    sim.send(REMOVE)
    removed(sim)
    sim.instances |= left
    sim.run(3)
    assert [e for e in sim.events if isinstance(e, ServiceAdopted)] == []
    assert sim.state.removal is not None
    assert sim.instances == {}


def test_what_was_released_after_its_removal_is_taken_up_where_the_store_has_lost_that(sim: Sim) -> None:
    sim.send(REMOVE)
    removed(sim)
    old = sim.state
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.state = old
    sim.run(3)
    (told,) = [e for e in sim.events if isinstance(e, ServiceAdopted)]
    assert (told.release, sim.state.removal, sim.share("api-2")) == ("api-2", None, 100)


def test_a_release_after_a_removal_that_nginx_refuses_ends_though_nginx_goes_on_refusing(sim: Sim) -> None:
    sim.send(REMOVE)
    removed(sim)
    sim.refuses = "nginx -t: unexpected } in /etc/nginx/conf.d/other.conf:3"
    sim.send(submit(2))
    assert sim.until_ended("api-2", 60).outcome is Outcome.FAILED


@pytest.mark.parametrize("when", ["idle", "queued", "shifting", "reverting"])
def test_what_was_removed_stays_removed_where_the_store_has_lost_that(sim: Sim, when: str) -> None:
    sim.send(submit(2))
    earlier = {"idle": sim.state}
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(submit(3, policy=policy(on_new_release="queue")))
    earlier["shifting"] = sim.state
    sim.until_ended("api-3")
    sim.send(Rollback(request="8-0", actor="ann"))
    earlier["reverting"] = sim.state
    sim.run(10)
    sim.send(Freeze(request="9-0", actor="ann"))
    sim.send(submit(4))
    earlier["queued"] = sim.state
    sim.send(Abort(request="10-0", actor="ann", release="api-4"))
    sim.send(REMOVE)
    removed(sim)
    generation = sim.state.route.generation
    sim.store_goes_back(earlier[when])
    sim.run(30)
    (told,) = [e for e in sim.events if isinstance(e, ServiceRemoved)]
    assert (told.actor, told.reason) == ("orchestrator", LOST)
    assert (sim.state.rollout, sim.state.queue, sim.state.stable, sim.instances) == (None, (), None, {})
    assert sim.state.route.generation > generation
    ended = {e.release: e.outcome for e in sim.events if isinstance(e, ReleaseEnded)}
    assert set(ended.values()) <= {Outcome.ABORTED}
    shares = [e.shares for e in sim.events if isinstance(e, RouteChanged)]
    assert not any(shares), "no traffic comes back"
    sim.send(Unfreeze(request="11-0", actor="ann"))
    assert sim.send(submit(5))[0].release == "api-5", "no number is given out twice"


def test_a_removal_that_had_begun_goes_on_where_the_store_has_lost_that(sim: Sim) -> None:
    sim.stop_takes = 5.0
    earlier = sim.state
    sim.send(REMOVE)
    sim.run(2)
    assert sim.instances
    sim.store_goes_back(earlier)
    sim.run(30)
    assert [e.reason for e in sim.events if isinstance(e, ServiceRemoved)] == [LOST]
    assert sim.instances == {}


def test_an_empty_store_does_not_bring_back_what_is_being_removed(sim: Sim) -> None:
    sim.stop_takes = 5.0
    sim.send(REMOVE)
    sim.run(2)
    assert sim.instances
    sim.store_goes_back(ServiceState(service="api"))
    sim.run(30)
    assert [e for e in sim.events if isinstance(e, ServiceAdopted | RouteChanged)] == []
    assert (sim.state.stable, sim.instances) == (None, {})
    assert sim.send(submit(2))[0].release == "api-2"
    assert sim.until_ended("api-2", 60).outcome is Outcome.PROMOTED


def test_a_store_that_went_back_behind_a_second_removal_tells_it_no_more(sim: Sim) -> None:
    sim.send(REMOVE)
    removed(sim)
    first = sim.state
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(Remove(request="8-0", actor="ann"))
    sim.run(60)
    sim.store_goes_back(first)
    sim.run(30)
    assert [e for e in sim.events if isinstance(e, ServiceRemoved | RouteChanged)] == []
    assert sim.send(submit(3))[0].release == "api-3"
    assert sim.until_ended("api-3", 60).outcome is Outcome.PROMOTED


def test_one_edge_that_knows_of_a_removal_alone_does_not_remove_what_others_serve(sim: Sim) -> None:
    """Another edge is ahead of this host's, whose disk is from an earlier time."""
    assert sim.disk is not None
    old = OnDisk(route=Route(generation=sim.state.route.generation + 1, gone=True))
    edge = replace(sim.observe().edge, on_disk=old, floor=old.route.generation + 5)
    state, _ = decide(sim.state, replace(sim.observe(), edge=edge), sim.now)
    assert state.removal is None
    assert state.stable == sim.state.stable
