"""States and events as people read them."""

import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from orchestrator.cli.session import escape
from orchestrator.rollout.events import Event, GateJudged, GatesLooked, PhaseEntered, ReleaseEnded
from orchestrator.rollout.model import FULL, Ended, Outcome, Release, Result, Rollout, ServiceState
from orchestrator.rollout.plan import current_step, step_count
from orchestrator.rollout.policy import Template
from orchestrator.rollout.removal import is_going, waits_for
from orchestrator.rollout.told import in_words, logs_of, outdated, problems, told, way_back

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


ALARMING = frozenset(
    {"request_refused", "instance_died", "rollback_started", "edge_drifted", "edge_stuck", "service_troubled"}
)
NOTABLE = frozenset(
    {"approval_wanted", "rollout_paused", "service_adopted", "service_removed", "state_restored"}
)


def event_text(event: Event) -> str:
    """An event as rich markup: one line, and below it the log of a container that died."""
    return f"[{_style(event)}]{escape(told(event))}[/]{log_text(logs_of(event))}"


def _style(event: Event) -> str:
    if isinstance(event, ReleaseEnded):
        return f"{COLOURS[event.outcome]} bold"
    if isinstance(event, GateJudged):
        return RESULTS.get(event.verdict.result, "yellow")
    if isinstance(event, PhaseEntered):
        return "bold"
    if isinstance(event, GatesLooked):
        return "dim"
    return "red" if event.kind in ALARMING else "yellow" if event.kind in NOTABLE else "default"


def log_text(logs: str) -> str:
    """The lines of a log as rich markup, each on a line of its own below what is before."""
    return "".join(f"\n    [dim]{escape(line)}[/]" for line in logs.splitlines())


def status_table(states: list[ServiceState], now: float, files: Mapping[str, Template | None]) -> Table:
    """All services at a glance; `files`: how each is to be run, by its file."""
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
            note(state, files.get(state.service)),
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
    text = in_words(rollout.phase)
    if rollout.phase in ("shifting", "baking"):
        text += f" {rollout.step + 1}/{step_count(state, rollout)}"
        if rollout.held_since is not None and step.hold:
            held = min(now - rollout.held_since, step.hold)
            text += f" {bar(held / step.hold, 10)} {held:.0f}/{step.hold:.0f} s"
    return text


def _traffic(state: ServiceState) -> str:
    share = state.route.share(state.current)
    return f"{bar(share, 10)} {share * FULL:g} %"


def note(state: ServiceState, template: Template | None) -> str:
    """What a person should know."""
    notes = []
    if state.rollout and state.rollout.mark:
        mark = state.rollout.mark
        notes.append(f"[yellow]{in_words(mark.kind)} ({escape(mark.actor)}: {escape(mark.reason)})[/]")
    if state.removal:
        waits = f"; {waits_for(state)}" if is_going(state) and state.stuck_since is None else ""
        notes.append(f"[cyan]{state.removal.kind}, by {escape(state.removal.by)}{escape(waits)}[/]")
    if state.frozen:
        notes.append(f"[cyan]frozen by {escape(state.frozen.by)}[/]")
    if state.queue:
        notes.append(f"queued: {', '.join(r.id for r in state.queue)}")
    wrong = problems(state)
    notes += [f"[yellow]{escape(back)}[/]" for back in (way_back(state),) if back not in ("", *wrong)]
    notes += [f"[red]{escape(problem)}[/]" for problem in wrong]
    notes += [f"[yellow]{differs}[/]" for differs in (outdated(state, template),) if differs]
    if state.previous and not state.rollout:
        left = "" if state.previous == state.earlier else ", left by a rollback"
        notes.append(f"{state.previous.id} is warm{left}")
    return "; ".join(notes)


def verdict_lines(rollout: Rollout) -> list[Text]:
    """The gates at the last look."""
    return [
        Text.from_markup(
            f"  [{RESULTS.get(v.result, 'yellow')}]{in_words(v.result):<13}[/] {v.gate}"
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
            "why": e.release.reason,
            "link": e.release.link,
            "reason": e.reason,
            "began_at": e.began_at,
            "ended_at": e.ended_at,
            "seconds": round(e.ended_at - e.began_at, 1),
            "left": left_row(state.left(e)),
        }
        for e in reversed(state.history)
    ]


def left_row(left: Ended | None) -> dict[str, Any] | None:
    """The rollback by which a promoted release was left; None where it was not."""
    if left is None:
        return None
    return {"to": left.release.id, "actor": left.actor, "reason": left.reason, "at": left.ended_at}


def left_text(left: Mapping[str, Any]) -> str:
    """The same as people read it."""
    why = "" if left["reason"] == f"rolled back by {left['actor']}" else f": {left['reason']}"
    return f"left at {_when(left['at'])} for {left['to']}, rolled back by {left['actor']}{why}"


def history_table(rows: list[dict[str, Any]]) -> Table:
    """Finished journeys: whose release it was, who or what decided, and that it was left since."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("release", "outcome", "image", "when", "seconds", "author", "decided by", "reason"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["release"] + (" (back)" if row["kind"] == "revert" else ""),
            f"[{COLOURS[Outcome(row['outcome'])]}]{in_words(row['outcome'])}[/]",
            escape(row["image"]),
            _when(row["ended_at"]),
            f"{row['seconds']:g}",
            escape(row["author"]),
            escape(row["actor"]),
            escape(row["reason"]) + (f"; [yellow]{escape(left_text(row['left']))}[/]" if row["left"] else ""),
        )
    return table


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
