"""The way back: it always ends, and never leads to the release that somebody wanted users away from."""

import time
from dataclasses import replace

import pytest

from orchestrator.rollout.command import Abort, Freeze, Pause, Promote, Rollback
from orchestrator.rollout.decide import decide
from orchestrator.rollout.desired import desired
from orchestrator.rollout.events import (
    CommandAccepted,
    EdgeStuck,
    ReleaseEnded,
    ReleaseRetired,
    RequestRefused,
    RouteChanged,
)
from orchestrator.rollout.model import Ended, Outcome, Phase, Rollout
from orchestrator.rollout.observation import Edge, Observation
from orchestrator.rollout.told import problems, way_back
from tests.builders import policy, submit, template
from tests.unit.sim import Behaviour, Sim

REFUSES = "nginx -t: unexpected } in /etc/nginx/conf.d/other.conf:3"


def promoted(sim: Sim, *numbers: int) -> Sim:
    for number in numbers or (2,):
        sim.send(submit(number))
        sim.until_ended(f"api-{number}")
    return sim


def ask(sim: Sim, request: str, **about: str) -> str:
    """Ask for a rollback; why it was refused, or ''."""
    events = sim.send(Rollback(request=request, actor="ann", **about))
    return events[0].reason if isinstance(events[0], RequestRefused) else ""


def utc(at: float) -> str:
    return time.strftime("%H:%M:%S UTC", time.gmtime(at))


def stable(sim: Sim) -> str:
    assert sim.state.stable is not None
    return sim.state.stable.id


def active(sim: Sim) -> Rollout:
    assert sim.state.rollout is not None
    return sim.state.rollout


def reverted(sim: Sim) -> ReleaseEnded:
    return next(e for e in reversed(sim.events) if isinstance(e, ReleaseEnded) and e.journey == "revert")


@pytest.mark.parametrize("broken", ["refuses", "dead"])
def test_a_revert_waits_for_nginx_however_long_it_refuses(sim: Sim, broken: str) -> None:
    promoted(sim)
    sim.refuses, sim.edge_up = (REFUSES, True) if broken == "refuses" else ("", False)
    assert not ask(sim, "8-0")
    sim.run(500)
    assert (active(sim).kind, active(sim).phase) == ("revert", Phase.BAKING)
    assert [s.release for s in desired(sim.state, sim.now).fallback.servers] == ["api-1"] * 2  # type: ignore[union-attr]
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert (stuck.release, REFUSES in stuck.reason) == ("api-1", broken == "refuses")
    sim.refuses, sim.edge_up = "", True
    sim.run(3)
    assert (stable(sim), sim.share("api-1"), sim.state.rollout) == ("api-1", 100, None)
    assert promoted(sim, 3).outcomes()["api-3"] is Outcome.PROMOTED


@pytest.mark.parametrize("named", ["", "api-1", "api-2"])
def test_a_second_rollback_does_not_turn_the_first_one_round(sim: Sim, named: str) -> None:
    promoted(sim)
    sim.refuses = REFUSES
    assert not ask(sim, "8-0", release="api-2")
    sim.run(3)
    assert "is being rolled back to api-1 already, by ann" in ask(sim, "9-0", release=named)
    assert "is being rolled back to api-1 already" in _refused(sim, Abort(request="10-0", actor="bob"))
    assert "can be aborted until" in _refused(sim, Pause(request="11-0", actor="bob"))
    sim.refuses = ""
    sim.run(5)
    assert ask(sim, "12-0", release=sim.state.meant) if named else True
    assert (stable(sim), sim.share("api-1")) == ("api-1", 100)


def _refused(sim: Sim, command: Abort | Pause) -> str:
    (refused,) = sim.send(command)
    assert isinstance(refused, RequestRefused)
    return refused.reason


def test_what_a_verb_is_about_during_a_revert_is_the_release_that_is_left(sim: Sim) -> None:
    promoted(sim)
    assert sim.state.meant == "api-2"
    sim.edge_up = False
    ask(sim, "8-0")
    sim.run(2)
    assert (sim.state.meant, sim.state.current) == ("api-2", "api-1")


def test_a_release_that_was_left_is_gone_back_to_by_its_name_alone(sim: Sim) -> None:
    promoted(sim, 2, 3)
    for expected in ("api-2", "api-1"):
        assert not ask(sim, f"{expected}-0")
        sim.run(10)
        assert stable(sim) == expected
    assert "it has been rolled back from api-2, api-3" in ask(sim, "9-0")
    assert desired(sim.state, sim.now).fallback is None
    assert not ask(sim, "10-0", to="api-3")
    sim.run(10)
    assert stable(sim) == "api-3"
    assert not ask(sim, "11-0")
    sim.run(10)
    assert stable(sim) == "api-1"


