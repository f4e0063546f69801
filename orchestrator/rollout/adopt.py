"""Going on from what runs where the store has lost what was committed, wholly or in part."""

import re
from collections.abc import Container, Sequence
from dataclasses import replace

from orchestrator.rollout.events import ServiceAdopted
from orchestrator.rollout.model import (
    FULL,
    NUMBER,
    Ended,
    Outcome,
    Phase,
    Release,
    Rollout,
    Route,
    ServiceState,
)
from orchestrator.rollout.observation import Edge, LocalRollback, Observation, OnDisk
from orchestrator.rollout.route import gone_back, may_be_served
from orchestrator.rollout.turn import DAEMON, Turn

LOST = "the store had lost what was committed; it was taken up as it was found"


def adopt(turn: Turn, seen: Observation) -> None:
    """Complete a state from what runs and from what the edge's file says. Usually there is nothing to do.

    The containers' labels tell the releases, the file tells the route and who is stable. Where nothing is
    committed the service is taken up as it is found, so that no user's release changes: a candidate that has
    traffic goes on with the step that its share fits, from the step's beginning. Where the edge is ahead of
    what is committed, only who is stable is taken over; the route is made anew from that, and what was under
    way over another stable release has ended since. Where somebody has gone back at the edge, stable is the
    release that this led to. Where the file serves nobody there is nothing to take up, whatever runs. What is
    being removed is taken down, and what was removed stays so, unless the edge shows that it has been
    released since.
    """
    state, disk = turn.state, seen.edge.on_disk
    untold = replace(state, at=0.0, released=0, trouble="", overlooked=0.0, silent_since=None)
    blank = untold == ServiceState(service=state.service)
    if seen.runtime_ok or not blank:
        turn.set(released=max(state.released, _given_out(state, seen)))
    rollout = state.rollout
    own = rollout.release.id if rollout is not None and not may_be_served(rollout, seen.edge) else ""
    releases = {name: found for name, found in seen.described(state.service).items() if name != own}
    leaving = state.removal is not None and state.removal.kind == "removing"
    leaving = leaving and not (disk is not None and disk.released > state.released)  # by then it is over
    nobody = disk is not None and not disk.route.servers
    lost = blank or _ahead(state, seen.edge, releases)
    if leaving or nobody or not seen.runtime_ok or not releases or not lost:
        return
    disk = disk or OnDisk(route=Route(generation=seen.edge.floor))
    back = gone_back(seen.edge)
    to = back.to if back else ""
    stable = max(releases.values(), key=lambda r: _trust(r, disk, seen, to))
    if state.stable is not None and stable.id == state.stable.id:
        return
    others = [r for s in disk.route.servers if (r := releases.get(s.release)) not in (None, stable)]
    previous = next((r for r in others if r is not None and disk.route.share(r.id) == 0), None)
    if to == stable.id:
        previous = _left(stable, list(releases.values()), disk, seen) or previous
    weighted = [r for r in others if r is not None and r != previous and disk.route.share(r.id) > 0]
    stale = disk.route.generation < (seen.edge.served or 0)  # then it does not tell who rolls out
    candidate = weighted[0] if weighted and blank and not stale else None
    _end_what_was_over(turn, previous, stable, back)
    turn.set(
        stable=stable,
        previous=previous,
        previous_until=turn.now + stable.policy.keep_previous if previous else None,
        removal=None,
    )
    if blank:
        route = replace(disk.route, changed_at=turn.now)
        turn.set(route=route, rollout=_rollout(candidate, route, turn.now) if candidate else None)
    turn.tell(
        ServiceAdopted(
            service=state.service,
            at=turn.now,
            release=stable.id,
            candidate=candidate.id if candidate else "",
            previous=previous.id if previous else "",
            generation=disk.route.generation,
            actor=DAEMON,
        )
    )
    if candidate is not None and back is not None and to == stable.id:
        turn.retreat(Outcome.ROLLED_BACK, back.reason, actor=back.actor)


def _ahead(state: ServiceState, edge: Edge, releases: Container[str]) -> bool:
    """Whether the edge shows that the store has lost commits.

    A rollback on the host makes one route that nobody has committed. `notice_host` follows it to stable, and
    to previous while nothing rolls out.
    """
    if edge.local is None:
        return max(edge.floor, edge.switched_for) > state.route.generation
    ways = [state.stable, None if state.rollout else state.previous]
    known = edge.local.to in [r.id for r in ways if r is not None]
    return edge.floor > state.route.generation + 1 and edge.local.to in releases and not known


