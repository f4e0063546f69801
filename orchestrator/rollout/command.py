"""What people and CI ask for, and what it does to a service's state."""

from dataclasses import dataclass, replace
from typing import assert_never

from orchestrator.rollout.events import CommandAccepted, Event, ReleaseAccepted, RequestRefused
from orchestrator.rollout.model import (
    BEFORE_TRAFFIC,
    Mark,
    Outcome,
    Phase,
    Receipt,
    Release,
    Rollout,
    ServiceState,
)
from orchestrator.rollout.plan import current_step, step_count
from orchestrator.rollout.policy import Policy, Template, differences
from orchestrator.rollout.removal import begin, call_off, is_going, kept, waits_for
from orchestrator.rollout.told import in_words, not_remembered
from orchestrator.rollout.turn import DAEMON, Turn

HANDLED = 200
"""Request ids remembered for a service, against a second delivery."""

QUEUE = 100
"""Releases that may wait for one service: all are written with each of its commits, which others wait for."""

RECEIPTS = 200
"""Idempotency keys remembered for a service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """`request`: the id of the stream entry; `actor`: who; `reason`: why."""

    request: str
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(_Command):
    """Release an image; with the same `key`, image and strategy again it is the same release.

    `strategy`: the name of the override that `policy` is.
    """

    image: str
    template: Template
    policy: Policy
    strategy: str = ""
    key: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart(_Command):
    """Release stable's own image once more, with the template and the policy of today's file."""

    template: Template
    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback(_Command):
    """Go back: from the active rollout, else from stable to the last good release, or `to` one of them.

    `release`: what to roll back; refused when that is not queued, rolling out or stable any more, so that two
    people who press the button at once do not go back twice. What has no traffic yet ends as if aborted.
    """

    release: str = ""
    to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfRollout(_Command):
    """`release`: the one that is meant; refused when that is not under way any more. '': whichever is."""

    release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(_OfRollout):
    """Stand still; the gates go on watching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(_OfRollout):
    """Go on after a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approve(_OfRollout):
    """Let a rollout that waits for a person go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote(_OfRollout):
    """Skip the rest of the ladder: all traffic now, then the bake with its gates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(_Command):
    """End the active rollout, or the queued release named by `release`."""

    release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(_Command):
    """Start no further release; rollbacks still work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfreeze(_Command):
    """Start releases again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove(_Command):
    """Take a service down: no traffic, no instances, nothing of it in nginx. Ids go on counting."""


Command = (
    Submit | Restart | Rollback | Pause | Resume | Approve | Promote | Abort | Freeze | Unfreeze | Remove
)


def handle(state: ServiceState, command: Command, now: float) -> tuple[ServiceState, tuple[Event, ...]]:
    """Carry out a command, or refuse it with a reason.

    Returns:
        The next state and what happened. A refused command changes nothing but the memory of its id, and
        one whose id is remembered changes nothing at all.
    """
    if command.request in state.handled:
        return state, ()
    state = replace(state, handled=(*state.handled, command.request)[-HANDLED:])
    turn = Turn(state, now)
    why = _wrong_target(state, command) or _carry_out(turn, command)
    if why:
        return state, (refusal(state.service, command, why, now),)
    if not isinstance(command, Submit | Restart):
        about = state.rollout.release.id if state.rollout else ""
        named = command.release if isinstance(command, Abort | Rollback) else ""
        if _queued(state, named) is not None:
            about = named
        accepted = CommandAccepted(
            service=state.service,
            at=now,
            release=about,
            verb=verb_of(command),
            actor=command.actor,
            request=command.request,
            reason=command.reason,
            note=_called_off(state, turn.state) or _said_of_rollback(state, command),
        )
        turn.events.insert(0, accepted)
    return turn.state, tuple(turn.events)


def _called_off(before: ServiceState, after: ServiceState) -> str:
    """That a command has called a removal off; '' where it has not."""
    if before.removal is None or before.stable is not None or after.stable is None:
        return ""
    return f"the removal by {before.removal.actor} is called off: {after.stable.id} stays"


def _said_of_rollback(state: ServiceState, command: Command) -> str:
    """That what a rollback ends has had no traffic, or where it leads from an unknown route; or ''."""
    if not isinstance(command, Rollback):
        return ""
    if _queued(state, command.release) is not None:
        return f"{command.release} was still queued and has had no traffic"
    rollout, said = state.rollout, []
    if state.stable is not None and _overrules(state, command):
        said.append(f"all users are sent to {state.stable.id}")
    if rollout is not None and rollout.phase in BEFORE_TRAFFIC:
        said.append(f"{rollout.release.id} was in {in_words(rollout.phase)} and has had no traffic")
    return "; ".join(said)


def refusal(service: str, command: Command, reason: str, now: float) -> RequestRefused:
    """The answer to a command that is not carried out."""
    return RequestRefused(
        service=service,
        at=now,
        verb=verb_of(command),
        actor=command.actor,
        request=command.request,
        reason=reason,
    )


def offers(state: ServiceState, release: str) -> tuple[str, ...]:
    """The verbs that would be carried out now if they were asked about a release, most urgent first.

    Those about the whole service come last, and only with what it is at: the active release, else stable,
    else '' where there is none.
    """
    words = {"request": "", "actor": "anybody"}
    asked: list[Command] = []
    rollout = state.rolling(release)
    stands = state.rollout is None and release == state.current
    if rollout is not None:
        verbs = (Abort,) if rollout.kind == "revert" else (Rollback, Pause, Resume, Approve, Promote)
        asked = [verb(**words, release=release) for verb in verbs]
    elif stands:
        asked = [Rollback(**words, release=release)]
    elif any(r.id == release for r in state.queue):
        asked = [Abort(**words, release=release)]
    if rollout is not None or stands:
        asked += [Freeze(**words), Unfreeze(**words)]
    return tuple(verb_of(c) for c in asked if not _carry_out(Turn(state, state.at), c))


def verb_of(command: Command) -> str:
    """What a command is called where it is asked for."""
    return "release" if isinstance(command, Submit) else type(command).__name__.lower()


def _wrong_target(state: ServiceState, command: Command) -> str:
    """Why a command about a rollout does not mean the one that is under way, or ''."""
    if not isinstance(command, _OfRollout) or not command.release or state.rolling(command.release):
        return ""
    if _queued(state, command.release) is not None:
        return f"{command.release} is still queued: {_under_way(state)}"
    return f"{command.release} is not rolling out: {_under_way(state)}"


def _under_way(state: ServiceState) -> str:
    """What rolls out, and where that is."""
    rollout = state.rollout
    if rollout is None:
        return f"nothing of {state.service} is rolling out"
    return f"{rollout.release.id} is {in_words(rollout.mark.kind if rollout.mark else rollout.phase)}"


def _carry_out(turn: Turn, command: Command) -> str:  # noqa: C901, PLR0911, PLR0912  one case for each command
    """Change the turn's state as the command asks; why it is refused, or ''."""
    if is_going(turn.state) and not isinstance(command, Submit):
        return _while_it_goes(turn, command)
    match command:
        case Submit():
            return _submit(turn, command)
        case Restart():
            return _restart(turn, command)
        case Rollback():
            return _rollback(turn, command)
        case Pause():
            return _pause(turn, command)
        case Resume():
            return _resume(turn)
        case Approve():
            return _approve(turn)
        case Promote():
            return _promote(turn, command)
        case Abort():
            return _abort(turn, command)
        case Freeze():
            return _freeze(turn, command)
        case Unfreeze():
            return _unfreeze(turn)
        case Remove():
            return _remove(turn, command)
        case _:
            assert_never(command)


