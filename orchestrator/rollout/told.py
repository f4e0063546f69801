"""Events as sentences. Pure."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import assert_never

from orchestrator.rollout.events import (
    ApprovalWanted,
    CommandAccepted,
    ConfigReloaded,
    EdgeDrifted,
    EdgeRepaired,
    EdgeStuck,
    Event,
    GateJudged,
    GatesLooked,
    ImageResolved,
    InstanceDied,
    InstanceRecovered,
    PhaseEntered,
    ReleaseAccepted,
    ReleaseEnded,
    ReleaseRetired,
    RequestRefused,
    RollbackStarted,
    RolloutPaused,
    RouteChanged,
    RouteConfirmed,
    ServiceAdopted,
    ServiceRemoved,
    ServiceTroubled,
    StateRestored,
)
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.policy import Template, differences

LOG_LINES, LOG_WIDTH = 20, 500
"""The most lines of a container's log that are shown, and the most characters of each."""

LAST = 5
"""Releases that are named where another one is not known."""

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What commands a terminal, or turns the direction in which a text is read; not tab and line feed."""

_SEQUENCE = re.compile("\x1b(\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)|[ -/]*[0-~])")


def harmless(text: str) -> str:
    """A stranger's text without terminal sequences (ECMA-48) and without other control characters."""
    return CONTROL.sub("", _SEQUENCE.sub("", text))


def told(event: Event) -> str:
    """An event as one line."""
    return harmless(_told(event)).replace("\n", " ")


def _told(event: Event) -> str:  # noqa: C901, PLR0911, PLR0912  one line for each kind
    match event:
        case ReleaseAccepted():
            again = " (already known by its key)" if event.duplicate else ""
            waits = f"; queued: frozen by {event.frozen}" if event.frozen else ""
            return f"accepted {event.image} from {event.actor}{again}{waits}{_note(event.note)}"
        case RequestRefused():
            return f"refused {event.verb} from {event.actor}: {event.reason}"
        case CommandAccepted():
            return f"{event.verb} by {event.actor} {event.reason}".rstrip() + _note(event.note)
        case PhaseEntered():
            step = f" {event.step + 1}/{event.steps} at {event.weight} %" if event.weight else ""
            return f"{in_words(event.phase)}{step} {event.reason}".rstrip()
        case ImageResolved():
            return f"image is {event.digest[:80]}" + (f"; {event.note}" if event.note else "")
        case RouteChanged():
            shares = ", ".join(f"{release} {share:g} %" for release, share in event.shares) or "nothing"
            return f"route {event.generation}: {shares}"
        case RouteConfirmed():
            return f"route {event.generation} confirmed"
        case GateJudged():
            trial = " (dry run)" if event.verdict.dry_run else ""
            return f"{event.verdict.gate} {in_words(event.verdict.result)}{trial}: {event.verdict.text}"
        case GatesLooked():
            said = ", ".join(f"{look.gate} {in_words(look.result)}" for look in event.looks)
            return f"{said}; evidence of harm {event.harm:.3g}"
        case InstanceDied():
            return event.reason
        case InstanceRecovered():
            return f"{event.instance} is ready again"
        case ApprovalWanted():
            return f"waits for approval: {event.reason}"
        case RolloutPaused():
            return f"paused by {event.actor}: {event.reason}"
        case RollbackStarted():
            return f"going back ({in_words(event.outcome)}) by {event.actor}: {event.reason}"
        case ReleaseEnded():
            return f"{in_words(event.outcome)} after {event.seconds:.1f} s by {event.actor}: {event.reason}"
        case ReleaseRetired():
            return "retired" if event.drained else "retired at its drain deadline"
        case EdgeDrifted():
            return f"nginx' file of {event.service} is {event.file}: no step is taken until it is ours again"
        case EdgeRepaired():
            return "nginx' file is ours again"
        case EdgeStuck():
            return f"route {event.generation} is not served: {event.reason}"
        case ServiceTroubled():
            return event.reason or "driven again without an error"
        case ServiceAdopted():
            also = f", candidate {event.candidate}" if event.candidate else ""
            return f"taken up as it was found at generation {event.generation}{also}"
        case StateRestored():
            return f"the store had lost {event.remembered - event.found} commits; written again"
        case ConfigReloaded():
            wrong = f"; wrong: {'; '.join(event.problems)}" if event.problems else ""
            return f"files read for {event.actor}: {'; '.join(event.changes) or 'nothing changes'}{wrong}"
        case ServiceRemoved():
            return f"removed by {event.actor} {event.reason}".rstrip()
        case _:
            assert_never(event)


def _note(text: str) -> str:
    return f"; {text}" if text else ""


def in_words(name: str) -> str:
    """A name of the machine as people read it: `rolled_back` is `rolled back`."""
    return name.replace("_", " ")


def logs_of(event: Event) -> str:
    """The last lines of a container's log that an event holds; '' where it holds none."""
    logs = event.logs.strip() if isinstance(event, InstanceDied | ReleaseEnded) else ""
    return "\n".join(harmless(line)[:LOG_WIDTH] for line in logs.splitlines()[-LOG_LINES:])


