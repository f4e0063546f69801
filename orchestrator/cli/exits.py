"""Exit codes, so that a pipeline can tell one end from another."""

from orchestrator.rollout.model import Outcome

OK = 0
UNREACHABLE = 1
USAGE = 2
REFUSED = 10
TIMED_OUT = 15

OUTCOMES = {
    Outcome.PROMOTED: OK,
    Outcome.REJECTED: REFUSED,
    Outcome.ROLLED_BACK: 11,
    Outcome.SUPERSEDED: 12,
    Outcome.ABORTED: 13,
    Outcome.FAILED: 14,
}
"""What `release --wait` exits with."""
