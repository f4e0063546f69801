"""The end of a service: its route is empty and its instances are gone; then its files, then its state."""

from dataclasses import replace
from typing import Literal

from orchestrator.rollout.events import RouteChanged, ServiceRemoved
from orchestrator.rollout.model import Mark, Outcome, Release, Route, ServiceState
from orchestrator.rollout.observation import Observation
from orchestrator.rollout.route import highest
from orchestrator.rollout.turn import DAEMON, Turn

LOST = "it was removed; the store had lost that"


def begin(turn: Turn, mark: Mark) -> None:
    """Let nothing be stable any more: the releases leave in the order of a handover."""
    state = turn.state
    turn.set(removal=mark, stable=None, previous=None, previous_until=None)
    turn.retire([r for r in (state.stable, state.previous) if r is not None])
    turn.set(retiring=tuple(replace(r, was=_was(state, r.release)) for r in turn.state.retiring))


def _was(state: ServiceState, release: Release) -> Literal["", "stable", "previous"]:
    if state.stable is not None and release.id == state.stable.id:
        return "stable"
    return "previous" if state.previous is not None and release.id == state.previous.id else ""


def notice_removal(turn: Turn, seen: Observation) -> None:
    """Take down again what the edge shows to have been removed, where the store has lost that.

    A service with a stable release serves nobody only while it is removed. What was released since then has a
    number that had not been given out yet.
    """
    state, edge, disk = turn.state, seen.edge, seen.edge.on_disk
    if state.removal is not None or disk is None or disk.route.servers:
        return
    ahead = state.route.generation < disk.route.generation == edge.floor
    current = state.stable or (state.rollout.release if state.rollout and disk.route.gone else None)
    if not ahead or current is None or current.number > disk.released:
        return
    if state.rollout is not None:
        turn.end(Outcome.ABORTED, LOST)
    turn.set(queue=())
    for release in state.queue:
        turn.conclude(release, Outcome.ABORTED, LOST, actor=DAEMON)
    begin(turn, Mark(kind="removing", actor=DAEMON, reason=LOST, since=turn.now))


def is_going(state: ServiceState) -> bool:
    """Whether a service is being removed."""
    return state.removal is not None and state.removal.kind == "removing"


def kept(state: ServiceState) -> dict[str, Release]:
    """What a removal has not let go yet: its stable and previous release, by that word."""
    return {r.was: r.release for r in state.retiring if r.was}


def waits_for(state: ServiceState) -> str:
    """What a removal waits for."""
    if state.confirmed != state.route.generation or any(r.generation is None for r in state.retiring):
        why = f": {state.stuck_why}" if state.stuck_why else ""
        return f"nginx has not confirmed yet that it sends nothing there{why}"
    return "its last requests end" if state.retiring else "its instances stop"


def call_off(turn: Turn) -> bool:
    """End a removal; what it has not let go yet is as it was. Whether its stable release is."""
    state = turn.state
    if not is_going(state):
        return False
    stable, previous = kept(state).get("stable"), kept(state).get("previous")
    if stable is None:
        return False
    turn.set(
        removal=None,
        stable=stable,
        previous=previous,
        previous_until=turn.now + stable.policy.keep_previous if previous else None,
        retiring=tuple(r for r in state.retiring if not r.was),
    )
    return True


def take_down(turn: Turn, seen: Observation) -> None:
    """Take the next step of a removal once the last one is seen to be done.

    What is left of the state keeps ids and generations counting; the event stream keeps the history.
    """
    state, removal = turn.state, turn.state.removal
    if removal is None or removal.kind == "removed" or state.confirmed != state.route.generation:
        return
    if state.route.gone:
        left = ServiceState(
            service=state.service,
            at=state.at,
            route=state.route,
            confirmed=state.confirmed,
            released=state.released,
            receipts=state.receipts,
            handled=state.handled,
            frozen=state.frozen,
            trouble=state.trouble,
            removal=replace(removal, kind="removed", since=turn.now),
        )
        turn.state = left
        turn.tell(
            ServiceRemoved(service=state.service, at=turn.now, actor=removal.actor, reason=removal.reason)
        )
    elif seen.runtime_ok and not (seen.instances or state.retiring or state.route.servers):
        generation = highest(state, seen.edge) + 1
        turn.set(route=Route(generation=generation, changed_at=turn.now, gone=True))
        turn.tell(
            RouteChanged(
                service=state.service,
                at=turn.now,
                generation=generation,
                shares=(),
                actor=removal.actor,
                reason=removal.reason,
            )
        )
