"""The end of a service: its route is empty and its instances are gone; then its files, then its state."""

from dataclasses import replace

from orchestrator.rollout.events import RouteChanged, ServiceRemoved
from orchestrator.rollout.model import Route, ServiceState
from orchestrator.rollout.observation import Observation
from orchestrator.rollout.turn import Turn


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
