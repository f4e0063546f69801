"""What the command line shows of a state."""

from rich.console import Console

from orchestrator.cli.show import history_rows, history_table
from orchestrator.rollout.model import Ended, Outcome, ServiceState
from tests.builders import release


def ended(number: int, author: str, actor: str, **changes: object) -> Ended:
    given = {"kind": "release", "outcome": Outcome.PROMOTED, "reason": "all [b]steps[/b] passed", **changes}
    whose = release(number, author=author)
    return Ended(release=whose, actor=actor, began_at=1.0, ended_at=2.0, **given)  # type: ignore[arg-type]


def test_history_names_whose_each_release_was_and_who_ended_it_where_that_is_somebody_else() -> None:
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
    assert [row[by:reason].split() for row in rows] == [["ci", "bob"], ["ann"], ["ci", "orchestrator"]]
    assert all("all [b]steps[/b] passed" in row for row in rows)
