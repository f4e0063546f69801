"""The doors go by the host's clock, also where the time that releases are decided by has gone its own way."""

import datetime as dt
import json
import time

import pytest
from structlog.testing import capture_logs

from orchestrator.daemon import clock as clock_module
from orchestrator.daemon.clock import SystemClock
from orchestrator.intake.alertmanager import PATH as ALERTS
from orchestrator.intake.alertmanager import AlertRule
from orchestrator.intake.door import SESSION
from orchestrator.intake.signed import PATH, Key
from orchestrator.intake.slack import COMMAND_PATH, Workspace
from orchestrator.ports.access import Principal
from orchestrator.rollout.model import Phase, Rollout, ServiceState
from orchestrator.store.codec import dump_event
from tests.builders import release
from tests.door.conftest import House
from tests.door.slack_double import SIGNING, TEAM, command, signed
from tests.door.test_signed import ROLLBACK, signed_headers
from tests.samples import ended

DAY = 86400.0


@pytest.fixture(params=[DAY, -DAY], ids=["ahead", "behind"])
async def apart(house: House, request: pytest.FixtureRequest) -> House:
    """Decisions are taken a day ahead of what the host's clock shows, or a day behind it."""
    house.clock._offset += request.param
    return house


def host() -> float:
    return time.time()  # noqa: TID251  what a caller's clock shows


async def test_a_signature_of_just_now_is_taken(apart: House) -> None:
    apart.keys_of = {"new": Key(Principal(name="hook", role="operator"), b"n" * 40)}
    body = json.dumps(ROLLBACK).encode()
    async with apart.session.post(apart.url + PATH, data=body, headers=signed_headers(body)) as answer:
        assert answer.status == 202, await answer.text()


async def test_slack_is_listened_to(apart: House) -> None:
    who = {"U0001": Principal(name="ann", role="operator")}
    apart.workspace = Workspace(TEAM, SIGNING.encode(), who, "http://hooks/")
    body = command("freeze api", "http://hooks/")
    async with apart.session.post(
        apart.url + COMMAND_PATH, data=body, headers=signed(body, host())
    ) as answer:
        assert answer.status == 200, await answer.text()
    assert len(await apart.asked()) == 1


async def test_a_token_expires_when_the_host_says_so(apart: House) -> None:
    admin = Principal(name="admin", role="admin")
    late = Principal(name="late", role="admin")
    secret = (await apart.tokens.create(admin, "test", host(), host() + 3600))[1]
    over = (await apart.tokens.create(late, "test", host(), host() - 3600))[1]
    assert (await apart.ask("GET", "/v1/me", secret))[0] == 200
    assert (await apart.ask("GET", "/v1/me", over))[0] == 401
    asked = {"name": "ci", "role": "viewer", "days": 0.5}
    _, made, _ = await apart.ask("POST", "/v1/tokens", secret, asked)
    assert made["created_at"] == pytest.approx(host(), abs=60)
    assert (await apart.ask("GET", "/v1/me", made["secret"]))[0] == 200
    async with apart.session.post(
        apart.url + "/login", data={"token": secret}, allow_redirects=False
    ) as answer:
        assert answer.status == 303
        cookie = f"{SESSION}={answer.cookies[SESSION].value}"
    async with apart.session.get(apart.url + "/", headers={"Cookie": cookie}) as page:
        assert page.url.path == "/"


@pytest.mark.parametrize(("began_ago", "asks"), [(60.0, True), (-60.0, False)])
async def test_an_alert_is_about_a_rollout_that_began_before_it(
    apart: House, began_ago: float, asks: bool
) -> None:
    apart.rules = [AlertRule({"alertname": "Errors"}, "api", "rollback")]
    began = apart.clock.now() - began_ago
    rollout = Rollout(
        release=release(2), began_at=began, entered_at=began, phase=Phase.SHIFTING, actor="ci", reason=""
    )
    await apart.put(ServiceState(service="api", stable=release(1), rollout=rollout))
    starts = dt.datetime.fromtimestamp(host(), dt.UTC).isoformat()
    alert = {"status": "firing", "labels": {"alertname": "Errors"}, "startsAt": starts}
    status, told, _ = await apart.ask(
        "POST", ALERTS, await apart.secret("operator"), {"status": "firing", "alerts": [alert]}
    )
    assert (status, len(told["requests"])) == (200, asks)


@pytest.mark.parametrize("number", [1, 400])
async def test_what_was_told_of_a_release_is_found_by_the_time_that_it_was_told_at(
    apart: House, number: int
) -> None:
    """Redis stamps an event by its own clock, which is the host's."""
    now = apart.clock.now()
    step = 3 * DAY / number
    for n in reversed(range(number)):
        entry = {"release": f"api-{n}", "data": dump_event(ended(n, now - n * step))}
        await apart.redis.xadd(apart.keys.events, entry, id=f"{int((host() - n * step) * 1000)}-1")
    for n in {0, number // 2, number - 1}:
        at = now - n * step
        assert [e.at for e in await apart.store.told(f"api-{n}", at - 1.0, at + 1.0)] == [at]
        assert [e.at for e in await apart.store.told(f"api-{n}", at - 1.0)] == [at]
    away = await apart.store.told(f"api-{number - 1}", now, now)
    assert len(away) == (number == 1)  # three days before are not read


async def test_clocks_that_differ_are_shown_and_told_when_it_begins_and_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clock_module, "LOOK_EVERY", 0.0)
    steps = [0.0, 59.0, 61.0, DAY, DAY, 59.0, -61.0, -DAY, 0.0]
    shifts = iter([0.0, *steps])
    clock = SystemClock(lambda: host() + next(shifts))
    shown: list[float] = []
    with capture_logs() as told, pytest.raises(RuntimeError, match="StopIteration"):
        await clock.watch(shown.append)
    assert shown == pytest.approx([-s for s in steps], abs=0.5)
    assert [line["event"] for line in told] == ["clocks_differ", "clocks_agree"] * 2
    assert [line["log_level"] for line in told] == ["warning", "info"] * 2
    assert "a restart mends it" in told[0]["reason"]
    assert "committed while the host's clock was ahead" in told[2]["reason"]
