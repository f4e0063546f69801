"""`decide`: from what is committed and what is seen to what comes next.

One small function per phase. It is called again and again; a call that changes nothing returns the state
it was given and no events.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from orchestrator.rollout.adopt import adopt
from orchestrator.rollout.events import (
    ApprovalWanted,
    Event,
    ImageResolved,
    RolloutPaused,
)
from orchestrator.rollout.gates import failing, look, unmet
from orchestrator.rollout.handover import let_go, reroute, retire_previous
from orchestrator.rollout.hooks import due, verdict
from orchestrator.rollout.model import (
    BEFORE_TRAFFIC,
    FULL,
    Mark,
    Outcome,
    Phase,
    Release,
    Rollout,
    ServiceState,
    instance_names,
)
from orchestrator.rollout.notice import notice_deaths, notice_edge, notice_host, notice_unknown
from orchestrator.rollout.observation import Image, Instance, Observation
from orchestrator.rollout.plan import current_step, is_fast
from orchestrator.rollout.policy import differences
from orchestrator.rollout.removal import notice_removal, take_down
from orchestrator.rollout.route import lost, usable
from orchestrator.rollout.turn import DAEMON, Turn
from orchestrator.rollout.unseen import exclude_unwatched, notice_blindness


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
    exclude_unwatched(turn, seen.unwatched)
    notice_removal(turn, seen)
    adopt(turn, seen)
    notice_host(turn, seen)
    notice_unknown(turn, seen)
    notice_edge(turn, seen)
    notice_deaths(turn, seen)
    notice_blindness(turn, seen)
    retire_previous(turn)
    _end_late(turn)
    _proceed(turn, seen)
    reroute(turn, seen)
    let_go(turn, seen)
    take_down(turn, seen)
    return turn.state, tuple(turn.events)


def watch(state: ServiceState, seen: Observation, now: float) -> ServiceState:
    """Decide without taking a step, while nothing can be committed.

    Gates and instances are watched, so that the rollout that is returned may be on its way back; no more than
    that may be done about it. It is the state to go on watching from.
    """
    if state.rollout is None:
        return state
    mark = Mark(kind="paused", actor=DAEMON, reason="nothing can be committed", since=now)
    still = replace(state.rollout, mark=mark, entered_at=now)  # no deadline passes: nothing can be done
    return decide(replace(state, rollout=still), replace(seen, unwatched=0.0), now)[0]


def _end_late(turn: Turn) -> None:
    """End what has waited for too long, whatever it waited for."""
    state, now = turn.state, turn.now
    late = [r for r in state.queue if now - state.overlooked - r.submitted_at > r.policy.queue_deadline]
    if late:
        turn.set(queue=tuple(r for r in state.queue if r not in late))
    for release in late:
        why = f"waited {release.policy.queue_deadline:.0f} s in the queue"
        turn.conclude(release, Outcome.FAILED, why, actor=DAEMON)


def _proceed(turn: Turn, seen: Observation) -> None:
    """Begin what is next, or go on with what rolls out; with neither before an unknown route is told."""
    state = turn.state
    if state.unknown is not None and state.stuck_since is None:
        return
    if state.rollout is None:
        _take_from_queue(turn)
    elif not _overdue_mark(turn):
        _advance(turn, seen)


def _take_from_queue(turn: Turn) -> None:
    if not turn.state.queue or turn.state.frozen is not None:
        return
    release, *rest = turn.state.queue
    turn.set(queue=tuple(rest))
    turn.launch(release)


def _overdue_mark(turn: Turn) -> bool:
    """Give a rollout up that stood still for too long. True when it did, or must not move at all."""
    rollout = turn.rollout
    if rollout.mark is None:
        return False
    waited, patience = turn.now - rollout.mark.since, rollout.release.policy.pause_deadline
    if waited >= patience:
        what = "paused" if rollout.mark.kind == "paused" else "without approval"
        why = f"{what} for {waited:.0f} s, the limit is {patience:.0f} s: {rollout.mark.reason}"
        turn.retreat(Outcome.ROLLED_BACK, why)
        return True
    return rollout.mark.kind == "paused" and rollout.phase in (Phase.PREFLIGHT, Phase.STARTING)


def _advance(turn: Turn, seen: Observation) -> None:
    if turn.rollout.kind == "revert" and _is_warm(turn, seen):
        turn.enter(Phase.BAKING, turn.rollout.reason, actor=turn.rollout.actor)
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
            _rolling_back(turn, seen)
        case phase:
            assert_never(phase)


def _is_warm(turn: Turn, seen: Observation) -> bool:
    """Whether a revert that has not begun can take the traffic now: nginx knows enough of its instances.

    Half of them are enough: the others are started again meanwhile. While Docker does not answer those that
    nginx knows are believed.
    """
    release, route = turn.rollout.release, turn.state.route
    known = {s.instance for s in route.servers if s.release == release.id}
    if seen.runtime_ok:
        known &= {i.name for i in usable(release, route, seen)}
    return turn.rollout.phase in BEFORE_TRAFFIC and 2 * len(known) >= release.template.instances


def _preflight(turn: Turn, seen: Observation) -> None:
    rollout = turn.rollout
    release = rollout.release
    image = seen.images.get(release.digest or release.image)
    if image is not None and image.error:
        turn.retreat(Outcome.FAILED, f"image {release.image}: {image.error}")
    elif image is not None:
        if release.digest != image.digest:
            _note_image(turn, image)
        _ask_hooks(turn, seen, lambda: _leave_preflight(turn, seen))
    late = seen.runtime_ok and turn.now - rollout.entered_at >= release.policy.preflight_deadline
    if late and turn.state.rollout is not None and turn.rollout.phase is Phase.PREFLIGHT:
        what = f"image {release.image} was not there"
        why = f": {seen.image_error}" if seen.image_error and image is None else ""
        if image is not None:
            leaving = _leaving(turn.state, seen)
            what = f"{leaving} still stopped" if leaving else f"the hooks of {release.id} had not passed"
        turn.retreat(Outcome.FAILED, f"{what} after {release.policy.preflight_deadline:.0f} s{why}")


def _leave_preflight(turn: Turn, seen: Observation) -> None:
    """Start the instances. Those that still drain are kept; those that stop must be gone first."""
    if _leaving(turn.state, seen):
        return
    turn.enter(Phase.STARTING, "image resolved", actor=turn.rollout.actor)


def _leaving(state: ServiceState, seen: Observation) -> str:
    """An instance that the release has from an earlier time, and that nobody wants any more; or ''."""
    assert state.rollout is not None
    release = state.rollout.release
    kept = {r.id for r in (state.stable, state.previous) if r} | {r.release.id for r in state.retiring}
    if release.id in kept:
        return ""
    return next((name for name in instance_names(release) if seen.instance(name) is not None), "")


def _note_image(turn: Turn, image: Image) -> None:
    release = replace(turn.rollout.release, digest=image.digest)
    turn.roll(release=release)
    notes = [note for note in (image.note, _already_runs(turn.state, release)) if note]
    turn.tell(
        ImageResolved(
            service=release.service,
            at=turn.now,
            release=release.id,
            image=release.image,
            digest=image.digest,
            note="; ".join(notes),
        )
    )


def _already_runs(state: ServiceState, release: Release) -> str:
    """That a release brings no other image than stable's, and what else it brings; '' when it does."""
    stable = state.stable
    if stable is None or stable.digest != release.digest:
        return ""
    changed = ", ".join(differences(stable.template, release.template))
    what = f"only configuration changes: {changed}" if changed else "nothing changes"
    return f"it is the image that stable runs; {what}"


