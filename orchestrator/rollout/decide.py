"""`decide`: from what is committed and what is seen to what comes next.

One small function per phase. It is called again and again; a call that changes nothing returns the state
it was given and no events.
"""

from dataclasses import replace
from typing import assert_never

from orchestrator.rollout.events import (
    ApprovalWanted,
    EdgeDrifted,
    EdgeRepaired,
    EdgeStuck,
    Event,
    ImageResolved,
    InstanceDied,
    InstanceRecovered,
    ReleaseRetired,
    RolloutPaused,
    RouteChanged,
    RouteConfirmed,
)
from orchestrator.rollout.gates import failing, look, unmet
from orchestrator.rollout.model import (
    FULL,
    Mark,
    Outcome,
    Phase,
    Rollout,
    Route,
    ServiceState,
    instance_names,
)
from orchestrator.rollout.observation import Instance, Observation
from orchestrator.rollout.plan import current_step, is_fast
from orchestrator.rollout.route import lost, next_route
from orchestrator.rollout.turn import DAEMON, Turn


def decide(state: ServiceState, seen: Observation, now: float) -> tuple[ServiceState, tuple[Event, ...]]:
    """One step of the machine.

    Args:
        state: What is committed.
        seen: What the world looks like.
        now: Seconds since the epoch.

    Returns:
        The next state and the events that tell the difference, oldest first.
    """
    turn = Turn(state, now)
    _notice_edge(turn, seen)
    _notice_deaths(turn, seen)
    _retire_previous(turn)
    if turn.state.rollout is None:
        _take_from_queue(turn)
    elif not _overdue_mark(turn):
        _advance(turn, seen)
    _reroute(turn, seen)
    _let_go(turn, seen)
    return turn.state, tuple(turn.events)


def _notice_edge(turn: Turn, seen: Observation) -> None:
    state, edge, now = turn.state, seen.edge, turn.now
    pending = state.route.generation > state.confirmed
    if pending and edge.confirmed == state.route.generation:
        turn.set(confirmed=edge.confirmed, stuck_since=None)
        about = state.rollout.release.id if state.rollout else ""
        turn.tell(RouteConfirmed(service=state.service, at=now, release=about, generation=edge.confirmed))
    elif pending and state.stuck_since is None:
        patience = state.rollout.release.policy.confirm_deadline if state.rollout else 60.0
        waited = now - state.route.changed_at
        reason = edge.error or (f"not confirmed after {waited:.0f} s" if waited > patience else "")
        if reason:
            turn.set(stuck_since=now)
            turn.tell(
                EdgeStuck(service=state.service, at=now, generation=state.route.generation, reason=reason)
            )
    if edge.file != "ours" and state.drifted_since is None and state.confirmed:
        turn.set(drifted_since=now)
        turn.tell(EdgeDrifted(service=state.service, at=now, file=edge.file))
    elif edge.file == "ours" and state.drifted_since is not None:
        turn.set(drifted_since=None)
        turn.tell(EdgeRepaired(service=state.service, at=now, generation=state.route.generation))


def _notice_deaths(turn: Turn, seen: Observation) -> None:
    """Tell each death and recovery of stable's and previous' instances once; the candidate's end it."""
    if not seen.runtime_ok:
        return
    state = turn.state
    kept = [r for r in (state.stable, state.previous) if r is not None]
    names = {name: release for release in kept for name in instance_names(release)}
    dead = set(state.dead) & set(names)
    for name, release in names.items():
        instance = seen.instance(name)
        server = next((s for s in state.route.servers if s.instance == name), None)
        if server is not None:
            why = lost(server, instance)
        else:
            why = "" if instance is not None and instance.running else f"{name} does not run"
        if why and name not in dead:
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
        elif name in dead and instance is not None and instance.running and instance.health == "ready":
            dead.discard(name)
            turn.tell(
                InstanceRecovered(service=state.service, at=turn.now, release=release.id, instance=name)
            )
    if dead != set(state.dead):
        turn.set(dead=tuple(sorted(dead)))


def _retire_previous(turn: Turn) -> None:
    state = turn.state
    if state.rollout is None and state.previous and turn.now >= (state.previous_until or 0.0):
        previous = state.previous
        turn.set(previous=None, previous_until=None)
        turn.retire([previous])


