"""The host went elsewhere, or the store has lost commits: what is followed and what is taken up."""

from dataclasses import replace

import pytest

from orchestrator.rollout.command import Abort, Freeze, Rollback, handle
from orchestrator.rollout.decide import decide
from orchestrator.rollout.desired import desired
from orchestrator.rollout.events import RequestRefused, ServiceAdopted
from orchestrator.rollout.model import Outcome, Phase, Route, ServiceState
from orchestrator.rollout.observation import Observation, OnDisk
from orchestrator.rollout.turn import HISTORY
from tests.builders import policy, submit
from tests.unit.sim import Behaviour, Sim


def shifting(sim: Sim) -> Sim:
    """api-2 has traffic."""
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    return sim


def promoted(sim: Sim) -> Sim:
    """api-2 is stable, api-1 warm."""
    sim.send(submit(2))
    sim.until_ended("api-2")
    return sim


def lose(sim: Sim, to: ServiceState | None = None) -> None:
    """The store has nothing any more, or what it had at an earlier time."""
    sim.state = to or ServiceState(service="api")
    sim.events.clear()
    sim.readings.clear()


def adopted(sim: Sim) -> ServiceAdopted:
    (found,) = [e for e in sim.events if isinstance(e, ServiceAdopted)]
    return found


def turn(sim: Sim) -> None:
    """One decision alone, without the checks of a journey that was lost."""
    sim.state, events = decide(sim.state, sim.observe(), sim.now)
    sim.events += events


def test_a_rollback_on_the_host_ends_the_rollout_and_names_who_did_it(sim: Sim) -> None:
    shifting(sim)
    sim.roll_back_on_host()
    sim.step()
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.actor, ended.reason) == (Outcome.ROLLED_BACK, "ann", "by hand")
    assert sim.share("api-1") == 100
    assert sim.disk is not None
    assert sim.disk.local is None
    assert sim.state.confirmed == sim.state.route.generation == sim.disk.route.generation


def test_a_rollback_on_the_host_after_promotion_becomes_a_revert(sim: Sim) -> None:
    promoted(sim)
    sim.roll_back_on_host()
    for _ in range(5):
        sim.step()
        assert sim.disk is not None
        weighted = {s.release for s in sim.disk.route.servers if not s.backup}
        assert weighted == {"api-1"}  # at no time does the traffic go back to what was fled from
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"
    assert sim.ends("api-1")[-1].actor == "ann"


def test_a_rollback_on_the_host_aborts_what_has_no_traffic_yet(sim: Sim) -> None:
    promoted(sim)
    sim.behaviours["api-3"] = Behaviour(never_ready=True)
    sim.send(submit(3))
    sim.until_phase(Phase.STARTING)
    sim.roll_back_on_host()
    sim.run(5)
    assert sim.outcomes()["api-3"] is Outcome.ABORTED
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"


def test_a_rollback_on_the_host_is_tried_once(sim: Sim) -> None:
    promoted(sim)
    sim.behave("api-1").start_error = "gone"
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    sim.roll_back_on_host()
    sim.run(3)
    assert [e.outcome for e in sim.ends("api-1")] == [Outcome.PROMOTED, Outcome.FAILED]
    assert sim.share("api-2") == 100
    assert sim.disk is not None
    assert sim.disk.local is None


def test_a_rollback_on_the_host_is_followed_however_long_nginx_does_not_answer(sim: Sim) -> None:
    promoted(sim)
    sim.roll_back_on_host()
    sim.edge_up = False
    sim.run(20)
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.BAKING
    sim.edge_up = True
    sim.run(3)
    assert sim.state.rollout is None
    assert sim.share("api-1") == 100


def test_a_rollback_on_the_host_to_a_release_that_has_just_been_let_go_is_followed(sim: Sim) -> None:
    promoted(sim)
    sim.roll_back_on_host()
    sim.state = replace(sim.state, previous=None)
    sim.run(10)
    assert (sim.state.stable and sim.state.stable.id, sim.share("api-1")) == ("api-1", 100)
    assert sim.ends("api-1")[-1].actor == "ann"


def forgotten(sim: Sim) -> None:
    """Somebody goes back to api-1, which the store has lost."""
    sim.roll_back_on_host()
    sim.state = replace(sim.state, previous=None, history=())


def test_a_rollback_on_the_host_to_what_nobody_can_describe_is_no_reason(sim: Sim) -> None:
    promoted(sim)
    forgotten(sim)
    for instance in sim.observe().of("api-1"):
        sim.instances[instance.name] = replace(instance, described=None)
    sim.run(2)
    assert sim.share("api-2") == 100
    assert sim.state.rollout is None