def _ask_hooks(turn: Turn, seen: Observation, go_on: Callable[[], None]) -> None:
    """Go on once all hooks that are due have passed; go back when one of them has not."""
    why = verdict(due(turn.state), seen.hooks)
    if why:
        turn.retreat(Outcome.ROLLED_BACK, why)
    elif why is not None:
        go_on()


def _starting(turn: Turn, seen: Observation) -> None:
    rollout = turn.rollout
    release = rollout.release
    names = instance_names(release)
    doomed = _doomed(turn, seen, names)
    if doomed is not None:
        turn.retreat(Outcome.FAILED, doomed[0], logs=doomed[1])
        return
    found = [i for i in (seen.instance(n) for n in names) if i is not None]
    unready = [i for i in found if not (i.running and i.health == "ready")]
    ready = len(found) - len(unready)
    scraped = _unscraped(turn, seen, names)
    late = seen.runtime_ok and turn.now - rollout.entered_at >= release.policy.start_deadline
    if (ready == len(names) and not scraped) or (late and ready and rollout.kind == "revert"):
        _leave_start(turn, seen)
    elif late and (ready < len(names) or rollout.blind_since is None):
        why = scraped if ready == len(names) else f"{ready} of {len(names)} instances were ready"
        detail = next((f" ({i.detail})" for i in unready if i.detail), "")
        reason = f"{why} after {release.policy.start_deadline:.0f} s{detail}"
        turn.retreat(Outcome.FAILED, reason, logs="".join(i.logs for i in unready))


