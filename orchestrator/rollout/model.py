"""The values of a rollout: releases, routes, verdicts, what is committed for a service."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from orchestrator.rollout.evidence import Evidence, interval
from orchestrator.rollout.policy import Policy, Template, Unit

SERVICE_NAME = re.compile("[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")

NUMBER = re.compile("[0-9]{1,10}")
"""How release ids end."""

FULL = 100
"""The whole of a service's traffic, in percent."""


class Phase(StrEnum):
    """Where the journey of a release stands. A queued release has no rollout yet; a done one is `Ended`."""

    PREFLIGHT = "preflight"
    STARTING = "starting"
    PREVIEW = "preview"
    SHIFTING = "shifting"
    BAKING = "baking"
    ROLLING_BACK = "rolling_back"


BEFORE_TRAFFIC = frozenset({Phase.PREFLIGHT, Phase.STARTING, Phase.PREVIEW})
"""Phases in which the candidate has no traffic yet."""


class Outcome(StrEnum):
    """How a journey ended. Every accepted release reaches exactly one."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    ABORTED = "aborted"
    FAILED = "failed"


class Result(StrEnum):
    """What a gate says of the measurements."""

    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NO_DATA = "no_data"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One immutable version of a service: an image and the template it is run with.

    Attributes:
        id: `service-n`, unique for the service.
        image: The reference as it was asked for.
        digest: What runs: `repository@sha256:...` or a local image id; empty until preflight.
        author: Who asked.
        reason: Why.
        link: Where the build can be seen.
        submitted_at: When it was accepted.
        request: The id of the request that it came by.
    """

    id: str
    service: str
    image: str
    template: Template
    policy: Policy
    author: str
    reason: str
    submitted_at: float
    request: str
    link: str = ""
    digest: str = ""

    @property
    def number(self) -> int:
        """The number in its id; 0 where it is none that was ever given out."""
        number = self.id.rpartition("-")[2]
        return int(number) if NUMBER.fullmatch(number) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One address that nginx sends traffic to, and the instance that must answer there."""

    address: str
    weight: int
    release: str
    instance: str
    container: str
    started_at: str
    backup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What nginx must serve for a service. `generation` grows with every change and never goes down.

    `gone`: that nothing of the service is left in nginx.
    """

    generation: int = 0
    servers: tuple[Server, ...] = ()
    preview: tuple[Server, ...] = ()
    changed_at: float = 0.0
    gone: bool = False

    def share(self, release: str) -> float:
        """The share of traffic that a release gets, 0 to 1; backups get none."""
        total = sum(s.weight for s in self.servers if not s.backup)
        mine = sum(s.weight for s in self.servers if s.release == release and not s.backup)
        return mine / total if total else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one gate said at one look.

    Attributes:
        unit: Of value, limit and baseline.
        value: The candidate's value, None without data.
        limit: The limit that was compared with; the broken one if one is broken.
        baseline: Stable's value, None when there is none.
        samples: Candidate requests that it rests on.
        baseline_samples: Stable's requests that it rests on.
        bad: Bad ones among the candidate's requests; for comparisons.
        baseline_bad: Bad ones among stable's.
        harm: Evidence of harm of a comparison, see `rollout/evidence.py`; 1 says nothing.
        safety: Its evidence of safety in this step.
        generation: The generation served when it was measured.
        broken: Whether the limit is broken at this look.
        dry_run: Whether the gate only reports.
        text: One plain sentence.
    """

    gate: str
    result: Result
    unit: Unit = ""
    value: float | None = None
    limit: float | None = None
    baseline: float | None = None
    samples: int = 0
    baseline_samples: int = 0
    bad: int = 0
    baseline_bad: int = 0
    harm: float | None = None
    safety: float | None = None
    generation: int = 0
    broken: bool = False
    dry_run: bool = False
    text: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """In which the candidate's true value lies, with 95 %; for comparisons."""
        return None if self.harm is None else interval(self.bad, self.samples)

    @property
    def baseline_interval(self) -> tuple[float, float] | None:
        """In which stable's true value lies, with 95 %; None where it was not measured."""
        return interval(self.baseline_bad, self.baseline_samples) if self.baseline_samples else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a person or the daemon has put on a phase or a service, with who, why and since when."""

    kind: Literal["paused", "awaiting_approval", "frozen", "removing", "removed"]
    actor: str
    reason: str
    since: float

    @property
    def by(self) -> str:
        """Who, and why where that was said."""
        return f"{self.actor}: {self.reason}" if self.reason else self.actor


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A limit that is broken since a moment."""

    gate: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retreat:
    """Why a rollout goes back, and what its outcome will be once stable is confirmed.

    Attributes:
        at: When it was given up.
    """

    outcome: Outcome
    actor: str
    reason: str
    verdict: Verdict | None = None
    logs: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The journey of one release.

    Attributes:
        kind: `release` climbs the ladder; `revert` takes an earlier release back by the fast path.
        entered_at: When the phase, or the step in it, was entered.
        held_since: When nginx confirmed the step's weight, or the preview began; None before.
        exposed_since: When nginx first confirmed any traffic for the candidate; None before.
        silent: Seconds without data for the candidate, up to the last look: between readings in a row that
            Prometheus answered.
        blind_since: When Docker or Prometheus was first seen not to answer; None while both do.
        blind_to: Which of them that is; empty while both answer.
        looked_at: The reading that the gates last looked at in this step; None before.
        block_from: The reading that the comparisons have counted up to; None before the first.
        evidence: What the comparisons have seen, over all steps.
        breaches: Limits that are broken now.
        verdicts: What the gates said at the last look.
        baselines: Stable's last measured value per gate, for when stable has no traffic.
        approved: Whether the current step has been approved.
        skipped: Whether a person has skipped the rest of the ladder.
        hooks_for: The step that is entered as soon as its hooks have passed; None before it is its turn.
        mark: Paused, or waiting for approval.
        retreat: Set in `rolling_back`.
        lives: Whether an instance of it is known to live; looked at in `rolling_back`.
        actor: Who caused the last move, for the audit of the route.
    """

    release: Release
    kind: Literal["release", "revert"] = "release"
    phase: Phase = Phase.PREFLIGHT
    step: int = 0
    began_at: float
    entered_at: float
    held_since: float | None = None
    exposed_since: float | None = None
    silent: float = 0.0
    blind_since: float | None = None
    blind_to: str = ""
    looked_at: float | None = None
    block_from: float | None = None
    evidence: tuple[Evidence, ...] = ()
    breaches: tuple[Breach, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    baselines: tuple[tuple[str, float], ...] = ()
    approved: bool = False
    skipped: bool = False
    hooks_for: int | None = None
    mark: Mark | None = None
    retreat: Retreat | None = None
    lives: bool = True
    actor: str
    reason: str

    @property
    def one_way(self) -> bool:
        """Whether it is a revert that takes the traffic: nothing sends users back to what is being left."""
        return self.kind == "revert" and self.phase is Phase.BAKING

    @property
    def takes_back(self) -> bool:
        """Whether it takes users to a release that was good before."""
        return self.one_way or self.phase is Phase.ROLLING_BACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Retiring:
    """A release that lost its traffic and waits for its last requests to end.

    Attributes:
        generation: The first generation that does not name it; None until the route has been made anew.
        confirmed_at: When that generation was confirmed; None before.
        was: What it was before the service's removal began, so that this can be called off.
    """

    release: Release
    generation: int | None = None
    confirmed_at: float | None = None
    was: Literal["", "stable", "previous"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One finished journey, as history keeps it."""

    release: Release
    kind: Literal["release", "revert"]
    outcome: Outcome
    reason: str
    actor: str
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """An idempotency key that was used, and the release that it made."""

    key: str
    image: str
    release: str
    strategy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anew:
    """The instance of a release that is made anew, or was last, because it hung.

    Attributes:
        container: The one that hung; the one in its place once that is seen.
        tries: How many in a row are there anew, while none of those has become well.
        at: When the last of them began.
    """

    release: str
    instance: str
    container: str = ""
    tries: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """All that is committed for one service. Replaced whole, in one atomic step with its events.

    Attributes:
        previous: The release before stable; warm until `previous_until`.
        at: When it was committed; no later state has an earlier time.
        confirmed: The highest generation that nginx was seen to serve.
        released: How many release ids have been given out.
        overlooked: Seconds in which nobody drove the service while there was a queue.
        handled: Ids of the last requests that were carried out or refused, against a second delivery.
        drifted_since: When the edge's file was first seen to differ from ours; None when it does not.
        stuck_since: When the edge began to refuse or not confirm; None when it does not.
        stuck_why: What nginx or the edge said of it; empty when it is not stuck.
        switched: On the way back, the release that all users are on by the rollback switch, and since when.
        silent_since: When nginx ceased to say what it serves; None when it says so.
        dead: Instances of stable and previous whose death has been told.
        hung: Those that run and fail their probe, each with since when.
        anew: What is made anew of them, one instance of a release at a time.
        unknown: The generation that nginx serves where its file and the store are older, and since when.
        overruled: The last such generation that somebody has put another route over.
        answered: The generation of the last rollback on the host that was followed.
        trouble: The bug that the daemon meets in driving the service; empty where it meets none.
        removal: Set while the service is taken down, and from then on until it is released again.
    """

    service: str
    at: float = 0.0
    stable: Release | None = None
    previous: Release | None = None
    previous_until: float | None = None
    rollout: Rollout | None = None
    queue: tuple[Release, ...] = ()
    history: tuple[Ended, ...] = ()
    retiring: tuple[Retiring, ...] = ()
    frozen: Mark | None = None
    route: Route = Route()
    confirmed: int = 0
    released: int = 0
    overlooked: float = 0.0
    receipts: tuple[Receipt, ...] = ()
    handled: tuple[str, ...] = ()
    drifted_since: float | None = None
    stuck_since: float | None = None
    stuck_why: str = ""
    switched: tuple[str, float] | None = None
    silent_since: float | None = None
    dead: tuple[str, ...] = ()
    hung: tuple[tuple[str, float], ...] = ()
    anew: tuple[Anew, ...] = ()
    unknown: tuple[int, float] | None = None
    overruled: int = 0
    answered: int = 0
    trouble: str = ""
    removal: Mark | None = None

    @property
    def current(self) -> str:
        """What a service is at: the release that rolls out, else stable; '' where there is neither."""
        if self.rollout is not None:
            return self.rollout.release.id
        return self.stable.id if self.stable else ""

    @property
    def meant(self) -> str:
        """What a verb is about that names no release: `current`; during a revert, what is being left."""
        if self.rollout is not None and self.rollout.kind == "revert" and self.stable is not None:
            return self.stable.id
        return self.current

    @property
    def wanted(self) -> frozenset[str]:
        """The releases whose instances are wanted: stable, previous, and what rolls out, once it starts."""
        begun = self.rollout is not None and self.rollout.phase is not Phase.PREFLIGHT
        rolling = self.rollout.release if self.rollout is not None and begun else None
        return frozenset(r.id for r in (self.stable, self.previous, rolling) if r is not None)

    @property
    def earlier(self) -> Release | None:
        """Where a rollback of stable leads when it names no release; None where there is nothing.

        Promoted releases are a stack, of which a revert takes off all that are newer than its target: a
        release that was left is not gone back to, unless somebody names it.
        """
        stack: list[Release] = []
        promoted = [e.release for e in self.history if e.outcome is Outcome.PROMOTED]
        for release in promoted:
            stack = [*(r for r in stack if r.number < release.number), release]
        below = [r for r in stack if self.stable is None or r.id != self.stable.id]
        if below:
            return below[-1]
        known = {r.id for r in promoted}
        return self.previous if self.previous is not None and self.previous.id not in known else None

    @property
    def has_lost_stable(self) -> bool:
        """Whether all instances of stable are known to be dead."""
        names = instance_names(self.stable) if self.stable is not None else ()
        return bool(names) and set(names) <= set(self.dead)

    @property
    def leads_nowhere(self) -> bool:
        """Whether a rollout goes back to a stable release that is dead, and that has been told."""
        back = self.rollout is not None and self.rollout.phase is Phase.ROLLING_BACK
        return back and self.has_lost_stable and self.stuck_since is not None

    def rolling(self, release: str) -> Rollout | None:
        """A release's rollout, while it is under way."""
        return self.rollout if self.rollout is not None and self.rollout.release.id == release else None

    def left(self, journey: Ended) -> Ended | None:
        """The rollback that took the traffic from the release that a finished journey had promoted.

        None where nothing came after it, or a newer release did.
        """
        at = self.history.index(journey)
        later = (e for e in self.history[at + 1 :] if e.outcome is Outcome.PROMOTED)
        found = next(later, None) if journey.outcome is Outcome.PROMOTED else None
        elsewhere = found is not None and found.release.id != journey.release.id
        return found if found is not None and elsewhere and found.kind == "revert" else None

    def journeys(self, release: str) -> tuple[Ended, ...]:
        """A release's finished journeys that are remembered, latest first."""
        return tuple(e for e in reversed(self.history) if e.release.id == release)

    def known(self, release: str) -> Release | None:
        """A release as it is known now; None when it never was, or too long ago."""
        now = (self.rollout.release if self.rollout else None, self.stable, self.previous, *self.queue)
        past = (e.release for e in reversed(self.history))
        return next((r for r in (*now, *past) if r is not None and r.id == release), None)


def readable(value: float, unit: Unit) -> str:
    """A value as people read it."""
    if unit == "seconds":
        return f"{value * 1000:.0f} ms"
    return f"{value * 100:.2f} %" if unit == "share" else f"{value:.4g}"


def instance_name(release: Release, index: int) -> str:
    """The deterministic name of an instance: `service-n-index`."""
    return f"{release.id}-{index}"


def instance_names(release: Release) -> tuple[str, ...]:
    """The names of all instances that a release wants."""
    return tuple(instance_name(release, i) for i in range(release.template.instances))
