"""The order of a handover: out of the route, confirmed, drained; only then may an instance be stopped."""

from dataclasses import replace

from orchestrator.rollout.events import ReleaseRetired, RouteChanged
from orchestrator.rollout.model import FULL, Route
from orchestrator.rollout.observation import Observation
from orchestrator.rollout.route import next_route
from orchestrator.rollout.turn import DAEMON, Turn


def retire_previous(turn: Turn) -> None:
    """Let the previous release go once it has been kept warm for its time and nothing rolls out.

    While all of stable is dead it is all that there is.
    """
    state = turn.state
    if state.rollout is not None or state.has_lost_stable:
        return
    if state.previous and turn.now >= (state.previous_until or 0.0):
        previous = state.previous
        turn.set(previous=None, previous_until=None)
        turn.retire([previous])


def reroute(turn: Turn, seen: Observation) -> None:
    """Bring the route to what the state asks for, and note which releases it has ceased to name.

    What nginx serves names, as long as nobody knows it, whatever runs.
    """
    state = turn.state
    route = next_route(state, seen, turn.now)
    if route is not state.route:
        rollout, cause = state.rollout, state.rollout or state.removal
        turn.set(route=route)
        turn.tell(
            RouteChanged(
                service=state.service,
                at=turn.now,
                release=rollout.release.id if rollout else "",
                generation=route.generation,
                shares=_shares(route),
                actor=cause.actor if cause else DAEMON,
                reason=cause.reason if cause else "instances changed",
            )
        )
    named = {s.release for s in (*route.servers, *route.preview)}
    turn.set(
        retiring=tuple(
            replace(r, generation=route.generation)
            if r.generation is None and r.release.id not in named and state.unknown is None
            else r
            for r in turn.state.retiring
        )
    )


def _shares(route: Route) -> tuple[tuple[str, float], ...]:
    releases = dict.fromkeys(s.release for s in route.servers)
    return tuple((r, round(route.share(r) * FULL, 2)) for r in releases)


def let_go(turn: Turn, seen: Observation) -> None:
    """Release from the state what no request can reach any more; the engine stops what is not wanted.

    What is wanted again is not on its way out: its instances stay.
    """
    waiting = []
    for entry in [r for r in turn.state.retiring if r.release.id not in turn.state.wanted]:
        deadline = entry.release.policy.drain_deadline
        if entry.generation is None or turn.state.confirmed < entry.generation:
            waiting.append(entry)
        elif entry.confirmed_at is None:
            waiting.append(replace(entry, confirmed_at=turn.now))
        elif seen.edge.drained or turn.now - entry.confirmed_at >= deadline:
            turn.tell(
                ReleaseRetired(
                    service=turn.state.service,
                    at=turn.now,
                    release=entry.release.id,
                    drained=seen.edge.drained,
                )
            )
        else:
            waiting.append(entry)
    if tuple(waiting) != turn.state.retiring:
        turn.set(retiring=tuple(waiting))
