"""Slack: who may do what from there, and the message of a release."""

import asyncio
import contextlib
import json
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.engine.tasks import eternal
from orchestrator.intake.parse import parse
from orchestrator.intake.slack import ACTION_PATH, COMMAND_PATH, Workspace
from orchestrator.notify import postman as postman_module
from orchestrator.notify.postman import Postman
from orchestrator.notify.slack import SlackThread, escaped
from orchestrator.ports.access import Principal
from orchestrator.rollout.command import Freeze, Pause
from orchestrator.rollout.events import PhaseEntered, RollbackStarted
from orchestrator.rollout.model import Mark, Outcome, Phase, Rollout, ServiceState
from tests.builders import release, submit
from tests.door.conftest import House, until
from tests.door.slack_double import CHANNEL, SIGNING, TEAM, TOKEN, SlackDouble, command, press, signed
from tests.samples import ended


@pytest.fixture
async def double(house: House) -> AsyncIterator[SlackDouble]:
    found = SlackDouble()
    await found.start()
    house.workspace = Workspace(
        TEAM,
        SIGNING.encode(),
        {
            "U0001": Principal(name="ann", role="operator", services=("api",)),
            "U0002": Principal(name="bob", role="viewer"),
        },
        found.hooks,
    )
    yield found
    await found.stop()


def rolling(**changes: Any) -> ServiceState:
    rollout = Rollout(
        release=release(2), began_at=1.0, entered_at=1.0, phase=Phase.SHIFTING, actor="ci", reason=""
    )
    return ServiceState(service="api", stable=release(1), rollout=replace(rollout, **changes))


