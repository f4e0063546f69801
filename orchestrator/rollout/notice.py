"""What has changed outside since the last look: the edge and the instances that hold stable's traffic."""

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.rollout.events import (
    EdgeDrifted,
    EdgeRepaired,
    InstanceDied,
    InstanceRecovered,
    RouteConfirmed,
)
from orchestrator.rollout.model import BEFORE_TRAFFIC, Anew, Outcome, Release, ServiceState, instance_names
from orchestrator.rollout.observation import Edge, Instance, LocalRollback, Observation
from orchestrator.rollout.route import cut_off, down, led_to, lost, may_be_served, unanswered
from orchestrator.rollout.turn import Turn

HUNG_FOR = 60.0
"""Seconds for which a running instance fails its probe before another one takes its place."""

MOST = 3600.0
"""The longest pause between two that are made anew in vain."""

SILENCE = 10.0
"""Seconds for which nginx may be silent: a single look may meet a reload or a busy host."""


def notice_host(turn: Turn, seen: Observation) -> None:
    """Follow a rollback that was made on the host, and go back where the store has lost what nginx knows.

    Every route is committed before it is served. So an edge that is ahead of the state has seen a rollback
    on the host, or the store has lost commits; then nobody knows what the last of them said.
    """
    state, edge = turn.state, seen.edge
    if edge.on_disk is None or edge.local is None:
        rollout = state.rollout
        if edge.floor > state.route.generation and rollout and may_be_served(rollout, edge):
            ahead = (
                f"nginx has route {edge.floor}, and Redis none after {state.route.generation}: it has lost"
                f" commits, and what they said of {rollout.release.id} is not known"
            )
            turn.retreat(Outcome.ROLLED_BACK, ahead)
        return
    local = unanswered(state, seen)
    if local is None:
        return
    turn.set(answered=edge.on_disk.route.generation)
    if not _is_overtaken(state, edge.on_disk.route.generation):
        _follow(turn, seen, local)


def _is_overtaken(state: ServiceState, generation: int) -> bool:
    """Whether another rollback was asked for after one on the host was seen in nginx' memory alone."""
    rollout, unknown = state.rollout, state.unknown
    if rollout is None or rollout.kind != "revert" or unknown is None:
        return False
    return unknown[0] == generation and rollout.began_at > unknown[1]


def _follow(turn: Turn, seen: Observation, local: LocalRollback) -> None:
    """Take the state to where a rollback on the host leads."""
    state = turn.state
    rollout, stable = state.rollout, state.stable.id if state.stable else ""
    if rollout is not None and rollout.release.id != local.to:
        if rollout.phase in BEFORE_TRAFFIC or (local.to == stable and not rollout.one_way):
            turn.retreat(Outcome.ROLLED_BACK, local.reason, actor=local.actor)
        else:  # the way back leads past the release that the host has left: the host has the last word
            outcome = Outcome.ABORTED if rollout.kind == "revert" else Outcome.ROLLED_BACK
            turn.end(outcome, local.reason, actor=local.actor)
    target = led_to(state, seen, local.to)
    if turn.state.rollout is None and target is not None and turn.state.current != target.id:
        turn.revert(target, local.reason, actor=local.actor)


def notice_unknown(turn: Turn, seen: Observation) -> None:
    """Hold the traffic where nginx serves what neither its file nor the store knows, and tell that.

    Both have been put back to an earlier time while nginx ran on. What rolls out or waits by that store has
    ended since. A rollback on the host is followed once its file has had its time. A look that says
    nothing of it does not put that off.
    """
    state, edge = turn.state, seen.edge
    if edge.served is not None and not edge.unread:
        known = edge.served <= max(state.route.generation, edge.floor, state.overruled)
        if known and state.unknown is not None:
            turn.set(unknown=None, stuck_since=None, stuck_why="")
        elif not known and edge.on_disk is not None and edge.served != (state.unknown or (0,))[0]:
            turn.set(unknown=(edge.served, turn.now), stuck_since=None, stuck_why="")
    if turn.state.unknown is not None:
        turn.doubt(seen.described(state.service).values())
    state = turn.state
    if state.unknown is None or turn.now - state.unknown[1] < SILENCE:
        return
    local = cut_off(state, seen)
    if local is not None:
        turn.overrule()
        turn.set(answered=max(state.answered, state.unknown[0]))
        if not _is_overtaken(state, state.unknown[0]):
            _follow(turn, seen, local)
        return
    if state.stuck_since is not None:
        return
    why = turn.end_older()
    way = "release an image to send them there"
    if state.stable is not None:
        way = f"`orchestrator rollback {state.service}` sends all of them to {state.stable.id}"
    turn.stuck(f"{why}; {way}")


