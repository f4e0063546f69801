"""States and events as people read them."""

from typing import Any, assert_never

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.rollout.events import (
    ApprovalWanted,
    CommandAccepted,
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
    StateRestored,
)
from orchestrator.rollout.model import FULL, Outcome, Release, Result, Rollout, ServiceState
from orchestrator.rollout.plan import current_step, step_count

WIDTH = 20

COLOURS = {
    Outcome.PROMOTED: "green",
    Outcome.ROLLED_BACK: "red",
    Outcome.FAILED: "red",
    Outcome.REJECTED: "yellow",
    Outcome.SUPERSEDED: "yellow",
    Outcome.ABORTED: "yellow",
}

RESULTS = {Result.PASS: "green", Result.FAIL: "red", Result.INCONCLUSIVE: "yellow"}


def bar(share: float, width: int = WIDTH) -> str:
    """A share from 0 to 1 as a bar."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


def event_text(event: Event) -> str:  # noqa: C901, PLR0911, PLR0912  one line for each kind
    """An event as one line of rich markup."""
    match event:
        case ReleaseAccepted():
            again = " (already known by its key)" if event.duplicate else ""
            return f"accepted {escape(event.image)} from {escape(event.actor)}{again}"
        case RequestRefused():
            return f"[red]refused[/] {escape(event.verb)} from {escape(event.actor)}: {escape(event.reason)}"
        case CommandAccepted():
            return f"{event.verb} by {escape(event.actor)} {escape(event.reason)}".rstrip()
        case PhaseEntered():
            step = f" {event.step + 1}/{event.steps} at {event.weight} %" if event.weight else ""
            return f"[bold]{event.phase}{step}[/] {escape(event.reason)}".rstrip()
        case ImageResolved():
            return f"image is {escape(event.digest[:80])}"
        case RouteChanged():
            shares = ", ".join(f"{release} {share:g} %" for release, share in event.shares) or "nothing"
            return f"route {event.generation}: {shares}"
        case RouteConfirmed():
            return f"route {event.generation} confirmed"
        case GateJudged():
            colour = RESULTS.get(event.verdict.result, "yellow")
            trial = " (dry run)" if event.verdict.dry_run else ""
            said = f"[{colour}]{event.verdict.gate} {event.verdict.result}[/]{trial}"
            return f"{said}: {escape(event.verdict.text)}"
        case GatesLooked():
            said = ", ".join(f"{look.gate} {look.result}" for look in event.looks)
            return f"[dim]{said}; evidence of harm {event.harm:.3g}[/]"
        case InstanceDied():
            return f"[red]{escape(event.reason)}[/]{_logs(event.logs)}"
        case InstanceRecovered():
            return f"{event.instance} is ready again"
        case ApprovalWanted():
            return f"[yellow]waits for approval[/]: {escape(event.reason)}"
        case RolloutPaused():
            return f"[yellow]paused[/] by {escape(event.actor)}: {escape(event.reason)}"
        case RollbackStarted():
            return f"[red]going back[/] ({event.outcome}) by {escape(event.actor)}: {escape(event.reason)}"
        case ReleaseEnded():
            return (
                f"[{COLOURS[event.outcome]} bold]{event.outcome}[/] after {event.seconds:.1f} s:"
                f" {escape(event.reason)}{_logs(event.logs)}"
            )
        case ReleaseRetired():
            return "retired" if event.drained else "retired at its drain deadline"
        case EdgeDrifted():
            return f"[red]nginx' file is {event.file}[/]"
        case EdgeRepaired():
            return "nginx' file is ours again"
        case EdgeStuck():
            return f"[red]nginx does not confirm route {event.generation}[/]: {escape(event.reason)}"
        case ServiceAdopted():
            also = f", candidate {event.candidate}" if event.candidate else ""
            return f"[yellow]taken up[/] as it was found at generation {event.generation}{also}"
        case StateRestored():
            return f"[red]the store had lost {event.remembered - event.found} commits[/]; written again"
        case _:
            assert_never(event)


def _logs(logs: str) -> str:
    lines = logs.strip().splitlines()
    return "".join(f"\n    [dim]{escape(line[:200])}[/]" for line in lines)


def status_table(states: list[ServiceState], now: float) -> Table:
    """All services at a glance."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("service", "stable", "candidate", "phase", "traffic", "note"):
        table.add_column(column)
    for state in states:
        rollout = state.rollout
        table.add_row(
            state.service,
            _version(state.stable),
            _version(rollout.release) if rollout else "",
            phase_text(state, now),
            _traffic(state),
            note(state),
        )
    return table


def _version(release: Release | None) -> str:
    return f"{release.id} ({escape(release.image.rpartition('/')[2])})" if release else "-"


def phase_text(state: ServiceState, now: float) -> str:
    """The phase with how far it is."""
    rollout = state.rollout
    if rollout is None:
        return "idle" if state.stable else "empty"
    step = current_step(state, rollout)
    text = str(rollout.phase)
    if rollout.phase in ("shifting", "baking"):
        text += f" {rollout.step + 1}/{step_count(state, rollout)}"
        if rollout.held_since is not None and step.hold:
            held = min(now - rollout.held_since, step.hold)
            text += f" {bar(held / step.hold, 10)} {held:.0f}/{step.hold:.0f} s"
    return text


def _traffic(state: ServiceState) -> str:
    candidate = state.rollout.release.id if state.rollout else (state.stable.id if state.stable else "")
    share = state.route.share(candidate)
    return f"{bar(share, 10)} {share * FULL:g} %"


def note(state: ServiceState) -> str:
    """What a person should know."""
    notes = []
    if state.rollout and state.rollout.mark:
        mark = state.rollout.mark
        notes.append(f"[yellow]{mark.kind} ({escape(mark.actor)}: {escape(mark.reason)})[/]")
    if state.frozen:
        notes.append(f"[cyan]frozen by {escape(state.frozen.actor)}: {escape(state.frozen.reason)}[/]")
    if state.queue:
        notes.append(f"queued: {', '.join(r.id for r in state.queue)}")
    if state.dead:
        notes.append(f"[red]down: {', '.join(state.dead)}[/]")
    if state.drifted_since is not None:
        notes.append("[red]nginx' file was edited[/]")
    if state.stuck_since is not None:
        notes.append("[red]nginx does not confirm[/]")
    if state.previous and not state.rollout:
        notes.append(f"{state.previous.id} is warm")
    return "; ".join(notes)


def verdict_lines(rollout: Rollout) -> list[Text]:
    """The gates at the last look."""
    return [
        Text.from_markup(
            f"  [{RESULTS.get(v.result, 'yellow')}]{v.result:<13}[/] {v.gate}"
            f"{' (dry run)' if v.dry_run else ''}: {escape(v.text)}"
        )
        for v in rollout.verdicts
    ]


def history_rows(state: ServiceState) -> list[dict[str, Any]]:
    """Finished journeys, latest first."""
    return [
        {
            "release": e.release.id,
            "kind": e.kind,
            "image": e.release.image,
            "outcome": e.outcome.value,
            "actor": e.actor,
            "author": e.release.author,
            "reason": e.reason,
            "began_at": e.began_at,
            "ended_at": e.ended_at,
            "seconds": round(e.ended_at - e.began_at, 1),
        }
        for e in reversed(state.history)
    ]
