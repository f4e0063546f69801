"""A rollback on the host that nginx' memory follows, and whose file is late or is never written."""

import pytest

from orchestrator.rollout.command import Rollback
from orchestrator.rollout.decide import decide
from orchestrator.rollout.events import EdgeStuck, ReleaseEnded, RouteChanged
from orchestrator.rollout.model import Outcome, Phase
from orchestrator.rollout.observation import Edge, Observation
from orchestrator.rollout.told import problems
from tests.builders import policy, submit
from tests.unit.sim import Sim


def _shifting(sim: Sim) -> Sim:
    """api-2 rolls out over api-1, and api-3 waits."""
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(submit(3, policy=policy(on_new_release="queue")))
    return sim


def _promoted(sim: Sim) -> Sim:
    """api-2 is stable, and a rollback leads to api-1."""
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.run(2)
    sim.events.clear()
    sim.lost = True
    return sim


def test_a_rollback_on_the_host_that_was_cut_off_takes_the_candidate_back_and_what_waits_goes_on(
    sim: Sim,
) -> None:
    _shifting(sim).roll_back_on_host(written=False)
    served, before = sim.elder, sim.state.route
    sim.run(9)
    assert (sim.state.route, sim.ends("api-2"), [r.id for r in sim.state.queue]) == (before, [], ["api-3"])
    sim.run(5)
    (ended,) = sim.ends("api-2")
    assert (ended.outcome, ended.actor) == (Outcome.ROLLED_BACK, "host")
    assert ended.reason == (
        f"nginx serves route {served} and its file is of route {served - 1}: on the host all users have been"
        " taken back to api-1"
    )
    assert sim.state.route.generation > served
    assert sim.share("api-2") == 0
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED
    assert problems(sim.state) == []
    assert not [e for e in sim.events if isinstance(e, EdgeStuck)]


def test_a_rollback_on_the_host_of_stable_that_was_cut_off_is_followed(sim: Sim) -> None:
    _promoted(sim).roll_back_on_host(written=False)
    sim.run(20)
    (ended,) = [e for e in sim.events if isinstance(e, ReleaseEnded)]
    assert (ended.release, ended.journey, ended.outcome) == ("api-1", "revert", Outcome.PROMOTED)
    assert (sim.share("api-1"), problems(sim.state)) == (100, [])
    assert all(dict(e.shares)["api-1"] == 100 for e in sim.events if isinstance(e, RouteChanged))


def test_a_rollback_on_the_host_whose_file_is_never_written_ends_once_a_file_can_be(sim: Sim) -> None:
    _shifting(sim).roll_back_on_host(written=False)
    sim.refuses = "no space left on device"
    sim.run(3600)
    assert (sim.share("api-1"), sim.state.unknown) == (100, None)
    assert "no space left on device" in problems(sim.state)[0]
    sim.refuses = ""
    sim.run(5)
    assert sim.outcomes()["api-2"] is Outcome.ROLLED_BACK
    assert sim.outcomes().get("api-3") is not Outcome.ABORTED


def test_a_rollback_on_the_host_whose_file_is_late_is_told_as_the_person_meant_it(sim: Sim) -> None:
    _shifting(sim).roll_back_on_host(written=False)
    sim.run(8)
    sim.roll_back_on_host()
    sim.run(3)
    (ended,) = sim.ends("api-2")
    assert (ended.outcome, ended.actor, ended.reason) == (Outcome.ROLLED_BACK, "ann", "by hand")
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED


def test_a_file_that_is_written_when_the_rollback_is_followed_already_changes_nothing(sim: Sim) -> None:
    _shifting(sim).roll_back_on_host(written=False)
    sim.refuses = "locked"
    sim.run(12)
    sim.roll_back_on_host()
    sim.refuses = ""
    sim.run(3)
    assert [e.outcome for e in sim.ends("api-2")] == [Outcome.ROLLED_BACK]
    assert sim.share("api-2") == 0
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED


def test_a_rollback_that_is_asked_for_meanwhile_leads_where_the_one_on_the_host_does(sim: Sim) -> None:
    _promoted(sim).roll_back_on_host(written=False)
    sim.run(3)
    unread = Observation(edge=Edge(unread=True), instances=sim.observe().instances)
    sim.state, _ = decide(sim.state, unread, sim.now)
    sim.send(Rollback(request="9-0", actor="bob"))
    sim.run(20)
    (ended,) = [e for e in sim.events if isinstance(e, ReleaseEnded)]
    assert (ended.release, ended.journey, ended.actor) == ("api-1", "revert", "bob")
    assert (sim.share("api-1"), problems(sim.state)) == (100, [])


@pytest.mark.parametrize("written", [False, True])
def test_a_rollback_that_is_asked_for_after_it_and_leads_elsewhere_is_the_last_word(
    sim: Sim, written: bool
) -> None:
    _promoted(sim)
    sim.send(submit(3))
    sim.until_ended("api-3")
    sim.run(2)
    sim.roll_back_on_host(written=False)
    assert sim.back == "api-2"
    sim.run(3)
    sim.send(Rollback(request="9-0", actor="bob", to="api-1"))
    sim.run(1)
    if written:
        sim.roll_back_on_host()
    sim.run(60)
    (ended,) = sim.ends("api-1")[-1:]
    assert (ended.journey, ended.outcome, ended.actor) == ("revert", Outcome.PROMOTED, "bob")
    assert (sim.share("api-1"), problems(sim.state)) == (100, [])


def test_one_that_leads_to_a_release_that_nobody_knows_is_an_unknown_route(sim: Sim) -> None:
    _promoted(sim).roll_back_on_host(written=False)
    sim.back = "api-77"
    sim.run(20)
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert "its file and Redis are from an earlier time" in stuck.reason


@pytest.mark.parametrize("how", ["step", "death"])
def test_a_step_of_the_daemons_own_is_no_rollback_where_file_and_store_are_one_generation_older(
    sim: Sim, how: str
) -> None:
    _promoted(sim)
    backup, disk, fallback = sim.state, sim.disk, sim.fallback
    if how == "step":
        sim.send(submit(3))
        sim.until_phase(Phase.SHIFTING, held=True)
    else:
        sim.behave("api-2").start_error = "no such image"
        sim.kill("api-2-0")
        sim.step()
    assert sim.served == backup.route.generation + 1
    sim.elder = sim.served
    sim.store_goes_back(backup)
    sim.disk, sim.fallback = disk, fallback
    sim.run(60)
    assert not [e for e in sim.events if isinstance(e, ReleaseEnded | RouteChanged)]
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert "its file and Redis are from an earlier time" in stuck.reason


def test_users_stay_where_nginx_says_that_the_host_has_taken_them_however_old_file_and_store_are(
    sim: Sim,
) -> None:
    """api-3 has been left for api-2; by the file and the store api-1 is stable."""
    backup, disk, fallback = sim.state, sim.disk, sim.fallback
    _promoted(sim)
    sim.send(submit(3))
    sim.until_ended("api-3")
    sim.elder, sim.back = sim.served + 1, "api-2"
    sim.store_goes_back(backup)
    sim.disk, sim.fallback = disk, fallback
    sim.run(60)
    (ended,) = [e for e in sim.events if isinstance(e, ReleaseEnded)]
    assert (ended.release, ended.journey, ended.outcome, ended.actor) == (
        "api-2",
        "revert",
        Outcome.PROMOTED,
        "host",
    )
    assert all(dict(e.shares).get("api-2") == 100 for e in sim.events if isinstance(e, RouteChanged))
    assert (sim.share("api-2"), problems(sim.state)) == (100, [])


def test_a_rollback_on_the_host_that_nginx_tells_of_after_a_silence_is_followed_too(sim: Sim) -> None:
    _promoted(sim).roll_back_on_host(written=False)
    sim.step()
    sim.edge_up = False
    sim.run(20)
    sim.edge_up = True
    sim.run(20)
    assert (sim.ends("api-1")[-1].actor, sim.share("api-1"), problems(sim.state)) == ("host", 100, [])
