"""The journey of a release: every phase and every way out of it."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.rollout.command import (
    Abort,
    Approve,
    Freeze,
    Pause,
    Promote,
    Resume,
    Rollback,
    Unfreeze,
    offers,
)
from orchestrator.rollout.decide import decide
from orchestrator.rollout.desired import desired
from orchestrator.rollout.events import (
    ApprovalWanted,
    CommandAccepted,
    EdgeDrifted,
    EdgeRepaired,
    EdgeStuck,
    GateJudged,
    ImageResolved,
    InstanceDied,
    InstanceRecovered,
    PhaseEntered,
    ReleaseAccepted,
    ReleaseRetired,
    RequestRefused,
    RolloutPaused,
    RouteChanged,
)
from orchestrator.rollout.model import Outcome, Phase, Result
from orchestrator.rollout.observation import Reading
from orchestrator.rollout.plan import ladder
from orchestrator.rollout.policy import Limit, Preview, Step
from orchestrator.rollout.told import problems, told, way_back
from tests.builders import ERRORS, LADDER, policy, submit, template
from tests.unit.sim import Behaviour, Sim


def test_first_release_takes_all_traffic_without_gates() -> None:
    sim = Sim()
    sim.send(submit(1))
    assert sim.until_ended("api-1").outcome is Outcome.PROMOTED
    assert sim.share("api-1") == 100
    assert not [e for e in sim.events if isinstance(e, GateJudged)]


def test_good_release_climbs_every_step_and_keeps_the_old_warm(sim: Sim) -> None:
    sim.send(submit(2))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    weights = [
        e.weight for e in sim.events if isinstance(e, PhaseEntered) and e.release == "api-2" and e.weight
    ]
    assert weights == [5, 40, 100]
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-2"
    assert sim.state.previous is not None
    assert sim.state.previous.id == "api-1"
    backups = {s.release for s in sim.state.route.servers if s.backup}
    assert backups == {"api-1"}


def test_previous_is_let_go_in_order(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.drained = False
    sim.run(101)
    assert sim.state.previous is None
    assert [r.release.id for r in sim.state.retiring] == ["api-1"]
    assert "api-1-0" in sim.instances
    sim.run(12)
    assert not sim.state.retiring
    assert "api-1-0" not in sim.instances
    retired = [e for e in sim.events if isinstance(e, ReleaseRetired)]
    assert [(e.release, e.drained) for e in retired] == [("api-1", False)]


def test_an_instance_is_not_stopped_before_nginx_has_confirmed(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.edge_up = False
    sim.send(Abort(request="9-0", actor="ann"))
    sim.run(60)
    assert "api-2-0" in sim.instances
    assert sim.state.rollout is not None
    sim.edge_up = True
    assert sim.until_ended("api-2").outcome is Outcome.ABORTED


def test_errors_above_the_limit_roll_back_after_the_sustained_time(sim: Sim) -> None:
    sim.behave("api-2").errors = 0.05
    sim.send(submit(2))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.verdict is not None
    assert ended.verdict.gate == "errors"
    assert ended.verdict.result is Result.FAIL
    assert ended.verdict.value == pytest.approx(0.05)
    assert ended.verdict.limit == 0.02
    assert "limit 2.00 %" in ended.reason
    assert sim.share("api-1") == 100
    assert "api-2" not in {s.release for s in sim.state.route.servers}


def test_a_slow_tail_rolls_back_on_the_limit_relative_to_stable(sim: Sim) -> None:
    sim.behave("api-2").slow = 0.03
    sim.send(submit(2))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.verdict is not None
    assert ended.verdict.gate == "p99"
    assert ended.verdict.baseline is not None
    assert ended.verdict.limit == pytest.approx(min(0.3, ended.verdict.baseline * 2 + 0.05))


def test_stable_as_bad_as_the_candidate_is_judged_by_the_absolute_limit_only(sim: Sim) -> None:
    sim.behave("api-1").slow = sim.behave("api-2").slow = 0.005
    sim.send(submit(2))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_step_is_held_for_its_whole_time(sim: Sim) -> None:
    sim.send(submit(2))
    rollout = sim.until_phase(Phase.SHIFTING, held=True)
    held_since = rollout.held_since
    assert held_since is not None
    rollout = sim.until_phase(Phase.SHIFTING, 1)
    assert rollout.entered_at - held_since >= LADDER[0].hold


def test_too_few_requests_extend_the_step_and_then_the_policy_decides(sim: Sim) -> None:
    sim.behave("api-2").rate = 0.1
    sim.send(submit(2))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "step deadline" in ended.reason


def test_the_steps_own_minimum_counts_since_the_step_began(sim: Sim) -> None:
    sim.behave("api-2").rate = 20.0
    sim.send(
        submit(
            2, policy=policy(steps=(Step(weight=10, hold=2.0, min_requests=60, deadline=80.0), LADDER[-1]))
        )
    )
    rollout = sim.until_phase(Phase.SHIFTING, held=True)
    began = rollout.held_since or 0.0
    assert sim.until_phase(Phase.BAKING, 1).entered_at - began >= 28


@pytest.mark.parametrize(
    ("action", "outcome"), [("rollback", Outcome.ROLLED_BACK), ("pause", None), ("hold", None)]
)
def test_no_data_never_passes(sim: Sim, action: str, outcome: Outcome | None) -> None:
    sim.send(submit(2, policy=policy(on_no_data=action)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.unreadable.add("api-2")
    sim.run(40)
    assert sim.share("api-2") in (0, 5)
    assert sim.outcomes().get("api-2") is outcome
    if action == "pause":
        assert sim.state.rollout is not None
        assert sim.state.rollout.mark is not None
        assert [e for e in sim.events if isinstance(e, RolloutPaused)]


def test_holding_without_data_ends_too(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(on_no_data="hold", pause_deadline=50.0)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.unreadable.add("api-2")
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (
            {"unread": {"api-2-0": "server returned HTTP status 404 (http://10.0.2.10/metrics)"}},
            "Prometheus cannot scrape api-2-0: server returned HTTP status 404 (http://10.0.2.10/metrics)",
        ),
        ({"unread": {"api-2-0": ""}}, "Prometheus has not scraped api-2-0: is this daemon's /targets"),
        (
            {"error": "up{: parse error"},
            "Prometheus did not answer for 300 s, the limit is 300 s: up{: parse e",
        ),
    ],
)
def test_a_candidate_that_is_not_read_ends_with_prometheus_own_reason(
    sim: Sim, monkeypatch: pytest.MonkeyPatch, reading: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(Sim, "_scrape", lambda s: s.readings.append(Reading(at=s.now, **reading)))
    sim.send(submit(2))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.FAILED
    assert words in ended.reason


def test_a_candidate_that_prometheus_never_scrapes_gets_no_traffic(sim: Sim) -> None:
    sim.unreadable.add("api-2")
    sim.send(submit(2))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.FAILED
    assert "Prometheus has not scraped api-2-0" in ended.reason
    assert max(sum(s.weight for s in sim.state.route.servers if s.release == "api-2"), 0) == 0


def test_a_dead_candidate_instance_rolls_back_with_its_last_words(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.kill("api-2-1", code=3)
    ended = sim.until_ended("api-2", 5)
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "api-2-1 died: exit code 3" in ended.reason
    assert ended.logs == "last words\n"


def test_last_words_that_come_after_the_death_was_seen_are_told_with_the_end(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.kill("api-2-1", code=3)
    sim.instances["api-2-1"] = replace(sim.instances["api-2-1"], logs="")
    sim.edge_up = False
    sim.until_phase(Phase.ROLLING_BACK)
    sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], logs="of one that runs\n")
    sim.instances["api-2-1"] = replace(sim.instances["api-2-1"], logs="late words\n")
    sim.edge_up = True
    assert sim.until_ended("api-2", 5).logs == "late words\n"


@pytest.mark.parametrize("phase", [Phase.PREVIEW, Phase.SHIFTING])
def test_an_instance_that_neither_runs_nor_has_ended_is_told_without_an_exit_code(
    sim: Sim, phase: Phase
) -> None:
    sim.send(submit(2, policy=policy(preview=Preview(hold=30.0)) if phase is Phase.PREVIEW else policy()))
    sim.until_phase(phase, held=True)
    sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], running=False, exit_code=None)
    assert sim.until_ended("api-2", 5).reason == "api-2-0 does not run"


def test_an_unhealthy_candidate_rolls_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], health="unhealthy")
    assert "fails its health probe" in sim.until_ended("api-2", 5).reason


def test_a_candidate_that_came_back_as_another_process_rolls_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], started_at="later")
    assert "was restarted" in sim.until_ended("api-2", 5).reason


def test_a_candidate_at_another_address_rolls_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], address="10.9.9.9:8080")
    assert "has moved" in sim.until_ended("api-2", 5).reason


def test_a_candidate_that_is_gone_rolls_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    del sim.instances["api-2-0"]
    assert "is gone" in sim.until_ended("api-2", 5).reason


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("exits", True, "exited with code 1 while starting"),
        ("start_error", "no such file", "did not start: no such file"),
        ("never_ready", True, "0 of 2 instances were ready after 20 s"),
    ],
)
def test_a_start_that_fails_fails_before_any_traffic(sim: Sim, field: str, value: object, words: str) -> None:
    setattr(sim.behave("api-2"), field, value)
    sim.send(submit(2))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.FAILED
    assert words in ended.reason
    assert sim.share("api-1") == 100
    sim.run(15)
    assert set(sim.instances) == {"api-1-0", "api-1-1"}


def test_an_instance_that_ran_out_of_memory_says_so(sim: Sim) -> None:
    sim.behave("api-2").never_ready = True
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.step()
    sim.kill("api-2-0")
    sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], oom_killed=True)
    assert "ran out of memory" in sim.until_ended("api-2").reason


def test_an_image_that_is_not_there_fails_with_the_registrys_words(sim: Sim) -> None:
    sim.image_error = "manifest unknown"
    sim.send(submit(2))
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.FAILED
    assert "manifest unknown" in ended.reason


def test_a_pull_that_does_not_end_fails_at_its_deadline(sim: Sim) -> None:
    sim.image_there = False
    sim.send(submit(2))
    assert "was not there after 30 s" in sim.until_ended("api-2").reason


def test_nginx_that_does_not_confirm_ends_the_rollout_once_it_is_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.edge_up = False
    sim.run(80)
    assert [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.ROLLING_BACK
    sim.edge_up = True
    assert "did not confirm" in sim.until_ended("api-2").reason


def test_the_time_that_a_change_waits_for_other_services_is_not_nginxs(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.edge_up = False
    for _ in range(200):
        sim.waited += 1.0
        sim.run(1)
    assert not [e for e in sim.events if isinstance(e, EdgeStuck)]
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.phase is Phase.SHIFTING
    sim.run(90)  # its turn has come, and nginx does not confirm
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.phase is Phase.ROLLING_BACK


def test_with_docker_away_the_route_of_an_idle_service_stays(sim: Sim) -> None:
    route = sim.state.route
    sim.runtime_ok = False
    sim.run(5)
    assert sim.state.route == route
    assert not [e for e in sim.events if isinstance(e, InstanceDied)]


def test_with_docker_away_nothing_moves(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.runtime_ok = False
    route = sim.state.route
    sim.run(30)
    assert sim.state.route == route
    sim.runtime_ok = True
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_dead_stable_instance_leaves_the_route_and_comes_back(sim: Sim) -> None:
    sim.kill("api-1-0")
    sim.step()
    died = [e for e in sim.events if isinstance(e, InstanceDied)]
    assert [e.instance for e in died] == ["api-1-0"]
    sim.run(3)
    assert [e.instance for e in sim.events if isinstance(e, InstanceRecovered)] == ["api-1-0"]
    assert {s.instance for s in sim.state.route.servers} == {"api-1-0", "api-1-1"}
    assert {s.container for s in sim.state.route.servers} == {i.container for i in sim.instances.values()}


def test_a_warm_instance_that_dies_is_told_and_started_again(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.step()
    del sim.instances["api-1-1"]
    sim.run(3)
    assert "api-1-1" in sim.instances
    assert [e.instance for e in sim.events if isinstance(e, InstanceDied)] == ["api-1-1"]


def test_an_instance_that_hangs_for_long_is_made_anew_while_the_others_are_well(sim: Sim) -> None:
    before = sim.instances["api-1-0"].container
    sim.instances["api-1-0"] = replace(sim.instances["api-1-0"], health="unhealthy")
    sim.run(55)
    assert sim.share("api-1") == 100
    assert [s.instance for s in sim.state.route.servers] == ["api-1-1"]
    assert sim.instances["api-1-0"].container == before
    sim.run(10)
    assert sim.instances["api-1-0"].container != before
    assert [s.instance for s in sim.state.route.servers] == ["api-1-0", "api-1-1"]
    assert (sim.state.dead, sim.state.hung) == ((), ())


def _hang(sim: Sim, *names: str) -> None:
    for name in names:
        sim.instances[name] = replace(sim.instances[name], health="unhealthy")


def _containers(sim: Sim, release: str) -> dict[str, str]:
    return {i.name: i.container for i in sim.instances.values() if i.release == release}


@pytest.mark.parametrize("count", [1, 3])
def test_instances_that_all_hang_are_made_anew_one_at_a_time(count: int) -> None:
    sim = Sim()
    sim.send(submit(1, template=template(instances=count)))
    sim.until_ended("api-1")
    before = _containers(sim, "api-1")
    for name in sorted(before, reverse=True):
        _hang(sim, name)
        sim.run(1)
    sim.run(54)
    assert _containers(sim, "api-1") == before
    fresh: list[set[str]] = []
    for _ in range(20):
        sim.step()
        fresh.append({n for n, c in _containers(sim, "api-1").items() if before[n] != c})
    assert [n for n in (f"api-1-{i}" for i in range(count)) if n in fresh[-1]] == sorted(before)
    assert all(len(later - earlier) <= 1 for earlier, later in pairwise(fresh))
    first = next(names for names in fresh if names)
    assert first == {f"api-1-{count - 1}"}  # it hung longest
    assert (sim.state.dead, sim.state.hung, sim.state.anew) == ((), (), ())
    assert len(sim.state.route.servers) == count


def test_what_hangs_again_and_again_is_made_anew_after_growing_pauses(sim: Sim) -> None:
    made: list[float] = []
    seen = set(_containers(sim, "api-1").values())
    for _ in range(7200):
        _hang(sim, "api-1-0", "api-1-1")  # the probe is wrong for everybody
        sim.step()
        fresh = set(_containers(sim, "api-1").values()) - seen
        seen |= fresh
        made += [sim.now] * len(fresh)
    pauses = [round(b - a, -1) for a, b in pairwise(made)]
    assert pauses == sorted(pauses)
    assert (pauses[:3], len(made)) == ([60.0, 120.0, 240.0], 7)
    assert [p for p in problems(sim.state) if "7 instances of api-1 in a row were made anew" in p]
    told_of = [e.reason for e in sim.events if isinstance(e, InstanceDied) and "made anew" in e.reason]
    assert len(told_of) == len(made)
    assert told_of[0] == "api-1-0 has failed its health probe for 60 s and is made anew"
    assert told_of[-1].endswith("; 6 in a row have not helped")


def test_nothing_is_told_as_made_anew_while_nginx_does_not_let_go_of_what_hangs(sim: Sim) -> None:
    before = _containers(sim, "api-1")
    _hang(sim, "api-1-0")
    sim.refuses = "nginx refuses"
    sim.run(600)
    assert (_containers(sim, "api-1"), sim.state.anew) == (before, ())
    assert not [e for e in sim.events if isinstance(e, InstanceDied) and "made anew" in e.reason]
    sim.refuses = ""
    sim.run(5)
    (told,) = [e.reason for e in sim.events if isinstance(e, InstanceDied) and "made anew" in e.reason]
    assert told.endswith(" s and is made anew")
    assert (_containers(sim, "api-1") != before, problems(sim.state)) == (True, [])


@pytest.mark.parametrize("unknown", [False, True])
def test_what_is_to_be_made_anew_counts_once_another_container_is_seen(sim: Sim, unknown: bool) -> None:
    _hang(sim, "api-1-0", "api-1-1")
    sim.run(60)
    sim.runtime_stops = False
    sim.run(600)
    (told,) = [e for e in sim.events if isinstance(e, InstanceDied) and "made anew" in e.reason]
    assert [(a.instance, a.tries) for a in sim.state.anew] == [(told.instance, 0)]
    sim.elder = sim.served + 5 if unknown else 0
    sim.runtime_stops = True
    sim.run(3)
    assert [(a.instance, a.tries) for a in sim.state.anew] == ([(told.instance, 0)] if unknown else [])


def test_an_instance_that_cannot_be_started_again_keeps_no_other_from_being_made_anew(sim: Sim) -> None:
    _hang(sim, "api-1-0", "api-1-1")
    sim.behave("api-1").start_error = "docker is full"
    sim.run(200)
    assert [i for i in sim.instances if i.startswith("api-1")] == []
    told_of = [e.reason for e in sim.events if isinstance(e, InstanceDied) and "made anew" in e.reason]
    assert len(told_of) == 2
    assert not [reason for reason in told_of if "in a row" in reason]


def test_the_last_stable_instance_keeps_its_place_when_none_is_left(sim: Sim) -> None:
    route = sim.state.route
    sim.behave("api-1").start_error = "docker is full"
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    sim.run(5)
    assert sim.state.route == route


def test_rolling_back_waits_for_a_healthy_stable_and_says_so(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, 1, held=True)
    sim.behave("api-1").start_error = "docker is full"
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(20)
    assert sim.state.rollout is not None
    assert sim.share("api-2") == 40
    assert "no healthy instance" in next(e.reason for e in sim.events if isinstance(e, EdgeStuck))
    sim.behave("api-1").start_error = ""
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK


def _back_to_a_stable_that_hangs(sim: Sim) -> None:
    """All of stable hangs just after a rollback is asked for; that is seen while nginx changes."""
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, 1, held=True)
    sim.edge_up = False
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.step()
    for name in ("api-1-0", "api-1-1"):
        sim.instances[name] = replace(sim.instances[name], health="unhealthy")
    sim.step()
    sim.edge_up = True
    sim.run(30)


def test_a_rollback_to_a_stable_that_is_dead_by_then_stops_no_healthy_candidate(sim: Sim) -> None:
    _back_to_a_stable_that_hangs(sim)
    rollout = sim.state.rollout
    assert rollout is not None
    assert (rollout.phase, sim.share("api-1"), sim.state.confirmed) == (
        Phase.ROLLING_BACK,
        100,
        sim.state.route.generation,
    )
    assert {"api-2-0", "api-2-1"} <= sim.instances.keys()
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck) and "api-1" in e.reason]
    assert "all of api-1 is down; `orchestrator promote api` sends everybody to api-2 instead" in stuck.reason
    assert "all users are sent to api-1" in way_back(sim.state)
    for name in ("api-1-0", "api-1-1"):
        sim.instances[name] = replace(sim.instances[name], health="ready")
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK
    assert (problems(sim.state), sim.share("api-1")) == ([], 100)


def test_a_person_may_keep_the_candidate_where_a_rollback_led_to_nobody(sim: Sim) -> None:
    _back_to_a_stable_that_hangs(sim)
    assert offers(sim.state, "api-2") == ("promote", "freeze")
    sim.send(Promote(request="9-1", actor="bob"))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    sim.run(5)
    assert (sim.share("api-2"), sim.state.stuck_since) == (100, None)


def _lose_stable(sim: Sim) -> None:
    """All of api-1 dies at a later step of api-2, and can't be started."""
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.behave("api-1").start_error = "docker is full"
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)


