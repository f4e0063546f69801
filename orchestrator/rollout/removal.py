"""The end of a service: its route is empty and its instances are gone; then its files, then its state."""

from dataclasses import replace

from orchestrator.rollout.events import RouteChanged, ServiceRemoved
from orchestrator.rollout.model import Mark, Outcome, Route, ServiceState
from orchestrator.rollout.observation import Observation
from orchestrator.rollout.turn import DAEMON, Turn

LOST = "it was removed; the store had lost that"


def begin(turn: Turn, mark: Mark) -> None:
    """Let nothing be stable any more: the releases leave in the order of a handover."""
    state = turn.state
    turn.set(removal=mark, stable=None, previous=None, previous_until=None)
    turn.retire([r for r in (state.stable, state.previous) if r is not None])


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
        generation = max(state.route.generation, seen.edge.floor) + 1
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