def test_a_rollback_on_the_host_to_what_runs_unknown_is_followed(sim: Sim) -> None:
    promoted(sim)
    forgotten(sim)
    sim.run(3)
    assert (sim.state.stable and sim.state.stable.id, sim.share("api-1")) == ("api-1", 100)
    assert sim.ends("api-1")[-1].actor == "ann"


@pytest.mark.parametrize("back", [False, True])
def test_a_rollback_on_the_host_past_stable_ends_the_rollout_over_it(sim: Sim, back: bool) -> None:
    promoted(sim)
    past = sim.fallback
    sim.send(submit(3))
    sim.until_phase(Phase.SHIFTING, held=True)
    if back:
        sim.send(Abort(request="9-0", actor="eve"))
    sim.fallback = past
    sim.roll_back_on_host()
    for _ in range(5):
        sim.step()
        assert sim.disk is not None
        assert {s.release for s in sim.disk.route.servers if not s.backup} == {"api-1"}
    assert (sim.state.stable and sim.state.stable.id, sim.state.rollout) == ("api-1", None)
    assert sim.outcomes()["api-3"] is Outcome.ROLLED_BACK


def test_nothing_committed_and_nothing_running_is_a_new_service() -> None:
    sim = Sim()
    sim.step()
    assert sim.state == ServiceState(service="api")
    assert not sim.events


def test_a_lost_state_is_found_again_and_no_traffic_moves(sim: Sim) -> None:
    promoted(sim)
    before = sim.state
    lose(sim)
    turn(sim)
    assert sim.state.route == replace(before.route, changed_at=sim.now)
    assert (sim.state.stable, sim.state.previous, sim.state.released) == (before.stable, before.previous, 2)
    assert (adopted(sim).release, adopted(sim).previous) == ("api-2", "api-1")
    assert sim.state.rollout is None
    assert sim.send(submit(3))[0].release == "api-3"


def test_a_lost_rollout_goes_on_with_the_step_that_its_share_fits(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, 1, held=True)
    before = sim.state
    lose(sim)
    turn(sim)
    rollout = sim.state.rollout
    assert rollout is not None
    assert (rollout.phase, rollout.step, rollout.held_since) == (Phase.SHIFTING, 1, sim.now)
    assert rollout.entered_at == sim.now
    assert sim.state.route == replace(before.route, changed_at=sim.now)
    assert adopted(sim).candidate == "api-2"


def test_a_lost_bake_is_baked_again(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.BAKING, 2, held=True)
    lose(sim)
    turn(sim)
    rollout, stable = sim.state.rollout, sim.state.stable
    assert rollout is not None
    assert stable is not None
    assert (stable.id, rollout.release.id, rollout.phase) == ("api-1", "api-2", Phase.BAKING)


def test_less_than_the_first_step_is_the_first_step(sim: Sim) -> None:
    shifting(sim)
    assert sim.disk is not None
    servers = tuple(replace(s, weight=1 if s.release == "api-2" else 1000) for s in sim.disk.route.servers)
    sim.disk = replace(sim.disk, route=replace(sim.disk.route, servers=servers))
    lose(sim)
    turn(sim)
    assert sim.state.rollout is not None
    assert sim.state.rollout.step == 0


def test_without_a_file_the_kept_release_is_the_stable_one(sim: Sim) -> None:
    shifting(sim)
    sim.disk = None
    lose(sim)
    turn(sim)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"
    assert sim.state.rollout is None


def test_while_docker_does_not_answer_nothing_is_taken_up(sim: Sim) -> None:
    lose(sim)
    sim.runtime_ok = False
    turn(sim)
    assert sim.state == ServiceState(service="api")


def test_a_store_that_went_back_gives_the_rollout_up(sim: Sim) -> None:
    shifting(sim)
    earlier = sim.state
    sim.until_phase(Phase.SHIFTING, 1, held=True)
    floor = sim.state.route.generation
    lose(sim, earlier)
    turn(sim)
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.ROLLING_BACK
    assert f"nginx has route {floor}, and Redis none after" in sim.state.rollout.reason
    assert sim.state.route.generation == floor + 1
    assert sim.share("api-1") == 100


def test_a_store_that_went_back_before_a_promotion_keeps_what_was_promoted(sim: Sim) -> None:
    shifting(sim)
    earlier = sim.state
    sim.until_ended("api-2")
    lose(sim, earlier)
    turn(sim)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-2"
    assert sim.state.rollout is None
    assert sim.outcomes() == {"api-2": Outcome.PROMOTED}
    assert sim.share("api-2") == 100


def test_a_store_that_went_back_gives_no_number_twice(sim: Sim) -> None:
    earlier = sim.state
    promoted(sim)
    sim.send(Freeze(request="77-0", actor="ann"))
    lose(sim, earlier)
    turn(sim)
    assert sim.state.released == 2
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-2"


