"""Every event is one line that names what it is about."""

from typing import get_args

import pytest

from orchestrator.cli.show import event_text
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.told import LOG_LINES, LOG_WIDTH, last_logs, logs_of, problems, told
from tests.samples import EVENTS, ended

LINES = {
    "release_accepted": "accepted a:1 from ci",
    "request_refused": "refused pause from ann: nothing",
    "release_ended": "rolled back after 42.0 s by orchestrator: error_rate",
    "rollback_started": "going back (rolled back) by ann: r",
    "approval_wanted": "waits for approval: the step wants it",
    "rollout_paused": "paused by ann: lunch",
    "instance_died": "exited",
    "edge_drifted": "nginx' file is edited",
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
        "nginx' file was edited by hand",
        "a bug",
        "the traffic is not where it ought to be: no",
    ]
