"""nginx' folder and the store are put back to an earlier time together, while nginx runs on."""

from dataclasses import replace

import pytest

from orchestrator.rollout.command import Freeze, Remove, Rollback, Unfreeze
from orchestrator.rollout.events import (
    CommandAccepted,
    EdgeStuck,
    InstanceDied,
    InstanceRecovered,
    ReleaseEnded,
    ReleaseRetired,
    RequestRefused,
    RouteChanged,
    RouteConfirmed,
    ServiceRemoved,
)
from orchestrator.rollout.model import Outcome, Phase, ServiceState
from orchestrator.rollout.told import problems
from tests.builders import policy, submit
from tests.unit.sim import Sim


def _put_back(sim: Sim, *, wiped: bool, rolling: bool = False) -> None:
    """nginx serves api-2 and 5 % of api-3, and what is remembered is from the time of api-1."""
    if rolling:
        sim.send(submit(2))
        sim.until_phase(Phase.SHIFTING, held=True)
    old, disk = sim.state, sim.disk
    if not rolling:
        sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(submit(3))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.elder, sim.disk, sim.served = sim.served, disk, disk.route.generation if disk else 0
    sim.store_goes_back(ServiceState(service="api") if wiped else old)


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize("wiped", [False, True])
def test_users_stay_where_nobody_knows_what_nginx_serves_and_that_is_told(
    sim: Sim, wiped: bool, rolling: bool
) -> None:
    _put_back(sim, wiped=wiped, rolling=rolling)
    served, there = sim.elder, set(sim.instances)
    sim.run(120)
    assert (sim.elder, there - set(sim.instances)) == (served, set())
    assert not [e for e in sim.events if isinstance(e, RouteChanged)]
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert f"nginx serves route {served}, and its file and Redis are from an earlier time" in stuck.reason
    assert "`orchestrator rollback api` sends all of them to api-1" in stuck.reason
    assert problems(sim.state) == [stuck.reason]
    assert sim.state.rollout is None


@pytest.mark.parametrize("wiped", [False, True])
def test_a_rollback_leads_from_a_route_that_nobody_knows_to_stable(sim: Sim, wiped: bool) -> None:
    _put_back(sim, wiped=wiped)
    served = sim.elder
    sim.run(20)
    accepted, *_ = sim.send(Rollback(request="9-0", actor="ann", release=sim.state.meant))
    assert isinstance(accepted, CommandAccepted)
    assert accepted.note == "all users are sent to api-1"
    sim.run(5)
    assert sim.state.confirmed == sim.state.route.generation > served
    assert (sim.share("api-1"), problems(sim.state)) == (100, [])


@pytest.mark.parametrize("wiped", [False, True])
def test_a_release_goes_over_a_route_that_nobody_knows(sim: Sim, wiped: bool) -> None:
    _put_back(sim, wiped=wiped)
    sim.run(20)
    sim.send(submit(4, request="14-0"))
    sim.run(200)
    (ended,) = [e for e in sim.events if isinstance(e, ReleaseEnded)]
    assert (ended.release, ended.outcome) == ("api-4", Outcome.PROMOTED)
    assert (sim.share("api-4"), problems(sim.state)) == (100, [])


def test_a_route_that_nginx_has_for_a_moment_before_its_file_is_not_told(sim: Sim) -> None:
    sim.elder = sim.served + 1
    sim.run(5)
    assert sim.state.unknown is not None
    sim.elder = 0
    sim.run(20)
    assert sim.state.unknown is None
    assert not [e for e in sim.events if isinstance(e, EdgeStuck | RouteChanged)][1:]


@pytest.mark.parametrize("unwatched", [0.0, 5.0, 30.0])
def test_what_waited_by_the_old_store_is_over_and_what_is_asked_for_since_is_not(
    sim: Sim, unwatched: float
) -> None:
    sim.send(Freeze(request="f-0", actor="ann"))
    sim.send(submit(2, policy=policy(queue_deadline=9e9)))
    old, disk = sim.state, sim.disk
    sim.send(Unfreeze(request="f-1", actor="ann"))
    sim.until_ended("api-2")
    assert disk is not None
    sim.elder, sim.disk, sim.served = sim.served, disk, disk.route.generation
    sim.store_goes_back(replace(old, frozen=None))
    sim.step()
    sim.send(submit(4, policy=policy(on_new_release="queue")))
    sim.run(3)
    assert [r.id for r in sim.state.queue] == ["api-2", "api-3"]
    sim.now += unwatched
    sim.unwatched = unwatched
    sim.run(200)
    assert sim.outcomes() == {"api-2": Outcome.ABORTED, "api-3": Outcome.PROMOTED}


