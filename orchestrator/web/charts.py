"""Measurements of a rollout as SVG. Pure; colours are the style sheet's."""

import html
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.rollout.events import Event, GateJudged, GatesLooked, PhaseEntered
from orchestrator.rollout.model import Phase, readable

WIDTH, HEIGHT = 640, 230
LEFT, RIGHT, TOP, BOTTOM = 88, 10, 16, 52
POINTS = 300
"""Points of a line; more are thinned."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series. `kind` is its class in the style sheet."""

    kind: str
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture, and the same as text for who can't see it."""

    title: str
    svg: str
    summary: str


def charts(events: Sequence[Event], threshold: float) -> list[Chart]:
    """A chart a gate, candidate against stable, and the evidence of harm.

    Args:
        events: Those of one release, oldest first.
        threshold: Evidence of harm at which it goes back.
    """
    looks = [e for e in events if isinstance(e, GatesLooked)]
    if not looks:
        return []
    steps = [(e.at, f"{e.weight} %") for e in events if isinstance(e, PhaseEntered) and _moving(e)]
    judged = [(e.at, e.verdict.gate, e.verdict.result.value) for e in events if isinstance(e, GateJudged)]
    axis = _Axis(looks[0].at, max(looks[-1].at, looks[0].at + 1.0), steps)
    gates = list(dict.fromkeys(look.gate for e in looks for look in e.looks))
    found = [_gate(name, looks, axis, [(at, r) for at, gate, r in judged if gate == name]) for name in gates]
    curve = Line("harm", "evidence of harm", tuple((e.at, _log(e.harm)) for e in looks))
    level = _log(threshold)
    picture = _svg("evidence of harm", [curve], axis, [], level=level, label=lambda y: f"{10**y:.3g}")
    summary = f"evidence of harm is {looks[-1].harm:.3g}; at {threshold:g} the release goes back"
    return [*[c for c in found if c is not None], Chart("Evidence of harm", picture, summary)]


def _moving(event: PhaseEntered) -> bool:
    return event.phase in (Phase.SHIFTING, Phase.BAKING)


def _log(value: float) -> float:
    return math.log10(max(value, 0.01))


def _gate(
    name: str,
    looks: Sequence[GatesLooked],
    axis: "_Axis",
    judged: Sequence[tuple[float, str]],
) -> Chart | None:
    values: list[Point] = []
    baselines: list[Point] = []
    last = level = None
    for event in looks:
        for look in event.looks:
            if look.gate == name and look.value is not None and math.isfinite(look.value):
                values.append((event.at, look.value))
                last, level = look, look.limit
            if look.gate == name and look.baseline is not None and math.isfinite(look.baseline):
                baselines.append((event.at, look.baseline))
    if last is None:
        return None
    unit = last.unit
    lines = [Line("candidate", "candidate", tuple(values)), Line("stable", "stable", tuple(baselines))]

    summary = f"candidate {readable(last.value or 0.0, unit)} over {last.samples:,} requests"
    if last.baseline is not None:
        summary += f", stable {readable(last.baseline, unit)} over {last.baseline_samples:,}"
    summary += "" if level is None else f", limit {readable(level, unit)}"
    least = 0.01 if unit == "share" else 1e-6
    picture = _svg(name, lines, axis, judged, level=level, label=lambda y: readable(y, unit), least=least)
    return Chart(name, picture, f"{summary}: {last.result.value.replace('_', ' ')}")


def _svg(
    title: str,
    lines: Sequence[Line],
    axis: "_Axis",
    judged: Sequence[tuple[float, str]],
    *,
    level: float | None,
    label: Callable[[float], str],
    least: float = 1e-6,
) -> str:
    """`least`: how much the vertical axis shows at the least."""
    lines = [line for line in lines if line.points]
    heights = [y for line in lines for _, y in line.points] + ([] if level is None else [level])
    low = min(0.0, *heights)
    high = max(*heights, low + least) * 1.05
    scale = _Scale(axis.begin, axis.end, low, high)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}" class="chart">'
    ]
    for value in (low, (low + high) / 2, high):
        y, text = scale.y(value), html.escape(label(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 6:.1f}" text-anchor="end">{text}</text>')
    for at, text in axis.steps:
        x = scale.x(at)
        parts.append(f'<line class="step" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x + 2:.1f}" y="{HEIGHT - 30}">{html.escape(text)}</text>')
    for at, anchor in ((axis.begin, "start"), (axis.end, "end")):
        clock = time.strftime("%H:%M:%S", time.gmtime(at))
        parts.append(f'<text x="{scale.x(at):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{clock}</text>')
    if level is not None:
        y = scale.y(level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for line in reversed(lines):
        shape = " ".join(f"{scale.x(at):.1f},{scale.y(y):.1f}" for at, y in _thinned(line.points))
        parts.append(f'<polyline class="{line.kind}" points="{shape}"/>')
    for at, result in judged:
        x = scale.x(at)
        parts.append(f'<circle class="{html.escape(result)}" cx="{x:.1f}" cy="{TOP + 2}" r="4"/>')
    return "".join([*parts, "</svg>"])


def _thinned(points: Sequence[Point]) -> Iterable[Point]:
    """Every so-many-th point, and the last."""
    every = max(len(points) // POINTS, 1)
    return [*points[::every], points[-1]]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Time, the same for all charts of a release, and when each step began."""

    begin: float
    end: float
    steps: Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From seconds and values to places."""

    begin: float
    end: float
    low: float
    high: float

    def x(self, at: float) -> float:
        """What lies outside is shown at the edge."""
        part = min(max((at - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)
