"""Everything that can be told of a service: a closed union of frozen records.

An event is committed in the same step as the state that it describes, so readers of the stream see each
fact exactly once. `kind` is the stable name that logs, metrics and notifications use.
"""

from dataclasses import dataclass
from typing import Literal

from orchestrator.rollout.evidence import Block, Evidence
from orchestrator.rollout.model import Outcome, Phase, Result, Verdict
from orchestrator.rollout.policy import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    service: str
    at: float
    release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAccepted(_Event):
    """A request became a release.

    Attributes:
        duplicate: Its key had been used for this release before.
        frozen: Who has frozen the service, and why, where the release waits for that to end.
        note: What it did besides: that it has called a removal off.
    """

    kind: Literal["release_accepted"] = "release_accepted"
    image: str
    actor: str
    reason: str
    request: str
    link: str = ""
    duplicate: bool = False
    frozen: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused(_Event):
    """A request changed nothing; `reason` says why and what would be right."""

    kind: Literal["request_refused"] = "request_refused"
    verb: str
    actor: str
    request: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAccepted(_Event):
    """A person's command took effect. `note`: what it did, where the verb alone does not say it."""

    kind: Literal["command_accepted"] = "command_accepted"
    verb: str
    actor: str
    request: str
    reason: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEntered(_Event):
    """A rollout entered a phase, or a step of `shifting` or `baking` with this weight in percent."""

    kind: Literal["phase_entered"] = "phase_entered"
    phase: Phase
    step: int
    steps: int
    weight: int
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResolved(_Event):
    """The reference was resolved, once, to what will run.

    `note`: that the registry did not answer, that stable runs the same.
    """

    kind: Literal["image_resolved"] = "image_resolved"
    image: str
    digest: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteChanged(_Event):
    """What nginx must serve has changed. `shares`: release id to percent, then backups with 0."""

    kind: Literal["route_changed"] = "route_changed"
    generation: int
    shares: tuple[tuple[str, float], ...]
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfirmed(_Event):
    """nginx was seen to serve the generation."""

    kind: Literal["route_confirmed"] = "route_confirmed"
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJudged(_Event):
    """A gate's result changed, or a step ended on it."""

    kind: Literal["gate_judged"] = "gate_judged"
    step: int
    weight: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLook:
    """What one gate said at one look, and the measurements that make it say so again.

    Attributes:
        missing: Why there was nothing to judge.
        block: The counts that a comparison took in at this look; None when there was no new scrape.
        certifies: Whether the block counted for safety.
        alone: See `Evidence`; None without a block, and where an older version has looked.
        begun: The comparison's evidence before its first block, at its first look.
    """

    gate: str
    result: Result
    unit: Unit = ""
    limit: float | None = None
    value: float | None = None
    baseline: float | None = None
    samples: int = 0
    baseline_samples: int = 0
    harm: float | None = None
    safety: float | None = None
    missing: str = ""
    block: Block | None = None
    certifies: bool = False
    alone: float | None = None
    begun: Evidence | None = None

    @classmethod
    def of(cls, verdict: Verdict) -> "GateLook":
        """The part of a verdict that is kept for every look."""
        return cls(
            gate=verdict.gate,
            result=verdict.result,
            unit=verdict.unit,
            limit=verdict.limit,
            value=verdict.value,
            baseline=verdict.baseline,
            samples=verdict.samples,
            baseline_samples=verdict.baseline_samples,
            harm=verdict.harm,
            safety=verdict.safety,
            missing=verdict.text if verdict.result is Result.NO_DATA else "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatesLooked(_Event):
    """All gates were looked at, after a scrape. `harm`: evidence of harm of the whole release."""

    kind: Literal["gates_looked"] = "gates_looked"
    step: int
    weight: int
    generation: int
    harm: float
    looks: tuple[GateLook, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceDied(_Event):
    """An instance that should run does not. `logs`: its last lines."""

    kind: Literal["instance_died"] = "instance_died"
    instance: str
    exit_code: int | None
    reason: str
    logs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecovered(_Event):
    """An instance that had died is ready again."""

    kind: Literal["instance_recovered"] = "instance_recovered"
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalWanted(_Event):
    """The rollout waits for a person."""

    kind: Literal["approval_wanted"] = "approval_wanted"
    phase: Phase
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPaused(_Event):
    """The rollout stands still, by a person or by a policy."""

    kind: Literal["rollout_paused"] = "rollout_paused"
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackStarted(_Event):
    """All traffic goes back to stable."""

    kind: Literal["rollback_started"] = "rollback_started"
    outcome: Outcome
    actor: str
    reason: str
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseEnded(_Event):
    """A journey reached its outcome. `seconds`: since it left the queue; `author`: whose release it is."""

    kind: Literal["release_ended"] = "release_ended"
    journey: Literal["release", "revert"]
    outcome: Outcome
    actor: str
    reason: str
    request: str
    image: str
    seconds: float
    author: str = ""
    link: str = ""
    verdict: Verdict | None = None
    logs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRetired(_Event):
    """A release's last requests have ended, or its drain deadline passed; its containers stop."""

    kind: Literal["release_retired"] = "release_retired"
    drained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeDrifted(_Event):
    """The file that nginx reads is not the one that was written."""

    kind: Literal["edge_drifted"] = "edge_drifted"
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRepaired(_Event):
    """The file is ours again."""

    kind: Literal["edge_repaired"] = "edge_repaired"
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStuck(_Event):
    """nginx does not confirm what it must serve; traffic stays as it was."""

    kind: Literal["edge_stuck"] = "edge_stuck"
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTroubled(_Event):
    """The daemon has met a bug in driving a service, and tries again; with an empty `reason` it is over."""

    kind: Literal["service_troubled"] = "service_troubled"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAdopted(_Event):
    """Nothing was committed for a service that runs, so it was taken up as it was found.

    `release` is the one taken for stable; `candidate` and `previous` are empty when there was none.
    """

    kind: Literal["service_adopted"] = "service_adopted"
    candidate: str
    previous: str
    generation: int
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRestored(_Event):
    """The store had lost commits; what the daemon remembered was written again. Versions count commits."""

    kind: Literal["state_restored"] = "state_restored"
    found: int
    remembered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRemoved(_Event):
    """Nothing of a service is left: no traffic, no instance, no file of nginx'."""

    kind: Literal["service_removed"] = "service_removed"
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReloaded(_Event):
    """The daemon was asked to read its files again. `service` is empty: it is about all of them.

    Attributes:
        changes: What has changed, a line for each service and one for the daemon.
        problems: What is wrong; what it says of stays as it was.
    """

    kind: Literal["config_reloaded"] = "config_reloaded"
    actor: str
    request: str
    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


Event = (
    ReleaseAccepted
    | RequestRefused
    | CommandAccepted
    | PhaseEntered
    | ImageResolved
    | RouteChanged
    | RouteConfirmed
    | GateJudged
    | GatesLooked
    | InstanceDied
    | InstanceRecovered
    | ApprovalWanted
    | RolloutPaused
    | RollbackStarted
    | ReleaseEnded
    | ReleaseRetired
    | EdgeDrifted
    | EdgeRepaired
    | EdgeStuck
    | ServiceTroubled
    | ServiceAdopted
    | StateRestored
    | ServiceRemoved
    | ConfigReloaded
)