def _take_from_queue(turn: Turn) -> None:
    state, now = turn.state, turn.now
    late = [r for r in state.queue if now - r.submitted_at > r.policy.queue_deadline]
    if late:
        turn.set(queue=tuple(r for r in state.queue if r not in late))
    for release in late:
        why = f"waited {release.policy.queue_deadline:.0f} s in the queue"
        turn.conclude(release, Outcome.FAILED, why, actor=DAEMON)
    if not turn.state.queue or state.frozen is not None:
        return
    release, *rest = turn.state.queue
    turn.set(queue=tuple(rest))
    turn.begin(
        Rollout(release=release, began_at=now, entered_at=now, actor=release.author, reason=release.reason)
    )


def _overdue_mark(turn: Turn) -> bool:
    """Give a rollout up that stood still for too long. True when it did, or must not move at all."""
    rollout = turn.rollout
    if rollout.mark is None:
        return False
    waited, patience = turn.now - rollout.mark.since, rollout.release.policy.pause_deadline
    if waited >= patience:
        what = "paused" if rollout.mark.kind == "paused" else "without approval"
        turn.retreat(Outcome.ROLLED_BACK, f"{what} for {waited:.0f} s, the limit is {patience:.0f} s")
        return True
    return rollout.mark.kind == "paused" and rollout.phase in (Phase.PREFLIGHT, Phase.STARTING)


def _advance(turn: Turn, seen: Observation) -> None:
    match turn.rollout.phase:
        case Phase.PREFLIGHT:
            _preflight(turn, seen)
        case Phase.STARTING:
            _starting(turn, seen)
        case Phase.PREVIEW:
            _preview(turn, seen)
        case Phase.SHIFTING | Phase.BAKING:
            _step(turn, seen)
        case Phase.ROLLING_BACK:
            _rolling_back(turn)
        case phase:
            assert_never(phase)


def _preflight(turn: Turn, seen: Observation) -> None:
    rollout = turn.rollout
    release = rollout.release
    image = seen.images.get(release.digest or release.image)
    if image is not None and image.error:
        turn.retreat(Outcome.FAILED, f"image {release.image}: {image.error}")
    elif image is not None:
        turn.roll(release=replace(release, digest=image.digest))
        turn.set(retiring=tuple(r for r in turn.state.retiring if r.release.id != release.id))
        turn.tell(
            ImageResolved(
                service=release.service,
                at=turn.now,
                release=release.id,
                image=release.image,
                digest=image.digest,
            )
        )
        turn.enter(Phase.STARTING, "image resolved", actor=rollout.actor)
    elif turn.now - rollout.entered_at >= release.policy.preflight_deadline:
        limit = release.policy.preflight_deadline
        turn.retreat(Outcome.FAILED, f"image {release.image} was not there after {limit:.0f} s")


def _starting(turn: Turn, seen: Observation) -> None:
    rollout = turn.rollout
    release = rollout.release
    names = instance_names(release)
    for name in names:
        instance = seen.instance(name)
        if name in seen.start_errors:
            logs = instance.logs if instance else ""
            turn.retreat(Outcome.FAILED, f"{name} did not start: {seen.start_errors[name]}", logs=logs)
            return
        if instance is not None and not instance.running and instance.exit_code is not None:
            turn.retreat(Outcome.FAILED, f"{name} {_death(instance)} while starting", logs=instance.logs)
            return
    found = [i for i in (seen.instance(n) for n in names) if i is not None]
    unready = [i for i in found if not (i.running and i.health == "ready")]
    scraped = _unscraped(turn, seen, names)
    if len(found) == len(names) and not unready and not scraped:
        _leave_start(turn)
    elif turn.now - rollout.entered_at >= release.policy.start_deadline:
        ready = len(found) - len(unready)
        why = scraped if ready == len(names) else f"{ready} of {len(names)} instances were ready"
        detail = next((f" ({i.detail})" for i in unready if i.detail), "")
        reason = f"{why} after {release.policy.start_deadline:.0f} s{detail}"
        turn.retreat(Outcome.FAILED, reason, logs="".join(i.logs for i in unready))


def _unscraped(turn: Turn, seen: Observation, names: tuple[str, ...]) -> str:
    """Which instance Prometheus has not scraped yet, when the gates need it to; '' when none."""
    rollout = turn.rollout
    if is_fast(turn.state, rollout) or not any(g.metric != "query" for g in rollout.release.policy.gates):
        return ""
    last = seen.readings[-1] if seen.readings else None
    missing = [n for n in names if last is None or n not in last.samples]
    return f"Prometheus has not scraped {missing[0]} (does it read our http_sd_configs?)" if missing else ""


