"""Every verb about a named release, wherever that is: obeyed, or refused for a reason that is true."""

from collections.abc import Callable

import pytest

from orchestrator.rollout.command import Abort, Approve, Command, Freeze, Pause, Promote, Resume, Rollback
from orchestrator.rollout.events import CommandAccepted, ReleaseEnded, RequestRefused
from orchestrator.rollout.model import Outcome, Phase
from orchestrator.rollout.policy import Preview
from tests.builders import policy, submit
from tests.unit.sim import Sim

OBEYED = ""


def _queued(sim: Sim) -> str:
    sim.send(submit(2))
    return "api-2"


def _frozen(sim: Sim) -> str:
    sim.send(Freeze(request="f-0", actor="ann"))
    return _queued(sim)


def _behind_another(sim: Sim) -> str:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING, held=True)
    sim.send(submit(3, policy=policy(on_new_release="queue")))
    return "api-3"


def _behind_a_rollback(sim: Sim) -> str:
    _rolling_back(sim)
    sim.send(submit(3, policy=policy(on_new_release="queue")))
    return "api-3"


def _preflight(sim: Sim) -> str:
    sim.image_there = False
    _queued(sim)
    sim.until_phase(Phase.PREFLIGHT)
    return "api-2"


def _starting(sim: Sim) -> str:
    sim.behave("api-2").never_ready = True
    _queued(sim)
    sim.until_phase(Phase.STARTING)
    return "api-2"


def _preview(sim: Sim) -> str:
    sim.send(submit(2, policy=policy(preview=Preview(hold=50.0))))
    sim.until_phase(Phase.PREVIEW)
    return "api-2"


def _shifting(sim: Sim) -> str:
    _queued(sim)
    sim.until_phase(Phase.SHIFTING, held=True)
    return "api-2"


def _baking(sim: Sim) -> str:
    _queued(sim)
    sim.until_phase(Phase.BAKING, 2, held=True)
    return "api-2"


def _rolling_back(sim: Sim) -> str:
    _shifting(sim)
    sim.edge_up = False
    sim.send(Rollback(request="r-0", actor="bob"))
    sim.step()
    return "api-2"


def _reverting_to(sim: Sim) -> str:
    _stable(sim)
    sim.edge_up = False
    sim.send(Rollback(request="r-0", actor="bob"))
    sim.step()
    return "api-1"


def _reverting_from(sim: Sim) -> str:
    _reverting_to(sim)
    return "api-2"


def _stable(sim: Sim) -> str:
    _queued(sim)
    sim.until_ended("api-2")
    return "api-2"


def _previous(sim: Sim) -> str:
    _stable(sim)
    return "api-1"


def _rolled_back(sim: Sim) -> str:
    _shifting(sim)
    sim.send(Rollback(request="r-0", actor="bob"))
    sim.until_ended("api-2")
    return "api-2"


def _aborted(sim: Sim) -> str:
    _queued(sim)
    sim.send(Abort(request="a-0", actor="bob", release="api-2"))
    return "api-2"


def _unknown(sim: Sim) -> str:
    return "api-9"


