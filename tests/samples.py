"""Events as a service tells them."""

from typing import Any

from orchestrator.rollout.events import (
    ApprovalWanted,
    CommandAccepted,
    ConfigReloaded,
    EdgeDrifted,
    EdgeRepaired,
    EdgeStuck,
    Event,
    GateJudged,
    GateLook,
    GatesLooked,
    ImageResolved,
    InstanceDied,
    InstanceRecovered,
    PhaseEntered,
    ReleaseAccepted,
    ReleaseEnded,
    ReleaseRetired,
    RequestRefused,
    RollbackStarted,
    RolloutPaused,
    RouteChanged,
    RouteConfirmed,
    ServiceAdopted,
    ServiceRemoved,
    ServiceTroubled,
    StateRestored,
)
from orchestrator.rollout.model import Outcome, Phase, Result, Verdict

VERDICT = Verdict(
    gate="error_rate",
    result=Result.FAIL,
    unit="share",
    value=0.0889,
    limit=0.01,
    baseline=0.0021,
    samples=45,
    baseline_samples=1009,
    harm=120.0,
    text="...",
)


def ended(number: int = 7, at: float = 1000.0, **changes: Any) -> ReleaseEnded:
    given: dict[str, Any] = {
        "service": "api",
        "at": at,
        "release": f"api-{number}",
        "journey": "release",
        "outcome": Outcome.ROLLED_BACK,
        "actor": "orchestrator",
        "reason": "error_rate",
        "request": "1-0",
        "image": "repo/api:1",
        "seconds": 42.0,
        "verdict": VERDICT,
        "logs": "one\npanic: <!channel> boom\n",
    }
    return ReleaseEnded(**{**given, **changes})


EVENTS: tuple[Event, ...] = (
    ReleaseAccepted(service="api", at=1, release="api-7", image="a:1", actor="ci", reason="r", request="1-0"),
    RequestRefused(service="api", at=1, verb="pause", actor="ann", request="1-0", reason="nothing"),
    ended(),
    RollbackStarted(
        service="api",
        at=1,
        release="api-7",
        outcome=Outcome.ROLLED_BACK,
        actor="ann",
        reason="r",
        verdict=VERDICT,
    ),
    ApprovalWanted(
        service="api", at=1, release="api-7", phase=Phase.SHIFTING, step=0, reason="the step wants it"
    ),
    RolloutPaused(service="api", at=1, release="api-7", actor="ann", reason="lunch"),
    InstanceDied(
        service="api", at=1, release="api-7", instance="api-7-0", exit_code=3, reason="exited", logs=""
    ),
    EdgeDrifted(service="api", at=1, file="edited"),
    EdgeRepaired(service="api", at=1, generation=3),
    ServiceTroubled(service="api", at=1, reason="internal error, see the daemon's log: KeyError: 'Id'"),
    EdgeStuck(service="api", at=1, generation=3, reason="nginx -t: no"),
    StateRestored(service="api", at=1, found=3, remembered=5),
    CommandAccepted(service="api", at=1, verb="freeze", actor="ann", request="1-0", reason=""),
    PhaseEntered(
        service="api",
        at=1,
        release="api-7",
        phase=Phase.SHIFTING,
        step=1,
        steps=3,
        weight=15,
        actor="ci",
        reason="r",
    ),
    ImageResolved(service="api", at=1, release="api-7", image="a:1", digest="sha256:0"),
    RouteChanged(service="api", at=1, generation=3, shares=(("api-7", 5.0),), actor="ci", reason="r"),
    RouteConfirmed(service="api", at=1, generation=3),
    GateJudged(service="api", at=1, release="api-7", step=0, weight=5, verdict=VERDICT),
    GatesLooked(
        service="api",
        at=1,
        release="api-7",
        step=0,
        weight=5,
        generation=3,
        harm=2.0,
        looks=(GateLook(gate="error_rate", result=Result.PASS, value=0.01, baseline=0.02, samples=9),),
    ),
    InstanceRecovered(service="api", at=1, release="api-7", instance="api-7-0"),
    ReleaseRetired(service="api", at=1, release="api-7", drained=True),
    ServiceAdopted(
        service="api", at=1, release="api-7", candidate="api-8", previous="", generation=3, actor="o"
    ),
    ConfigReloaded(
        service="", at=1, actor="ann", request="1-0", changes=("api: is new",), problems=("x: no",)
    ),
    ServiceRemoved(service="api", at=1, actor="ann", reason="nobody uses it"),
)
"""One of each kind."""