def _submit(turn: Turn, command: Submit) -> str:
    state = turn.state
    receipt = next((r for r in state.receipts if command.key and r.key == command.key), None)
    if receipt is not None and (receipt.image, receipt.strategy) != (command.image, command.strategy):
        used = f"{receipt.image}, {receipt.strategy or 'the usual'} strategy"
        return f"key {command.key!r} was used for {used} ({receipt.release}); use a new key"
    if receipt is not None:
        turn.tell(_accepted(turn, command, receipt.release, duplicate=True))
        return ""
    if command.policy.on_new_release == "queue" and len(state.queue) >= QUEUE:
        return f"{len(state.queue)} releases wait already; abort some, or ask again when some have ended"
    call_off(turn)
    note = _called_off(state, turn.state)
    release = _new(turn, command)
    if command.key:
        kept = Receipt(key=command.key, image=command.image, release=release.id, strategy=command.strategy)
        turn.set(receipts=(*state.receipts, kept)[-RECEIPTS:])
    _make_way(turn, release)
    turn.events.insert(0, _accepted(turn, command, release.id, duplicate=False, note=note))
    return ""


def _new(turn: Turn, command: Submit, digest: str = "") -> Release:
    """The release that is asked for, with the next id."""
    number = turn.state.released + 1
    turn.set(released=number, removal=None)
    return Release(
        id=f"{turn.state.service}-{number}",
        service=turn.state.service,
        image=command.image,
        template=command.template,
        policy=command.policy,
        author=command.actor,
        reason=command.reason,
        link=command.link,
        submitted_at=turn.now,
        request=command.request,
        digest=digest,
    )