def _taken_back(sim: Sim) -> None:
    """The candidate goes back, and it has been told that this leads to nobody."""
    for _ in range(300):
        if sim.state.leads_nowhere:
            return
        sim.step()
    raise AssertionError(sim.state.rollout)


def test_the_way_out_of_a_later_step_that_stable_cannot_share_is_to_keep_the_candidate(sim: Sim) -> None:
    _lose_stable(sim)
    _taken_back(sim)
    assert sim.state.rollout is not None
    assert sim.state.rollout.reason == (
        "api-1 has no healthy instance to share the traffic with; `orchestrator promote api` sends all of it"
        " to api-2"
    )
    assert "`orchestrator promote api` sends everybody to api-2 instead" in problems(sim.state)[-1]
    sim.send(Promote(request="9-0", actor="bob"))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    sim.run(5)
    assert sim.share("api-2") == 100


def test_a_candidate_of_which_nothing_lives_is_not_kept(sim: Sim) -> None:
    _lose_stable(sim)
    for name in ("api-2-0", "api-2-1"):
        sim.kill(name)
    sim.run(30)
    assert sim.state.rollout is not None
    (refused,) = sim.send(Promote(request="9-0", actor="bob"))
    assert isinstance(refused, RequestRefused)
    assert refused.reason == "no instance of api-2 lives, nor of api-1; release an image that is good"
    assert "promote" not in problems(sim.state)[-1]
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("action", ["queue", "supersede", "reject"])
def test_a_fix_supersedes_what_has_nowhere_to_go_back_to(sim: Sim, action: Any, dead: bool) -> None:
    _lose_stable(sim)
    if dead:
        for name in ("api-2-0", "api-2-1"):
            sim.kill(name)
    _taken_back(sim)
    route = sim.state.route
    sim.send(submit(3, policy=policy(on_new_release=action)))
    sim.until_phase(Phase.SHIFTING)
    (ended,) = sim.ends("api-2")
    assert (ended.outcome, ended.reason) == (
        Outcome.SUPERSEDED,
        "superseded by api-3 while all of api-1 is down",
    )
    assert sim.state.route == route
    assert {"api-2-0", "api-2-1"} <= sim.instances.keys()
    sim.send(Promote(request="9-0", actor="bob"))
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED
    sim.run(200)
    assert (sim.share("api-3"), {i.release for i in sim.instances.values()}) == (100, {"api-3"})