def test_a_release_that_was_left_for_one_that_had_been_left_before_is_not_gone_back_to(
    sim: Sim,
) -> None:
    promoted(sim, 2)
    for number, to in ((1, "api-1"), (3, ""), (2, "api-2")):
        if to:
            assert not ask(sim, f"{number}-9", to=to)
            sim.run(10)
            assert stable(sim) == to
        else:
            promoted(sim, number)
    assert not ask(sim, "9-9")
    sim.run(10)
    assert stable(sim) == "api-1"


@pytest.mark.parametrize("when", ["before nginx confirms", "after"])
def test_an_instance_of_the_target_that_dies_does_not_undo_a_revert(sim: Sim, when: str) -> None:
    promoted(sim)
    sim.refuses = REFUSES if when == "before nginx confirms" else ""
    ask(sim, "8-0")
    sim.step()
    sim.kill("api-1-0")
    sim.step()
    sim.refuses = ""
    for _ in range(10):
        sim.step()
        assert sim.share("api-2") == 0
    assert (stable(sim), sim.share("api-1")) == ("api-1", 100)
    assert reverted(sim).outcome is Outcome.PROMOTED


def test_a_store_that_lost_commits_does_not_turn_a_revert_round(sim: Sim) -> None:
    promoted(sim)
    sim.refuses = REFUSES
    ask(sim, "8-0")
    sim.run(2)
    assert sim.disk is not None
    sim.disk = replace(sim.disk, route=replace(sim.disk.route, generation=sim.disk.route.generation + 5))
    sim.served = sim.disk.route.generation
    for _ in range(5):
        sim.step()
        assert active(sim).one_way
    sim.refuses = ""
    sim.run(3)
    assert (stable(sim), sim.share("api-1")) == ("api-1", 100)


def test_a_warm_instance_that_is_dead_is_started_again_and_waited_for(sim: Sim) -> None:
    promoted(sim)
    sim.kill("api-1-0")
    sim.kill("api-1-1")
    ask(sim, "8-0")
    sim.run(5)
    assert stable(sim) == "api-1"


def test_a_release_that_is_gone_back_to_while_it_is_on_its_way_out_stays(sim: Sim) -> None:
    promoted(sim)
    sim.behave("api-2").start_error = "no space left on device"
    sim.kill("api-2-0")
    sim.kill("api-2-1")  # so that the route stays as it is
    sim.now = sim.state.previous_until or 0.0
    sim.step()
    assert [(r.release.id, r.generation) for r in sim.state.retiring] == [("api-1", None)]
    assert not ask(sim, "8-0")
    sim.run(3)
    assert (stable(sim), sim.share("api-1"), sim.state.rollout) == ("api-1", 100, None)
    assert "api-1" not in [r.release.id for r in sim.state.retiring]
    told = [e.release for e in sim.events if isinstance(e, ReleaseRetired)]
    assert "api-1" not in told


def test_a_revert_to_a_warm_release_goes_on_with_half_of_its_instances(sim: Sim) -> None:
    promoted(sim)
    sim.behave("api-1").start_error = "no space left on device"
    sim.kill("api-1-0")
    sim.step()
    ask(sim, "8-0")
    sim.run(2)
    assert stable(sim) == "api-1"
    assert [s.instance for s in sim.state.route.servers if not s.backup] == ["api-1-1"]


