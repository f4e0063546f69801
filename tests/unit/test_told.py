"""Every event is one line that names what it is about."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from orchestrator.cli.show import event_text
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import Ended, Mark, Outcome, Phase, Rollout, Route, ServiceState
from orchestrator.rollout.told import (
    LOG_LINES,
    LOG_WIDTH,
    last_logs,
    logs_of,
    not_remembered,
    problems,
    standing,
    told,
)
from tests.builders import release
from tests.samples import EVENTS, ended

LINES = {
    "release_accepted": "accepted a:1 from ci",
    "request_refused": "refused pause from ann: nothing",
    "release_ended": "rolled back after 42.0 s by orchestrator: error_rate",
    "rollback_started": "going back (rolled back) by ann: r",
    "approval_wanted": "waits for approval: the step wants it",
    "rollout_paused": "paused by ann: lunch",
    "instance_died": "exited",
    "edge_drifted": "nginx' file of api is edited: no step is taken until it is ours again",
    "edge_repaired": "nginx' file is ours again",
    "edge_stuck": "route 3 is not served: nginx -t: no",
    "state_restored": "the store had lost 2 commits; written again",
    "command_accepted": "freeze by ann",
    "phase_entered": "shifting 2/3 at 15 % r",
    "image_resolved": "image is sha256:0",
    "route_changed": "route 3: api-7 5 %",
    "route_confirmed": "route 3 confirmed",
    "gate_judged": "error_rate fail: ...",
    "gates_looked": "error_rate pass; evidence of harm 2",
    "instance_recovered": "api-7-0 is ready again",
    "release_retired": "retired",
    "config_reloaded": "files read for ann: api: is new; wrong: x: no",
    "service_removed": "removed by ann nobody uses it",
    "service_troubled": "internal error, see the daemon's log: KeyError: 'Id'",
    "service_adopted": "taken up as it was found at generation 3, candidate api-8",
}


def test_there_is_a_sample_of_every_kind() -> None:
    assert {e.kind for e in EVENTS} == {k.__dataclass_fields__["kind"].default for k in get_args(Event)}


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
def test_every_event_is_a_line(event: Event) -> None:
    assert told(event) == LINES[event.kind]
    assert LINES[event.kind] in event_text(event)


def test_the_log_of_a_dead_container_comes_below() -> None:
    ended = next(e for e in EVENTS if e.kind == "release_ended")
    assert logs_of(ended) == "one\npanic: <!channel> boom"
    assert "\n    [dim]one[/]\n" in event_text(ended)
    assert logs_of(EVENTS[0]) == ""


def test_a_log_is_bounded_and_commands_no_terminal() -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\x1b[31mpanic\x1b[0m\r\x9b2Jgone\x1b]8;;http://x\x1b\\link\x08\u202e"
    found = logs_of(ended(logs="0\n" * 30 + f"{hostile}\n" + "x" * 9999))
    *_, panic, gone, last = found.splitlines()
    assert (panic, gone, last) == ("panic", "2Jgonelink", "x" * LOG_WIDTH)
    assert len(found.splitlines()) == LOG_LINES
    assert logs_of(ended(logs="\x1b]0;not ended")) == "0;not ended"
    assert "panic of 2" in event_text(ended(reason="\x1b[2Jpanic\nof 2"))


def test_the_last_log_is_that_of_the_latest_event_that_holds_one() -> None:
    assert last_logs([ended(logs="old"), ended(logs="new"), ended(logs=" "), EVENTS[0]]) == "new"
    assert last_logs([]) == ""


def test_what_is_wrong_with_a_service_is_named() -> None:
    assert problems(ServiceState(service="api")) == []
    bad = ServiceState(
        service="api", dead=("api-1-0",), drifted_since=1.0, stuck_since=2.0, stuck_why="no", trouble="a bug"
    )
    assert problems(bad) == [
        "api-1-0 is down",
        "nginx' file api.conf was edited or removed by hand; no step is taken until that is undone",
        "a bug",
        "nginx does not say what it serves: no",
    ]


PAUSED = Mark(kind="paused", actor="ann", reason="lunch", since=1.0)
WAITS = Mark(kind="awaiting_approval", actor="orchestrator", reason="the step wants it", since=1.0)


def on_its_way(**changes: Any) -> ServiceState:
    given = {"phase": Phase.SHIFTING, "began_at": 1.0, "entered_at": 2.0, "actor": "ci", "reason": "r"}
    return ServiceState(
        service="api", stable=release(1), rollout=Rollout(release=release(2), **{**given, **changes})
    )


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (on_its_way(), "api-2 goes on (shifting)"),
        (on_its_way(mark=PAUSED), "api-2 is paused, by ann: lunch; `orchestrator resume api` lets it go on"),
        (
            on_its_way(mark=WAITS),
            (
                "api-2 is awaiting approval, by orchestrator: the step wants it;"
                " `orchestrator approve api` lets it go on"
            ),
        ),
        (
            on_its_way(blind_since=1.0),
            "api-2 goes on (shifting); Prometheus does not answer; the rollout is held",
        ),
        (
            on_its_way(phase=Phase.ROLLING_BACK),
            "api-2: going back to api-1 since 00:00:02 UTC; some users may still be on api-2",
        ),
        (ServiceState(service="api", queue=(release(2),)), "api-2 is queued"),
        (
            replace(on_its_way(), queue=(release(3), release(4)), rollout=on_its_way().rollout),
            "api-2 goes on (shifting)",
        ),
        (
            ServiceState(service="api", queue=(release(2),), frozen=PAUSED),
            "api-2 stays queued until `orchestrator unfreeze api`",
        ),
        (
            ServiceState(
                service="api",
                history=(
                    Ended(
                        release=release(2),
                        kind="release",
                        outcome=Outcome.ROLLED_BACK,
                        reason="error_rate",
                        actor="x",
                        began_at=1.0,
                        ended_at=2.0,
                    ),
                ),
            ),
            "api-2 rolled back: error_rate",
        ),
        (ServiceState(service="api"), "api-2 is not known any more"),
    ],
)
def test_where_a_release_is_on_its_way_is_told_with_what_it_waits_for(state: ServiceState, says: str) -> None:
    assert standing(state, "api-2") == says


def test_a_release_in_the_queue_is_told_with_those_before_it() -> None:
    state = replace(on_its_way(), queue=(release(3), release(4)))
    assert standing(state, "api-4") == "api-4 is queued behind api-2, api-3"


def test_a_release_that_is_not_remembered_is_answered_by_those_that_are() -> None:
    state = replace(on_its_way(), queue=(release(3), release(4), release(5), release(6)))
    no = "'api-9' is no release that is remembered of api; the last ones are:"
    assert not_remembered(state, "api-9") == f"{no} api-2, api-3, api-4, api-5, api-6"
    assert not_remembered(ServiceState(service="api"), "api-9") == f"{no} none"


def test_what_nginx_does_not_confirm_is_told_with_where_users_are() -> None:
    stuck = replace(on_its_way(), route=Route(generation=4), confirmed=3, stuck_since=1.0, stuck_why="no")
    assert problems(stuck) == ["nginx has not confirmed route 4 and may still serve route 3: no"]
    first = replace(stuck, rollout=None, confirmed=0)
    assert problems(first) == ["nginx has not confirmed route 4: no"]