def _death(instance: Instance) -> str:
    return "ran out of memory" if instance.oom_killed else f"exited with code {instance.exit_code}"


def _leave_start(turn: Turn) -> None:
    rollout = turn.rollout
    if rollout.release.policy.preview is not None and not is_fast(turn.state, rollout):
        turn.enter(Phase.PREVIEW, "all instances ready")
        turn.roll(held_since=turn.now)
    else:
        _enter_step(turn, 0, "all instances ready")


def _enter_step(turn: Turn, step: int, reason: str) -> None:
    rollout = turn.rollout
    weight = current_step(turn.state, replace(rollout, step=step)).weight
    actor = rollout.actor if is_fast(turn.state, rollout) else DAEMON
    turn.enter(Phase.BAKING if weight == FULL else Phase.SHIFTING, reason, step=step, actor=actor)


def _candidate_loss(turn: Turn, seen: Observation) -> tuple[str, str] | None:
    """Why the candidate can't go on, and its last log lines."""
    if not seen.runtime_ok:
        return None
    servers = {s.instance: s for s in turn.state.route.servers}
    for name in instance_names(turn.rollout.release):
        instance = seen.instance(name)
        if name in servers:
            why = lost(servers[name], instance)
        elif instance is None or not instance.running:
            why = f"{name} {_death(instance)}" if instance else f"{name} is gone"
        else:
            why = f"{name} fails its health probe" if instance.health == "unhealthy" else ""
        if why:
            return why, instance.logs if instance else ""
    return None


def _preview(turn: Turn, seen: Observation) -> None:
    rollout, preview = turn.rollout, turn.rollout.release.policy.preview
    gone = _candidate_loss(turn, seen)
    if gone is not None:
        turn.retreat(Outcome.FAILED, gone[0], logs=gone[1])
        return
    since = rollout.held_since if rollout.held_since is not None else turn.now
    if rollout.mark is not None or preview is None or turn.now - since < preview.hold:
        return
    if preview.approve and not rollout.approved:
        _want_approval(turn, "the preview wants a person's approval")
    else:
        _enter_step(turn, 0, "preview passed")


def _want_approval(turn: Turn, reason: str) -> None:
    rollout = turn.rollout
    turn.roll(mark=Mark(kind="awaiting_approval", actor=DAEMON, reason=reason, since=turn.now))
    turn.tell(
        ApprovalWanted(
            service=turn.state.service,
            at=turn.now,
            release=rollout.release.id,
            phase=rollout.phase,
            step=rollout.step,
            reason=reason,
        )
    )


def _step(turn: Turn, seen: Observation) -> None:
    """A weight is asked for or holds: watch, judge, and leave it one way or the other."""
    gone = _candidate_loss(turn, seen)
    if gone is not None:
        turn.retreat(Outcome.ROLLED_BACK, gone[0], logs=gone[1])
        return
    if turn.rollout.held_since is None:
        _await_confirmation(turn)
        return
    if is_fast(turn.state, turn.rollout):
        _promote(turn, "switched over")
        return
    look(turn, seen)
    failed = failing(turn.rollout.verdicts)
    if failed is not None:
        turn.retreat(Outcome.ROLLED_BACK, failed.text, verdict=failed)
    elif turn.rollout.mark is None and turn.state.drifted_since is None and seen.runtime_ok:
        _leave_step(turn, seen)


def _await_confirmation(turn: Turn) -> None:
    state, rollout = turn.state, turn.rollout
    step = current_step(state, rollout)
    served = state.confirmed == state.route.generation
    shifted = abs(state.route.share(rollout.release.id) * FULL - step.weight) < 0.5  # noqa: PLR2004
    if served and shifted:
        turn.roll(held_since=turn.now)
        return
    waited, patience = turn.now - rollout.entered_at, rollout.release.policy.confirm_deadline
    if waited >= patience:
        why = f"nginx did not confirm {step.weight} % within {patience:.0f} s"
        turn.retreat(Outcome.ROLLED_BACK, why)