async def send(
    house: House, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    headers = headers if headers is not None else signed(body, house.clock.now())
    async with house.session.post(house.url + path, data=body, headers=headers) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text else None


async def test_a_command_is_answered_at_once_and_again_when_it_is_carried_out(
    house: House, double: SlackDouble
) -> None:
    body = command("freeze  api   black friday", double.hooks)
    status, told = await send(house, COMMAND_PATH, body)
    assert (status, told["response_type"], told["text"]) == (200, "ephemeral", ":hourglass: freeze api …")
    (asked,) = await house.asked()
    assert asked == {"verb": "freeze", "service": "api", "why": "black friday", "who": "ann"}
    entry = (await house.redis.xrange(house.keys.requests))[-1][0]
    await house.commit(Freeze(request=entry, actor="ann", reason="black friday"))
    await until(lambda: bool(double.said))
    assert double.said == [
        {"text": ":ok: freeze api by ann", "response_type": "in_channel", "replace_original": False}
    ]


async def test_a_refusal_is_told_to_whom_it_concerns(house: House, double: SlackDouble) -> None:
    await send(house, COMMAND_PATH, command("freeze api", double.hooks))
    entry = (await house.redis.xrange(house.keys.requests))[-1][0]
    await house.commit(Freeze(request="0-1", actor="eve", reason="<!channel>"))
    await house.commit(Freeze(request=entry, actor="ann"))
    await until(lambda: bool(double.said))
    assert double.said[0]["response_type"] == "ephemeral"
    assert "already frozen by eve: &lt;!channel&gt;" in double.said[0]["text"]


async def test_a_rollback_names_the_release_that_was_seen(house: House, double: SlackDouble) -> None:
    await house.put(rolling())
    await send(house, COMMAND_PATH, command("rollback api", double.hooks))
    await send(house, ACTION_PATH, press("rollback", "api-1", double.hooks))
    assert [(a["verb"], a["release"]) for a in await house.asked()] == [
        ("rollback", "api-2"),
        ("rollback", "api-1"),
    ]


async def test_status_shows_what_is_theirs(house: House, double: SlackDouble) -> None:
    await house.put(rolling(mark=Mark(kind="paused", actor="ann", reason="<b>", since=1.0)))
    _, told = await send(house, COMMAND_PATH, command("status", double.hooks))
    assert told["text"].startswith("*api* api-1")
    assert "api-2 shifting" in told["text"]
    assert "(paused: &lt;b&gt;)" in told["text"]
    assert "web" not in told["text"]
    _, told = await send(house, COMMAND_PATH, command("status web", double.hooks))
    assert "nothing to do with web" in told["text"]


@pytest.mark.parametrize(
    ("text", "user", "team", "says"),
    [
        ("rollback api", "U0002", TEAM, "bob is viewer and may not rollback"),
        ("rollback web", "U0001", TEAM, "ann has nothing to do with web"),
        ("rollback api", "U0003", TEAM, "user U0003 of workspace T0001 is not on the list"),
        ("rollback api", "U0001", "T0666", "not on the list"),
        ("explode api", "U0001", TEAM, "write: status|"),
        ("rollback", "U0001", TEAM, "write: status|"),
        ("release api", "U0001", TEAM, "write: status|"),
        ("remove api", "U0001", TEAM, "write: status|"),
        ("", "U0001", TEAM, "write: status|"),
        ("rollback ../../etc", "U0002", TEAM, "bob is viewer"),
    ],
)
async def test_who_is_not_on_the_list_may_nothing_whatever_their_name(
    house: House, double: SlackDouble, text: str, user: str, team: str, says: str
) -> None:
    """The name that is sent along is `ann` in all of them."""
    await house.put(rolling())
    status, told = await send(house, COMMAND_PATH, command(text, double.hooks, user, team))
    if says.startswith("bob"):
        assert status == 200
    assert says in told["text"] or "not known" in told["text"]
    assert await house.asked() == []


async def test_a_button_of_a_release_that_is_over_does_nothing(house: House, double: SlackDouble) -> None:
    await house.put(rolling())
    for verb, value in (("explode", "api-2"), ("pause", "x;"), ("pause", "web-2")):
        status, _ = await send(house, ACTION_PATH, press(verb, value, double.hooks))
        assert status == 200
    await until(lambda: len(double.said) == 3)
    assert await house.asked() == []
    await send(house, ACTION_PATH, press("pause", "api-1", double.hooks))
    ((entry, asked),) = await house.redis.xrange(house.keys.requests)
    assert (asked["verb"], asked["release"]) == ("pause", "api-1")
    await house.commit(Pause(request=entry, actor="ann", release=asked["release"]))
    await until(lambda: len(double.said) == 4)
    assert "api-1 is not rolling out: " in str(double.said)
    assert {said["response_type"] for said in double.said} == {"ephemeral"}


async def test_nothing_is_taken_that_slack_has_not_signed_just_now_and_once(
    house: House, double: SlackDouble
) -> None:
    body = command("rollback api", double.hooks)
    now = house.clock.now()
    good = signed(body, now)
    wrong = [
        signed(body, now - 301),
        signed(body, now + 330),
        signed(body, now, "x" * 32),
        signed(body + b"&x=1", now),
        {**good, "X-Slack-Signature": "v0=é"},
        {**good, "X-Slack-Signature": good["X-Slack-Signature"].upper()},
        {**good, "X-Slack-Request-Timestamp": "NaN"},
        {k: v for k, v in good.items() if k != "X-Slack-Signature"},
    ]
    for headers in wrong:
        assert (await send(house, COMMAND_PATH, body, headers))[0] == 401, headers
    doubled: Any = [*good.items(), ("X-Slack-Signature", good["X-Slack-Signature"])]
    assert (await send(house, COMMAND_PATH, body, doubled))[0] == 401
    assert await house.asked() == []
    assert (await send(house, COMMAND_PATH, body, good))[0] == 200
    assert (await send(house, COMMAND_PATH, body, good))[0] == 401
    assert len(await house.asked()) == 1
    house.workspace = None
    again = command("rollback api", double.hooks, trigger_id="2")
    assert (await send(house, COMMAND_PATH, again))[0] == 401


async def test_what_was_not_taken_may_come_again_as_it_is(house: House, double: SlackDouble) -> None:
    command_body, press_body = command("freeze api", double.hooks), press("pause", "api-1", double.hooks)
    headers = [signed(body, house.clock.wall()) for body in (command_body, press_body)]
    assert house.private is not None
    await house.private.stop()
    assert (await send(house, COMMAND_PATH, command_body, headers[0]))[0] == 503
    assert (await send(house, ACTION_PATH, press_body, headers[1]))[0] == 503
    await house.private.start()
    for expected in (200, 401):
        assert (await send(house, COMMAND_PATH, command_body, headers[0]))[0] == expected
        assert (await send(house, ACTION_PATH, press_body, headers[1]))[0] == expected
    assert len(await house.asked()) == 2


@pytest.mark.parametrize(("team", "works"), [(TEAM, True), ("T0666", False)])
async def test_a_button_works_where_the_whole_organisation_has_installed_the_app(
    house: House, double: SlackDouble, team: str, works: bool
) -> None:
    """Slack then sends no team; the one of who pressed is the workspace."""
    await house.put(rolling())
    fields = urllib.parse.parse_qs(press("pause", "api-2", double.hooks, team=team).decode())
    payload = json.loads(fields["payload"][0])
    payload |= {"team": None, "enterprise": {"id": "E0001", "name": "shop"}, "is_enterprise_install": True}
    body = urllib.parse.urlencode({"payload": json.dumps(payload)}).encode()
    assert (await send(house, ACTION_PATH, body))[0] == 200
    assert len(await house.asked()) == works


async def test_a_response_url_that_points_elsewhere_is_not_called(house: House, double: SlackDouble) -> None:
    for url in ("http://169.254.169.254/latest", double.hooks.replace("/commands/", "/commandsx/"), ""):
        body = command("freeze api", double.hooks, response_url=url)
        assert (await send(house, COMMAND_PATH, body))[0] == 200
    for entry, _ in await house.redis.xrange(house.keys.requests):
        await house.commit(Freeze(request=entry, actor="ann"))
    await until(lambda: not house.slack._later)
    assert (double.said, double.strayed) == ([], [])


@pytest.mark.parametrize(
    "body", [b"payload=%7B%7D", b"payload=[", b"\xff\xfe", b"payload=%5B1%5D", b"a=1&" * 60, b""], ids=repr
)
async def test_a_signed_body_that_is_no_action_is_refused(
    house: House, double: SlackDouble, body: bytes
) -> None:
    status, told = await send(house, ACTION_PATH, body)
    assert status in (400, 422), told


@contextlib.asynccontextmanager
async def watched(house: House, double: SlackDouble) -> AsyncIterator[None]:
    thread = SlackThread(TOKEN, CHANNEL, "en", double.url, house.store, house.store)
    postman = Postman(thread, house.store, house.store, house.clock)
    task = asyncio.create_task(eternal("slack", postman.run), name="slack")
    async with asyncio.timeout(5):
        while not await house.store.bookmark("slack"):
            await asyncio.sleep(0.01)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def entered(phase: Phase, weight: int) -> PhaseEntered:
    return PhaseEntered(
        service="api",
        at=1.0,
        release="api-2",
        phase=phase,
        step=0,
        steps=3,
        weight=weight,
        actor="ci",
        reason="",
    )


async def test_a_release_is_one_message_that_changes_and_one_thread(
    house: House, double: SlackDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postman_module, "LONGEST_PAUSE", 0.5)
    async with watched(house, double):
        now = house.clock.now()
        await house.put(rolling(phase=Phase.PREFLIGHT), replace(entered(Phase.PREFLIGHT, 0), at=now))
        await until(lambda: len(double.messages) == 1)
        (stamp,) = double.messages
        assert "*api-2* preflight" in double.messages[stamp]["text"]
        double.limited = 2  # it is asked again
        await house.put(rolling(), replace(entered(Phase.SHIFTING, 5), at=now))
        await until(lambda: "shifting" in double.messages[stamp]["text"])
        verbs = [e["action_id"] for e in double.messages[stamp]["blocks"][-1]["elements"]]
        assert verbs == ["rollback", "pause"]
        waits = Mark(kind="awaiting_approval", actor="orchestrator", reason="look", since=1.0)
        await house.put(rolling(mark=waits), replace(entered(Phase.SHIFTING, 5), at=now))
        await until(lambda: "awaiting_approval: look" in double.messages[stamp]["text"])
        verbs = [e["action_id"] for e in double.messages[stamp]["blocks"][-1]["elements"]]
        assert verbs == ["rollback", "pause", "approve"]
        back = RollbackStarted(
            service="api",
            at=now,
            release="api-2",
            outcome=Outcome.ROLLED_BACK,
            actor="orchestrator",
            reason="error_rate <!here>",
        )
        over = ServiceState(service="api", stable=release(1))
        await house.put(over, back, ended(2, now))
        await until(lambda: "rolled back" in double.messages[stamp]["text"])
        await until(lambda: len(double.messages) == 3)
    assert double.messages[stamp]["blocks"][-1]["type"] == "context"
    replies = [m for s, m in double.messages.items() if s != stamp]
    assert {m["thread_ts"] for m in replies} == {stamp}
    assert "8.89 %" in replies[-1]["text"]
    assert "<!" not in str(double.messages)
    assert double.updates >= 3


async def test_a_daemon_that_comes_later_writes_into_the_same_message(
    house: House, double: SlackDouble
) -> None:
    now = house.clock.now()
    async with watched(house, double):
        await house.commit(submit(2))
        async with asyncio.timeout(10):  # until it is noted which message it is
            while await house.store.bookmark("slack") != await house.store.last_event_id():
                await asyncio.sleep(0.02)
    async with watched(house, double):
        state, _ = await house.store.load("api")
        await house.put(state, replace(entered(Phase.PREFLIGHT, 0), at=now, release="api-1"))
        await until(lambda: double.updates >= 1)
    assert len(double.messages) == 1


def test_markup_of_a_stranger_stays_text() -> None:
    assert escaped("<script>&*a*\n@channel") == "&lt;script&gt;&amp;*a*\n@\u200bchannel"


@pytest.mark.usefixtures("double")
async def test_a_rollback_gets_through_however_much_is_said_of_it(house: House) -> None:
    await house.put(rolling())
    body = command(f"rollback api {'it burns ' * 400}", "http://hooks/")
    _, told = await send(house, COMMAND_PATH, body)
    assert told["text"].startswith(":hourglass:")
    (asked,) = await house.asked()
    assert parse("1-0", asked).verb == "rollback"
    assert asked["why"] == ("it burns " * 400)[:2000]