@pytest.mark.parametrize("runtime_ok", [True, False])
@pytest.mark.parametrize(("instances", "warm"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_half_of_a_warm_release_takes_all_the_traffic_and_the_others_join_it(
    sim: Sim, instances: int, warm: int, runtime_ok: bool
) -> None:
    few = template(instances=instances)
    for number in (2, 3):
        sim.send(submit(number, template=few))
        sim.until_ended(f"api-{number}")
    dead = [f"api-2-{n}" for n in range(warm, instances)]
    sim.behave("api-2").start_error = "no space left on device"
    for name in dead:
        sim.kill(name)
    sim.run(2)
    sim.runtime_ok = runtime_ok
    ask(sim, "8-0")
    sim.run(2)
    weighted = [s for s in sim.state.route.servers if not s.backup]
    assert stable(sim) == "api-2"
    assert [s.instance for s in weighted] == [f"api-2-{n}" for n in range(warm)]
    assert {s.weight for s in weighted} == {1}, "each that is there has the same share"
    assert all((s.container, s.address) == where(sim, s.instance) for s in weighted)
    sim.behave("api-2").start_error, sim.runtime_ok = "", True
    sim.run(3)
    weighted = [s for s in sim.state.route.servers if not s.backup]
    assert [s.instance for s in weighted] == [f"api-2-{n}" for n in range(instances)]
    assert all((s.container, s.address) == where(sim, s.instance) for s in weighted)


def where(sim: Sim, instance: str) -> tuple[str, str]:
    return sim.instances[instance].container, sim.instances[instance].address


@pytest.mark.parametrize("when", ["before nginx confirms", "after"])
def test_where_the_warm_half_dies_under_load_what_is_left_stands_by_until_the_others_are_there(
    sim: Sim, when: str
) -> None:
    promoted(sim)
    sim.behave("api-1").start_error = "no space left on device"
    sim.kill("api-1-0")
    sim.step()
    sim.edge_up = when != "before nginx confirms"
    ask(sim, "8-0")
    sim.run(2)
    assert (active(sim).one_way if not sim.edge_up else stable(sim) == "api-1") is True
    sim.kill("api-1-1")
    for _ in range(20):
        sim.step()
        standing = {s.release for s in sim.state.route.servers if s.backup}
        assert standing == {"api-2"}, "nginx asks these while no other answers"
        assert all(i.running for i in sim.instances.values() if i.release == "api-2")
    sim.behave("api-1").start_error, sim.edge_up = "", True
    sim.run(5)
    assert (stable(sim), sim.share("api-1"), sim.state.rollout) == ("api-1", 100, None)
    assert len([s for s in sim.state.route.servers if not s.backup]) == 2
    assert not sim.state.dead


def test_less_than_half_of_a_warm_release_waits_for_others(sim: Sim) -> None:
    for number in (2, 3):
        sim.send(submit(number, template=template(instances=3)))
        sim.until_ended(f"api-{number}")
    sim.behave("api-2").never_ready = True
    for name in ("api-2-0", "api-2-1"):
        sim.kill(name)
    sim.run(2)
    ask(sim, "8-0")
    sim.run(10)
    assert (stable(sim), sim.share("api-2"), active(sim).phase) == ("api-3", 0, Phase.STARTING)
    sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], health="ready")
    sim.run(2)
    assert (stable(sim), sim.share("api-2")) == ("api-2", 100)


def test_a_cold_revert_goes_on_at_the_start_deadline_with_what_is_ready(sim: Sim) -> None:
    promoted(sim)
    sim.run(115)
    sim.behaviours["api-1"] = Behaviour(never_ready=True)
    ask(sim, "8-0")
    sim.run(3)
    for _ in range(16):
        sim.instances["api-1-1"] = replace(sim.instances["api-1-1"], health="ready")
        sim.step()
    assert stable(sim) == "api-2"
    sim.run(5)
    assert stable(sim) == "api-1"
    assert [s.instance for s in sim.state.route.servers if not s.backup] == ["api-1-1"]


def test_a_cold_revert_of_which_nothing_can_start_fails_at_once(sim: Sim) -> None:
    promoted(sim)
    sim.run(115)
    sim.behave("api-1").start_error = "no such image"
    ask(sim, "8-0")
    sim.run(3)
    assert (reverted(sim).outcome, "did not start: no such image" in reverted(sim).reason) == (
        Outcome.FAILED,
        True,
    )


def test_without_docker_a_revert_begins_too(sim: Sim) -> None:
    promoted(sim)
    sim.runtime_ok = False
    ask(sim, "8-0")
    sim.run(4)
    assert (stable(sim), sim.share("api-1")) == ("api-1", 100)