def test_a_rollback_that_is_asked_for_before_it_is_told_goes_on(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.elder = sim.served + 5
    sim.step()
    sim.send(Rollback(request="9-0", actor="ann", to="api-1"))
    sim.run(20)
    assert sim.ends("api-1")[-1].journey == "revert"
    assert (sim.share("api-1"), problems(sim.state)) == (100, [])


def test_an_nginx_that_was_silent_meanwhile_has_confirmed_nothing(sim: Sim) -> None:
    _put_back(sim, wiped=False)
    sim.run(20)
    sim.edge_up, sim.silence = False, "nginx does not answer"
    sim.run(20)
    sim.edge_up, sim.silence = True, ""
    sim.run(5)
    assert not [e for e in sim.events if isinstance(e, RouteConfirmed)]
    assert "its file and Redis are from an earlier time" in problems(sim.state)[0]


def test_a_removal_goes_over_a_route_that_nobody_knows(sim: Sim) -> None:
    _put_back(sim, wiped=False)
    sim.run(20)
    sim.send(Remove(request="9-0", actor="ann", reason="unused"))
    sim.run(60)
    assert [e for e in sim.events if isinstance(e, ServiceRemoved)]


def test_a_removal_that_the_old_store_was_at_names_a_way_that_there_is(sim: Sim) -> None:
    sim.drained = False
    sim.send(Remove(request="8-0", actor="ann", reason="unused"))
    sim.step()
    sim.elder = sim.served + 5
    sim.run(20)
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert stuck.reason.endswith("; release an image to send them there")
    first, *_ = sim.send(Rollback(request="9-0", actor="ann"))
    assert isinstance(first, RequestRefused)
    sim.send(submit(2))
    sim.run(200)
    assert sim.outcomes()["api-2"] is Outcome.PROMOTED


def test_an_instance_that_is_started_again_beside_a_route_that_nobody_knows_is_told_once(sim: Sim) -> None:
    _put_back(sim, wiped=False)
    sim.run(20)
    sim.events.clear()
    sim.kill("api-1-0")
    sim.run(20)
    died, recovered = sim.events
    assert (type(died), type(recovered)) == (InstanceDied, InstanceRecovered)
    assert sim.state.dead == ()


def _hide(sim: Sim, how: str) -> None:
    """Let nginx' file be lost, or be nobody's, or let nothing be seen of it."""
    if how != "edited":
        sim.edge_up = False
    sim.disk, sim.file = None, "missing" if how == "missing" else "edited"


@pytest.mark.parametrize("how", ["missing", "edited"])
def test_what_is_lost_of_the_file_meanwhile_puts_nothing_off(sim: Sim, how: str) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.elder, sim.lost = sim.served + 5, True
    sim.run(3)
    _hide(sim, how)
    sim.run(15)
    assert sim.outcomes()["api-2"] is Outcome.ABORTED
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert "its file and Redis are from an earlier time" in stuck.reason
    served, sim.edge_up = sim.elder, True
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(5)
    assert sim.state.confirmed == sim.state.route.generation > served
    assert sim.share("api-1") == 100


def test_a_rollback_goes_over_a_route_that_nobody_sees_any_more(sim: Sim) -> None:
    _put_back(sim, wiped=False)
    sim.run(20)
    served = sim.elder
    _hide(sim, "missing")
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.step()
    assert sim.state.route.generation > served


def test_what_may_have_users_on_a_route_that_nobody_knows_is_drained_once_another_is_put_over_it(
    sim: Sim,
) -> None:
    _put_back(sim, wiped=False)
    sim.run(20)
    sim.drained = False
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(5)
    assert {"api-2-0", "api-2-1", "api-3-0", "api-3-1"} <= set(sim.instances)
    sim.drained = True
    sim.run(5)
    assert {"api-2", "api-3"} == {
        e.release for e in sim.events if isinstance(e, ReleaseRetired) and e.drained
    }
    assert {i.release for i in sim.instances.values()} == {"api-1"}


def test_what_was_on_its_way_out_by_the_old_store_is_drained_too(sim: Sim) -> None:
    sim.drained = False
    sim.send(submit(2, policy=policy(keep_previous=0.0)))
    sim.until_ended("api-2")
    sim.run(2)
    assert [r.generation for r in sim.state.retiring] == [sim.state.route.generation]
    sim.elder, sim.lost = sim.served + 5, True
    sim.run(2 * sim.state.retiring[0].release.policy.drain_deadline)
    assert not [e for e in sim.events if isinstance(e, ReleaseRetired)]
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.drained = True
    sim.run(5)
    assert [e.drained for e in sim.events if isinstance(e, ReleaseRetired)] == [True]


@pytest.mark.parametrize("after", [3, 15])
def test_a_rollback_leads_from_a_route_that_nobody_knows_to_stable_whenever_it_is_asked_for(
    sim: Sim, after: int
) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(Freeze(request="f-0", actor="ann"))
    sim.send(submit(3, policy=policy(queue_deadline=9e9)))
    sim.run(2)
    sim.elder, sim.lost = sim.served + 5, True
    sim.run(after)
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(20)
    assert (sim.share("api-2"), sim.state.rollout, problems(sim.state)) == (100, None, [])
    assert sim.outcomes()["api-3"] is Outcome.ABORTED


def test_a_rollback_leads_to_stable_beside_a_release_without_traffic_and_ends_that(sim: Sim) -> None:
    _put_back(sim, wiped=False)
    sim.run(20)
    sim.behave("api-4").never_ready = True
    sim.send(submit(4))
    sim.run(3)
    served, way = sim.elder, problems(sim.state)[0]
    assert way.endswith("`orchestrator rollback api` sends all of them to api-1")
    accepted, *_ = sim.send(Rollback(request="9-0", actor="ann"))
    assert isinstance(accepted, CommandAccepted)
    assert accepted.note == "all users are sent to api-1; api-4 was in starting and has had no traffic"
    sim.run(5)
    assert sim.state.confirmed == sim.state.route.generation > served
    assert (sim.share("api-1"), problems(sim.state)) == (100, [])
    assert sim.outcomes()["api-4"] is Outcome.ABORTED


def test_a_rollback_of_a_release_without_traffic_alone_leaves_users_on_a_route_that_nobody_knows(
    sim: Sim,
) -> None:
    _put_back(sim, wiped=False)
    sim.run(20)
    sim.behave("api-4").never_ready = True
    sim.send(submit(4))
    sim.run(3)
    sim.send(Rollback(request="9-0", actor="ann", release="api-4"))
    sim.run(5)
    assert sim.outcomes()["api-4"] is Outcome.ABORTED
    assert (sim.state.unknown or (0,))[0] == sim.elder
