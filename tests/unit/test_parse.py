"""Requests: whatever comes in, the answer is a request or a reason."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.dispatcher import to_command
from orchestrator.intake.parse import MAX_BYTES, parse
from orchestrator.ports.access import Verb, shown, somebody
from orchestrator.ports.faults import Fault
from orchestrator.ports.metrics import MetricSource
from orchestrator.ports.requests import Request
from orchestrator.ports.service import ServicePlan
from orchestrator.rollout.command import Command, Submit
from tests.builders import policy, template

GOOD = {"service": "api", "image": "reg.example:5000/team/api:1.2", "who": "ci", "why": "build 17"}
DIGEST = "sha256:" + "a" * 64


def plan(**changes: object) -> ServicePlan:
    fields = {
        "service": "api",
        "images": ("reg.example:5000/team/api", "api"),
        "template": template(),
        "policies": {"": policy(), "hotfix": policy(kind="blue_green")},
        "metrics": MetricSource(requests="r", status_label="code", error_pattern="5..", latency="l"),
        **changes,
    }
    return ServicePlan(**fields)  # type: ignore[arg-type]


def test_the_smallest_request() -> None:
    request = parse("1-0", {"service": "api", "image": "api:1"})
    assert (request.verb, request.service, request.image, request.who) == (
        "release",
        "api",
        "api:1",
        "unknown",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": ""}, "is not an image reference"),
        ({"image": "x;}server{listen 1;"}, "is not an image reference"),
        ({"image": "api:1\n"}, "is not an image reference"),
        ({"image": "API:1"}, "is not an image reference"),
        ({"image": "api@sha256:short"}, "is not an image reference"),
        ({"verb": "explode"}, "verb"),
        ({"service": ""}, "service"),
        ({"imgae": "api:1"}, "^imgae: unknown field$"),
        ({"link": "javascript:alert(1)"}, "link"),
        ({"release": "api 1"}, "release"),
        ({"why": "x" * 3000}, "why"),
        ({"service": "a\x00pi"}, r"^service: has a control character, .\\x00.$"),
        ({"service": "api\u202e"}, r"^service: has a control character, .\\u202e.$"),
        ({"key": "b-1\x00"}, "^key: has a control character"),
        ({"strategy": "hot\x1bfix"}, "^strategy: has a control character"),
        ({"verb": "rollback", "image": "api:1\x00"}, "^image: has a control character"),
        ({"privileged": "true"}, "privileged"),
        ({"labels": "{}"}, "labels"),
        ({"why": "x" * MAX_BYTES}, f"the limit is {MAX_BYTES}"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(Fault, match=words):
        parse("1-0", {**GOOD, **change})


@pytest.mark.parametrize(
    "name", ["orchestrator", " Orchestrator", "[orchestrator]", "\uff4frchestrator", "host", "HOST.", "ho-st"]
)
def test_nobody_is_the_daemon_itself(name: str) -> None:
    says = r"^who: '[^']+' is the daemon's own name in the audit trail; choose another$"
    with pytest.raises(Fault, match=says):
        parse("1-0", {**GOOD, "who": name})
    assert parse("1-0", {**GOOD, "who": "orchestrator via ci"}).who == "orchestrator via ci"


@pytest.mark.parametrize(
    "name",
    [
        "\u043erchestrator",  # a Cyrillic o
        "orchestrator\ufe0f",
        "orchestrator\u3164",
        "\u3164",
        "orche\u034fstrator",
        "orche\u200bstrator",
        "orchestrator\x00",
        "\ua4f3\ua4e3\ua4da\ua4e7\ua4f0\ua4e2\ua4d4\ua4e3\ua4ee\ua4d4\ua4f3\ua4e3",  # Lisu, all of it
        "ann\u202e",
        "\U0001f98a",
    ],
)
def test_a_name_that_may_pass_for_another_is_given_to_nobody_and_shown_as_odd(name: str) -> None:
    with pytest.raises(ValueError, match=r"^'[ -~]+' has other characters than a name may: "):
        somebody(name)
    assert parse("1-0", {**GOOD, "who": name}).who == shown(name)
    via = f"{shown(name)} via ci"
    assert parse("1-0", {**GOOD, "who": via}).who == via == via.encode("ascii").decode()


def test_how_a_name_is_spelled_keeps_no_request_from_being_heard() -> None:
    found = parse("1-0", {"verb": "rollback", "service": "api", "who": "Ann O\u2019Brien"})
    assert (found.verb, found.who) == ("rollback", "Ann ???????")


@pytest.mark.parametrize(
    "name",
    [
        "ann",
        "renovate[bot]",
        "CORP\\ann",
        "Ann O'Neill <ann@example.com>",
        "ci-api+1 #7",
        "Ren\u00e9e Gro\u00df",
        "\u0418\u0432\u0430\u043d via ci",
        "\u4f50\u3005\u6728 \u3072\u308d\u3057",
        "\uae40\ubbfc\uc900",
        "root@host",
        "unknown",
        "",
    ],
)
def test_people_are_called_as_they_are(name: str) -> None:
    assert parse("1-0", {**GOOD, "who": name}).who == name == shown(name)


def test_control_characters_and_bidi_are_taken_out() -> None:
    request = parse("1-0", {**GOOD, "why": "a\x1b[31mred\u202e\r\nb"})
    assert request.why == "a[31mred\nb"


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=12))
def test_anything_is_a_request_or_a_reason(fields: dict[str, str]) -> None:
    try:
        assert isinstance(parse("1-0", fields), Request)
    except Fault as error:
        assert str(error)


@given(
    st.fixed_dictionaries(
        {"service": st.just("api")},
        optional={
            n: st.text(max_size=60) for n in ("verb", "image", "who", "why", "link", "key", "to", "strategy")
        },
    )
)
def test_anything_with_known_fields_is_a_command_or_a_reason(fields: dict[str, str]) -> None:
    try:
        request = parse("1-0", fields)
    except Fault as error:
        assert str(error)
        return
    assert isinstance(to_command(request, plan()), Command | str)


@pytest.mark.parametrize(
    ("image", "changes", "words"),
    [
        (
            "evil/api:1",
            {},
            "image: 'evil/api' is not allowed for api; allowed: reg.example:5000/team/api, api",
        ),
        (f"evil/api@{DIGEST}", {}, "is not allowed"),
        ("api:1", {"require_digest": True}, "takes digests only"),
    ],
)
def test_images_outside_the_allow_list_are_refused(
    image: str, changes: dict[str, object], words: str
) -> None:
    command = to_command(parse("1-0", {**GOOD, "image": image}), plan(**changes))
    assert isinstance(command, str)
    assert words in command


@pytest.mark.parametrize(
    "image", ["api", "api:1", f"api@{DIGEST}", f"api:1@{DIGEST}", "reg.example:5000/team/api"]
)
def test_images_of_the_allow_list_are_taken(image: str) -> None:
    assert isinstance(to_command(parse("1-0", {**GOOD, "image": image}), plan()), Submit)


def test_an_override_must_be_one_of_the_service() -> None:
    command = to_command(parse("1-0", {**GOOD, "strategy": "hotfix"}), plan())
    assert isinstance(command, Submit)
    assert command.policy.kind == "blue_green"
    refused = to_command(parse("1-0", {**GOOD, "strategy": "yolo"}), plan())
    assert isinstance(refused, str)
    assert "there are: hotfix" in refused


@pytest.mark.parametrize("verb", sorted(set(get_args(Verb)) - {"release"}))
def test_every_verb_is_a_command(verb: str) -> None:
    command = to_command(parse("1-0", {"service": "api", "verb": verb, "who": "ann"}), plan())
    assert type(command).__name__.lower() == verb


def test_a_reload_is_about_no_service() -> None:
    request = parse("1-0", {"verb": "reload", "who": "ann"})
    assert (request.verb, request.service, request.who) == ("reload", "", "ann")
    with pytest.raises(Fault, match="service: reload is about the files of all services; leave it out"):
        parse("1-0", {"verb": "reload", "service": "api"})
    with pytest.raises(Fault, match="service: is required"):
        parse("1-0", {"verb": "freeze"})
    assert to_command(request, plan()) == "reload is about the files of all services"