def last_logs(events: Iterable[Event]) -> str:
    """What `logs_of` finds in the latest event that holds a log; oldest first."""
    return next((logs for event in reversed([*events]) if (logs := logs_of(event))), "")


def problems(state: ServiceState) -> list[str]:
    """What is wrong with a service now."""
    found = [f"{name} is down" for name in state.dead]
    found += [
        f"{one.tries} instances of {one.release} in a row were made anew and hang again, {one.instance} last:"
        " is its probe right, and what it needs there?"
        for one in state.anew
        if one.tries > 1
    ]
    if state.drifted_since is not None:
        edited = f"nginx' file {state.service}.conf was edited or removed by hand"
        found.append(f"{edited}; no step is taken until that is undone")
    if state.trouble:
        found.append(state.trouble)
    warm = state.previous if state.rollout is None and not state.has_lost(state.previous) else None
    if warm is not None and state.stable is not None and state.has_lost_stable:
        way = f"`orchestrator rollback {state.service} --to {warm.id}` sends everybody to {warm.id}"
        found.append(f"all of {state.stable.id} is down; {way}")
    if state.stuck_since is not None:
        found.append(state.stuck_why if state.unknown else way_back(state) or _unconfirmed(state))
    if state.rollout is not None and state.rollout.blind_since is not None:
        found.append(f"{state.rollout.blind_to or 'Prometheus'} does not answer; the rollout is held")
    return found


def _unconfirmed(state: ServiceState) -> str:
    """What nginx does not do, why, and where users are meanwhile."""
    new, old = state.route.generation, state.confirmed
    if new == old:
        return f"nginx does not say what it serves: {state.stuck_why}"
    still = f" and may still serve route {old}" if old else ""
    settled = state.rollout is None and state.removal is None and old
    where = f"; all users are on {state.stable.id} with either" if settled and state.stable else ""
    return f"nginx has not confirmed route {new}{still}: {state.stuck_why}{where}"


def standing(state: ServiceState, release: str) -> str:
    """Where a release is on its way, and what it waits for."""
    rollout, service = state.rolling(release), state.service
    ids = [r.id for r in state.queue]
    if release in ids and state.frozen is not None:
        return f"{release} stays queued until `orchestrator unfreeze {service}`"
    if release in ids:
        ahead = [*([state.rollout.release.id] if state.rollout else []), *ids[: ids.index(release)]]
        return f"{release} is queued" + (f" behind {', '.join(ahead)}" if ahead else "")
    if rollout is None:
        ended = next(iter(state.journeys(release)), None)
        return (
            f"{release} {in_words(ended.outcome)}: {ended.reason}"
            if ended
            else f"{release} is not known any more"
        )
    waits = {
        "paused": f"`orchestrator resume {service}` lets it go on",
        "awaiting_approval": f"`orchestrator approve {service}` lets it go on",
    }
    mark = rollout.mark
    back = way_back(state)
    if back:
        said = f"{release}: {back}"
    elif mark is not None:
        said = f"{release} is {in_words(mark.kind)}, by {mark.by}; {waits[mark.kind]}"
    else:
        said = f"{release} goes on ({in_words(rollout.phase)})"
    return "; ".join([said, *(p for p in problems(state) if p != back)])


def not_remembered(state: ServiceState, release: str) -> str:
    """That a service knows no such release, and which are the last ones that it knows."""
    known = [e.release for e in state.history]
    known += [r for r in (state.stable, state.rollout and state.rollout.release, *state.queue) if r]
    last = ", ".join([*dict.fromkeys(r.id for r in known)][-LAST:]) or "none"
    return f"{release!r} is no release that is remembered of {state.service}; the last ones are: {last}"


def way_back(state: ServiceState) -> str:
    """Where users are while they are taken back, since when, and what that waits for; '' else."""
    rollout = state.rollout
    if rollout is None or not rollout.takes_back:
        return ""
    stable = state.stable.id if state.stable else "nothing"
    to, leaves = (rollout.release.id, stable) if rollout.one_way else (stable, rollout.release.id)
    pending = state.confirmed != state.route.generation
    if state.switched is not None and state.switched[0] == to:
        where = f"all users are on {to} by the rollback switch since {_clock(state.switched[1])}"
    elif not pending and state.route.share(to) == 1.0:
        where = f"all users are sent to {to}"
    else:
        where = f"some users may still be on {leaves}"
    said = ("nginx has not confirmed its new configuration yet" if pending else "", state.stuck_why)
    waits = ": ".join(filter(None, said))
    return "; ".join(filter(None, (f"going back to {to} since {_clock(rollout.entered_at)}", where, waits)))


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


def outdated(state: ServiceState, template: Template | None) -> str:
    """In what stable was started otherwise than its service's file says, which is `template`; '' in nothing.

    A file that is there no more says nothing.
    """
    if state.stable is None or template is None:
        return ""
    fields = ", ".join(differences(state.stable.template, template))
    return f"stable differs from its file: {fields}" if fields else ""
