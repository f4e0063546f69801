"""Going on from what runs where the store has lost what was committed, wholly or in part."""

import re
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
from orchestrator.rollout.observation import Instance, Observation, OnDisk
from orchestrator.rollout.route import may_be_served
from orchestrator.rollout.turn import DAEMON, Turn

LOST = "the store had lost what was committed; it was taken up as it was found"


def adopt(turn: Turn, seen: Observation) -> None:
    """Complete a state from what runs and from what the edge's file says. Usually there is nothing to do.

    The containers' labels tell the releases, the file tells the route and who is stable. Where nothing is
    committed the service is taken up as it is found, so that no traffic moves: a candidate that has traffic
    goes on with the step that its share fits, from the step's beginning. Where the edge is ahead of what is
    committed, only who is stable is taken over; the route is made anew from that, and what was under way over
    another stable release has ended since. Where the file serves nobody there is nothing to take up, whatever
    runs. What is being removed is taken down, and what was removed stays so, unless the edge shows that it
    has been released since.
    """
    state, disk = turn.state, seen.edge.on_disk
    untold = replace(state, at=0.0, released=0, trouble="", overlooked=0.0, silent_since=None)
    blank = untold == ServiceState(service=state.service)
    if seen.runtime_ok or not blank:
        turn.set(released=max(state.released, _given_out(state, seen)))
    ahead = seen.edge.floor > state.route.generation and seen.edge.local is None
    rollout = state.rollout
    own = rollout.release.id if rollout is not None and not may_be_served(rollout, seen.edge) else ""
    found = [i for i in seen.instances if _credible(i, state.service) and i.release != own]
    releases = {i.release: i.described for i in found if i.described is not None}
    leaving = state.removal is not None and state.removal.kind == "removing"
    leaving = leaving and not (disk is not None and disk.released > state.released)  # by then it is over
    nobody = disk is not None and not disk.route.servers
    if leaving or nobody or not seen.runtime_ok or not releases or not (blank or ahead):
        return
    disk = disk or OnDisk(route=Route(generation=seen.edge.floor))
    stable = max(releases.values(), key=lambda r: _trust(r, disk, seen))
    if not blank and stable == state.stable:
        return
    others = [r for s in disk.route.servers if (r := releases.get(s.release)) not in (None, stable)]
    previous = next((r for r in others if r is not None and disk.route.share(r.id) == 0), None)
    candidate = next((r for r in others if r is not None and disk.route.share(r.id) > 0), None)
    if not blank and (state.stable is None or state.stable.id != stable.id):
        _end_what_was_over(turn, stable)
    turn.set(
        stable=stable,
        previous=previous,
        previous_until=turn.now + stable.policy.keep_previous if previous else None,
        removal=None,
    )
    _remember(turn, previous, stable)
    if blank:
        turn.set(route=disk.route, rollout=_rollout(candidate, disk.route, turn.now) if candidate else None)
    turn.tell(
        ServiceAdopted(
            service=state.service,
            at=turn.now,
            release=stable.id,
            candidate=candidate.id if candidate and blank else "",
            previous=previous.id if previous else "",
            generation=disk.route.generation,
            actor=DAEMON,
        )
    )


def _remember(turn: Turn, *found: Release | None) -> None:
    """Put what was promoted, oldest first, into history, which has lost that: a rollback leads there too."""
    known = {e.release.id for e in turn.state.history if e.outcome is Outcome.PROMOTED}
    lost = [
        Ended(
            release=release,
            kind="release",
            outcome=Outcome.PROMOTED,
            reason=LOST,
            actor=DAEMON,
            began_at=turn.now,
            ended_at=turn.now,
        )
        for release in found
        if release is not None and release.id not in known
    ]
    turn.set(history=(*turn.state.history, *lost))


def _end_what_was_over(turn: Turn, stable: Release) -> None:
    """End what the store shows under way or waiting, and what ended before this release became stable."""
    rollout = turn.state.rollout
    if rollout is not None:
        promoted = rollout.release.id == stable.id
        turn.end(Outcome.PROMOTED if promoted else Outcome.ABORTED, LOST)
    late = [release for release in turn.state.queue if release.number <= stable.number]
    turn.set(queue=tuple(release for release in turn.state.queue if release not in late))
    for release in late:
        promoted = release.id == stable.id
        turn.conclude(release, Outcome.PROMOTED if promoted else Outcome.ABORTED, LOST, actor=DAEMON)


def _given_out(state: ServiceState, seen: Observation) -> int:
    """The highest number of an id that is known to be in use; a store that went back gives none out twice."""
    disk = seen.edge.on_disk or OnDisk(route=Route())
    ids = {i.release for i in seen.instances} | {s.release for s in disk.route.servers} | {disk.stable}
    ids |= {e.release.id for e in state.history}
    form = re.compile(f"{re.escape(state.service)}-({NUMBER.pattern})")
    return max((disk.released, *(int(found[1]) for i in ids if (found := form.fullmatch(i)))))


def _credible(instance: Instance, service: str) -> bool:
    """Whether what a container's labels tell of its release can be: anybody may have written them."""
    release = instance.described
    return (
        release is not None
        and (release.service, release.id) == (service, instance.release)
        and bool(release.policy.steps)
        and release.template.instances > 0
        and release.template.cpus > 0
    )


def _trust(release: Release, disk: OnDisk, seen: Observation) -> tuple[bool, bool, float, bool, int]:
    """What speaks for a release as the stable one, the strongest first.

    It runs; the file calls it stable; it has the most traffic; Docker keeps it up, which is asked for only
    after a promotion; it is the newest.
    """
    mine = seen.of(release.id)
    return (
        any(i.running for i in mine),
        release.id == disk.stable,
        disk.route.share(release.id),
        any(i.supervised for i in mine),
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
