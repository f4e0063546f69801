"""Redis that is restored from a backup, whatever was under way then and whatever is by now."""

import copy
from itertools import combinations

import pytest

from orchestrator.rollout.command import Abort, Freeze, Remove, Rollback, Unfreeze
from orchestrator.rollout.decide import decide
from orchestrator.rollout.desired import desired
from orchestrator.rollout.model import Outcome, Phase, ServiceState
from tests.builders import policy, submit
from tests.unit.sim import Sim


def life() -> dict[str, Sim]:
    """The world of one service at moments of its life, in their order."""
    sim, moments = Sim(), {}

    def keep(moment: str) -> None:
        moments[moment] = copy.deepcopy(sim)

    sim.send(submit(1))
    sim.until_ended("api-1")
    keep("stable")
    sim.send(submit(2, policy=policy(on_new_release="queue")))
    sim.step()
    keep("starting")
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(submit(3, policy=policy(on_new_release="queue")))
    keep("shifting")
    sim.until_phase(Phase.BAKING, 2, held=True)
    keep("baking")
    sim.until_ended("api-2")
    sim.behave("api-3").errors = 0.5
    keep("promoted")
    sim.until_phase(Phase.SHIFTING, held=True)
    while not (sim.state.rollout and sim.state.rollout.phase is Phase.ROLLING_BACK):
        sim.edge_up = sim.state.rollout is None or not sim.state.rollout.breaches
        sim.step()
    keep("going back")
    moments["going back"].edge_up = sim.edge_up = True
    sim.until_ended("api-3")
    sim.edge_up = False
    sim.send(Rollback(request="20-0", actor="ann"))
    sim.step()
    keep("reverting")
    moments["reverting"].edge_up = sim.edge_up = True
    sim.until_ended("api-1")
    sim.run(5)
    keep("reverted")
    sim.send(Freeze(request="21-0", actor="ann"))
    sim.send(submit(4))
    keep("queued")
    sim.send(Abort(request="22-0", actor="ann", release="api-4"))
    sim.send(Unfreeze(request="23-0", actor="ann"))
    sim.stop_takes = 5.0
    sim.send(Remove(request="24-0", actor="ann"))
    sim.run(2)
    keep("being removed")
    sim.run(30)
    keep("removed")
    sim.stop_takes = 0.0
    sim.send(submit(5))
    sim.until_ended("api-5")
    keep("released again")
    return moments


MOMENTS = life()
EMPTY = ServiceState(service="api")


def users_of(sim: Sim) -> set[str]:
    """The releases that nginx sends users to."""
    return {s.release for s in sim.disk.route.servers if not s.backup} if sim.disk else set()


@pytest.mark.parametrize("then", MOMENTS)
def test_whatever_the_store_goes_back_to_all_ends_where_the_users_are(then: str) -> None:
    earlier = [m for m, now in combinations(MOMENTS, 2) if now == then]
    for moment, older in {"nothing": EMPTY, **{m: MOMENTS[m].state for m in earlier}}.items():
        sim = copy.deepcopy(MOMENTS[then])
        sim.drained = True
        before, known = users_of(sim), sim.disk.released if sim.disk else 0
        sim.store_goes_back(older)
        sim.unwatched = 600.0
        for seconds in (1.0,) * 40 + (10.0,) * 60:
            sim.step(seconds)
            assert users_of(sim) or not before or then == "being removed", f"{moment}: users are on nobody"
        about = f"from {then} back to {moment}"
        state = sim.state
        assert (state.rollout, state.queue) == (None, ()), about
        assert users_of(sim) == ({state.stable.id} if state.stable else set()), about
        assert state.confirmed == state.route.generation, about
        if len(before) == 1 and then not in ("baking", "going back", "reverting"):
            assert users_of(sim) == before, about
        if then in ("being removed", "removed"):
            assert (users_of(sim), sim.instances) == (set(), {}), about
        if state.frozen:
            sim.send(Unfreeze(request="30-0", actor="ann"))
        new = sim.send(submit(9))[0].release
        assert int(new.removeprefix("api-")) > known, about
        assert sim.until_ended(new).outcome is Outcome.PROMOTED, about