def _left(stable: Release, found: Sequence[Release], disk: OnDisk, seen: Observation) -> Release | None:
    """The release that was stable before users were taken back to this one; the newest that may have been."""
    kept = [r for r in found if r.id == disk.stable or any(i.supervised for i in seen.of(r.id))]
    return max((r for r in kept if r != stable), key=lambda r: r.number, default=None)


def _end_what_was_over(
    turn: Turn, previous: Release | None, stable: Release, back: LocalRollback | None
) -> None:
    """Complete history, which a rollback goes by, and end what the store shows under way or waiting.

    Previous was promoted, then stable; what is older than the newer of them has ended before.
    """
    newest = stable.number
    for release in (previous, stable):
        if release is None:
            continue
        newest = max(newest, release.number)
        waiting = tuple(r for r in turn.state.queue if r.id != release.id)
        if turn.state.rolling(release.id):
            turn.end(Outcome.PROMOTED, LOST)
        elif waiting != turn.state.queue:
            turn.set(queue=waiting)
            turn.conclude(release, Outcome.PROMOTED, LOST, actor=DAEMON)
        else:
            _remember(turn, release, back if back and back.to == release.id else None)
    if turn.state.rollout is not None:
        turn.end(Outcome.ABORTED, LOST)
    late = [release for release in turn.state.queue if release.number <= newest]
    turn.set(queue=tuple(release for release in turn.state.queue if release not in late))
    for release in late:
        turn.conclude(release, Outcome.ABORTED, LOST, actor=DAEMON)


def _remember(turn: Turn, release: Release, back: LocalRollback | None) -> None:
    """Put a promotion into history, which has lost that, unless it is the last one there."""
    promoted = [e.release for e in turn.state.history if e.outcome is Outcome.PROMOTED]
    if promoted and promoted[-1].id == release.id:
        return
    reverted = any(r.number >= release.number for r in promoted)
    ended = Ended(
        release=release,
        kind="revert" if reverted else "release",
        outcome=Outcome.PROMOTED,
        reason=back.reason if back and reverted else LOST,
        actor=back.actor if back and reverted else DAEMON,
        began_at=turn.now,
        ended_at=turn.now,
    )
    turn.set(history=(*turn.state.history, ended))


def _given_out(state: ServiceState, seen: Observation) -> int:
    """The highest number of an id that is known to be in use; a store that went back gives none out twice."""
    disk = seen.edge.on_disk or OnDisk(route=Route())
    ids = {i.release for i in seen.instances} | {s.release for s in disk.route.servers} | {disk.stable}
    ids |= {e.release.id for e in state.history}
    form = re.compile(f"{re.escape(state.service)}-({NUMBER.pattern})")
    return max((disk.released, *(int(found[1]) for i in ids if (found := form.fullmatch(i)))))


def _trust(release: Release, disk: OnDisk, seen: Observation, to: str) -> tuple[bool | float, ...]:
    """What speaks for a release as the stable one, the strongest first.

    Somebody has gone back to it; it runs; it has all the traffic and Docker keeps it up, which is asked for
    only after a promotion or on the way back, and which the file need not tell; the file calls it stable; it
    has the most traffic; Docker keeps it up; it is the newest.
    """
    mine, share = seen.of(release.id), disk.route.share(release.id)
    kept = any(i.supervised for i in mine)
    return (
        release.id == to,
        any(i.running for i in mine),
        kept and share == 1.0,
        release.id == disk.stable,
        share,
        kept,
        release.number,
    )


def _rollout(candidate: Release, route: Route, now: float) -> Rollout:
    share = route.share(candidate.id) * FULL
    steps = candidate.policy.steps
    reached = [i for i, step in enumerate(steps) if step.weight <= share + 0.5]
    step = reached[-1] if reached else 0
    return Rollout(
        release=candidate,
        phase=Phase.BAKING if steps[step].weight == FULL else Phase.SHIFTING,
        step=step,
        began_at=now,
        entered_at=now,
        actor=DAEMON,
        reason=LOST,
    )
