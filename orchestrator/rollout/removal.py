"""The end of a service: its route is empty and its instances are gone; then its files, then its state."""

from dataclasses import replace

from orchestrator.rollout.events import RouteChanged, ServiceRemoved
from orchestrator.rollout.model import Release, Route, ServiceState
from orchestrator.rollout.observation import Observation
from orchestrator.rollout.turn import Turn


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