def flights() -> dict[str, tuple[Sim, frozenset[str]]]:
    """Moments of another life, each with the releases that somebody has gone back from by then."""
    sim, moments = Sim(), {}

    def keep(moment: str, *left: str) -> None:
        moments[moment] = copy.deepcopy(sim), frozenset(left)

    def step_until_quiet() -> None:
        while sim.state.rollout is not None:
            sim.step()

    for number in (1, 2, 3):
        sim.send(submit(number))
        if number == 3:
            sim.until_phase(Phase.SHIFTING, held=True)
            keep("3 has a share")
        sim.until_ended(f"api-{number}")
        keep(f"{number} is promoted")
    sim.roll_back_on_host()
    keep("3 to 2 on the host", "api-3")
    sim.step()
    step_until_quiet()
    keep("3 to 2", "api-3")
    sim.send(Rollback(request="20-0", actor="ann"))
    sim.state, events = decide(sim.state, sim.observe(), sim.now)
    sim.events += events
    step_until_quiet()
    keep("2 to 1", "api-2", "api-3")
    sim.send(submit(4))
    sim.until_ended("api-4")
    keep("4 is promoted", "api-2", "api-3")
    sim.roll_back_on_host()
    keep("4 to 1 on the host", "api-2", "api-3", "api-4")
    sim.run(5)
    keep("4 to 1", "api-2", "api-3", "api-4")
    return moments


FLIGHTS = flights()


@pytest.mark.parametrize("then", FLIGHTS)
def test_whatever_the_store_goes_back_to_nobody_goes_back_to_a_release_that_somebody_left(then: str) -> None:
    earlier = [m for m, now in combinations(FLIGHTS, 2) if now == then]
    for moment, older in {"nothing": EMPTY, **{m: FLIGHTS[m][0].state for m in earlier}}.items():
        sim, left = copy.deepcopy(FLIGHTS[then][0]), FLIGHTS[then][1]
        before, about = users_of(sim), f"from {then} back to {moment}"
        sim.store_goes_back(older)
        sim.unwatched = 600.0
        for _ in range(60):
            sim.step()
            assert users_of(sim) == before or len(before) > 1, about
            assert not (users_of(sim) & left), about
        fallback = desired(sim.state, sim.now).fallback
        assert fallback is None or not ({s.release for s in fallback.servers} & left), about
        sim.send(Rollback(request="30-0", actor="bob"))
        sim.run(30)
        assert not (users_of(sim) & left), about


def test_a_rollback_to_a_release_whose_image_is_gone_fails_says_so_and_leaves_another_way() -> None:
    """An older history names releases whose images were removed since."""
    sim = copy.deepcopy(MOMENTS["promoted"])
    older = sim.state
    sim.until_ended("api-3")
    sim.send(submit(5))
    sim.until_ended("api-4")
    sim.run(120)
    sim.store_goes_back(older)
    sim.run(150)
    assert (sim.state.stable and sim.state.stable.id, sim.state.previous) == ("api-4", None)
    assert sim.state.earlier is not None
    gone = sim.state.earlier.id
    sim.image_error = "no such image"
    for _ in range(2):
        sim.send(Rollback(request=f"{len(sim.events)}-7", actor="ann"))
        ended = sim.until_ended(gone, 60)
        sim.run(3)
        assert (ended.journey, ended.outcome) == ("revert", Outcome.FAILED)
        assert "no such image" in ended.reason
        assert (users_of(sim), sim.state.rollout) == ({"api-4"}, None)
    sim.image_error = ""
    sim.send(Rollback(request="40-0", actor="ann", to="api-1"))
    sim.run(10)
    assert users_of(sim) == {"api-1"}
