"""`explain` and `replay`: why a release ended as it did."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.table import Table

from orchestrator.analysis.shown import shown
from orchestrator.cli.session import Output, escape, out
from orchestrator.cli.show import COLOURS, RESULTS, left_row, left_text, log_text
from orchestrator.daemon.config import Config
from orchestrator.ports.faults import Fault
from orchestrator.rollout.events import (
    EdgeStuck,
    Event,
    GateLook,
    GatesLooked,
    PhaseEntered,
    RollbackStarted,
    RolloutPaused,
    RouteChanged,
)
from orchestrator.rollout.evidence import interval
from orchestrator.rollout.model import Ended, Outcome, Release, Result, readable
from orchestrator.rollout.policy import Comparison, Limit
from orchestrator.rollout.replay import replay
from orchestrator.rollout.told import in_words, last_logs, not_remembered, problems, told, way_back
from orchestrator.rollout.turn import DAEMON
from orchestrator.store.redis_store import RedisStore

LEVELS = "▁▂▃▄▅▆▇█"
WIDTH = 72


@dataclass(frozen=True, slots=True)
class Story:
    """A release with all that was told of it.

    Attributes:
        ended: None while it rolls out.
        left: The rollback by which it was left after it had been promoted; None where it was not.
        problems: What is wrong with the service now; empty once the release has ended.
    """

    release: Release
    ended: Ended | None
    events: tuple[Event, ...]
    left: Ended | None = None
    problems: tuple[str, ...] = ()

    @property
    def looks(self) -> list[GatesLooked]:
        """Its looks, oldest first."""
        return [e for e in self.events if isinstance(e, GatesLooked)]

    @property
    def stable(self) -> str:
        """The release that it was compared with; '' when there was none."""
        routes = [e for e in self.events if isinstance(e, RouteChanged)]
        others = [r for e in routes for r, share in e.shares if r != self.release.id and share > 0]
        return others[0] if others else ""


async def story_of(store: RedisStore, name: str) -> Story:
    """Everything that is known of a release.

    Raises:
        Fault: It waits in the queue, or Redis does not answer.
        BadParameter: It is not in the service's history.
    """
    service = name.rpartition("-")[0]
    state, _ = await store.load(service)
    rollout = state.rolling(name)
    if rollout is not None:
        events = await store.told(name, rollout.began_at)
        wrong = dict.fromkeys(filter(None, (way_back(state), *problems(state))))
        return Story(rollout.release, None, tuple(events), problems=tuple(wrong))
    ended = next((e for e in state.journeys(name) if e.kind == "release"), None)
    if ended is None and any(r.id == name for r in state.queue):
        frozen = f": {service} is frozen by {state.frozen.by}" if state.frozen else ""
        raise Fault(f"{name} waits in the queue{frozen}; there is nothing to explain yet")
    if ended is None:
        raise typer.BadParameter(await _unknown(store, name, service or name))
    left = state.left(state.journeys(name)[0])
    return Story(ended.release, ended, tuple(await store.told(name, ended.began_at)), left)


async def _unknown(store: RedisStore, name: str, service: str) -> str:
    """Why there is nothing to say of a release, and which there are."""
    for one in (name, service):
        state, _ = await store.load(one)
        if state.released or state.history:
            return not_remembered(state, name)
    known = ", ".join(sorted(await store.services())) or "none"
    return f"{name!r} is no release: write SERVICE-NUMBER, such as api-7; services with releases: {known}"


def explain(story: Story, config: Config, output: Output, *, brief: bool) -> None:
    """Print why: the curve of the evidence, each look, the queries."""
    if output is Output.JSON:
        out.print(json.dumps(document(story, config), indent=2), markup=False)
        return
    _head(story)
    if not story.looks:
        out.print(f"no gate was looked at: {_why_no_look(story)}")
        return
    _curves(story)
    if not brief:
        out.print(_table(story))
    out.print("\nqueries, near to what was judged:", style="bold")
    for gate, release, query in queries(story, config):
        out.print(f"  {gate} of {release}", style="dim")
        out.print(f"    {query}", markup=False)


def _head(story: Story) -> None:
    release, ended = story.release, story.ended
    said = " ".join(filter(None, (release.reason, release.link)))
    out.print(f"[bold]{release.id}[/] {escape(release.image)} by {escape(release.author)}")
    if said:
        out.print(f"  {escape(said)}")
    if ended is None:
        out.print("[yellow]rolling out[/]")
    else:
        colour = COLOURS[Outcome(ended.outcome)]
        seconds = ended.ended_at - ended.began_at
        out.print(
            f"[{colour}]{in_words(ended.outcome)}[/] after {seconds:.0f} s by {escape(ended.actor)}:"
            f" {escape(ended.reason)}"
        )
    if story.left is not None:
        out.print(f"[yellow]{escape(left_text(left_row(story.left) or {}))}[/]")
    for problem in story.problems:
        out.print(f"[red]{escape(problem)}[/]")
    for event in story.events:
        if isinstance(event, PhaseEntered) and event.weight:
            by = f" by {escape(event.actor)}" if event.actor != DAEMON else ""
            phase = in_words(event.phase)
            out.print(f"  {_clock(event.at)} {phase} at {event.weight} %{by}: {escape(event.reason)}")
        elif isinstance(event, RollbackStarted | RolloutPaused | EdgeStuck):
            out.print(f"  {_clock(event.at)} [red]{escape(told(event))}[/]")
    if logs := last_logs(story.events):
        out.print(f"its last log lines:{log_text(logs)}")


def _why_no_look(story: Story) -> str:
    moves = [e for e in story.events if isinstance(e, PhaseEntered) and e.weight]
    if not story.events:
        return "what happened to it is not kept any more"
    if not moves:
        return "it had no traffic"
    if all(e.steps == 1 for e in moves):
        return "it took all traffic in one step, without a release to compare it with"
    policy = story.release.policy
    return "none was due" if policy.comparisons or policy.limits else "its service has none"


def _curves(story: Story) -> None:
    """Evidence over time, on a logarithmic scale; one column is one look, or several when there are many."""
    policy, looks = story.release.policy, story.looks
    names = [c.name for c in policy.comparisons]
    if not names:
        return
    certainty = policy.certainty
    alarm, safe = 1.0 / certainty.alpha, 1.0 / certainty.beta
    out.print(
        f"\nevidence from {_clock(looks[0].at)} to {_clock(looks[-1].at)}, {len(looks)} looks;"
        f" bottom 0.01, top {alarm:g}",
        style="bold",
    )
    width = max(len(n) for n in names) + 7
    total = [look.harm for look in looks]
    out.print(f"  {'harm':<{width}} [red]{spark(total, alarm)}[/] {total[-1]:.3g} of {alarm:g}")
    for name in names:
        found = [g for look in looks for g in look.looks if g.gate == name]
        harm = [g.harm for g in found if g.harm is not None]
        safety = [g.safety for g in found if g.safety is not None]
        if harm and safety:
            out.print(f"  {name + ' harm':<{width}} [red]{spark(harm, alarm)}[/] {harm[-1]:.3g}")
            out.print(
                f"  {name + ' safe':<{width}} [green]{spark(safety, safe)}[/] {safety[-1]:.3g} of {safe:g}"
            )
    weights = "".join(_weight_mark(looks, i) for i in _columns(len(looks)))
    out.print(f"  {'step':<{width}} [dim]{weights}[/]")


def _columns(number: int) -> list[int]:
    """The last look of each column."""
    width = min(number, WIDTH)
    return [(i + 1) * number // width - 1 for i in range(width)]


def _weight_mark(looks: Sequence[GatesLooked], at: int) -> str:
    return str(looks[at].step + 1)[-1]


def spark(values: Sequence[float], top: float) -> str:
    """A curve in one line, logarithmic from 0.01 to `top`; what is above is at the top."""
    shown_values = [values[i] for i in _columns(len(values))]
    low, high = math.log(0.01), math.log(top)
    marks = []
    for value in shown_values:
        place = (math.log(max(value, 1e-9)) - low) / (high - low)
        marks.append(LEVELS[min(max(int(place * len(LEVELS)), 0), len(LEVELS) - 1)])
    return "".join(marks)


def _table(story: Story) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="\neach look", title_justify="left")
    for column in ("time", "step", "gate", "result", "candidate", "95 % interval", "stable", "harm", "safe"):
        table.add_column(column, no_wrap=True)
    for look in story.looks:
        for found in look.looks:
            colour = RESULTS.get(found.result, "yellow")
            table.add_row(
                _clock(look.at),
                f"{look.weight} %",
                found.gate,
                f"[{colour}]{in_words(found.result)}[/]",
                _side(found.value, found.samples, found),
                _interval(found),
                _side(found.baseline, found.baseline_samples, found),
                "" if found.harm is None else f"{found.harm:.3g}",
                "" if found.safety is None else f"{found.safety:.3g}",
            )
    return table


def _side(value: float | None, samples: int, look: GateLook) -> str:
    if value is None:
        return escape(look.missing[:40]) or "-"
    number = readable(value, look.unit)
    return f"{number} of {samples:,}" if samples else number


def _interval(look: GateLook) -> str:
    if look.harm is None or look.value is None:
        return ""
    low, high = interval(look.value * look.samples, look.samples)
    return f"{low * 100:.2f} – {high * 100:.2f} %"  # noqa: RUF001  a range


def queries(story: Story, config: Config) -> Iterator[tuple[str, str, str]]:
    """Gate, release and PromQL of everything that was looked at."""
    file = config.services.get(story.release.service)
    if file is None:
        return
    source, policy = file.metrics.source(), story.release.policy
    bounds = {g.gate: g.begun.bound for look in story.looks for g in look.looks if g.begun is not None}
    gates: tuple[Limit | Comparison, ...] = (*policy.comparisons, *policy.limits)
    for gate in gates:
        for release in (story.release.id, story.stable):
            query = (
                shown(gate, source, story.release.service, release, bounds.get(gate.name)) if release else ""
            )
            if query:
                yield gate.name, release, query


def document(story: Story, config: Config) -> dict[str, Any]:
    """The same as JSON, for a page to draw."""
    release, ended, certainty = story.release, story.ended, story.release.policy.certainty
    return {
        "release": release.id,
        "service": release.service,
        "image": release.image,
        "author": release.author,
        "why": release.reason,
        "link": release.link,
        "stable": story.stable,
        "outcome": ended.outcome if ended else None,
        "actor": ended.actor if ended else "",
        "reason": ended.reason if ended else "",
        "left": left_row(story.left),
        "logs": last_logs(story.events),
        "problems": list(story.problems),
        "began_at": ended.began_at if ended else None,
        "ended_at": ended.ended_at if ended else None,
        "alarm": 1.0 / certainty.alpha,
        "safe": 1.0 / certainty.beta,
        "suspicion": certainty.suspicion,
        "steps": [
            {"at": e.at, "step": e.step, "weight": e.weight, "reason": e.reason}
            for e in story.events
            if isinstance(e, PhaseEntered) and e.weight
        ],
        "looks": [
            {
                "at": look.at,
                "step": look.step,
                "weight": look.weight,
                "generation": look.generation,
                "harm": look.harm,
                "gates": [_gate(found) for found in look.looks],
            }
            for look in story.looks
        ],
        "queries": [
            {"gate": gate, "release": who, "promql": text} for gate, who, text in queries(story, config)
        ],
    }


def _gate(look: GateLook) -> dict[str, Any]:
    compared = look.harm is not None and look.value is not None
    return {
        "gate": look.gate,
        "result": look.result,
        "unit": look.unit,
        "limit": look.limit,
        "value": look.value,
        "interval": interval((look.value or 0.0) * look.samples, look.samples) if compared else None,
        "samples": look.samples,
        "baseline": look.baseline,
        "baseline_samples": look.baseline_samples,
        "harm": look.harm,
        "safety": look.safety,
        "missing": look.missing,
    }


def run_again(story: Story, output: Output) -> bool:
    """Judge all looks again and print what differs; whether nothing does."""
    made = list(replay(story.release.policy, story.looks))
    different = [r for r in made if r.differences]
    failed = [r for r in made if any(v.result is Result.FAIL and not v.dry_run for v in r.now.values())]
    if output is Output.JSON:
        rows = [{"at": r.then.at, "step": r.then.step, "differences": list(r.differences)} for r in different]
        out.print(json.dumps({"looks": len(made), "differences": rows}, indent=2), markup=False)
        return not different
    for found in different:
        for text in found.differences:
            out.print(f"{_clock(found.then.at)} step {found.then.step + 1}: {escape(text)}")
    end = f"a rollback at {_clock(failed[0].then.at)}" if failed else "no rollback"
    same = "all verdicts are the same" if not different else f"{len(different)} differ"
    out.print(f"{story.release.id}: {len(made)} looks judged again, {end}; {same}")
    return not different


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