def _restart(turn: Turn, command: Restart) -> str:
    """Begin at once: a release that waited could find that its image has been rolled back from."""
    state, stable = turn.state, turn.state.stable
    if stable is None:
        return f"{state.service} has no stable release to restart; release an image"
    if state.rollout is not None or state.queue:
        ahead = state.rollout.release.id if state.rollout else state.queue[0].id
        return f"{ahead} is on its way; restart when it has ended"
    if state.frozen is not None:
        return f"{state.service} is frozen by {state.frozen.by}; unfreeze it first"
    changed = ", ".join(differences(stable.template, command.template))
    submit = Submit(
        request=command.request,
        actor=command.actor,
        reason=command.reason or (f"configuration changed: {changed}" if changed else "restart"),
        image=stable.image,
        template=command.template,
        policy=command.policy,
        link=stable.link,
    )
    release = _new(turn, submit, stable.digest)
    turn.tell(_accepted(turn, submit, release.id, duplicate=False))
    turn.launch(release)
    return ""


def _accepted(
    turn: Turn, command: Submit, release: str, *, duplicate: bool, note: str = ""
) -> ReleaseAccepted:
    frozen = turn.state.frozen
    queued = any(r.id == release for r in turn.state.queue)
    return ReleaseAccepted(
        service=turn.state.service,
        at=turn.now,
        release=release,
        image=command.image,
        actor=command.actor,
        reason=command.reason,
        request=command.request,
        link=command.link,
        duplicate=duplicate,
        frozen=frozen.by if frozen is not None and queued else "",
        note=note,
    )


def _make_way(turn: Turn, release: Release) -> None:
    """Queue a release; what is in its way is superseded, waited for, or wins over it."""
    action = release.policy.on_new_release
    going = turn.state.rollout is not None and not turn.state.leads_nowhere
    busy = going or bool(turn.state.queue)
    if busy and action == "reject":
        ahead = turn.state.rollout.release.id if turn.state.rollout else turn.state.queue[0].id
        why = f"{ahead} is in progress; release again when it has ended"
        turn.conclude(release, Outcome.REJECTED, why, actor=release.author)
        return
    if busy and action == "supersede":
        why = f"superseded by {release.id}"
        waiting = turn.state.queue
        turn.set(queue=())
        for queued in waiting:
            turn.conclude(queued, Outcome.SUPERSEDED, why, actor=release.author)
        thawed = turn.state.frozen is None  # else nothing would come after what is taken back
        if thawed and turn.state.rollout is not None and turn.state.rollout.kind == "release":
            turn.retreat(Outcome.SUPERSEDED, why, actor=release.author)
    turn.set(queue=(*turn.state.queue, release))


def _rollback(turn: Turn, command: Rollback) -> str:
    state = turn.state
    reason = command.reason or f"rolled back by {command.actor}"
    why = _no_way_back(state, command)
    if why:
        return why
    queued = _queued(state, command.release)
    if queued is not None:
        _take_out(turn, queued, reason, command.actor)
        return ""
    if _overrules(state, command):
        turn.end_older()
        turn.overrule()
        if turn.state.rollout is not None:
            turn.retreat(Outcome.ROLLED_BACK, reason, actor=command.actor)
        return ""
    target = _earlier(state, command.to) if state.rollout is None else None
    if isinstance(target, str):
        return target
    if target is None:
        turn.retreat(Outcome.ROLLED_BACK, reason, actor=command.actor)
    else:
        turn.revert(target, reason, actor=command.actor)
    return ""