def _doomed(turn: Turn, seen: Observation, names: tuple[str, ...]) -> tuple[str, str] | None:
    """Why the instances can't all become ready, and the last log lines; None while they may.

    A revert is doomed only if none of them can be started: deaths are mended as stable's are, and it goes
    on with what there is.
    """
    if turn.rollout.kind == "revert" and not all(name in seen.start_errors for name in names):
        return None
    for name in names:
        instance = seen.instance(name)
        logs = instance.logs if instance else ""
        if name in seen.start_errors:
            return f"{name} did not start: {seen.start_errors[name]}", logs
        if instance is not None and not instance.running and instance.exit_code is not None:
            return f"{name} {_death(instance)} while starting", logs
    return None


def _unscraped(turn: Turn, seen: Observation, names: tuple[str, ...]) -> str:
    """Which instance Prometheus has not scraped yet, when the gates need it to; '' when none."""
    rollout = turn.rollout
    if is_fast(turn.state, rollout) or not rollout.release.policy.counted:
        return ""
    last = seen.readings[-1] if seen.readings else None
    missing = [n for n in names if last is None or n not in last.samples]
    if not missing:
        return ""
    if last is not None and last.error:
        return f"Prometheus: {last.error}"
    why = last.unread.get(missing[0]) if last else None
    if why:
        return f"Prometheus cannot scrape {missing[0]}: {why}"
    return f"Prometheus has not scraped {missing[0]}: is this daemon's /targets in its http_sd_configs?"


def _death(instance: Instance) -> str:
    how = "does not run" if instance.exit_code is None else f"exited with code {instance.exit_code}"
    return "ran out of memory" if instance.oom_killed else how


def _leave_start(turn: Turn, seen: Observation) -> None:
    rollout = turn.rollout
    if rollout.release.policy.preview is not None and not is_fast(turn.state, rollout):
        turn.enter(Phase.PREVIEW, "all instances ready")
        turn.roll(held_since=turn.now)
    else:
        _enter_step(turn, seen, 0, "all instances ready")


def _enter_step(turn: Turn, seen: Observation, step: int, reason: str) -> None:
    """Enter a step once its hooks have passed, for which they have as long as the step may take."""
    if turn.rollout.hooks_for != step:
        turn.roll(hooks_for=step, entered_at=turn.now)
    _ask_hooks(turn, seen, lambda: _go_to(turn, step, reason))
    rollout = turn.state.rollout
    if rollout is None or rollout.hooks_for != step:
        return
    deadline = rollout.release.policy.steps[step].deadline
    if turn.now - rollout.entered_at >= deadline:
        silent = ", ".join(call.hook.name for call in due(turn.state) if call.key not in seen.hooks)
        turn.retreat(Outcome.ROLLED_BACK, f"hook {silent}: no answer within {deadline:.0f} s")


def _go_to(turn: Turn, step: int, reason: str) -> None:
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
        _enter_step(turn, seen, 0, "preview passed")


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
    if turn.rollout.one_way:
        _revert(turn, seen)
        return
    gone = _candidate_loss(turn, seen)
    if gone is not None:
        turn.retreat(Outcome.ROLLED_BACK, gone[0], logs=gone[1])
        return
    if turn.rollout.held_since is None:
        _await_confirmation(turn, seen)
        return
    if is_fast(turn.state, turn.rollout):
        _promote(turn, "switched over")
        return
    look(turn, seen)
    failed = failing(turn.rollout.verdicts)
    if failed is not None:
        turn.retreat(Outcome.ROLLED_BACK, f"{failed.gate} {failed.text}", verdict=failed)
    elif turn.rollout.mark is None and turn.state.drifted_since is None and seen.runtime_ok:
        _leave_step(turn, seen)


