"""The reference names everything that there is, and every link leads somewhere."""

import re
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from orchestrator.cli import exits
from orchestrator.cli.app import app
from orchestrator.intake.parse import Fields
from orchestrator.observability.metrics import DaemonMetrics
from orchestrator.rollout.events import Event

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text()


def test_every_event_is_in_the_reference() -> None:
    kinds = {event.__dataclass_fields__["kind"].default for event in get_args(Event)}
    assert kinds == set(re.findall(r"^\| `([a-z_]+)` \|", page("events.md"), re.MULTILINE))


def test_every_metric_is_in_the_reference() -> None:
    names = {f"{m.name}_total" if m.type == "counter" else m.name for m in DaemonMetrics().registry.collect()}
    assert names == set(re.findall(r"^\| `(orchestrator_[a-z_]+)` \|", page("metrics.md"), re.MULTILINE))


def test_every_verb_and_exit_code_is_in_the_reference() -> None:
    text = page("cli.md")
    for verb in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"`{verb}" in text
    for code in {exits.REFUSED, exits.TIMED_OUT, exits.UNREACHABLE, exits.USAGE, *exits.OUTCOMES.values()}:
        assert f"| {code} |" in text


def test_every_field_of_a_request_is_in_the_reference() -> None:
    assert set(Fields.model_fields) == set(
        re.findall(r"^\| `([a-z]+)` \|", page("requests.md"), re.MULTILINE)
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