def _leave_step(turn: Turn, seen: Observation) -> None:
    """Go on, wait, or let the policy for missing data decide."""
    state, rollout, now = turn.state, turn.rollout, turn.now
    step, policy = current_step(state, rollout), rollout.release.policy
    if state.confirmed != state.route.generation:
        return
    held = now - (rollout.held_since if rollout.held_since is not None else now)
    reason = unmet(turn, seen)
    if held >= step.hold and not reason:
        _pass_step(turn)
        return
    silent_since = rollout.measured_at or rollout.held_since or now
    silent = bool(policy.gates) and now - silent_since >= policy.no_data_after
    late = now - rollout.entered_at >= step.deadline and bool(reason)
    if not silent and not late:
        return
    why = f"no data for {now - silent_since:.0f} s: {reason}" if silent else f"step deadline: {reason}"
    if policy.on_no_data == "rollback" or now - rollout.entered_at >= step.deadline + policy.pause_deadline:
        turn.retreat(Outcome.ROLLED_BACK, why)
    elif policy.on_no_data == "pause":
        turn.roll(mark=Mark(kind="paused", actor=DAEMON, reason=why, since=now))
        turn.tell(
            RolloutPaused(service=state.service, at=now, release=rollout.release.id, actor=DAEMON, reason=why)
        )


def _pass_step(turn: Turn) -> None:
    rollout = turn.rollout
    step = current_step(turn.state, rollout)
    if step.approve and not rollout.approved:
        _want_approval(turn, f"the step of {step.weight} % wants a person's approval")
    elif step.weight == FULL:
        _promote(turn, "all steps passed")
    else:
        _enter_step(turn, rollout.step + 1, f"{step.weight} % passed")


def _promote(turn: Turn, reason: str) -> None:
    state, rollout = turn.state, turn.rollout
    old, release = state.stable, rollout.release
    leaving = [r for r in (state.previous,) if r is not None and r.id != release.id]
    until = turn.now + release.policy.keep_previous if old is not None else None
    turn.set(stable=release, previous=old, previous_until=until)
    why = rollout.reason if rollout.kind == "revert" else reason
    turn.end(Outcome.PROMOTED, why, actor=rollout.actor if rollout.kind == "revert" else DAEMON)
    turn.retire(leaving)


def _rolling_back(turn: Turn) -> None:
    state, rollout = turn.state, turn.rollout
    retreat = rollout.retreat
    assert retreat is not None
    named = any(s.release == rollout.release.id for s in state.route.servers)
    if state.confirmed == state.route.generation and not named:
        if state.previous is not None and state.previous.id == rollout.release.id:
            turn.set(previous=None, previous_until=None)
        turn.end(
            retreat.outcome if state.stable is not None else Outcome.FAILED,
            retreat.reason,
            actor=retreat.actor,
            verdict=retreat.verdict,
            logs=retreat.logs,
        )
    elif named and state.stuck_since is None:
        waited = turn.now - rollout.entered_at
        if waited >= rollout.release.policy.confirm_deadline:
            turn.set(stuck_since=turn.now)
            reason = "stable has no healthy instance to go back to; the traffic stays where it is"
            turn.tell(
                EdgeStuck(
                    service=state.service, at=turn.now, generation=state.route.generation, reason=reason
                )
            )


def _reroute(turn: Turn, seen: Observation) -> None:
    state = turn.state
    route = next_route(state, seen, turn.now)
    if route is not state.route:
        rollout = state.rollout
        turn.set(route=route)
        turn.tell(
            RouteChanged(
                service=state.service,
                at=turn.now,
                release=rollout.release.id if rollout else "",
                generation=route.generation,
                shares=_shares(route),
                actor=rollout.actor if rollout else DAEMON,
                reason=rollout.reason if rollout else "instances changed",
            )
        )
    named = {s.release for s in (*route.servers, *route.preview)}
    turn.set(
        retiring=tuple(
            replace(r, generation=route.generation)
            if r.generation is None and r.release.id not in named
            else r
            for r in turn.state.retiring
        )
    )


def _shares(route: Route) -> tuple[tuple[str, float], ...]:
    releases = dict.fromkeys(s.release for s in route.servers)
    return tuple((r, round(route.share(r) * FULL, 2)) for r in releases)


def _let_go(turn: Turn, seen: Observation) -> None:
    """Order of a handover: out of the route, confirmed, drained; only then may an instance be stopped."""
    waiting = []
    for entry in turn.state.retiring:
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
