"""What was decided is decided again, from the events alone."""

from dataclasses import replace

import pytest

from orchestrator.rollout.events import Event, GatesLooked
from orchestrator.rollout.model import Outcome, Result
from orchestrator.rollout.policy import Certainty, Comparison, Policy
from orchestrator.rollout.replay import Replayed, replay
from orchestrator.store.codec import dump_event, load_event
from tests.builders import ERRORS as LIMIT
from tests.builders import submit
from tests.unit.sim import Sim
from tests.unit.test_comparison import ERRORS, P95, P99, compared


def looks(events: list[Event]) -> list[GatesLooked]:
    """As they come back from the store."""
    kept = [load_event(dump_event(e)) for e in events if isinstance(e, GatesLooked)]
    return [e for e in kept if isinstance(e, GatesLooked)]


def again(sim: Sim, policy: Policy) -> list[Replayed]:
    return list(replay(policy, looks(sim.events)))


@pytest.mark.parametrize(
    ("errors", "slow", "outcome"),
    [(0.0, 0.0, Outcome.PROMOTED), (0.05, 0.0, Outcome.ROLLED_BACK), (0.0, 0.2, Outcome.ROLLED_BACK)],
)
def test_every_verdict_is_the_same(sim: Sim, errors: float, slow: float, outcome: Outcome) -> None:
    policy = replace(
        compared(), limits=(replace(LIMIT, name="limit"), replace(LIMIT, name="trial", max=0.0, dry_run=True))
    )
    sim.behave("api-2").errors, sim.behave("api-2").slow = errors, slow
    sim.send(submit(2, policy=policy))
    assert sim.until_ended("api-2").outcome is outcome
    found = again(sim, policy)
    assert len(found) > 3
    assert [r.differences for r in found] == [()] * len(found)
    assert {v.gate for v in found[0].now.values()} >= {"errors", "limit", "trial"}


def test_a_candidate_without_requests_fails_again(sim: Sim) -> None:
    """Also by the looks of a version that counted all requests of the step, with which it failed earlier."""
    policy = compared(ERRORS)
    sim.behave("api-2").rate = 0.0
    sim.send(submit(2, policy=policy))
    assert "no request reached" in sim.until_ended("api-2").reason
    assert [d for r in again(sim, policy) for d in r.differences] == []
    older = [
        replace(look, looks=tuple(replace(gate, alone=None) for gate in look.looks))
        for look in looks(sim.events)
    ]
    results = [r.now["errors"].result for r in replay(policy, older)]
    assert results[:5] == [Result.INCONCLUSIVE] * 5
    assert results[-1] is Result.FAIL


def test_a_comparison_that_is_refused_at_first_is_judged_again(
    sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, scrape, until = compared(ERRORS, P95), Sim._scrape, sim.now + 12

    def refused(self: Sim) -> None:
        scrape(self)
        if self.now < until:
            self.readings[-1] = replace(self.readings[-1], refused={"errors": "query timed out"})

    monkeypatch.setattr(Sim, "_scrape", refused)
    sim.send(submit(2, policy=policy))
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert any(look.result is Result.NO_DATA for found in looks(sim.events) for look in found.looks)
    assert [d for r in again(sim, policy) for d in r.differences] == []


def test_a_restart_and_missing_data_in_between_change_nothing(sim: Sim) -> None:
    policy = compared(ERRORS, P95, P99)
    sim.send(submit(2, policy=policy))
    for _ in range(4):
        sim.run(6)
        sim.readings.clear()
        sim.prometheus_up = False
        sim.run(3)
        sim.prometheus_up = True
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert not [d for r in again(sim, policy) for d in r.differences]


def test_another_rule_says_where_it_would_have_decided_otherwise(sim: Sim) -> None:
    policy = compared(ERRORS)
    sim.behave("api-2").errors = 0.05
    sim.send(submit(2, policy=policy))
    sim.until_ended("api-2")
    blind = replace(
        policy, comparisons=(Comparison(name="errors", metric="error_rate", margin=0.2, budget=0.3),)
    )
    found = again(sim, blind)
    assert "errors: fail then, pass now" in found[-1].differences
    assert any("evidence of harm" in d for d in found[-1].differences)
    strict = replace(policy, certainty=Certainty(alpha=0.4))
    first = next(r for r in again(sim, strict) if r.now["errors"].result is Result.FAIL)
    assert first.then.looks[0].result is not Result.FAIL


def test_what_was_judged_then_and_is_not_known_now_is_a_difference(sim: Sim) -> None:
    policy = compared(ERRORS)
    sim.send(submit(2, policy=policy))
    sim.until_ended("api-2")
    gone = replace(policy, comparisons=())
    assert again(sim, gone)[-1].differences[0] == "errors: pass then, not judged now"