def _revert(turn: Turn, seen: Observation) -> None:
    """Wait until nginx confirms, however long that takes: meanwhile the rollback switch leads there too.

    It is given up only while none of its instances can take the traffic, which then has not moved.
    """
    state, rollout = turn.state, turn.rollout
    if _shifted(state, rollout, FULL):
        if state.confirmed == state.route.generation:
            _promote(turn, rollout.reason)
        return
    late = turn.now - rollout.entered_at >= rollout.release.policy.confirm_deadline
    if late and seen.runtime_ok and not usable(rollout.release, state.route, seen):
        turn.end(Outcome.FAILED, f"{rollout.release.id} has no healthy instance to take the traffic")


def _shifted(state: ServiceState, rollout: Rollout, weight: int) -> bool:
    """Whether the committed route gives the candidate this share, in percent."""
    return abs(state.route.share(rollout.release.id) * FULL - weight) < 0.5  # noqa: PLR2004


def _await_confirmation(turn: Turn, seen: Observation) -> None:
    state, rollout = turn.state, turn.rollout
    step = current_step(state, rollout)
    if state.confirmed == state.route.generation and _shifted(state, rollout, step.weight):
        exposed = turn.now if rollout.exposed_since is None else rollout.exposed_since
        turn.roll(held_since=turn.now, exposed_since=exposed)
        return
    waited = turn.now - rollout.entered_at - seen.edge.waited
    patience = rollout.release.policy.confirm_deadline
    if waited >= patience and seen.runtime_ok:
        why = f"nginx did not confirm {step.weight} % within {patience:.0f} s"
        why += f": {seen.edge.error}" if seen.edge.error else ""
        if state.stable and step.weight < FULL and not usable(state.stable, state.route, seen):
            why = f"{state.stable.id} has no healthy instance to share the traffic with"
            if rollout.exposed_since is None:  # then it ends at once, and can't be kept
                why += "; release it again and promote it at once to send all of it there"
            else:
                why += f"; `orchestrator promote {state.service}` sends all of it to {rollout.release.id}"
        turn.retreat(Outcome.ROLLED_BACK, why)


def _leave_step(turn: Turn, seen: Observation) -> None:
    """Go on, wait, or let the policy for missing data decide."""
    state, rollout, now = turn.state, turn.rollout, turn.now
    step, policy = current_step(state, rollout), rollout.release.policy
    if state.confirmed != state.route.generation:
        return
    held = now - (rollout.held_since if rollout.held_since is not None else now)
    reason = unmet(turn, seen, held)
    if held >= step.hold and not reason:
        _pass_step(turn, seen)
        return
    silent = bool(rollout.silent) and rollout.silent >= policy.no_data_after
    late = now - rollout.entered_at >= step.deadline and bool(reason)
    if rollout.blind_since is not None or not (silent or late):
        return
    action = policy.on_no_data if silent else policy.on_inconclusive
    what = f"no data for {rollout.silent:.0f} s" if silent else f"step deadline of {step.deadline:g} s"
    why = f"{what}: {reason}"
    if action == "rollback" or now - rollout.entered_at >= step.deadline + policy.pause_deadline:
        turn.retreat(Outcome.ROLLED_BACK, why)
    elif action == "pause":
        turn.roll(mark=Mark(kind="paused", actor=DAEMON, reason=why, since=now))
        turn.tell(
            RolloutPaused(service=state.service, at=now, release=rollout.release.id, actor=DAEMON, reason=why)
        )


def _pass_step(turn: Turn, seen: Observation) -> None:
    rollout = turn.rollout
    step = current_step(turn.state, rollout)
    if step.approve and not rollout.approved:
        _want_approval(turn, f"the step of {step.weight} % wants a person's approval")
    elif step.weight == FULL:
        _promote(turn, "all steps passed")
    else:
        _enter_step(turn, seen, rollout.step + 1, f"{step.weight} % passed")