VERBS: tuple[type[Rollback | Abort | Pause | Resume | Approve | Promote], ...] = (
    Rollback,
    Abort,
    Pause,
    Resume,
    Approve,
    Promote,
)
BACK = "is being rolled back to api-1 already, by bob"
NEITHER = "is neither rolling out nor queued"
NOT = "is not rolling out"
QUEUED = "is still queued"
NO_PAUSE, NO_APPROVAL, NO_PROMOTION = (
    "there is no paused rollout",
    "there is no rollout that waits for approval",
    "there is nothing to promote",
)
TABLE: tuple[tuple[Callable[[Sim], str], tuple[str, ...]], ...] = (
    (_queued, (OBEYED, OBEYED, QUEUED, QUEUED, QUEUED, QUEUED)),
    (_frozen, (OBEYED, OBEYED, QUEUED, QUEUED, QUEUED, QUEUED)),
    (_behind_another, (OBEYED, OBEYED, QUEUED, QUEUED, QUEUED, QUEUED)),
    (_behind_a_rollback, (OBEYED, OBEYED, QUEUED, QUEUED, QUEUED, QUEUED)),
    (_preflight, (OBEYED, OBEYED, OBEYED, NO_PAUSE, NO_APPROVAL, NO_PROMOTION)),
    (_starting, (OBEYED, OBEYED, OBEYED, NO_PAUSE, NO_APPROVAL, NO_PROMOTION)),
    (_preview, (OBEYED, OBEYED, OBEYED, NO_PAUSE, NO_APPROVAL, OBEYED)),
    (_shifting, (OBEYED, OBEYED, OBEYED, NO_PAUSE, NO_APPROVAL, OBEYED)),
    (_baking, (OBEYED, OBEYED, OBEYED, NO_PAUSE, NO_APPROVAL, NO_PROMOTION)),
    (_rolling_back, (BACK, BACK, BACK, NO_PAUSE, NO_APPROVAL, NO_PROMOTION)),
    (_reverting_to, (BACK, BACK, "a rollback is not paused", NO_PAUSE, NO_APPROVAL, NO_PROMOTION)),
    (_reverting_from, (BACK, NEITHER, NOT, NOT, NOT, NOT)),
    (_stable, (OBEYED, NEITHER, NOT, NOT, NOT, NOT)),
    (_previous, ("api-1 has no traffic any more: stable is api-2", NEITHER, NOT, NOT, NOT, NOT)),
    (_rolled_back, ("api-2 has no traffic any more: stable is api-1", NEITHER, NOT, NOT, NOT, NOT)),
    (_aborted, ("api-2 has no traffic: it has ended (aborted: aborted by bob)", NEITHER, *[NOT] * 4)),
    (_unknown, ("'api-9' is no release that is remembered of api", NEITHER, NOT, NOT, NOT, NOT)),
)


def _cells() -> list[object]:
    return [
        pytest.param(place, verb, said, id=f"{verb.__name__.lower()}-{place.__name__.strip('_')}")
        for place, row in TABLE
        for verb, said in zip(VERBS, row, strict=True)
    ]


def _asked(sim: Sim, command: Command) -> str:
    first, *_ = sim.send(command)
    assert isinstance(first, CommandAccepted | RequestRefused)
    return first.reason if isinstance(first, RequestRefused) else OBEYED


@pytest.mark.parametrize(("place", "verb", "said"), _cells())
def test_a_verb_is_obeyed_or_refused_for_a_true_reason_wherever_its_release_is(
    sim: Sim, place: Callable[[Sim], str], verb: type[Rollback], said: str
) -> None:
    release = place(sim)
    answer = _asked(sim, verb(request="9-0", actor="ann", release=release))
    assert said in answer if said else answer == OBEYED


@pytest.mark.parametrize(
    ("place", "where"),
    [(_frozen, "still queued"), (_behind_another, "still queued"), (_preflight, "in preflight")],
)
def test_a_rollback_ends_what_has_no_traffic_yet_and_says_so(
    sim: Sim, place: Callable[[Sim], str], where: str
) -> None:
    release = place(sim)
    accepted, *_ = sim.send(Rollback(request="9-0", actor="ann", release=release))
    assert isinstance(accepted, CommandAccepted)
    assert (accepted.release, accepted.note) == (release, f"{release} was {where} and has had no traffic")
    (ended,) = [e for e in sim.events if isinstance(e, ReleaseEnded) and e.release == release]
    assert (ended.outcome, ended.actor, ended.reason) == (Outcome.ABORTED, "ann", "rolled back by ann")
    sim.run(60)
    assert sim.share(release) == 0


def test_a_queued_release_is_not_taken_for_a_way_back_from_stable(sim: Sim) -> None:
    _stable(sim)
    sim.send(Freeze(request="f-0", actor="ann"))
    sim.send(submit(3))
    words = _asked(sim, Rollback(request="9-0", actor="ann", release="api-3", to="api-1"))
    assert words == "api-3 is still queued; roll that back first, or abort it"
    assert _asked(sim, Rollback(request="9-1", actor="ann", release="api-3", to="api-2")) == OBEYED
    assert (sim.state.queue, sim.state.rollout) == ((), None)


def test_a_rollback_that_names_nothing_is_about_stable_while_others_only_wait(sim: Sim) -> None:
    _stable(sim)
    sim.send(Freeze(request="f-0", actor="ann"))
    sim.send(submit(3))
    assert "name the queued one that is meant: api-3" in _asked(sim, Abort(request="9-0", actor="ann"))
    assert _asked(sim, Rollback(request="9-1", actor="ann")) == OBEYED
    assert sim.state.rolling("api-1") is not None
    assert [r.id for r in sim.state.queue] == ["api-3"]