def _no_way_back(state: ServiceState, command: Rollback) -> str:
    """Why what a rollback names does not fit what there is, or ''."""
    rollout, stable = state.rollout, state.stable.id if state.stable else ""
    active = rollout.release.id if rollout else ""
    if _queued(state, command.release) is not None:
        elsewhere = command.to not in ("", stable)
        return f"{command.release} is still queued; roll that back first, or abort it" if elsewhere else ""
    if command.release and command.release not in (active, stable):
        return _not_served(state, command.release)
    if rollout is not None and (rollout.kind == "revert" or rollout.phase is Phase.ROLLING_BACK):
        return _on_its_way_back(state, rollout)
    if rollout is not None and (command.release not in ("", active) or command.to not in ("", stable)):
        return f"{active} is rolling out over {stable or 'nothing'}; roll that back first, or abort it"
    return ""


def _queued(state: ServiceState, release: str) -> Release | None:
    return next((r for r in state.queue if r.id == release), None)


def _take_out(turn: Turn, release: Release, reason: str, actor: str) -> None:
    """End a release that waits in the queue."""
    turn.set(queue=tuple(r for r in turn.state.queue if r is not release))
    turn.conclude(release, Outcome.ABORTED, reason, actor=actor)


def _overrules(state: ServiceState, command: Rollback) -> bool:
    """Whether a rollback leads from an unknown route to stable.

    Not where it is about a release that is on its way alone, or nginx tells of a rollback on the host.
    """
    rollout, stable = state.rollout, state.stable
    if state.unknown is None or state.switched is not None or stable is None:
        return False
    idle = rollout is None or (rollout.phase in BEFORE_TRAFFIC and not command.release)
    return idle and command.to in ("", stable.id)


def _not_served(state: ServiceState, release: str) -> str:
    """Why a release that is neither rolling out nor stable nor queued is not rolled back."""
    stable = state.stable.id if state.stable else "empty"
    ended = next(iter(state.journeys(release)), None)
    if ended is None and state.known(release) is None:
        return not_remembered(state, release)
    if ended is None or ended.outcome in (Outcome.PROMOTED, Outcome.ROLLED_BACK):
        return f"{release} has no traffic any more: stable is {stable}; nothing to roll back"
    how = f"it has ended ({in_words(ended.outcome)}: {ended.reason})"
    return f"{release} has no traffic: {how}, and stable is {stable}; nothing to roll back"


def _on_its_way_back(state: ServiceState, rollout: Rollout) -> str:
    """Why a rollout that goes back already is not rolled back or aborted."""
    why = rollout.retreat.reason if rollout.retreat else rollout.reason
    to = rollout.release.id if rollout.kind == "revert" else state.stable.id if state.stable else "nothing"
    return f"{state.service} is being rolled back to {to} already, by {rollout.actor}: {why}"


def _earlier(state: ServiceState, to: str) -> Release | str:
    """The release to go back to, or why there is none."""
    stable = state.stable.id if state.stable else ""
    good = [e.release for e in state.history if e.outcome is Outcome.PROMOTED and e.release.id != stable]
    warm = [state.previous] if state.previous else []
    names = ", ".join(dict.fromkeys(r.id for r in reversed(good))) or "none"
    if to:
        wanted = next((r for r in (*warm, *reversed(good)) if r.id == to), None)
        return wanted or f"{to} is not an earlier promoted release of {state.service}; there are: {names}"
    if state.earlier is None and good:
        return (
            f"{state.service} has no earlier release left to go back to; it has been rolled back from"
            f" {names}: name one with --to (`to`) to go there again"
        )
    return state.earlier or (
        f"{state.service} has no earlier promoted release to go back to; release an image that is good"
    )


def _pause(turn: Turn, command: Pause) -> str:
    rollout = turn.state.rollout
    if rollout is None:
        return _under_way(turn.state)
    if rollout.phase is Phase.ROLLING_BACK:
        return _on_its_way_back(turn.state, rollout)
    if rollout.kind == "revert":
        return f"a rollback is not paused; {rollout.release.id} can be aborted until it takes the traffic"
    if rollout.mark is not None and rollout.mark.kind == "paused":
        return f"already paused by {rollout.mark.actor}"
    if rollout.mark is not None:
        _go_on(turn, rollout.mark)
    turn.roll(mark=Mark(kind="paused", actor=command.actor, reason=command.reason, since=turn.now))
    return ""


def _resume(turn: Turn) -> str:
    rollout = turn.state.rollout
    if rollout is None or rollout.mark is None or rollout.mark.kind != "paused":
        return f"there is no paused rollout: {_under_way(turn.state)}"
    _go_on(turn, rollout.mark)
    if rollout.mark.actor == DAEMON:  # at a deadline: the phase gets its whole time again
        turn.roll(entered_at=turn.now)
    return ""


