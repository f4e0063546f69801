"""Time in which nobody looked, or could: it is taken out of the clocks that a release is held to."""

from dataclasses import replace
from functools import partial

from orchestrator.rollout.model import Outcome, Phase, Rollout
from orchestrator.rollout.observation import Observation
from orchestrator.rollout.plan import is_fast
from orchestrator.rollout.turn import Turn

MEASURED = frozenset({Phase.STARTING, Phase.SHIFTING, Phase.BAKING})
"""Phases that wait for measurements."""


def exclude_unwatched(turn: Turn, seconds: float) -> None:
    """Take out the seconds before this look in which nobody drove the service.

    A hold, a deadline, a pause, the time in the queue, the time that a limit has been broken and the patience
    with nginx, with its file and with an instance that hangs go on from where they were when somebody looked
    last. Taking out too much only makes the wait longer. The time that a rollback on the host has for its
    file passes whoever looks.
    """
    state = turn.state
    overlooked = state.overlooked + seconds if state.queue else 0.0
    if overlooked != state.overlooked:
        turn.set(overlooked=overlooked)
    if not seconds:
        return
    later = partial(turn.postponed, seconds=seconds)
    pending = state.route.generation > state.confirmed
    turn.set(
        route=replace(state.route, changed_at=later(state.route.changed_at)) if pending else state.route,
        drifted_since=None if state.drifted_since is None else later(state.drifted_since),
        silent_since=None if state.silent_since is None else later(state.silent_since),
        hung=tuple((name, later(since)) for name, since in state.hung),
        anew=tuple(replace(a, at=later(a.at)) for a in state.anew),
    )
    if state.rollout is None:
        return
    turn.postpone(seconds)
    rollout = turn.rollout
    turn.roll(
        blind_since=None if rollout.blind_since is None else later(rollout.blind_since),
        mark=replace(rollout.mark, since=later(rollout.mark.since)) if rollout.mark else None,
        breaches=tuple(replace(b, since=later(b.since)) for b in rollout.breaches),
    )


def notice_blindness(turn: Turn, seen: Observation) -> None:
    """Hold a rollout while Docker or Prometheus does not answer, which says nothing of the candidate.

    After the deadline of a pause it is given up. The way back is held by neither.
    """
    rollout = turn.state.rollout
    if rollout is None or rollout.takes_back:
        return
    last = seen.readings[-1] if seen.readings else None
    measured = _measured(turn, rollout)
    if not seen.runtime_ok:
        away, why = "Docker", seen.runtime_error
    elif measured and last is None and rollout.blind_to != "Docker":
        return
    else:
        why = last.error if measured and last is not None else ""
        away = "Prometheus" if why else ""
    if not away:
        if rollout.blind_since is not None:
            turn.postpone(turn.now - rollout.blind_since)
            turn.roll(blind_since=None, blind_to="")
        return
    since = turn.now if rollout.blind_since is None else rollout.blind_since
    turn.roll(blind_since=since, blind_to=away)
    waited, patience = turn.now - since, rollout.release.policy.pause_deadline
    if waited >= patience and rollout.mark is None:
        reason = f"{away} did not answer for {waited:.0f} s, the limit is {patience:.0f} s"
        turn.retreat(Outcome.ROLLED_BACK, reason + (f": {why}" if why else ""))


def _measured(turn: Turn, rollout: Rollout) -> bool:
    policy = rollout.release.policy
    return rollout.phase in MEASURED and policy.measured and not is_fast(turn.state, rollout)