def _promote(turn: Turn, reason: str) -> None:
    state, rollout = turn.state, turn.rollout
    old, release = state.stable, rollout.release
    leaving = [r for r in (state.previous,) if r is not None and r.id != release.id]
    until = turn.now + release.policy.keep_previous if old is not None else None
    turn.set(stable=release, previous=old, previous_until=until)
    asked = rollout.kind == "revert" or (rollout.actor != DAEMON and not is_fast(state, rollout))
    turn.end(
        Outcome.PROMOTED,
        rollout.reason if asked else reason,
        actor=rollout.actor if asked else DAEMON,
    )
    turn.retire(leaving)


def _rolling_back(turn: Turn, seen: Observation) -> None:
    _note_life(turn, seen)
    state, rollout = turn.state, turn.rollout
    retreat = rollout.retreat
    assert retreat is not None
    named = any(s.release == rollout.release.id for s in state.route.servers)
    confirmed = state.confirmed == state.route.generation
    fix = next((r for r in state.queue if r.submitted_at >= retreat.at), None)
    if fix is not None and state.leads_nowhere and state.frozen is None and seen.runtime_ok:
        assert state.stable is not None
        why = f"superseded by {fix.id} while all of {state.stable.id} is down"
        if rollout.lives and (state.previous is None or state.has_lost(state.previous)):
            turn.set(previous=rollout.release, previous_until=turn.now)  # warm until the fix or stable lives
            turn.retire([state.previous] if state.previous else [])
        turn.end(Outcome.SUPERSEDED, why, actor=fix.author)
        turn.unstuck()
    elif confirmed and not named and _leads_to_nobody(state, rollout):
        if state.stuck_since is None:
            assert state.stable is not None
            turn.stuck(f"all of {state.stable.id} is down{_instead(state, rollout)}")
    elif (confirmed and not named) or _never_served(rollout, seen):
        late = "".join(i.logs for i in seen.of(rollout.release.id) if not i.running)
        turn.end(
            retreat.outcome if state.stable is not None else Outcome.FAILED,
            retreat.reason,
            actor=retreat.actor,
            verdict=retreat.verdict,
            logs=retreat.logs or late,
        )
        turn.unstuck()
    elif named and state.stuck_since is None:
        waited = turn.now - rollout.entered_at
        if waited >= rollout.release.policy.confirm_deadline:
            why = "stable has no healthy instance to go back to; the traffic stays where it is"
            turn.stuck(why + _instead(state, rollout))


def _note_life(turn: Turn, seen: Observation) -> None:
    """Note whether the candidate lives, without which nobody can keep it; Docker away says nothing."""
    lives = any(i.running and i.health != "unhealthy" for i in seen.of(turn.rollout.release.id))
    if seen.runtime_ok and lives != turn.rollout.lives:
        turn.roll(lives=lives)


def _instead(state: ServiceState, rollout: Rollout) -> str:
    """The way to keep the candidate, where there is one."""
    if not state.may_be_kept:
        return ""
    return f"; `orchestrator promote {state.service}` sends everybody to {rollout.release.id} instead"


def _leads_to_nobody(state: ServiceState, rollout: Rollout) -> bool:
    """Whether all of stable is dead while the candidate, as far as is known, is not: it is not let go yet.

    A candidate that has never had users is: it has nothing to give back, and what is released next must not
    wait behind it.
    """
    return rollout.exposed_since is not None and state.may_be_kept


def _never_served(rollout: Rollout, seen: Observation) -> bool:
    """Whether nginx refuses the way back, and what it serves has never named the candidate.

    Then there is nothing to take back, and the rollout does not wait for whoever mends nginx.
    """
    edge = seen.edge
    if rollout.exposed_since is not None or edge.unread or not edge.error or edge.file != "ours":
        return False
    if edge.on_disk is None or edge.on_disk.route.gone:
        return edge.served is None
    route = edge.on_disk.route
    return edge.served == route.generation and all(s.release != rollout.release.id for s in route.servers)
