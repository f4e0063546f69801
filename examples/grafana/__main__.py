"""`python -m examples.grafana`: writes config/grafana/releases.json, with Grafana's own SDK."""

from pathlib import Path

from grafana_foundation_sdk.builders import common, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as d
from grafana_foundation_sdk.builders import prometheus as p
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphDrawStyle, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableHide,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE = Path(__file__).parents[2] / "config" / "grafana" / "releases.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDE, HALF, TALL = 24, 12, 8

SERVICE = 'service=~"$service"'

GRAPHS = (
    ("Share of traffic", "percent", f"orchestrator_weight_percent{{{SERVICE}}}", "{{service}} {{release}}"),
    (
        "Evidence of harm (1 says nothing; at 1/alpha a release goes back)",
        "short",
        f"orchestrator_evidence_of_harm{{{SERVICE}}}",
        "{{service}}",
    ),
    ("Ready instances", "short", f"orchestrator_instances_ready{{{SERVICE}}}", "{{service}} {{release}}"),
    (
        "Generation that nginx lags behind",
        "short",
        f"orchestrator_generation{{{SERVICE}}} - orchestrator_generation_confirmed{{{SERVICE}}}",
        "{{service}}",
    ),
    ("Releases that wait", "short", f"orchestrator_queue_depth{{{SERVICE}}}", "{{service}}"),
    ("Stall of the daemon's loop", "s", "orchestrator_loop_stall_seconds", "stall"),
)

STATS = (
    ("Rolling", f'count(orchestrator_phase{{{SERVICE},phase!="idle"}} == 1) or vector(0)'),
    ("Paused or waiting", f"sum(orchestrator_paused{{{SERVICE}}})"),
    ("Frozen", f"sum(orchestrator_frozen{{{SERVICE}}})"),
    ("nginx edited by hand", f"sum(orchestrator_edge_drift{{{SERVICE}}})"),
    ("nginx does not confirm", f"sum(orchestrator_edge_stuck{{{SERVICE}}})"),
    ("Requests not carried out", "orchestrator_requests_pending"),
)


def query(expression: str, legend: str = "") -> p.Dataquery:
    """A query of the chosen Prometheus."""
    return p.Dataquery().datasource(SOURCE).expr(expression).legend_format(legend)


def build() -> str:
    """The dashboard as JSON."""
    board = _frame()
    _panels(board)
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _frame() -> d.Dashboard:
    """Its name, variables and marks."""
    return (
        d.Dashboard("Releases")
        .uid("release-orchestrator")
        .tags(["release-orchestrator"])
        .refresh("10s")
        .time("now-3h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(d.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            d.QueryVariable("service")
            .datasource(SOURCE)
            .query("label_values(orchestrator_phase, service)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .hide(VariableHide.DONT_HIDE)
        )
        .annotation(
            d.AnnotationQuery()
            .name("Releases")
            .datasource(DataSourceRef(type_val="grafana", uid="-- Grafana --"))
            .icon_color("blue")
            .enable(True)
            .target(
                d.AnnotationTarget().limit(100).match_any(False).tags(["release-orchestrator"]).type("tags")
            )
        )
    )


def _panels(board: d.Dashboard) -> None:
    """What it shows, from above."""
    for title, expression in STATS:
        board.with_panel(
            stat.Panel().title(title).datasource(SOURCE).span(4).height(4).with_target(query(expression))
        )
    board.with_panel(
        statetimeline.Panel()
        .title("Phase")
        .datasource(SOURCE)
        .span(WIDE)
        .height(TALL)
        .with_target(query(f"orchestrator_phase{{{SERVICE}}} == 1", "{{service}} {{phase}}"))
    )
    for title, unit, expression, legend in GRAPHS:
        board.with_panel(
            timeseries.Panel()
            .title(title)
            .datasource(SOURCE)
            .unit(unit)
            .min(0)
            .span(HALF)
            .height(TALL)
            .with_target(query(expression, legend))
        )
    board.with_panel(
        timeseries.Panel()
        .title("Ends by outcome")
        .datasource(SOURCE)
        .draw_style(GraphDrawStyle.BARS)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        .span(HALF)
        .height(TALL)
        .with_target(
            query(
                "sum by (outcome)"
                f" (increase(orchestrator_release_seconds_count{{{SERVICE}}}[$__rate_interval]))",
                "{{outcome}}",
            )
        )
    )
    board.with_panel(
        table.Panel()
        .title("Median duration by outcome, last week")
        .datasource(SOURCE)
        .span(HALF)
        .height(TALL)
        .with_target(
            query(
                "histogram_quantile(0.5, sum by (service, outcome, le)"
                f" (increase(orchestrator_release_seconds_bucket{{{SERVICE}}}[7d])))"
            )
            .instant()
            .format(PromQueryFormat.TABLE)
        )
    )


if __name__ == "__main__":
    FILE.write_text(build())