def test_a_number_that_somebody_has_is_not_given_out_whoever_the_store_says_is_stable(sim: Sim) -> None:
    """What runs, what the file serves and what is remembered count, each by itself, and nobody else's."""
    settled = sim.state
    found = Observation(instances=tuple(sim.instances.values()), edge=sim.observe().edge)

    def next_id(seen: Observation, state: ServiceState = settled) -> str:
        state, _ = decide(state, seen, sim.now)
        return handle(state, submit(9), sim.now)[1][0].release

    one = next(iter(sim.instances.values()))
    assert next_id(found) == "api-2"
    for release, expected in (
        ("api-6", "api-7"),
        ("web-9", "api-2"),
        ("api-blue", "api-2"),
        ("api-²", "api-2"),
        ("api-" + "9" * 5000, "api-2"),
        ("api-1000000000", "api-1000000001"),
    ):
        other = replace(one, name="api-6-0", release=release, described=None)
        assert next_id(replace(found, instances=(*found.instances, other))) == expected
    assert found.edge.on_disk is not None
    stable = replace(found.edge.on_disk, stable="api-4")
    assert next_id(replace(found, edge=replace(found.edge, on_disk=stable))) == "api-5"
    assert next_id(found, replace(settled, released=0)) == "api-2"  # its history has api-1


def test_a_number_on_the_disk_alone_is_not_given_out_by_an_empty_store(sim: Sim) -> None:
    disk = sim.disk
    lose(sim)
    sim.instances.clear()
    sim.disk = disk
    turn(sim)
    assert sim.state.released == 1
    turn(sim)
    assert sim.send(submit(2))[0].release == "api-2"


def test_a_state_that_agrees_with_the_file_is_left_alone(sim: Sim) -> None:
    seen = Observation(instances=tuple(sim.instances.values()), edge=sim.observe().edge)
    assert decide(sim.state, seen, sim.now) == (sim.state, ())
    assert sim.state.route != Route()


def test_a_release_after_a_loss_with_nothing_left_that_runs_is_a_first_release() -> None:
    sim = Sim()
    sim.disk = OnDisk(route=Route(generation=2))
    sim.served = 2
    sim.send(submit(1))
    ended = sim.until_ended("api-1", 30)
    assert (ended.outcome, ended.reason) == (Outcome.PROMOTED, "switched over")
    assert sim.state.route.generation > 2


def test_what_was_taken_up_is_gone_back_to_also_when_it_is_warm_no_more(sim: Sim) -> None:
    promoted(sim)
    lose(sim)
    sim.lost = True
    sim.step()
    sim.send(submit(3))
    sim.until_ended("api-3")
    sim.run(130)
    assert sim.state.previous is None
    for earlier in ("api-2", "api-1"):
        sim.send(Rollback(request=f"{earlier}-0", actor="ann"))
        assert sim.until_ended(earlier).outcome is Outcome.PROMOTED
        assert sim.share(earlier) == 100


def test_what_is_known_to_have_been_promoted_is_not_remembered_twice(sim: Sim) -> None:
    older = sim.state
    promoted(sim)
    lose(sim, older)
    sim.lost = True
    sim.step()
    done = [e.release.id for e in sim.state.history if e.outcome is Outcome.PROMOTED]
    assert done == ["api-1", "api-2"]


def fled(sim: Sim, how: str) -> None:
    """Users are on api-1, which somebody took them back to from api-2, that had been promoted."""
    promoted(sim)
    if how == "on the host, where the file has been written since":
        assert sim.disk is not None
        sim.disk = replace(sim.disk, stable="api-2")
    if how.startswith("on the host"):
        sim.roll_back_on_host()
    elif how == "by a person's switch":
        sim.switched_to = "api-1"
    elif how == "by the switch of a daemon that nginx refuses":
        assert sim.disk is not None
        sim.switched_to, sim.switched_for = "api-1", sim.disk.route.generation + 1
    else:
        sim.send(Rollback(request="8-0", actor="ann", reason="by hand"))
        turn(sim)  # it takes the traffic
        sim._converge()
        if how == "by a rollback that has ended":
            sim.run(3)
            assert sim.state.rollout is None


WAYS = [
    "on the host",
    "on the host, where the file has been written since",
    "by a person's switch",
    "by the switch of a daemon that nginx refuses",
    "by a rollback that is under way",
    "by a rollback that has ended",
]


def goes_back_to_nobody_that_was_left(sim: Sim) -> None:
    """api-1 is stable, and a rollback leads nowhere but by a name."""
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"
    assert sim.state.earlier is None
    assert desired(sim.state, sim.now).fallback is None
    assert sim.state.left(sim.state.journeys("api-2")[0]) is not None
    (refused,) = sim.send(Rollback(request=f"{sim.now}-0", actor="bob"))
    assert isinstance(refused, RequestRefused)
    assert "it has been rolled back from api-2" in refused.reason


