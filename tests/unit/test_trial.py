"""A ladder of comparisons without a service."""

from orchestrator.rollout.evidence import Block, begin
from orchestrator.rollout.trial import Trial
from tests.unit.test_comparison import ERRORS, P95
from tests.unit.test_rehearsal import policy


def test_a_bad_release_ends_its_trial_and_the_worst_comparison_is_known() -> None:
    trial = Trial(policy(ERRORS, P95), {"errors": begin(ERRORS), "p95": begin(P95, bound=0.1)})
    blocks = {"errors": Block(100, 30, 1000, 2), "p95": Block(100, 5, 1000, 50)}
    assert trial.see(blocks, 1.0) is None
    assert trial.evidence["p95"] == Trial(trial.policy, {"p95": begin(P95, bound=0.1)}).evidence["p95"]
    ends = (trial.see(blocks, 5.0) for _ in range(20))
    assert next(filter(None, ends)) == "rolled_back"
    assert (trial.step, trial.worst) == (0, "errors")