def _fix_that_does_not_start(sim: Sim, *, led: bool = False) -> None:
    """api-3 is to mend that api-1 is dead and api-2 is on its way back, and does not start.

    `led`: nginx leads to api-1 already.
    """
    (_back_to_a_stable_that_hangs if led else _lose_stable)(sim)
    sim.behave("api-1").start_error = "docker is full"
    _taken_back(sim)
    sim.behave("api-3").start_error = "typo in the fix"
    sim.send(submit(3))
    assert sim.until_ended("api-3").outcome is Outcome.FAILED
    sim.run(120)


@pytest.mark.parametrize("led", [False, True])
def test_the_candidate_lives_on_where_the_fix_for_a_dead_stable_does_not_start(sim: Sim, led: bool) -> None:
    _fix_that_does_not_start(sim, led=led)
    assert {i.name for i in sim.instances.values() if i.running and i.health == "ready"} == {
        "api-2-0",
        "api-2-1",
    }
    assert problems(sim.state)[-1] == (
        "all of api-1 is down; `orchestrator rollback api --to api-2` sends everybody to api-2"
    )
    sim.send(Rollback(request="9-1", actor="ann", to="api-2"))
    sim.run(20)
    assert (sim.share("api-2"), sim.state.rollout) == (100, None)


def test_the_candidate_is_let_go_where_stable_lives_again(sim: Sim) -> None:
    _fix_that_does_not_start(sim)
    sim.behave("api-1").start_error = ""
    sim.run(30)
    assert ({i.release for i in sim.instances.values()}, problems(sim.state)) == ({"api-1"}, [])


