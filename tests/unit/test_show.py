"""What the command line, the API and the pages show of a state."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.explain import Story, explain
from orchestrator.cli.session import Output
from orchestrator.cli.show import history_rows, history_table
from orchestrator.daemon.config import Config
from orchestrator.daemon.settings import Settings
from orchestrator.intake.views import release_view
from orchestrator.rollout.events import PhaseEntered
from orchestrator.rollout.model import Ended, Outcome, Phase, ServiceState
from orchestrator.rollout.policy import Comparison
from tests import samples
from tests.builders import policy, release


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


def entered(weight: int, steps: int) -> PhaseEntered:
    phase = Phase.SHIFTING
    return PhaseEntered(
        service="api",
        at=1.0,
        release="api-4",
        phase=phase,
        step=0,
        steps=steps,
        weight=weight,
        actor="orchestrator",
        reason="r",
    )


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
    story = Story(LEFT.history[1].release, LEFT.history[1], (), LEFT.left(LEFT.history[1]))
    text = told_by_explain(story, Output.TEXT, capsys)
    assert "promoted after 1 s by ann: promoted by ann at 20 %\nleft at " in text
    assert "for api-1, rolled back by bob: checkout [is] broken\n" in text
    found = json.loads(told_by_explain(story, Output.JSON, capsys))
    assert (found["actor"], found["left"]["to"]) == ("ann", "api-1")


def test_explain_and_history_show_what_the_producer_said_of_the_release(
    capsys: pytest.CaptureFixture[str],
) -> None:
    over = replace(ended(4, "ci", "orchestrator"), release=release(4, reason="fix #7", link="https://ci/4"))
    story = Story(over.release, over, ())
    assert "  fix #7 https://ci/4\n" in told_by_explain(story, Output.TEXT, capsys)
    found = json.loads(told_by_explain(story, Output.JSON, capsys))
    (row,) = history_rows(ServiceState(service="api", history=(over,)))
    assert (found["why"], found["link"]) == (row["why"], row["link"]) == ("fix #7", "https://ci/4")


def test_explain_tells_the_last_words_of_what_died_before_it_had_traffic(
    capsys: pytest.CaptureFixture[str],
) -> None:
    over = ended(4, "ci", "orchestrator", outcome=Outcome.FAILED, reason="api-4-0 exited with code 1")
    logs = 'GIN-debug [on]\n\x1b[31mpanic: FAIL_RATE: "nope" is no number\x1b[0m\n'
    story = Story(over.release, over, (samples.ended(4, reason=over.reason, logs=logs),))
    text = told_by_explain(story, Output.TEXT, capsys)
    assert text.splitlines()[-4:] == [
        "its last log lines:",
        "    GIN-debug [on]",
        '    panic: FAIL_RATE: "nope" is no number',
        "no gate was looked at: it had no traffic",
    ]
    found = json.loads(told_by_explain(story, Output.JSON, capsys))
    assert found["logs"] == 'GIN-debug [on]\npanic: FAIL_RATE: "nope" is no number'


@pytest.mark.parametrize(
    ("events", "gates", "why"),
    [
        ((), True, "what happened to it is not kept any more"),
        ((entered(100, 1),), True, "it took all traffic in one step, without a release to compare it with"),
        ((entered(5, 3),), True, "none was due"),
        ((entered(5, 3),), False, "its service has none"),
    ],
)
def test_explain_says_why_no_gate_was_looked_at(
    capsys: pytest.CaptureFixture[str], events: tuple[PhaseEntered, ...], gates: bool, why: str
) -> None:
    rules = (Comparison(name="errors", metric="error_rate"),) if gates else ()
    given = release(4, policy=policy(comparisons=rules, limits=()))
    text = told_by_explain(Story(given, None, events), Output.TEXT, capsys)
    assert text.endswith(f"no gate was looked at: {why}\n")


def test_the_api_says_that_a_release_was_left_since() -> None:
    view = release_view(LEFT, "api-2")
    assert view is not None
    assert view.left is not None
    assert (view.ended_by, view.left.to, view.left.by) == ("ann", "api-1", "bob")
    back = release_view(LEFT, "api-1")
    assert back is not None
    assert back.left is None
