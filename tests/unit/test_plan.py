"""Ladders."""

from orchestrator.rollout.plan import blue_green, canary, ladder_errors
from orchestrator.rollout.policy import Step


def test_a_canary_gets_its_last_step() -> None:
    steps = canary([5, 15], first_hold=30, hold=15, bake=60, min_requests=7, deadline=100)
    assert [(s.weight, s.hold, s.min_requests, s.deadline) for s in steps] == [
        (5, 30, 7, 130),
        (15, 15, 7, 115),
        (100, 60, 0, 160),
    ]


def test_blue_green_is_one_switch() -> None:
    assert blue_green(bake=60, deadline=100) == (Step(weight=100, hold=60, deadline=160),)


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
