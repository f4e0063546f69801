"""What may be asked about a release now, and what a state knows of its releases."""

import pytest

from orchestrator.rollout.command import Approve, Freeze, Pause, Promote, Resume, Rollback, offers
from orchestrator.rollout.events import RequestRefused
from orchestrator.rollout.model import Outcome, Phase, ServiceState
from orchestrator.rollout.policy import Preview
from tests.builders import policy, submit
from tests.unit.sim import Sim


def test_a_first_release_can_be_given_up_but_not_gone_back_from(sim: Sim) -> None:
    assert offers(sim.state, "api-1") == ("freeze",)
    assert offers(sim.state, "api-2") == ()
    assert offers(ServiceState(service="new"), "") == ("freeze",)
    assert offers(sim.state, "") == ()


def test_each_phase_offers_what_it_would_carry_out(sim: Sim) -> None:
    sim.send(submit(2))
    assert offers(sim.state, "api-2") == ("abort",)
    sim.until_phase(Phase.STARTING)
    assert offers(sim.state, "api-2") == ("rollback", "pause", "freeze")
    assert offers(sim.state, "api-1") == ()
    sim.until_phase(Phase.SHIFTING)
    assert offers(sim.state, "api-2") == ("rollback", "pause", "promote", "freeze")
    sim.send(Pause(request="8-0", actor="ann"))
    assert offers(sim.state, "api-2") == ("rollback", "resume", "promote", "freeze")
    sim.send(Rollback(request="9-0", actor="ann"))
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.ROLLING_BACK
    assert offers(sim.state, "api-2") == ("freeze",)


def test_an_approval_is_offered_where_one_is_wanted(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(preview=Preview(hold=1.0, approve=True))))
    while sim.state.rollout is None or sim.state.rollout.mark is None:
        sim.step()
    assert "approve" in offers(sim.state, "api-2")
    sim.send(Approve(request="8-0", actor="ann"))
    assert "approve" not in offers(sim.state, "api-2")


def test_a_promoted_release_can_be_gone_back_from(sim: Sim) -> None:
    sim.send(submit(2))
    sim.until_ended("api-2")
    sim.step()
    assert offers(sim.state, "api-2") == ("rollback", "freeze")
    assert offers(sim.state, "api-1") == ()
    sim.send(Freeze(request="8-0", actor="ann"))
    assert offers(sim.state, "api-2") == ("rollback", "unfreeze")


def test_a_release_is_found_wherever_it_stands(sim: Sim) -> None:
    sim.send(submit(2))
    assert sim.state.known("api-2") == sim.state.queue[0]
    assert sim.state.rolling("api-2") is None
    sim.until_phase(Phase.SHIFTING)
    assert sim.state.rolling("api-2") is sim.state.rollout
    assert sim.state.rolling("api-1") is None
    sim.until_ended("api-2")
    sim.send(Rollback(request="8-0", actor="ann"))
    sim.run(3)
    assert [e.kind for e in sim.state.journeys("api-1")] == ["revert", "release"]
    assert [e.outcome for e in sim.state.journeys("api-2")] == [Outcome.PROMOTED]
    assert sim.state.known("api-1") == sim.state.stable
    assert sim.state.known("api-9") is None


@pytest.mark.parametrize("verb", [Pause, Resume, Approve, Promote])
def test_what_names_another_release_than_the_one_under_way_is_refused(
    sim: Sim, verb: type[Pause | Resume | Approve | Promote]
) -> None:
    sim.send(submit(2))
    sim.until_phase(Phase.SHIFTING)
    before = sim.state.rollout
    (told,) = sim.send(verb(request="8-0", actor="ann", release="api-1"))
    assert isinstance(told, RequestRefused)
    assert told.reason == "api-1 is not rolling out: api-2 is shifting"
    assert sim.state.rollout == before
