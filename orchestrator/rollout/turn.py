"""The working copy of one decision: the state so far and the events told so far.

It lives inside one call of `decide` or `handle`; outside, both are functions from values to values.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from orchestrator.rollout.events import (
    EdgeStuck,
    Event,
    PhaseEntered,
    ReleaseEnded,
    RollbackStarted,
)
from orchestrator.rollout.evidence import Evidence, enter_step
from orchestrator.rollout.model import (
    BEFORE_TRAFFIC,
    Ended,
    Outcome,
    Phase,
    Release,
    Retiring,
    Retreat,
    Rollout,
    ServiceState,
    Verdict,
)
from orchestrator.rollout.plan import compared_steps, current_step, step_count

HISTORY = 50
"""Journeys that the state remembers; the event stream keeps all."""

DAEMON = "orchestrator"
"""The actor of what nobody asked for."""


class Turn:
    """State, time and events of one decision."""

    def __init__(self, state: ServiceState, now: float) -> None:
        self.state = state
        self.now = now
        self.events: list[Event] = []

    @property
    def rollout(self) -> Rollout:
        """The active rollout; only asked where there is one."""
        assert self.state.rollout is not None
        return self.state.rollout

    def set(self, **changes: Any) -> None:
        """Replace fields of the state, where any is another; most looks find nothing new."""
        if any(getattr(self.state, name) is not value for name, value in changes.items()):
            self.state = replace(self.state, **changes)

    def roll(self, **changes: Any) -> None:
        """Replace fields of the rollout."""
        self.set(rollout=replace(self.rollout, **changes))

    def tell(self, event: Event) -> None:
        """Record a fact."""
        self.events.append(event)

    def begin(self, rollout: Rollout) -> None:
        """Start a journey."""
        self.set(rollout=rollout)
        self._tell_phase(rollout.actor, rollout.reason)

    def launch(self, release: Release) -> None:
        """Start the journey of a release."""
        self.begin(
            Rollout(
                release=release,
                began_at=self.now,
                entered_at=self.now,
                actor=release.author,
                reason=release.reason,
            )
        )

    def revert(self, target: Release, reason: str, *, actor: str) -> None:
        """Start the journey back to an earlier release."""
        self.begin(
            Rollout(
                release=target,
                kind="revert",
                began_at=self.now,
                entered_at=self.now,
                actor=actor,
                reason=reason,
            )
        )

    def enter(self, phase: Phase, reason: str, *, step: int = 0, actor: str = DAEMON) -> None:
        """Move the rollout to a phase, or to a step of it; what belonged to the old one is forgotten.

        A revert keeps the reason that it was asked for with.
        """
        if self.rollout.kind == "revert":
            reason = self.rollout.reason
        if phase not in BEFORE_TRAFFIC:
            self.overrule()
        self.roll(
            phase=phase,
            step=step,
            entered_at=self.now,
            held_since=None,
            silent=0.0,
            blind_since=None,
            blind_to="",
            looked_at=None,
            evidence=self._evidence_in(step) if phase is Phase.SHIFTING else self.rollout.evidence,
            breaches=(),
            verdicts=(),
            approved=False,
            hooks_for=None,
            mark=None,
            actor=actor,
            reason=reason,
        )
        self._tell_phase(actor, reason)

    def postponed(self, clock: float, seconds: float) -> float:
        """A clock with time taken out of it; it does not get ahead of now."""
        return min(clock + seconds, self.now)

    def postpone(self, seconds: float) -> None:
        """Take time in which the phase could not go on out of its clocks."""
        held = self.rollout.held_since
        self.roll(
            entered_at=self.postponed(self.rollout.entered_at, seconds),
            held_since=None if held is None else self.postponed(held, seconds),
        )

    def _evidence_in(self, step: int) -> tuple[Evidence, ...]:
        steps = compared_steps(self.rollout.release.policy)
        return tuple(enter_step(e, step, steps) for e in self.rollout.evidence)

    def _tell_phase(self, actor: str, reason: str) -> None:
        rollout = self.rollout
        moving = rollout.phase in (Phase.SHIFTING, Phase.BAKING)
        self.tell(
            PhaseEntered(
                service=self.state.service,
                at=self.now,
                release=rollout.release.id,
                phase=rollout.phase,
                step=rollout.step,
                steps=step_count(self.state, rollout),
                weight=current_step(self.state, rollout).weight if moving else 0,
                actor=actor,
                reason=reason,
            )
        )

    def retreat(
        self,
        outcome: Outcome,
        reason: str,
        *,
        actor: str = DAEMON,
        verdict: Verdict | None = None,
        logs: str = "",
    ) -> None:
        """Give a rollout up: end it at once before it has traffic, else take the traffic back first.

        A second retreat changes nothing: the first cause is the outcome. Nor is a revert turned round that
        takes the traffic: it would send users back to the release that somebody wanted them away from.
        """
        rollout = self.rollout
        if rollout.phase is Phase.ROLLING_BACK or rollout.one_way:
            return
        if rollout.phase in BEFORE_TRAFFIC:
            without_traffic = Outcome.ABORTED if actor != DAEMON else Outcome.FAILED
            ended = without_traffic if outcome is Outcome.ROLLED_BACK else outcome
            self.end(ended, reason, actor=actor, verdict=verdict, logs=logs)
            return
        self.tell(
            RollbackStarted(
                service=self.state.service,
                at=self.now,
                release=rollout.release.id,
                outcome=outcome,
                actor=actor,
                reason=reason,
                verdict=verdict,
            )
        )
        self.enter(Phase.ROLLING_BACK, reason, step=rollout.step, actor=actor)
        self.roll(
            retreat=Retreat(
                outcome=outcome, actor=actor, reason=reason, verdict=verdict, logs=logs, at=self.now
            ),
            lives=True,
        )

    def stuck(self, reason: str) -> None:
        """Note and tell that nginx does not come to serve the committed route."""
        rollout = self.state.rollout
        self.set(stuck_since=self.now, stuck_why=reason)
        self.tell(
            EdgeStuck(
                service=self.state.service,
                at=self.now,
                release=rollout.release.id if rollout else "",
                generation=self.state.route.generation,
                reason=reason,
            )
        )

    def overrule(self) -> None:
        """Let the route go by the state again, over one that nginx serves and nobody knows."""
        if self.state.unknown is not None:
            self.set(overruled=self.state.unknown[0], unknown=None, stuck_since=None, stuck_why="")

    def unstuck(self) -> None:
        """Note that nothing is waited for any more, where nginx says that it serves the committed route."""
        state = self.state
        if state.confirmed == state.route.generation and state.silent_since is None:
            self.set(stuck_since=None, stuck_why="")

    def end(
        self,
        outcome: Outcome,
        reason: str,
        *,
        actor: str = DAEMON,
        verdict: Verdict | None = None,
        logs: str = "",
    ) -> None:
        """End the journey. What was not promoted retires, unless it is kept as the previous release."""
        rollout = self.rollout
        self.set(rollout=None)
        self.conclude(
            rollout.release,
            outcome,
            reason,
            actor=actor,
            kind=rollout.kind,
            began_at=rollout.began_at,
            verdict=verdict,
            logs=logs,
        )
        if outcome is not Outcome.PROMOTED:
            self.retire([rollout.release])

    def conclude(
        self,
        release: Release,
        outcome: Outcome,
        reason: str,
        *,
        actor: str,
        kind: Any = "release",
        began_at: float | None = None,
        verdict: Verdict | None = None,
        logs: str = "",
    ) -> None:
        """Write a journey into history and tell its end."""
        began = self.now if began_at is None else began_at
        ended = Ended(
            release=release,
            kind=kind,
            outcome=outcome,
            reason=reason,
            actor=actor,
            began_at=began,
            ended_at=self.now,
        )
        history = (*self.state.history, ended)
        if len(history) > HISTORY:
            promoted = [e.outcome is Outcome.PROMOTED for e in history]
            drop = 0 if all(promoted) else promoted.index(False)  # promotions are what a rollback leads to
            history = history[:drop] + history[drop + 1 :]
        self.set(history=history)
        self.tell(
            ReleaseEnded(
                service=self.state.service,
                at=self.now,
                release=release.id,
                journey=kind,
                outcome=outcome,
                actor=actor,
                reason=reason,
                request=release.request,
                image=release.image,
                seconds=self.now - began,
                author=release.author,
                link=release.link,
                verdict=verdict,
                logs=logs,
            )
        )

    def retire(self, releases: Iterable[Release]) -> None:
        """Let releases drain and stop, unless they are stable, previous or on their way out already."""
        kept = {r.id for r in (self.state.stable, self.state.previous) if r is not None}
        kept |= {r.release.id for r in self.state.retiring}
        leaving = [Retiring(release=r) for r in releases if r.id not in kept and r.digest]
        if leaving:
            self.set(retiring=(*self.state.retiring, *leaving))

    def doubt(self, releases: Iterable[Release]) -> None:
        """Let what runs beside what is wanted drain from the next route on: it may have users until then."""
        self.retire(r for r in releases if r.id not in self.state.wanted)
        doubted = tuple(replace(r, generation=None, confirmed_at=None) for r in self.state.retiring)
        if doubted != self.state.retiring:
            self.set(retiring=doubted)

    def end_older(self) -> str:
        """End what rolls out and waits by a store that is older than what nginx serves; returns why."""
        assert self.state.unknown is not None
        generation, since = self.state.unknown
        why = (
            f"nginx serves route {generation}, and its file and Redis are from an earlier time: which"
            " releases have the users is not known, they stay there, and nothing is stopped"
        )
        if self.state.rollout is not None and self.state.rollout.began_at < since:
            self.end(Outcome.ABORTED, why)
        older = [release for release in self.state.queue if release.submitted_at < since]
        self.set(queue=tuple(release for release in self.state.queue if release not in older))
        for release in older:
            self.conclude(release, Outcome.ABORTED, why, actor=DAEMON)
        return why