def test_where_stable_is_dead_for_good_a_person_keeps_the_candidate(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.behave("api-1").start_error = "no such image"
    assert "nothing to promote" in _refused_promotion(sim, after="rollback")
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    sim.run(40)
    assert active(sim).phase is Phase.ROLLING_BACK
    assert not _refused_promotion(sim)
    sim.run(3)
    assert (stable(sim), sim.share("api-2"), sim.state.rollout) == ("api-2", 100, None)


def _refused_promotion(sim: Sim, after: str = "") -> str:
    if after:
        sim.edge_up = False
        ask(sim, "20-0")
    told = sim.send(Promote(request=f"{len(sim.events)}-9", actor="ann"))
    sim.edge_up = True
    return told[0].reason if isinstance(told[0], RequestRefused) else ""


def test_a_step_that_stable_cannot_share_says_so_and_names_the_way_out(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.behave("api-1").start_error = "no such image"
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    assert sim.until_ended("api-2").reason == (
        "api-1 has no healthy instance to share the traffic with; release it again and promote it at once to"
        " send all of it there"
    )
    sim.send(submit(3))
    sim.until_phase(Phase.SHIFTING)
    sim.send(Promote(request="9-0", actor="ann"))
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED


def test_what_waits_behind_a_pause_ends_at_the_queue_deadline(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(pause_deadline=9e9)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(Pause(request="8-0", actor="ann"))
    sim.send(submit(3, policy=policy(on_new_release="queue", queue_deadline=100.0)))
    sim.run(105)
    assert sim.ends("api-3")[-1].reason == "waited 100 s in the queue"


def test_a_frozen_service_supersedes_nothing_that_rolls_out(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(Freeze(request="8-0", actor="ann"))
    sim.send(submit(3))
    assert active(sim).release.id == "api-2"
    assert active(sim).phase is Phase.SHIFTING
    told = sim.send(Abort(request="9-0", actor="ann", release="api-3"))
    assert [getattr(e, "release", "") for e in told] == ["api-3", "api-3"]


def test_a_revert_without_any_healthy_instance_fails_and_moves_no_traffic(sim: Sim) -> None:
    promoted(sim)
    sim.run(115)  # api-1 is not warm any more
    sim.behaviours["api-1"] = Behaviour(never_ready=True)
    ask(sim, "8-0")
    sim.run(2)
    ready = tuple(replace(i, health="ready") for i in sim.instances.values())
    seen = replace(sim.observe(), runtime_ok=False, instances=ready)  # as it was before Docker went away
    sim.state, _ = decide(sim.state, seen, sim.now)
    assert (active(sim).phase, sim.share("api-1")) == (Phase.BAKING, 0)
    sim.behaviours["api-1"] = Behaviour(exits=True)
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    sim.run(15)
    assert (reverted(sim).outcome, reverted(sim).reason) == (
        Outcome.FAILED,
        "api-1 has no healthy instance to take the traffic",
    )
    assert (stable(sim), sim.share("api-2")) == ("api-2", 100)


def test_a_revert_that_has_not_begun_can_be_aborted(sim: Sim) -> None:
    promoted(sim)
    sim.run(110)
    sim.behaviours["api-1"] = Behaviour(never_ready=True)
    ask(sim, "8-0")
    sim.run(3)
    assert "already" in ask(sim, "9-0")
    accepted, ended = sim.send(Abort(request="10-0", actor="bob"))[:2]
    assert isinstance(accepted, CommandAccepted)
    assert isinstance(ended, ReleaseEnded)
    assert ended.outcome is Outcome.ABORTED
    assert stable(sim) == "api-2"


def test_without_docker_a_revert_goes_to_the_warm_instances_that_nginx_knows(sim: Sim) -> None:
    promoted(sim)
    sim.edge_up = False
    ask(sim, "8-0")
    sim.step()
    sim.runtime_ok = False
    sim.edge_up = True
    sim.run(4)
    assert (stable(sim), sim.share("api-1")) == ("api-1", 100)


def test_a_rollback_during_a_rollout_goes_where_it_says_or_is_refused(sim: Sim) -> None:
    promoted(sim)
    sim.send(submit(3))
    sim.until_phase(Phase.SHIFTING, held=True)
    assert "api-3 is rolling out over api-2" in ask(sim, "8-0", to="api-1")
    assert not ask(sim, "9-0", to="api-2")
    sim.edge_up = False
    sim.step()
    assert "is being rolled back to api-2 already, by ann" in ask(sim, "10-0")
    assert "already" in _refused(sim, Abort(request="11-0", actor="bob"))


def test_two_people_on_the_host_and_elsewhere_the_host_has_the_last_word(sim: Sim) -> None:
    promoted(sim, 2, 3)
    fallback = sim.fallback
    sim.refuses = REFUSES
    assert not ask(sim, "8-0", to="api-1")
    sim.run(5)
    sim.fallback, sim.refuses = fallback, ""
    sim.roll_back_on_host()
    for _ in range(10):
        sim.step()
        assert sim.disk is not None
        assert {s.release for s in sim.disk.route.servers if not s.backup} == {"api-2"}
    assert (stable(sim), sim.state.rollout) == ("api-2", None)


def test_a_first_release_that_nginx_refuses_fails_though_nginx_goes_on_refusing() -> None:
    sim = Sim(refuses='nginx -t: duplicate upstream "api" in /etc/nginx/conf.d/mine.conf:1')
    sim.served = None  # type: ignore[assignment]
    sim.send(submit(1))
    ended = sim.until_ended("api-1", 60)
    assert ended.outcome is Outcome.FAILED
    assert "duplicate upstream" in ended.reason
    sim.send(submit(2))
    assert sim.until_ended("api-2", 60).outcome is Outcome.FAILED
    sim.refuses, sim.served = "", 0
    sim.send(submit(3))
    assert sim.until_ended("api-3", 60).outcome is Outcome.PROMOTED
    sim.run(15)
    assert set(sim.instances) == {"api-3-0", "api-3-1"}


def test_a_candidate_that_nginx_never_served_does_not_wait_for_who_mends_nginx(sim: Sim) -> None:
    sim.refuses = REFUSES
    sim.send(submit(2))
    ended = sim.until_ended("api-2", 60)
    assert (ended.outcome, REFUSES in ended.reason) == (Outcome.ROLLED_BACK, True)
    assert sim.state.stuck_since is not None
    sim.refuses = ""
    sim.run(15)
    assert sim.state.stuck_since is None
    assert sim.share("api-1") == 100
    assert not [n for n in sim.instances if n.startswith("api-2")]


def test_a_release_that_ended_before_nginx_served_it_gets_no_traffic_while_stable_is_dead(sim: Sim) -> None:
    sim.refuses = REFUSES
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING)
    sim.run(2)
    seen = sim.observe()
    assert seen.edge.on_disk is not None
    state = replace(sim.state, rollout=None)  # as it is left by an abort of what was never served
    dead = replace(seen, instances=tuple(i for i in seen.instances if i.release != "api-1"))
    after, events = decide(state, dead, sim.now)
    assert after.route.servers == seen.edge.on_disk.route.servers
    assert [e.shares for e in events if isinstance(e, RouteChanged)] == [(("api-1", 100.0),)]
    loaded = replace(dead, edge=replace(dead.edge, served=state.route.generation))
    assert decide(state, loaded, sim.now)[0].route == state.route, "nginx may serve it"


@pytest.mark.parametrize("hidden", ["edited", "dead", "served"])
def test_a_candidate_that_may_have_been_served_is_taken_back_first(sim: Sim, hidden: str) -> None:
    sim.send(submit(2))
    if hidden == "served":
        sim.until_phase(Phase.SHIFTING, held=True)
    else:
        sim.until_phase(Phase.STARTING)
    sim.refuses = REFUSES
    sim.file = "edited" if hidden == "edited" else "ours"
    sim.edge_up = hidden != "dead"
    if hidden == "served":
        ask(sim, "8-0")
    sim.run(40)
    assert active(sim).phase is Phase.ROLLING_BACK
    sim.refuses, sim.file, sim.edge_up = "", "ours", True
    sim.until_ended("api-2", 20)


def test_nginx_that_is_silent_while_nothing_rolls_out_is_told_once_and_that_it_speaks_again(sim: Sim) -> None:
    sim.silence = "nginx runs and does not serve api: is `include /x/*.conf;` in its http {}?"
    sim.run(9)
    assert sim.state.stuck_since is None
    sim.silence = ""
    sim.step()
    assert sim.state.silent_since is None
    sim.silence = "nginx does not answer: nothing listens on http://127.0.0.1:18100"
    sim.run(30)
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert stuck.reason == sim.silence
    assert problems(sim.state) == [f"nginx does not say what it serves: {sim.silence}"]
    sim.silence = ""
    before = len(sim.events)
    sim.step()
    assert [e.kind for e in sim.events[before:]] == ["route_confirmed"]
    assert problems(sim.state) == []


def test_a_release_that_was_left_says_by_what_until_it_is_back(sim: Sim) -> None:
    promoted(sim, 2, 3)

    def left_by(release: str) -> Ended | None:
        """The rollback by which users left it when it had been promoted last."""
        return sim.state.left(sim.state.journeys(release)[0])

    assert [left_by(f"api-{n}") for n in (1, 2, 3)] == [None] * 3
    sim.send(Rollback(request="20-0", actor="ann", reason="checkout is broken"))
    sim.run(20)
    left = left_by("api-3")
    assert left is not None
    assert (left.release.id, left.actor, left.reason) == ("api-2", "ann", "checkout is broken")
    sim.send(submit(4))
    sim.send(Abort(request="21-0", actor="ann"))
    assert left_by("api-2") is None
    sim.send(Rollback(request="22-0", actor="bob", to="api-3"))
    sim.run(20)
    assert left_by("api-3") is None
    left = left_by("api-2")
    assert left is not None
    assert left.actor == "bob"
    told = [(e.release.id, by.actor if (by := sim.state.left(e)) else "") for e in sim.state.history]
    assert told == [("api-1", ""), ("api-2", ""), ("api-3", "ann"), ("api-2", "bob"), ("api-3", "")]


def test_status_says_where_users_are_while_a_rollback_of_stable_waits_for_nginx(sim: Sim) -> None:
    promoted(sim, 2)
    assert way_back(sim.state) == ""
    sim.refuses = REFUSES
    ask(sim, "20-0")
    sim.run(3)
    asked = f"going back to api-1 since {utc(active(sim).entered_at)}; "
    waits = f"; nginx has not confirmed its new configuration yet: {REFUSES}"
    said = f"{asked}some users may still be on api-2{waits}"
    assert (way_back(sim.state), problems(sim.state)) == (said, [said])
    sim.switched_to = "api-1"
    sim.run(3)
    by = f"all users are on api-1 by the rollback switch since {utc(sim.now - 2)}"
    assert way_back(sim.state) == f"{asked}{by}{waits}"
    sim.refuses = "nginx -t: the next mistake"
    sim.run(3)
    assert way_back(sim.state).endswith(f"yet: {sim.refuses}")
    sim.refuses, sim.switched_to = "", ""
    sim.run(3)
    assert (way_back(sim.state), sim.state.switched, problems(sim.state)) == ("", None, [])


def test_status_says_where_users_are_while_a_candidate_is_taken_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.edge_up = False
    ask(sim, "20-0")
    sim.run(2)
    assert "some users may still be on api-2; nginx has not confirmed" in way_back(sim.state)
    sim.switched_to = "api-1"
    sim.run(2)
    assert "; all users are on api-1 by the rollback switch since " in way_back(sim.state)
    assert "; all users are on api-1" in way_back(decide(sim.state, unread(sim), sim.now)[0])


def test_a_switch_that_is_not_on_at_every_edge_has_not_all_users(sim: Sim) -> None:
    promoted(sim, 2)
    sim.refuses = REFUSES
    ask(sim, "20-0")
    sim.run(2)
    partly = replace(sim.observe().edge, switched_to="api-1", switched_everywhere=False)
    state, _ = decide(sim.state, replace(sim.observe(), edge=partly), sim.now)
    assert "; some users may still be on api-2" in way_back(state)
    state, _ = decide(state, replace(sim.observe(), edge=replace(partly, switched_everywhere=True)), sim.now)
    assert "; all users are on api-1 by the rollback switch" in way_back(state)


@pytest.mark.parametrize("way", ["rollback", "abort", "gate", "rollback --local"])
def test_status_says_that_users_are_safe_by_the_switch_whatever_takes_them_back(sim: Sim, way: str) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.refuses = REFUSES
    back(sim, way)
    sim.switched_to = "api-1"
    sim.run(3)
    (said,) = problems(sim.state)
    assert said == way_back(sim.state)
    assert "; all users are on api-1 by the rollback switch since " in said


def back(sim: Sim, way: str) -> None:
    match way:
        case "rollback":
            ask(sim, "20-0")
        case "abort":
            sim.send(Abort(request="20-0", actor="ann"))
        case "gate":
            sim.behaviours["api-2"] = Behaviour(errors=0.9)
            sim.until_phase(Phase.ROLLING_BACK)
        case _:
            sim.roll_back_on_host()


def test_status_says_that_users_are_on_stable_while_nginx_refuses_with_nothing_rolling_out(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.refuses = REFUSES
    old = sim.state.confirmed
    sim.run(40)
    while sim.state.rollout is not None:
        sim.step()
    sim.run(70)
    new = sim.state.route.generation
    assert new > old
    waits = f"nginx has not confirmed route {new} and may still serve route {old}: {REFUSES}"
    assert problems(sim.state) == [f"{waits}; all users are on api-1 with either"]


def unread(sim: Sim) -> Observation:
    return replace(sim.observe(), edge=Edge(unread=True, error="busy"))
