"""Ladders."""

from orchestrator.rollout.plan import ladder, ladder_errors
from orchestrator.rollout.policy import Step


def test_a_canary_gets_its_last_step() -> None:
    steps = ladder([5, 15], holds=(30, 15), bake=60, holdback=0, max_hold=None, min_requests=7, deadline=100)
    assert [(s.weight, s.hold, s.min_requests, s.deadline) for s in steps] == [
        (5, 30, 7, 130),
        (15, 15, 7, 115),
        (100, 60, 0, 160),
    ]


def test_blue_green_is_one_switch() -> None:
    steps = ladder([], holds=(0, 0), bake=60, holdback=0, max_hold=None, min_requests=0, deadline=100)
    assert steps == (Step(weight=100, hold=60, deadline=160),)


def test_with_a_holdback_the_bake_is_where_there_is_something_to_compare_with() -> None:
    for weights in ([10, 50], [10, 50, 95], [10, 50, 95, 100]):
        steps = ladder(
            weights, holds=(30, 20), bake=120, holdback=5, max_hold=1800, min_requests=0, deadline=100
        )
        assert [(s.weight, s.hold, s.max_hold) for s in steps] == [
            (10, 30, 1800),
            (50, 20, 1800),
            (95, 120, 1800),
            (100, 0, 1800),
        ]


def test_every_fault_of_a_ladder_is_named() -> None:
    steps = (Step(weight=0, hold=9, deadline=1), Step(weight=50, hold=0), Step(weight=50, hold=0))
    assert ladder_errors(steps) == [
        "0/weight: 0 is not a percentage from 1 to 100",
        "0/deadline: 1 s is shorter than the hold of 9 s",
        "2/weight: 50 must be above the step before (50)",
        "2/weight: the last step must be 100",
    ]
    assert ladder_errors(()) == ["0/weight: the last step must be 100"]
    assert ladder_errors((Step(weight=100, hold=0),)) == []