def notice_edge(turn: Turn, seen: Observation) -> None:
    """Tell a confirmation, a change that is not confirmed, and a file that somebody edited.

    A release that one of several edges can't follow goes back; what goes back already is not turned round. An
    edge that was lost before the release had users is waited for by none of its changes.
    """
    rollout = turn.state.rollout
    exposed = rollout is not None and rollout.kind == "release" and rollout.exposed_since is not None
    if seen.edge.failed and exposed and turn.state.stable:
        turn.retreat(Outcome.ROLLED_BACK, seen.edge.failed)
    state, edge, now = turn.state, seen.edge, turn.now
    pending = state.route.generation > state.confirmed and state.unknown is None
    if pending and edge.confirmed == state.route.generation:
        turn.set(confirmed=edge.confirmed, stuck_since=None, stuck_why="")
        about = state.rollout.release.id if state.rollout else ""
        turn.tell(RouteConfirmed(service=state.service, at=now, release=about, generation=edge.confirmed))
    elif pending and state.stuck_since is not None:
        if edge.error not in ("", state.stuck_why) and not edge.unread:  # the next mistake
            turn.set(stuck_why=edge.error)
    elif pending:
        patience = state.rollout.release.policy.confirm_deadline if state.rollout else 60.0
        waited = now - state.route.changed_at - edge.waited
        reason = edge.error or (f"not confirmed after {waited:.0f} s" if waited > patience else "")
        if reason:
            turn.stuck(reason)
    _notice_silence(turn, edge)
    _notice_switch(turn, seen)
    if edge.file != "ours" and edge.local is None and state.drifted_since is None and state.confirmed:
        turn.set(drifted_since=now)
        turn.tell(EdgeDrifted(service=state.service, at=now, file=edge.file))
    elif edge.file == "ours" and state.drifted_since is not None:
        turn.set(drifted_since=None)
        turn.tell(EdgeRepaired(service=state.service, at=now, generation=state.route.generation))


def _notice_switch(turn: Turn, seen: Observation) -> None:
    """Note where a rollback has all users while they are taken back, or on a route that nobody knows."""
    state, edge = turn.state, seen.edge
    back = state.rollout is not None and state.rollout.takes_back
    if edge.unread and (back or state.unknown is not None):
        return
    to = edge.switched_to if back and edge.switched_everywhere else ""
    if state.unknown is not None:
        local = cut_off(state, seen)
        to = local.to if local is not None else ""
    if to != (state.switched[0] if state.switched else ""):
        turn.set(switched=(to, turn.now) if to else None)


def _notice_silence(turn: Turn, edge: Edge) -> None:
    """Tell once that nginx has for a while not said what it serves, and that it does again."""
    state = turn.state
    if not edge.silence:
        if state.silent_since is not None:
            turn.set(silent_since=None)
        if state.unknown is not None:
            return
        if state.silent_since is not None and state.stuck_since and state.confirmed == state.route.generation:
            turn.set(stuck_since=None, stuck_why="")
            about = state.rollout.release.id if state.rollout else ""
            turn.tell(
                RouteConfirmed(service=state.service, at=turn.now, release=about, generation=state.confirmed)
            )
    elif state.silent_since is None:
        turn.set(silent_since=turn.now)
    elif state.stuck_since is None and state.unknown is None and turn.now - state.silent_since >= SILENCE:
        turn.stuck(edge.silence)


