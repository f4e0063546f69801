"""Time in which nobody looked, or could, costs no release its traffic, in any phase."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import get_args, get_type_hints

import pytest

from orchestrator.daemon.clock import SystemClock
from orchestrator.rollout.command import Approve, Freeze, Pause, Remove, Resume, Rollback, Unfreeze
from orchestrator.rollout.decide import decide, watch
from orchestrator.rollout.events import EdgeStuck, GateJudged, ReleaseEnded
from orchestrator.rollout.evidence import Evidence
from orchestrator.rollout.model import (
    Anew,
    Breach,
    Mark,
    Outcome,
    Phase,
    Release,
    Result,
    ServiceState,
    Verdict,
)
from orchestrator.rollout.observation import LocalRollback, Reading
from orchestrator.rollout.policy import Comparison, Limit, Policy, Preview
from orchestrator.rollout.told import problems
from orchestrator.rollout.turn import Turn
from orchestrator.rollout.unseen import exclude_unwatched
from tests.builders import ERRORS, LADDER, policy, submit
from tests.unit.sim import Sim
from tests.unit.test_comparison import compared


def wait(sim: Sim, seconds: float) -> None:
    """Let time pass in few looks."""
    for _ in range(int(seconds / 10)):
        sim.step(10.0)


STRICT = {"on_no_data": "rollback", "on_inconclusive": "rollback", "pause_deadline": 900.0}
"""Every policy that can roll back does."""


def queued(sim: Sim) -> Callable[[], object]:
    sim.send(Freeze(request="8-0", actor="ann"))
    sim.send(submit(2, policy=policy(**STRICT)))
    wait(sim, 400)
    return lambda: sim.send(Unfreeze(request="9-0", actor="ann"))


def preflight(sim: Sim) -> Callable[[], object]:
    sim.image_there = False
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.run(25)
    return lambda: setattr(sim, "image_there", True)


def starting(sim: Sim) -> Callable[[], object]:
    sim.behave("api-2").never_ready = True
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.STARTING)
    sim.run(15)

    def ready() -> None:
        for name in ("api-2-0", "api-2-1"):
            sim.instances[name] = replace(sim.instances[name], health="ready")

    return ready


def unscraped(sim: Sim) -> Callable[[], object]:
    sim.unreadable.add("api-2")
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.STARTING)
    sim.run(15)
    return sim.unreadable.clear


def preview(sim: Sim) -> Callable[[], object]:
    sim.send(submit(2, policy=policy(**STRICT, preview=Preview(hold=20.0, approve=True))))
    sim.until_phase(Phase.PREVIEW)
    wait(sim, 850)
    return lambda: sim.send(Approve(request="9-0", actor="ann"))


def unconfirmed(sim: Sim) -> Callable[[], object]:
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.STARTING)
    sim.edge_up = False
    sim.until_phase(Phase.SHIFTING)
    sim.run(2)
    return lambda: setattr(sim, "edge_up", True)


def shifting(sim: Sim) -> Callable[[], object]:
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(3)
    return lambda: None


def compared_with_stable(sim: Sim) -> Callable[[], object]:
    sim.send(submit(2, policy=compared(**STRICT)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(3)
    return lambda: None


def undecided(sim: Sim) -> Callable[[], object]:
    sim.behave("api-2").rate = 1.0
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(50)
    return lambda: setattr(sim.behave("api-2"), "rate", 100.0)


def approval(sim: Sim) -> Callable[[], object]:
    sim.send(submit(2, policy=policy(**STRICT, steps=(replace(LADDER[0], approve=True), *LADDER[1:]))))
    sim.until_phase(Phase.SHIFTING, held=True)
    wait(sim, 850)
    return lambda: sim.send(Approve(request="9-0", actor="ann"))


def paused(sim: Sim) -> Callable[[], object]:
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(Pause(request="8-0", actor="ann"))
    wait(sim, 850)
    return lambda: sim.send(Resume(request="9-0", actor="ann"))


def baking(sim: Sim) -> Callable[[], object]:
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.BAKING, 2, held=True)
    sim.run(2)
    return lambda: None


PHASES = [
    queued,
    preflight,
    starting,
    unscraped,
    preview,
    unconfirmed,
    shifting,
    compared_with_stable,
    undecided,
    approval,
    paused,
    baking,
]


def daemon_down(sim: Sim) -> None:
    sim.nobody_drives(600.0, restart=True)


def no_lease(sim: Sim) -> None:
    """The daemon watches and can commit nothing; a retreat that it sees would turn the rollback switch on."""
    state = sim.state
    for _ in range(60):
        sim.nobody_drives(10.0, restart=False)
        state = watch(state, sim.observe(), sim.now)
        assert state.rollout is None or state.rollout.phase is not Phase.ROLLING_BACK
    assert (state.rollout is None) == (sim.state.rollout is None)
    sim.unwatched = 600.0


def clock_set_on(sim: Sim) -> None:
    sim.now += 3600.0
    sim.readings.clear()
    sim.known.clear()
    sim.unwatched = 3600.0


def clock_set_back(sim: Sim) -> None:
    """By a restart: time goes on from what was committed last, and more has come to pass than it shows."""
    sim.nobody_drives(30.0, restart=True)
    sim.now -= 30.0
    sim.unwatched = 0.0


OUTAGES = [daemon_down, no_lease, clock_set_on, clock_set_back]


@pytest.mark.parametrize("away", OUTAGES)
@pytest.mark.parametrize("stand", PHASES)
def test_a_release_goes_on_from_where_it_was(
    sim: Sim, stand: Callable[[Sim], Callable[[], object]], away: Callable[[Sim], None]
) -> None:
    mend = stand(sim)
    assert not sim.ends("api-2")
    away(sim)
    sim.run(3)
    assert sim.outcomes().get("api-2") in (None, Outcome.PROMOTED)
    mend()
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def unconfirmed_way_back(sim: Sim) -> Callable[[], object]:
    sim.edge_up = False
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(3)
    return lambda: setattr(sim, "edge_up", True)


def going_back(sim: Sim) -> Callable[[], object]:
    """A person takes it back, and nginx does not confirm."""
    shifting(sim)
    return unconfirmed_way_back(sim)


def reverting(sim: Sim) -> Callable[[], object]:
    """To a warm release, and nginx does not confirm."""
    sim.send(submit(2))
    sim.until_ended("api-2")
    return unconfirmed_way_back(sim)


def reverting_cold(sim: Sim) -> Callable[[], object]:
    """To a release that has to be started again, and is not ready yet."""
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.run(115)
    sim.behave("api-1").never_ready = True
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(15)

    def ready() -> None:
        for name in ("api-1-0", "api-1-1"):
            sim.instances[name] = replace(sim.instances[name], health="ready")

    return ready


@pytest.mark.parametrize("away", OUTAGES)
@pytest.mark.parametrize("stand", [going_back, reverting, reverting_cold])
def test_a_way_back_goes_on_too_and_ends_on_the_release_that_it_leads_to(
    sim: Sim, stand: Callable[[Sim], Callable[[], object]], away: Callable[[Sim], None]
) -> None:
    mend = stand(sim)
    watched = away is no_lease and stand is going_back  # it watches a rollout that goes back already
    (daemon_down if watched else away)(sim)
    sim.run(3)
    assert sim.state.rollout is not None
    mend()
    sim.run(20)
    assert sim.state.rollout is None
    assert (sim.state.stable and sim.state.stable.id, sim.share("api-1")) == ("api-1", 100)
    told = [(e.release, e.journey, e.outcome, e.actor) for e in sim.events if isinstance(e, ReleaseEnded)][-1]
    back = ("api-2", "release", Outcome.ROLLED_BACK, "ann")
    assert told == (back if stand is going_back else ("api-1", "revert", Outcome.PROMOTED, "ann"))


@pytest.mark.parametrize("away", OUTAGES)
@pytest.mark.parametrize("blocked", ["nginx", "instances"])
def test_a_removal_goes_on_too(sim: Sim, away: Callable[[Sim], None], blocked: str) -> None:
    sim.edge_up = blocked != "nginx"
    sim.stop_takes = 5.0
    sim.send(Remove(request="9-0", actor="ann"))
    sim.run(2)
    away(sim)
    sim.run(2)
    sim.edge_up = True
    sim.run(30)
    assert sim.state.removal is not None
    assert (sim.state.removal.kind, sim.instances) == ("removed", {})


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_no_step_of_the_hosts_clock_moves_the_time_that_releases_are_decided_by(step: float) -> None:
    shown = [1_000_000.0]
    clock = SystemClock(lambda: shown[0])
    before = clock.now()
    shown[0] += step
    assert abs(clock.now() - before) < 60.0
    assert abs(clock.ahead() + step) < 60.0
    restarted = SystemClock(lambda: shown[0])
    restarted.not_before(before)
    assert restarted.now() >= before


@pytest.mark.parametrize("stand", PHASES)
def test_a_release_waits_for_prometheus(sim: Sim, stand: Callable[[Sim], Callable[[], object]]) -> None:
    mend = stand(sim)
    sim.prometheus_up = False
    mend()
    sim.run(10)
    wait(sim, 600)
    assert not sim.ends("api-2")
    rollout = sim.state.rollout
    assert rollout is not None
    assert problems(sim.state) == ["Prometheus does not answer; the rollout is held"]
    sim.prometheus_up = True
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert not problems(sim.state)


@pytest.mark.parametrize("stand", PHASES)
def test_a_release_waits_for_docker(sim: Sim, stand: Callable[[Sim], Callable[[], object]]) -> None:
    mend = stand(sim)
    sim.runtime_ok = False
    mend()
    sim.run(10)
    wait(sim, 600)
    assert not sim.ends("api-2")
    assert problems(sim.state) == ["Docker does not answer; the rollout is held"]
    sim.runtime_ok = True
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert not problems(sim.state)


@pytest.mark.parametrize("stand", [preflight, starting, shifting, unconfirmed])
def test_docker_that_never_comes_back_ends_a_release_with_the_true_reason(
    sim: Sim, stand: Callable[[Sim], Callable[[], object]]
) -> None:
    stand(sim)()
    sim.runtime_ok = False
    sim.step()
    wait(sim, 890)
    assert not sim.ends("api-2")
    reason = sim.until_ended("api-2", 20).reason
    assert reason == "Docker did not answer for 900 s, the limit is 900 s: timed out"


def test_docker_and_then_prometheus_is_one_time_in_which_nothing_was_seen(sim: Sim) -> None:
    shifting(sim)
    sim.runtime_ok, sim.prometheus_up = False, False
    wait(sim, 500)
    sim.runtime_ok = True
    sim.step()
    assert problems(sim.state) == ["Prometheus does not answer; the rollout is held"]
    wait(sim, 410)
    assert "Prometheus did not answer for 9" in sim.until_ended("api-2", 1).reason


def test_that_prometheus_is_away_is_told_once(sim: Sim) -> None:
    shifting(sim)
    sim.prometheus_up = False
    sim.run(100)
    told = [e.verdict for e in sim.events if isinstance(e, GateJudged) and e.verdict.gate == ERRORS.name]
    away = [v for v in told if v.result is Result.NO_DATA]
    assert [v.text for v in away] == ["Prometheus: connection refused"]


@pytest.mark.parametrize(("stand", "outcome"), [(unscraped, Outcome.FAILED), (shifting, Outcome.ROLLED_BACK)])
def test_prometheus_that_never_comes_back_ends_a_release_with_the_true_reason(
    sim: Sim, stand: Callable[[Sim], Callable[[], object]], outcome: Outcome
) -> None:
    stand(sim)
    sim.unreadable.clear()
    sim.prometheus_up = False
    sim.step()
    wait(sim, 890)
    assert not sim.ends("api-2")
    ended = sim.until_ended("api-2", 20)
    assert ended.outcome is outcome
    assert ended.reason == "Prometheus did not answer for 900 s, the limit is 900 s: connection refused"


def test_a_candidate_that_does_not_get_ready_fails_though_prometheus_is_away(sim: Sim) -> None:
    starting(sim)
    sim.prometheus_up = False
    assert "0 of 2 instances were ready after 20 s" in sim.until_ended("api-2", 10).reason


def test_a_hold_is_held_whole_by_somebody_who_looks(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(**STRICT)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(3)
    daemon_down(sim)
    began = sim.now
    second = sim.until_phase(Phase.SHIFTING, 1)
    assert second.entered_at - began >= LADDER[0].hold - 3


def test_a_limit_that_was_broken_before_nobody_looked_has_not_been_broken_since(sim: Sim) -> None:
    limit = replace(ERRORS, sustained=20.0)
    sim.send(submit(2, policy=policy(**STRICT, limits=(limit,))))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.behave("api-2").errors = 0.5
    while not (sim.state.rollout and sim.state.rollout.breaches):
        sim.step()
    sim.nobody_drives(600.0, restart=False)
    sim.run(10)
    assert not sim.ends("api-2")
    assert sim.until_ended("api-2", 30).outcome is Outcome.ROLLED_BACK


def test_a_candidate_that_alone_cannot_be_read_is_left_to_the_policy(sim: Sim) -> None:
    shifting(sim)
    sim.unreadable.add("api-2")
    began = sim.now
    ended = sim.until_ended("api-2", 60)
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.reason.startswith("no data for 15 s: errors: api-2-0 is not scraped or its target is down")
    assert 15 <= ended.at - began <= 17


def test_silence_is_time_between_two_answers_of_prometheus(sim: Sim) -> None:
    shifting(sim)
    sim.unreadable.add("api-2")
    for _ in range(3):  # 4 s of silence each; nothing is known of what lies between
        sim.run(5)
        sim.prometheus_up = False
        sim.run(30)
        sim.prometheus_up = True
        assert not sim.ends("api-2")
        daemon_down(sim)
    sim.run(3)
    assert not sim.ends("api-2")
    assert sim.until_ended("api-2", 2).reason.startswith("no data for 15 s")


def test_while_stable_cannot_be_read_either_it_is_not_the_candidate_that_is_silent(sim: Sim) -> None:
    shifting(sim)
    sim.unreadable |= {"api-1", "api-2"}
    sim.run(45)
    assert not sim.ends("api-2")
    assert "step deadline" in sim.until_ended("api-2", 60).reason


def test_a_gap_between_two_readings_is_nobodys_silence(sim: Sim) -> None:
    steps = (replace(LADDER[0], deadline=1000.0), *LADDER[1:])
    sim.send(submit(2, policy=policy(**STRICT, steps=steps)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.unreadable.add("api-2")
    sim.run(3)
    sim.now += 100.0
    sim.step()
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.silent == 2.0


def test_a_resume_gives_a_silent_candidate_its_whole_time_again(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(on_no_data="pause")))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.unreadable.add("api-2")
    sim.run(20)
    sim.send(Resume(request="9-0", actor="ann"))
    sim.run(10)
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.mark is None
    sim.unreadable.clear()
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_prometheus_without_a_past_holds_a_comparison_with_it(sim: Sim) -> None:
    past = Comparison(name="past", metric="error_rate", history=3600.0)
    sim.send(submit(2, policy=compared(past, **STRICT)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(60)
    rollout = sim.state.rollout
    assert rollout is not None
    assert rollout.verdicts[0].result is Result.INCONCLUSIVE
    assert not sim.ends("api-2")


def test_a_policy_of_queries_alone_asks_nothing_of_stable(sim: Sim) -> None:
    only: Policy = policy(**STRICT, limits=(Limit(name="q", metric="query", query="x", max=1.0),))
    sim.send(submit(2, policy=only))
    sim.unreadable.add("api-1")
    assert sim.until_ended("api-2", 60).reason == "no data for 15 s: q: no finite value"


def test_a_query_without_an_answer_is_not_a_query_without_a_value(sim: Sim) -> None:
    limits = (Limit(name="q", metric="query", query="x", max=1.0),)
    sim.send(submit(2, policy=policy(**STRICT, limits=limits)))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.run(5)
    assert sim.state.rollout is not None
    silent = sim.state.rollout.silent
    sim.prometheus_up = False
    sim.run(30)
    assert sim.state.rollout.silent == silent
    sim.prometheus_up = True
    sim.run(5)
    assert sim.state.rollout.silent == silent + 4
    assert sim.until_ended("api-2", 10).reason.startswith("no data for 15 s")


def test_before_the_first_answer_nothing_is_known_of_prometheus(sim: Sim) -> None:
    shifting(sim)
    sim.prometheus_up = False
    sim.run(5)
    before = sim.state
    assert before.rollout is not None
    sim.readings.clear()
    state, _ = decide(before, sim.observe(), sim.now)
    assert state.rollout is not None
    assert state.rollout.blind_since == before.rollout.blind_since
    sim.readings = [Reading(at=sim.now, error="no answer")]
    state, _ = decide(state, replace(sim.observe(), unwatched=2.0), sim.now)
    assert state.rollout is not None
    assert state.rollout.blind_since == (before.rollout.blind_since or 0.0) + 2.0


def test_a_rollback_that_starts_a_release_again_is_not_paused(sim: Sim) -> None:
    reverting_cold(sim)
    sim.send(Pause(request="10-0", actor="ann"))
    assert sim.state.rollout is not None
    assert sim.state.rollout.mark is None


def test_what_goes_back_is_not_paused(sim: Sim) -> None:
    going_back(sim)
    sim.send(Pause(request="10-0", actor="ann"))
    assert sim.state.rollout is not None
    assert (sim.state.rollout.phase, sim.state.rollout.mark) == (Phase.ROLLING_BACK, None)


POSTPONED = {
    "route.changed_at",
    "drifted_since",
    "silent_since",
    "hung",
    "anew.at",
    "rollout.entered_at",
    "rollout.held_since",
    "rollout.blind_since",
    "rollout.mark.since",
    "rollout.breaches.since",
}
"""What is compared with now, or is the beginning of a wait."""
OTHERS = {
    "at": "of the commit",
    "previous_until": "what it ends is started again when somebody wants it",
    "overlooked": "seconds, which are taken out of the clocks of the queue",
    "stuck_since": "told",
    "switched": "told",
    "unknown": "the time that a rollback on the host has for its file passes whoever looks",
    "frozen.since": "told",
    "removal.since": "told",
    "rollout.began_at": "told",
    "rollout.exposed_since": "compared with readings",
    "rollout.retreat.at": "compared with when a release was asked for",
    "rollout.silent": "seconds between readings",
    "rollout.looked_at": "a reading",
    "rollout.block_from": "a reading",
    "rollout.baselines": "measured",
    "retiring.confirmed_at": "requests end whether somebody looks or not",
    "history.began_at": "told",
    "history.ended_at": "told",
}


def numbers_of(kind: object, path: str = "") -> set[str]:
    """The paths of all that may be a time in a type; not of releases, verdicts and evidence."""
    if kind is float:
        return {path}
    if kind in (Release, Verdict, Evidence):
        return set()
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        found = [numbers_of(hints[f.name], f"{path}.{f.name}".lstrip(".")) for f in fields(kind)]
    else:
        found = [numbers_of(part, path) for part in get_args(kind)]
    return set().union(*found)


def test_of_all_times_that_are_committed_it_is_said_whether_they_go_on_while_nobody_looks() -> None:
    assert numbers_of(ServiceState) == POSTPONED | OTHERS.keys()


def values_of(value: object, path: str) -> list[float]:
    """The times at a path of a state."""
    if isinstance(value, tuple):
        return [at for part in value for at in values_of(part, path)]
    if path and not isinstance(value, str):
        name, _, rest = path.partition(".")
        return values_of(getattr(value, name), rest)
    return [value] if isinstance(value, float) else []


def test_time_in_which_nobody_looked_is_taken_out_of_every_clock(sim: Sim) -> None:
    shifting(sim)
    since = sim.now - 100.0
    assert sim.state.rollout is not None
    rollout = replace(
        sim.state.rollout,
        entered_at=since,
        held_since=since,
        blind_since=since,
        mark=Mark(kind="paused", actor="ann", reason="", since=since),
        breaches=(Breach(gate="errors", since=since),),
    )
    state = replace(
        sim.state,
        confirmed=sim.state.route.generation - 1,
        route=replace(sim.state.route, changed_at=since),
        drifted_since=since,
        silent_since=since,
        hung=(("api-1-0", since),),
        anew=(Anew(release="api-1", instance="api-1-0", tries=1, at=since),),
        rollout=rollout,
    )
    for seconds, expected in ((40.0, since + 40.0), (600.0, sim.now)):
        turn = Turn(state, sim.now)
        exclude_unwatched(turn, seconds)
        assert {path: values_of(turn.state, path) for path in POSTPONED} == {p: [expected] for p in POSTPONED}


def unconfirmed_for(sim: Sim, seconds: float) -> float:
    """Seconds after which `edge_stuck` is told of a route that nginx does not come to serve."""
    began = sim.now
    while not any(isinstance(e, EdgeStuck) for e in sim.events):
        sim.step()
        assert sim.now - began < seconds
    return sim.now - began


@pytest.mark.parametrize("away", OUTAGES)
def test_a_change_has_its_whole_time_to_be_confirmed_when_somebody_looks_again(
    sim: Sim, away: Callable[[Sim], None]
) -> None:
    sim.kill("api-1-1")
    sim.edge_up = False
    sim.step()
    assert sim.state.route.generation > sim.state.confirmed
    away(sim)
    assert unconfirmed_for(sim, 120) > 59
    (stuck,) = [e for e in sim.events if isinstance(e, EdgeStuck)]
    assert stuck.reason == "not confirmed after 61 s"


@pytest.mark.parametrize("how", ["as the daemon wrote it", "on the host"])
def test_a_route_that_is_taken_up_has_its_whole_time_to_be_confirmed(sim: Sim, how: str) -> None:
    reverting(sim)
    sim.edge_up = True
    sim.run(5)
    assert sim.disk is not None
    if how == "on the host":
        route = replace(sim.disk.route, generation=sim.disk.route.generation + 1, changed_at=0.0)
        sim.disk = replace(sim.disk, route=route, local=LocalRollback(to="api-1", actor="ann", reason=""))
    sim.state = ServiceState(service="api")
    sim.events.clear()
    sim.lost, sim.edge_up, sim.served = True, False, 0
    sim.now += 86_400.0
    assert unconfirmed_for(sim, 120) > 59