def _approve(turn: Turn) -> str:
    rollout = turn.state.rollout
    if rollout is None or rollout.mark is None or rollout.mark.kind != "awaiting_approval":
        return f"there is no rollout that waits for approval: {_under_way(turn.state)}"
    _go_on(turn, rollout.mark)
    turn.roll(approved=True)
    return ""


def _go_on(turn: Turn, mark: Mark) -> None:
    """Take a mark off. The time under it counts for no clock of the phase."""
    turn.postpone(turn.now - mark.since)
    turn.roll(mark=None, silent=0.0)


def _promote(turn: Turn, command: Promote) -> str:
    state, rollout = turn.state, turn.state.rollout
    back = rollout is not None and rollout.phase is Phase.ROLLING_BACK
    if rollout is not None and back and state.stable is not None and state.has_lost_stable:
        if not state.may_be_kept:
            dead = f"no instance of {rollout.release.id} lives, nor of {state.stable.id}"
            return f"{dead}; release an image that is good"
        turn.set(stable=rollout.release, previous=state.stable, previous_until=turn.now)
        turn.end(Outcome.PROMOTED, _because(f"kept by {command.actor}", command), actor=command.actor)
        turn.unstuck()
        return ""
    if rollout is None or rollout.phase not in (Phase.PREVIEW, Phase.SHIFTING):
        return f"there is nothing to promote: {_under_way(state)}"
    weight = current_step(state, rollout).weight
    where = f"at {weight} %" if rollout.phase is Phase.SHIFTING else "in the preview"
    reason = _because(f"promoted by {command.actor} {where}", command)
    turn.roll(skipped=True)
    turn.enter(Phase.BAKING, reason, step=step_count(turn.state, rollout) - 1, actor=command.actor)
    return ""


def _because(what: str, command: Command) -> str:
    """What a person did, and why where that was said."""
    return f"{what}: {command.reason}" if command.reason else what


def _abort(turn: Turn, command: Abort) -> str:
    reason = command.reason or f"aborted by {command.actor}"
    rollout = turn.state.rollout
    queued = _queued(turn.state, command.release)
    if queued is not None:
        _take_out(turn, queued, reason, command.actor)
        return ""
    if rollout is None or command.release not in ("", rollout.release.id):
        if command.release:
            ways = [*([rollout.release] if rollout else []), *turn.state.queue]
            names = ", ".join(r.id for r in ways) or "none"
            return f"{command.release} is neither rolling out nor queued; there are: {names}"
        waiting = ", ".join(r.id for r in turn.state.queue)
        which = f"; name the queued one that is meant: {waiting}" if waiting else ""
        return f"{turn.state.service} has no release in progress{which}"
    if rollout.one_way or rollout.phase is Phase.ROLLING_BACK:
        return _on_its_way_back(turn.state, rollout)
    turn.retreat(Outcome.ABORTED, reason, actor=command.actor)
    return ""


def _freeze(turn: Turn, command: Freeze) -> str:
    if turn.state.frozen is not None:
        return f"{turn.state.service} is already frozen by {turn.state.frozen.by}"
    turn.set(frozen=Mark(kind="frozen", actor=command.actor, reason=command.reason, since=turn.now))
    return ""


def _unfreeze(turn: Turn) -> str:
    if turn.state.frozen is None:
        return f"{turn.state.service} is not frozen"
    turn.set(frozen=None)
    return ""


def _remove(turn: Turn, command: Remove) -> str:
    state = turn.state
    if state.removal is not None:
        return f"{state.service} was removed already, by {state.removal.by}"
    if state.rollout is not None or state.queue:
        ahead = state.rollout.release.id if state.rollout else state.queue[0].id
        return f"{ahead} is on its way; abort it first"
    mark = Mark(kind="removing", actor=command.actor, reason=command.reason, since=turn.now)
    begin(turn, mark)
    turn.overrule()
    return ""


def _while_it_goes(turn: Turn, command: Command) -> str:
    """What is asked while a service is removed: `abort` calls that off; why anything else is refused."""
    state, mark = turn.state, turn.state.removal
    assert mark is not None
    if isinstance(command, Abort) and not command.release and call_off(turn):
        return ""
    ways = "abort it to keep the service, or release an image"
    if "stable" not in kept(state):
        ways = "no stable release is left to keep; release an image to have it again"
    return f"{state.service} is being removed, by {mark.by}; {waits_for(state)}; {ways}"
