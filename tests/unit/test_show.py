"""What the command line, the API and the pages show of a state."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.explain import Story, explain
from orchestrator.cli.session import Output
from orchestrator.cli.show import history_rows, history_table
from orchestrator.daemon.config import Config
from orchestrator.daemon.settings import Settings
from orchestrator.intake.views import release_view
from orchestrator.rollout.model import Ended, Outcome, ServiceState
from tests.builders import release


def ended(number: int, author: str, actor: str, **changes: object) -> Ended:
    given = {"kind": "release", "outcome": Outcome.PROMOTED, "reason": "all [b]steps[/b] passed", **changes}
    whose = release(number, author=author)
    return Ended(release=whose, actor=actor, began_at=1.0, ended_at=2.0, **given)  # type: ignore[arg-type]


def test_history_names_whose_each_release_was_and_who_or_what_decided() -> None:
    state = ServiceState(
        service="api",
        history=(
            ended(1, "ci", "orchestrator"),
            ended(2, "ann", "ann", outcome=Outcome.ABORTED),
            ended(1, "ci", "bob", kind="revert"),
        ),
    )
    console = Console(width=200, record=True)
    console.print(history_table(history_rows(state)))
    head, *rows = console.export_text().splitlines()
    by, reason = head.index("author"), head.index("reason")
    assert [row[by:reason].split() for row in rows] == [["ci", "bob"], ["ann", "ann"], ["ci", "orchestrator"]]
    assert all("all [b]steps[/b] passed" in row for row in rows)


LEFT = ServiceState(
    service="api",
    history=(
        ended(1, "ci", "orchestrator"),
        ended(2, "ci", "ann", reason="promoted by ann at 20 %"),
        ended(1, "ci", "bob", kind="revert", reason="checkout [is] broken"),
    ),
)


def test_history_says_who_promoted_and_that_the_release_was_left_since() -> None:
    rows = history_rows(LEFT)
    assert [row["left"] is not None for row in rows] == [False, True, False]
    assert rows[1]["left"] == {"to": "api-1", "actor": "bob", "reason": "checkout [is] broken", "at": 2.0}
    console = Console(width=300, record=True)
    console.print(history_table(rows))
    (line,) = [line for line in console.export_text().splitlines() if line.startswith("api-2")]
    assert "promoted by ann at 20 %; left at " in line
    assert line.rstrip().endswith(" for api-1, rolled back by bob: checkout [is] broken")


def told_by_explain(story: Story, output: Output, capsys: pytest.CaptureFixture[str]) -> str:
    config = Config(Path("/x"), Settings(), {})
    explain(story, config, output, brief=True)
    return capsys.readouterr().out


def test_explain_says_who_promoted_and_that_the_release_was_left_since(
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = Story(LEFT.history[1].release, LEFT.history[1], (), LEFT.left("api-2"))
    text = told_by_explain(story, Output.TEXT, capsys)
    assert "promoted after 1 s by ann: promoted by ann at 20 %\nleft at " in text
    assert "for api-1, rolled back by bob: checkout [is] broken\n" in text
    found = json.loads(told_by_explain(story, Output.JSON, capsys))
    assert (found["actor"], found["left"]["to"]) == ("ann", "api-1")


def test_the_api_says_that_a_release_was_left_since() -> None:
    view = release_view(LEFT, "api-2")
    assert view is not None
    assert view.left is not None
    assert (view.ended_by, view.left.to, view.left.by) == ("ann", "api-1", "bob")
    back = release_view(LEFT, "api-1")
    assert back is not None
    assert back.left is None
