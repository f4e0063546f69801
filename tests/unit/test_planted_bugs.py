"""The bugs that `make mutants` plants can still be planted."""

import pytest

from examples.playground.stack import ROOT
from tests.mutants.bugs import BUGS, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_what_a_bug_replaces_is_there_once(bug: Bug) -> None:
    text = (ROOT / "orchestrator" / bug.file).read_text(encoding="utf-8")
    assert text.count(bug.right) == 1