@pytest.mark.parametrize("lives", [True, False])
def test_of_a_release_that_was_good_and_a_candidate_the_first_is_kept_if_it_lives(
    sim: Sim, lives: bool
) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(submit(3))
    sim.until_phase(Phase.SHIFTING, held=True)
    for release in ("api-2", "api-1")[: 1 if lives else 2]:
        sim.behave(release).start_error = "no such image"
        for name in (f"{release}-0", f"{release}-1"):
            sim.kill(name)
    _taken_back(sim)
    sim.behave("api-4").start_error = "typo in the fix"
    sim.send(submit(4))
    assert sim.until_ended("api-4").outcome is Outcome.FAILED
    sim.run(120)
    assert sim.state.previous is not None
    kept = sim.state.previous.id
    assert kept == ("api-1" if lives else "api-3")
    assert f"--to {kept}`" in problems(sim.state)[-1]
    sim.behave(kept).start_error = "no such image"
    for name in (f"{kept}-0", f"{kept}-1"):
        sim.kill(name)
    sim.run(3)
    assert "--to" not in problems(sim.state)[-1]


def test_a_fix_supersedes_also_where_nginx_leads_to_the_dead_stable_already(sim: Sim) -> None:
    _back_to_a_stable_that_hangs(sim)
    sim.send(submit(3))
    sim.until_phase(Phase.SHIFTING)
    sim.send(Promote(request="9-1", actor="bob"))
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED
    assert sim.outcomes()["api-2"] is Outcome.SUPERSEDED


def test_what_waited_before_the_rollback_is_no_fix_and_nor_is_what_a_freeze_keeps(sim: Sim) -> None:
    sim.send(submit(2))
    sim.send(submit(3, policy=policy(on_new_release="queue", queue_deadline=9e9)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.behave("api-1").start_error = "docker is full"
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    _taken_back(sim)
    sim.send(Freeze(request="f-0", actor="ann"))
    sim.send(submit(4, policy=policy(on_new_release="queue", queue_deadline=9e9)))
    sim.run(60)
    assert (sim.ends("api-2"), [r.id for r in sim.state.queue]) == ([], ["api-3", "api-4"])
    sim.send(Unfreeze(request="f-1", actor="ann"))
    sim.run(2)
    assert sim.outcomes()["api-2"] is Outcome.SUPERSEDED


def test_a_rollback_to_a_dead_stable_ends_where_the_candidate_is_dead_too(sim: Sim) -> None:
    _back_to_a_stable_that_hangs(sim)
    for name in ("api-2-0", "api-2-1"):
        sim.kill(name)
    assert sim.until_ended("api-2", 5).outcome is Outcome.ROLLED_BACK


def test_a_first_release_that_dies_before_it_is_confirmed_fails_and_leaves_an_empty_route() -> None:
    sim = Sim()
    sim.edge_up = False
    sim.send(submit(1))
    sim.until_phase(Phase.BAKING)
    sim.edge_up = True
    sim.kill("api-1-0")
    assert sim.until_ended("api-1").outcome is Outcome.FAILED
    sim.run(3)
    assert sim.state.route.servers == ()
    assert not sim.instances


def test_blue_green_switches_at_once_and_bakes(sim: Sim) -> None:
    steps = (Step(weight=100, hold=20.0, deadline=60.0),)
    sim.send(submit(2, policy=policy(kind="blue_green", steps=steps)))
    rollout = sim.until_phase(Phase.BAKING, held=True)
    assert sim.share("api-2") == 100
    assert {s.release for s in sim.state.route.servers if s.backup} == {"api-1"}
    began = rollout.held_since or 0.0
    assert sim.until_ended("api-2").at - began >= 20


def test_blue_green_goes_back_while_it_bakes(sim: Sim) -> None:
    sim.run(20)
    sim.behave("api-2").errors = 0.5
    steps = (Step(weight=100, hold=20.0, deadline=60.0),)
    sim.send(submit(2, policy=policy(kind="blue_green", steps=steps)))
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK
    assert sim.share("api-1") == 100


def test_a_relative_limit_uses_stables_last_value_once_stable_has_no_traffic(sim: Sim) -> None:
    gate = Limit(name="p99", metric="latency", max_ratio=1.0, margin=0.05, window=10.0, min_requests=10)
    sim.send(submit(2, policy=policy(limits=(gate,))))
    sim.until_phase(Phase.BAKING, 2, held=True)
    sim.run(3)
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.verdicts[0].baseline is not None
    assert rollout.verdicts[0].baseline_samples < 250
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_preview_holds_without_traffic_then_waits_for_approval(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(preview=Preview(hold=5.0, approve=True))))
    sim.until_phase(Phase.PREVIEW)
    sim.run(8)
    assert {s.release for s in sim.state.route.preview} == {"api-2"}
    assert sim.share("api-2") == 0
    assert [e for e in sim.events if isinstance(e, ApprovalWanted)]
    sim.run(5)
    assert sim.share("api-2") == 0
    sim.send(Approve(request="9-0", actor="ann"))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert sim.state.route.preview == ()


def test_a_preview_without_approval_goes_on_by_itself(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(preview=Preview(hold=5.0))))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