def notice_deaths(turn: Turn, seen: Observation) -> None:
    """Tell each death and recovery of stable's and previous' instances once; the candidate's end it.

    What is ready has recovered, also where the route still names the container before it.
    """
    if not seen.runtime_ok:
        return
    state = turn.state
    kept = [r for r in (state.stable, state.previous) if r is not None]
    names = {name: release for release in kept for name in instance_names(release)}
    dead = set(state.dead) & set(names)
    for name, release in names.items():
        instance = seen.instance(name)
        ready = instance is not None and instance.running and instance.health == "ready"
        server = next((s for s in state.route.servers if s.instance == name), None)
        why = lost(server, instance) if server is not None else down(name, instance)
        if why and not ready and name not in dead:
            dead.add(name)
            turn.tell(
                InstanceDied(
                    service=state.service,
                    at=turn.now,
                    release=release.id,
                    instance=name,
                    exit_code=instance.exit_code if instance else None,
                    reason=why,
                    logs=instance.logs if instance else "",
                )
            )
        elif ready and name in dead:
            dead.discard(name)
            turn.tell(
                InstanceRecovered(service=state.service, at=turn.now, release=release.id, instance=name)
            )
    hung = _hung(turn, seen, names)
    if dead != set(state.dead) or hung != state.hung:
        turn.set(dead=tuple(sorted(dead)), hung=hung)
    anew = tuple(filter(None, (_anew(turn, seen, release) for release in kept)))
    if anew != state.anew:
        turn.set(anew=anew)


def pause_after(tries: int) -> float:
    """Seconds until the next instance of a release is made anew, where that has not helped."""
    return min(HUNG_FOR * 2.0 ** min(max(tries - 1, 0), 10), MOST)


def _anew(turn: Turn, seen: Observation, release: Release) -> Anew | None:
    """What is made anew of a release whose instances hang, the one that has hung longest first.

    None is begun with before nginx has confirmed its route. Where the new one becomes well the next one
    follows at once. Else what is wrong may lie elsewhere, as in a probe that asks for what is not there or a
    database that is away: the pauses grow.
    """
    state, now = turn.state, turn.now
    names, hung = instance_names(release), dict(state.hung)
    bad = [name for name in names if name in state.dead or name in hung]
    last = next((a for a in state.anew if a.release == release.id and a.instance in bad), None)
    if last is not None:
        last = _counted(last, seen.instance(last.instance))
        if hung.get(last.instance, now) <= last.at or now - last.at < pause_after(last.tries):
            return last
    slow = [name for name in names if now - hung.get(name, now) >= HUNG_FOR]
    if not slow or state.confirmed != state.route.generation or state.unknown is not None:
        return last
    name = min(slow, key=lambda n: hung[n])
    found, tries = seen.instance(name), last.tries if last is not None else 0
    assert found is not None
    again = f"; {tries} in a row have not helped" if tries else ""
    turn.tell(
        InstanceDied(
            service=state.service,
            at=now,
            release=release.id,
            instance=name,
            exit_code=None,
            reason=f"{name} has failed its health probe for {now - hung[name]:.0f} s and is made anew{again}",
            logs="",
        )
    )
    return Anew(release=release.id, instance=name, container=found.container, tries=tries, at=now)


def _counted(last: Anew, found: Instance | None) -> Anew:
    """What is made anew, with one more try once another container of it is there."""
    if found is None or found.container == last.container or not last.container:
        return last
    return replace(last, container=found.container, tries=last.tries + 1)


def _hung(turn: Turn, seen: Observation, names: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """The instances that run and fail their probe, each with since when."""
    since = dict(turn.state.hung)
    found = [i for i in (seen.instance(n) for n in names) if i is not None]
    bad = [i.name for i in found if i.running and i.health == "unhealthy"]
    return tuple((name, since.get(name, turn.now)) for name in sorted(bad))