@pytest.mark.parametrize("how", WAYS)
def test_users_do_not_go_back_to_a_release_that_somebody_fled_from_because_the_store_is_lost(
    sim: Sim, how: str
) -> None:
    fled(sim, how)
    lose(sim)
    sim.lost = True
    turn(sim)
    assert sim.state.rollout is None
    goes_back_to_nobody_that_was_left(sim)
    sim.prometheus_up = False
    for _ in range(100):
        sim.step(10.0)
        assert sim.share("api-1") == 100
    goes_back_to_nobody_that_was_left(sim)
    left = sim.state.left(sim.state.journeys("api-2")[0])
    assert left is not None
    by = {"on": ("ann", "by hand"), "by": ("host", "the rollback switch was on")}
    assert (left.actor, left.reason) == by[how[:2]] or "by a rollback" in how
    sim.send(Rollback(request="21-0", actor="bob", to="api-2"))
    sim.run(30)
    assert sim.share("api-2") == 100


@pytest.mark.parametrize("how", WAYS)
def test_users_do_not_go_back_to_a_release_that_somebody_fled_from_because_the_store_is_older(
    sim: Sim, how: str
) -> None:
    older = promoted(sim).state
    fled(sim, how)
    lose(sim, older)
    sim.lost = True
    for _ in range(3):
        if how == "by a person's switch":  # as the engine follows it
            sim.roll_back_on_host()
        sim.step()
        assert sim.share("api-1") == 100
        sim.switched_to = how = ""
    goes_back_to_nobody_that_was_left(sim)


def test_a_lost_rollout_goes_back_whose_users_the_switch_has_taken_back(sim: Sim) -> None:
    shifting(sim)
    sim.switched_to = "api-1"
    lose(sim)
    sim.lost = True
    turn(sim)
    assert adopted(sim).candidate == "api-2"
    assert sim.share("api-1") == 100
    ended = sim.until_ended("api-2", 5)
    assert (ended.outcome, ended.actor) == (Outcome.ROLLED_BACK, "host")
    assert ended.reason == "the rollback switch was on"


def test_a_switch_that_a_daemon_turned_on_for_a_route_that_is_served_says_nothing(sim: Sim) -> None:
    assert promoted(sim).disk is not None
    sim.switched_to, sim.switched_for = "api-1", sim.state.route.generation
    lose(sim)
    turn(sim)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-2"


def test_where_nothing_runs_of_what_somebody_went_back_to_the_rest_is_taken_up(sim: Sim) -> None:
    promoted(sim)
    sim.roll_back_on_host()
    for name in ("api-1-0", "api-1-1"):
        del sim.instances[name]
    lose(sim)
    turn(sim)
    assert (sim.share("api-2"), adopted(sim).release) == (100, "api-2")


@pytest.mark.parametrize("left", [False, True])
def test_what_an_older_store_shows_under_way_and_waiting_was_promoted_and_is_not_tried_again(
    sim: Sim, left: bool
) -> None:
    shifting(sim)
    sim.send(submit(3, policy=policy(on_new_release="queue")))
    older = sim.state
    sim.until_ended("api-3")
    if left:
        sim.send(Rollback(request="9-0", actor="ann"))
        sim.run(3)
    lose(sim, older)
    sim.lost = True
    turn(sim)
    assert sim.outcomes() == {"api-2": Outcome.PROMOTED, "api-3": Outcome.PROMOTED}
    assert (sim.state.rollout, sim.state.queue) == (None, ())
    assert (sim.share("api-2"), sim.share("api-3")) == ((100, 0) if left else (0, 100))
    assert [sim.state.earlier and sim.state.earlier.id] == ["api-1" if left else "api-2"]


def test_a_rollback_has_somewhere_to_go_after_any_number_of_failures(sim: Sim) -> None:
    promoted(sim)
    sim.run(130)
    for number in range(3, 60):
        sim.behaviours[f"api-{number}"] = Behaviour(exits=True)
        sim.send(submit(number))
        assert sim.until_ended(f"api-{number}").outcome is Outcome.FAILED
    assert len(sim.state.history) == HISTORY
    sim.send(Rollback(request="99-0", actor="ann"))
    assert sim.until_ended("api-1").outcome is Outcome.PROMOTED


def test_of_more_promotions_than_history_holds_the_oldest_are_forgotten(sim: Sim) -> None:
    for number in range(2, HISTORY + 4):
        sim.send(submit(number))
        sim.until_ended(f"api-{number}")
    kept = [e.release.id for e in sim.state.history]
    assert (len(kept), kept[0], kept[-1]) == (HISTORY, "api-4", f"api-{HISTORY + 3}")