@pytest.mark.parametrize("how", ["kill", "gone", "unhealthy"])
def test_a_preview_that_dies_fails(sim: Sim, how: str) -> None:
    sim.send(submit(2, policy=policy(preview=Preview(hold=50.0))))
    sim.until_phase(Phase.PREVIEW)
    sim.step()
    if how == "kill":
        sim.kill("api-2-0")
    elif how == "gone":
        del sim.instances["api-2-0"]
    else:
        sim.instances["api-2-0"] = replace(sim.instances["api-2-0"], health="unhealthy")
    assert sim.until_ended("api-2").outcome is Outcome.FAILED


def test_a_step_that_wants_approval_waits_and_is_rolled_back_if_nobody_comes(sim: Sim) -> None:
    steps = (replace(LADDER[0], approve=True), *LADDER[1:])
    sim.send(submit(2, policy=policy(steps=steps)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(40)
    assert sim.state.rollout is not None
    assert sim.state.rollout.step == 0
    ended = sim.until_ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "without approval" in ended.reason


def _waits_for_approval(sim: Sim, requests: int = 10) -> None:
    """A step of 5 % that has passed in the day and waits for a person, into a night with few requests."""
    steps = (replace(LADDER[0], approve=True), *LADDER[1:])
    limit = replace(ERRORS, min_requests=requests, window=60.0)
    changes = {"steps": steps, "limits": (limit,), "pause_deadline": 9e4, "on_inconclusive": "rollback"}
    sim.send(submit(2, policy=policy(**changes)))
    while not (sim.state.rollout and sim.state.rollout.mark):
        sim.step()
    sim.behave("api-2").rate = 1.0
    sim.run(600)


def test_the_time_in_which_a_person_decides_is_not_the_steps(sim: Sim) -> None:
    _waits_for_approval(sim)
    sim.send(Approve(request="9-0", actor="ann"))
    sim.run(LADDER[0].deadline - LADDER[0].hold - 5)
    assert not sim.ends("api-2")
    assert sim.share("api-2") == 5
    sim.behave("api-2").rate = 100.0
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_pause_while_approval_is_awaited_counts_for_nothing_either(sim: Sim) -> None:
    _waits_for_approval(sim)
    sim.send(Pause(request="7-0", actor="ann"))
    sim.run(100)
    sim.send(Resume(request="8-0", actor="ann"))
    sim.run(LADDER[0].deadline - LADDER[0].hold - 5)
    assert not sim.ends("api-2")


def test_a_bad_release_goes_back_while_it_waits_for_approval(sim: Sim) -> None:
    steps = (replace(LADDER[0], approve=True), *LADDER[1:])
    sim.send(submit(2, policy=policy(steps=steps)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(20)
    sim.behave("api-2").errors = 0.5
    assert sim.until_ended("api-2", 20).outcome is Outcome.ROLLED_BACK


def test_pause_stands_still_and_resume_does_not_shorten_the_hold(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(3)
    held_before = sim.now - (sim.state.rollout.held_since or 0.0)  # type: ignore[union-attr]
    sim.send(Pause(request="8-0", actor="ann", reason="lunch"))
    sim.run(50)
    assert sim.share("api-2") == 5
    sim.send(Resume(request="9-0", actor="ann"))
    held_after = sim.now - (sim.state.rollout.held_since or 0.0)  # type: ignore[union-attr]
    assert held_after == pytest.approx(held_before)
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_step_that_was_paused_at_its_deadline_gets_its_whole_time_from_who_resumes_it(sim: Sim) -> None:
    sim.behave("api-2").rate = 0.1
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    while not (sim.state.rollout and sim.state.rollout.mark):
        sim.step()
    assert "step deadline" in sim.state.rollout.mark.reason
    sim.send(Resume(request="9-0", actor="ann"))
    sim.run(LADDER[0].deadline - 5)
    assert sim.state.rollout.mark is None
    sim.run(10)
    assert sim.state.rollout.mark is not None


def test_a_pause_before_traffic_stands_still_too(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.send(Pause(request="8-0", actor="ann"))
    sim.run(30)
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.STARTING
    sim.send(Resume(request="9-0", actor="ann"))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.SHIFTING])
def test_a_pause_has_a_deadline(sim: Sim, phase: Phase) -> None:
    sim.send(submit(2))
    sim.until_phase(phase)
    sim.send(Pause(request="8-0", actor="ann"))
    ended = sim.until_ended("api-2")
    assert "paused for 300 s" in ended.reason
    assert ended.outcome is (Outcome.FAILED if phase is Phase.STARTING else Outcome.ROLLED_BACK)


def test_a_newer_release_supersedes_and_the_older_goes_back_first(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, 1, held=True)
    sim.send(submit(3))
    sim.send(submit(4))
    assert sim.until_ended("api-4").outcome is Outcome.PROMOTED
    assert sim.outcomes() == {
        "api-1": Outcome.PROMOTED,
        "api-2": Outcome.SUPERSEDED,
        "api-3": Outcome.SUPERSEDED,
        "api-4": Outcome.PROMOTED,
    }
    routes = [e for e in sim.events if isinstance(e, RouteChanged)]
    after_two = next(i for i, e in enumerate(routes) if dict(e.shares).get("api-4"))
    assert dict(routes[after_two - 1].shares).get("api-1") == 100


def test_a_release_before_traffic_is_superseded_at_once(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.send(submit(3))
    assert sim.outcomes()["api-2"] is Outcome.SUPERSEDED
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED


def test_queue_waits_and_reject_refuses(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING)
    sim.send(submit(3, policy=policy(on_new_release="queue")))
    sim.send(submit(4, policy=policy(on_new_release="reject")))
    assert sim.outcomes()["api-4"] is Outcome.REJECTED
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED
    assert sim.outcomes()["api-2"] is Outcome.PROMOTED


def test_reject_names_what_is_queued_when_nothing_rolls(sim: Sim) -> None:
    sim.send(Freeze(request="8-0", actor="ann"))
    sim.send(submit(2))
    sim.send(submit(3, policy=policy(on_new_release="reject")))
    assert "api-2 is in progress" in sim.ends("api-3")[0].reason


def test_a_frozen_service_starts_nothing_but_still_goes_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(Freeze(request="8-0", actor="ann", reason="holidays"))
    sim.send(submit(3))
    sim.run(20)
    assert [r.id for r in sim.state.queue] == ["api-3"]
    sim.send(Rollback(request="9-0", actor="bob"))
    sim.run(3)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"
    sim.send(Unfreeze(request="10-0", actor="ann"))
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED


def test_a_release_does_not_wait_in_the_queue_for_ever(sim: Sim) -> None:
    sim.send(Freeze(request="8-0", actor="ann"))
    sim.send(submit(2))
    sim.run(501)
    assert sim.outcomes()["api-2"] is Outcome.FAILED


def test_rollback_of_a_promoted_release_is_one_flip_while_the_old_is_warm(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.step()
    starts = sim.starts
    sim.send(Rollback(request="9-0", actor="ann", reason="checkout is broken"))
    sim.step()
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"
    assert sim.share("api-1") == 100
    assert sim.starts == starts
    ended = sim.ends("api-1")[-1]
    assert (ended.journey, ended.outcome, ended.actor) == ("revert", Outcome.PROMOTED, "ann")


def test_rollback_after_the_old_is_gone_deploys_it_again_without_the_ladder(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.run(130)
    assert set(sim.instances) == {"api-2-0", "api-2-1"}
    began = sim.now
    sim.send(Rollback(request="9-0", actor="ann", reason="slow at noon"))
    sim.run(4)
    assert sim.share("api-1") == 100
    assert sim.ends("api-1")[-1].at - began < 5
    assert (sim.ends("api-1")[-1].actor, sim.ends("api-1")[-1].reason) == ("ann", "slow at noon")


def _until_the_old_is_being_stopped(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    while "api-1-0" not in sim.stopping:
        sim.step()


def test_rollback_to_a_release_that_is_just_being_stopped_waits_until_it_is_gone(sim: Sim) -> None:
    sim.stop_takes = 4.0
    _until_the_old_is_being_stopped(sim)
    starts = sim.starts
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(8)
    assert (sim.ends("api-1")[-1].journey, sim.ends("api-1")[-1].outcome) == ("revert", Outcome.PROMOTED)
    assert sim.starts == starts + 2
    assert all(sim.instances[f"api-1-{n}"].running for n in range(2))


def test_what_stops_for_too_long_ends_the_rollback_and_says_so(sim: Sim) -> None:
    sim.stop_takes = 4000.0
    _until_the_old_is_being_stopped(sim)
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(700)
    assert sim.ends("api-1")[-1].reason.startswith("api-1-0 still stopped after ")
    assert sim.share("api-2") == 100


def test_rollback_to_a_release_that_still_drains_keeps_its_instances(sim: Sim) -> None:
    sim.drained = False
    sim.send(submit(2, policy=policy(drain_deadline=50.0)))
    sim.until_ended("api-2")
    while not sim.state.retiring:
        sim.step()
    starts = sim.starts
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(4)
    assert sim.ends("api-1")[-1].journey == "revert"
    assert sim.share("api-1") == 100
    assert sim.starts == starts


def test_two_people_who_roll_back_the_same_release_go_back_once(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(Rollback(request="8-0", actor="ann", release="api-2"))
    sim.run(3)
    refused = sim.send(Rollback(request="9-0", actor="bob", release="api-2"))
    assert isinstance(refused[0], RequestRefused)
    assert "stable is api-1" in refused[0].reason
    assert sim.state.rollout is None


def test_rollback_to_a_named_release(sim: Sim) -> None:
    for number in (2, 3):
        sim.send(submit(number))
        sim.until_ended(f"api-{number}")
    assert "there are: api-2, api-1" in _refusal(sim, Rollback(request="8-0", actor="ann", to="api-9"))
    sim.send(Rollback(request="9-0", actor="ann", to="api-1"))
    sim.run(5)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"


def test_a_new_release_waits_for_a_revert(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(Rollback(request="8-0", actor="ann"))
    sim.send(submit(3))
    assert sim.state.rollout is not None
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED
    assert sim.ends("api-1")[-1].outcome is Outcome.PROMOTED


def test_rollback_takes_a_retiring_release_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.drained = False
    sim.run(102)
    assert sim.state.retiring
    starts = sim.starts
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(4)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"
    assert sim.starts == starts


def test_a_release_that_an_edge_cannot_follow_goes_back(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.failed = "edge b: nginx -t refuses"
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.reason) == (Outcome.ROLLED_BACK, "edge b: nginx -t refuses")


def test_an_edge_that_was_lost_before_a_release_has_users_ends_none(sim: Sim) -> None:
    sim.failed = "edge b has not been heard of"
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    sim.failed = ""  # the first change does not wait for it
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_rollback_that_an_edge_cannot_follow_is_not_turned_round(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.failed = "edge b: nginx -t refuses"
    sim.run(10)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"


def test_rollback_and_abort_of_an_active_rollout(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    accepted = sim.send(Rollback(request="8-0", actor="ann"))
    assert isinstance(accepted[0], CommandAccepted)
    sim.send(Rollback(request="9-0", actor="bob"))
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.actor) == (Outcome.ROLLED_BACK, "ann")
    sim.send(submit(3))
    sim.until_phase(Phase.STARTING)
    sim.send(Abort(request="10-0", actor="ann"))
    assert sim.outcomes()["api-3"] is Outcome.ABORTED
    sim.send(submit(4))
    sim.until_phase(Phase.STARTING)
    sim.send(Rollback(request="11-0", actor="ann"))
    assert sim.outcomes()["api-4"] is Outcome.ABORTED


def test_a_queued_release_can_be_aborted(sim: Sim) -> None:
    sim.send(Freeze(request="8-0", actor="ann"))
    sim.send(submit(2))
    sim.send(Abort(request="9-0", actor="ann", release="api-2"))
    assert sim.outcomes()["api-2"] is Outcome.ABORTED
    assert not sim.state.queue


def test_a_release_that_waits_for_an_unfreeze_says_by_whom_and_why(sim: Sim) -> None:
    assert "queued" not in told(sim.send(submit(2, key="a"))[0])
    sim.until_ended("api-2")
    sim.send(Freeze(request="7-0", actor="dave", reason="holidays"))
    assert "queued" not in told(sim.send(submit(2, request="7-1", key="a"))[0])  # it is over
    for request in ("7-3", "7-4"):  # also where it is asked for again
        (accepted, *_) = sim.send(submit(3, request=request, key="b"))
        assert isinstance(accepted, ReleaseAccepted)
        assert accepted.frozen == "dave: holidays"
        assert told(accepted).endswith("; queued: frozen by dave: holidays")
    rejected = replace(policy(), on_new_release="reject")
    accepted, ended = sim.send(submit(4, request="7-5", policy=rejected))
    assert (accepted.kind, ended.kind) == ("release_accepted", "release_ended")
    assert "queued" not in told(accepted)


def test_the_same_image_can_be_released_again(sim: Sim) -> None:
    sim.behave("api-2").errors = 0.5
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.send(submit(2, request="7-0"))
    assert sim.until_ended("api-3").outcome is Outcome.PROMOTED


def test_an_idempotency_key_makes_one_release(sim: Sim) -> None:
    sim.send(submit(2, key="build-7"))
    again = sim.send(submit(2, request="7-0", key="build-7"))
    assert isinstance(again[0], ReleaseAccepted)
    assert (again[0].release, again[0].duplicate) == ("api-2", True)
    assert "use a new key" in _refusal(sim, submit(3, key="build-7"))


def test_a_request_that_is_delivered_twice_is_carried_out_once(sim: Sim) -> None:
    sim.send(submit(2))
    assert sim.send(submit(2)) == []
    assert sim.state.released == 2


def _refusal(sim: Sim, command: object) -> str:
    event = sim.send(command)[-1]  # type: ignore[arg-type]
    assert isinstance(event, RequestRefused)
    return event.reason


def test_commands_that_make_no_sense_are_refused_with_a_reason() -> None:
    sim = Sim()
    assert "no earlier promoted" in _refusal(sim, Rollback(request="1-1", actor="ann"))
    assert "nothing of api is rolling out" in _refusal(sim, Pause(request="1-2", actor="ann"))
    assert "no paused" in _refusal(sim, Resume(request="1-3", actor="ann"))
    assert "waits for approval" in _refusal(sim, Approve(request="1-4", actor="ann"))
    assert "no release in progress" in _refusal(sim, Abort(request="1-5", actor="ann"))
    assert "not frozen" in _refusal(sim, Unfreeze(request="1-6", actor="ann"))
    sim.send(Freeze(request="1-7", actor="ann", reason="x"))
    assert "already frozen by ann" in _refusal(sim, Freeze(request="1-8", actor="bob"))
    sim.send(Unfreeze(request="1-9", actor="ann"))
    sim.send(submit(1))
    sim.step()
    assert "neither rolling out nor queued" in _refusal(
        sim, Abort(request="1-10", actor="ann", release="api-7")
    )


def test_more_refusals(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    assert "is rolling out" in _refusal(sim, Rollback(request="8-0", actor="ann", release="api-1"))
    sim.send(Pause(request="8-1", actor="ann"))
    assert "already paused by ann" in _refusal(sim, Pause(request="8-2", actor="bob"))


def test_an_edited_file_is_told_stops_the_ladder_and_is_repaired_when_idle(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.file = "edited"
    sim.run(40)
    assert sim.file == "edited"
    assert [e.file for e in sim.events if isinstance(e, EdgeDrifted)] == ["edited"]
    assert sim.state.rollout is not None
    assert sim.state.rollout.step == 0
    sim.send(Rollback(request="9-0", actor="ann"))
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK
    sim.run(40)
    assert sim.file == "ours"
    assert [e for e in sim.events if isinstance(e, EdgeRepaired)]


def test_images_of_stable_and_previous_are_never_stale(sim: Sim) -> None:
    for number in range(2, 6):
        sim.send(submit(number, policy=policy(keep_images=1)))
        sim.until_ended(f"api-{number}")
    world = desired(sim.state, sim.now)
    assert world.images >= {"sha256:5", "sha256:4"}
    assert world.stale_images == {"sha256:1", "sha256:2", "sha256:3"}
    assert not desired(Sim().state, 0.0).stale_images


def test_images_to_go_back_to_are_not_pushed_out_by_releases_that_failed(sim: Sim) -> None:
    few = policy(keep_images=2, keep_previous=1.0)
    for number in (2, 3):
        sim.send(submit(number, policy=few))
        sim.until_ended(f"api-{number}")
    for number in (4, 5, 6):
        sim.behave(f"api-{number}").start_error = "no"
        sim.send(submit(number, policy=few))
        sim.until_ended(f"api-{number}")
    sim.run(30)
    world = desired(sim.state, sim.now)
    assert world.images == {f"sha256:{n}" for n in (2, 3, 5, 6)}
    assert world.stale_images == {"sha256:1", "sha256:4"}


def test_the_fallback_is_stable_alone(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.BAKING, 2, held=True)
    fallback = desired(sim.state, sim.now).fallback
    assert fallback is not None
    assert {(s.release, s.backup) for s in fallback.servers} == {("api-1", False)}


def test_a_release_with_other_instances_keeps_its_share_exact(sim: Sim) -> None:
    sim.send(submit(2, template=template(instances=3)))
    sim.until_phase(Phase.SHIFTING, held=True)
    assert sim.share("api-2") == 5
    assert len([s for s in sim.state.route.servers if s.release == "api-2"]) == 3


def test_gates_that_read_their_own_query(sim: Sim) -> None:
    gate = Limit(name="payments", metric="query", query="x", max=0.5)
    sim.send(submit(2, policy=policy(limits=(gate, ERRORS))))
    sim.until_phase(Phase.SHIFTING, held=True)
    last = sim.readings[-1]
    sim.readings.append(replace(last, at=last.at + 0.5, values={("payments", "api-2"): 0.9}))
    state, _ = decide(sim.state, sim.observe(), sim.now)
    assert state.rollout is not None
    assert state.rollout.phase is Phase.ROLLING_BACK


def test_a_step_is_not_left_while_nginx_lags_behind(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.edge_up = False
    sim.kill("api-1-0")
    sim.run(30)
    assert sim.state.rollout is not None
    assert (sim.state.rollout.phase, sim.state.rollout.step) == (Phase.SHIFTING, 0)
    sim.edge_up = True
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_without_a_stable_instance_there_is_no_fallback(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.BAKING, 2, held=True)
    sim.behave("api-1").start_error = "docker is full"
    for name in ("api-1-0", "api-1-1"):
        sim.kill(name)
    sim.step()
    assert desired(sim.state, sim.now).fallback is None


def test_a_warm_release_is_not_let_go_before_nginx_has_confirmed(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.edge_up = False
    sim.run(140)
    assert [r.release.id for r in sim.state.retiring] == ["api-1"]
    assert "api-1-0" in sim.instances
    sim.edge_up = True
    sim.run(5)
    assert "api-1-0" not in sim.instances


def test_what_was_rolled_back_finishes_its_requests_first(sim: Sim) -> None:
    sim.drained = False
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.until_ended("api-2")
    sim.run(5)
    assert "api-2-0" in sim.instances
    sim.drained = True
    sim.run(3)
    assert "api-2-0" not in sim.instances


def test_without_docker_a_rollback_goes_to_those_of_stable_that_have_traffic(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.runtime_ok = False
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.step()
    assert sim.share("api-1") == 100
    assert sim.ends("api-2")[-1].outcome is Outcome.ROLLED_BACK
    assert set(sim.instances) == {"api-1-0", "api-1-1", "api-2-0", "api-2-1"}
    sim.runtime_ok = True
    sim.run(15)
    assert set(sim.instances) == {"api-1-0", "api-1-1"}


def test_without_docker_a_first_release_has_nowhere_to_go_back_to() -> None:
    sim = Sim()
    sim.edge_up = False
    sim.send(submit(1))
    sim.until_phase(Phase.BAKING)
    before = sim.state.route
    sim.runtime_ok = False
    sim.send(Abort(request="9-0", actor="ann"))
    sim.step()
    assert sim.state.route == before


def test_without_docker_and_without_an_instance_of_stable_the_route_stays(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    servers = tuple(s for s in sim.state.route.servers if s.release == "api-2")
    sim.state = replace(sim.state, route=replace(sim.state.route, servers=servers))
    sim.runtime_ok = False
    sim.send(Rollback(request="9-0", actor="ann"))
    seen = sim.observe()
    assert decide(sim.state, seen, sim.now)[0].route.servers == servers


BY_HAND = pytest.mark.parametrize(
    ("phase", "where"), [(Phase.PREVIEW, "in the preview"), (Phase.SHIFTING, "at 5 %")]
)


@BY_HAND
def test_the_outcome_of_a_promotion_by_a_person_names_the_person_and_where_it_stood(
    sim: Sim, phase: Phase, where: str
) -> None:
    preview = Preview(approve=True) if phase is Phase.PREVIEW else None
    sim.send(submit(2, policy=policy(preview=preview)))
    sim.until_phase(phase)
    sim.send(Promote(request="9-0", actor="ann"))
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.actor, ended.reason) == (
        Outcome.PROMOTED,
        "ann",
        f"promoted by ann {where}",
    )
    sim.send(submit(3))
    ended = sim.until_ended("api-3")
    assert (ended.outcome, ended.actor, ended.reason) == (
        Outcome.PROMOTED,
        "orchestrator",
        "all steps passed",
    )


@BY_HAND
def test_a_promotion_by_a_person_skips_to_the_last_step_and_its_gates_still_watch(
    sim: Sim, phase: Phase, where: str
) -> None:
    preview = Preview(approve=True) if phase is Phase.PREVIEW else None
    sim.send(submit(2, policy=policy(preview=preview)))
    sim.until_phase(phase)
    accepted, entered, *_ = sim.send(Promote(request="9-0", actor="ann", reason="known good"))
    assert isinstance(accepted, CommandAccepted)
    assert isinstance(entered, PhaseEntered)
    assert (entered.phase, entered.weight, entered.actor, entered.reason) == (
        Phase.BAKING,
        100,
        "ann",
        f"promoted by ann {where}: known good",
    )
    sim.until_phase(Phase.BAKING, len(policy().steps) - 1, held=True)
    assert sim.share("api-2") == 100
    sim.behaviours["api-2"] = Behaviour(errors=0.5)
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK


HELD_BACK = ladder(
    (10, 50, 100), holds=(30.0, 30.0), bake=20.0, holdback=5, max_hold=None, min_requests=0, deadline=60.0
)
BAKED_WHOLE = ladder(
    (10, 50, 100), holds=(30.0, 30.0), bake=20.0, holdback=0, max_hold=None, min_requests=0, deadline=60.0
)


@pytest.mark.parametrize("steps", [HELD_BACK, BAKED_WHOLE], ids=["with holdback", "without"])
def test_after_a_promotion_by_a_person_the_bake_is_held_at_all_traffic(
    sim: Sim, steps: tuple[Step, ...]
) -> None:
    sim.send(submit(2, policy=policy(steps=steps)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(Promote(request="9-0", actor="ann"))
    held = sim.until_phase(Phase.BAKING, len(steps) - 1, held=True).held_since
    assert held is not None
    ended = sim.until_ended("api-2")
    assert (ended.outcome, sim.share("api-2")) == (Outcome.PROMOTED, 100)
    assert 20 <= ended.at - held < 25
    assert [e for e in sim.events if isinstance(e, GateJudged) and e.at > held]


def test_the_gates_of_the_bake_take_back_what_a_person_promoted_past_the_holdback(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(steps=HELD_BACK)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(Promote(request="9-0", actor="ann"))
    sim.until_phase(Phase.BAKING, len(HELD_BACK) - 1, held=True)
    sim.run(10)
    sim.behaviours["api-2"] = Behaviour(errors=0.5)
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK


def test_a_ladder_that_nobody_skips_bakes_once(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(steps=HELD_BACK)))
    held = sim.until_phase(Phase.BAKING, len(HELD_BACK) - 1).entered_at
    assert sim.until_ended("api-2").at - held < 5


def test_a_promotion_is_refused_where_there_is_nothing_to_skip(sim: Sim) -> None:
    assert "nothing of api is rolling out" in _refusal(sim, Promote(request="9-0", actor="ann"))
    sim.send(submit(2))
    sim.until_phase(Phase.STARTING)
    assert "api-2 is starting" in _refusal(sim, Promote(request="9-1", actor="ann"))
    sim.until_phase(Phase.SHIFTING)
    sim.send(Promote(request="9-2", actor="ann"))
    assert "api-2 is baking" in _refusal(sim, Promote(request="9-3", actor="ann"))


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({}, "it is the image that stable runs; nothing changes"),
        ({"instances": 3}, "it is the image that stable runs; only configuration changes: instances"),
    ],
)
def test_a_release_of_the_image_that_stable_runs_says_so(
    sim: Sim, changed: dict[str, Any], note: str
) -> None:
    sim.send(submit(2, image="repo/api:1", template=template(**changed)))
    sim.until_phase(Phase.SHIFTING)
    (told_of,) = [e for e in sim.events if isinstance(e, ImageResolved) and e.release == "api-2"]
    assert told_of.note == note
    assert told(told_of) == f"image is sha256:1; {note}"


def test_a_registry_that_did_not_answer_is_told_with_the_image(sim: Sim) -> None:
    sim.image_note = "the registry does not answer"
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING)
    (told_of,) = [e for e in sim.events if isinstance(e, ImageResolved) and e.release == "api-2"]
    assert told_of.note == "the registry does not answer"
