"""A short run of `make fuzz`, so that its targets and the parsers do not drift apart."""

import pytest

from tests.fuzz.__main__ import TARGETS, Target, fuzz


@pytest.mark.parametrize("number", range(len(TARGETS)), ids=[t.name for t in TARGETS])
def test_a_parser_takes_or_refuses_and_nothing_else(number: int) -> None:
    _, taken, refused, finding = fuzz((number, 1500, 7))
    assert finding == ""
    assert taken
    assert refused or not TARGETS[number].refuses


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_what_it_is_changed_from_is_right(target: Target) -> None:
    for seed in target.seeds:
        assert target.run(seed) is not None
