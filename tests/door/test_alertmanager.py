"""Alerts: which are meant, which are not, and a real Alertmanager that sends them."""

import asyncio
import datetime as dt
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from examples.playground.lease import free_port
from orchestrator.intake.alertmanager import PATH, Alert, AlertRule, concerns, meant
from orchestrator.ports.access import Role
from orchestrator.rollout.model import Ended, Mark, Outcome, Phase, Rollout, ServiceState
from tests.builders import release
from tests.door.conftest import House

RULES = (
    AlertRule({"alertname": "Errors", "team": "shop"}, "api", "rollback"),
    AlertRule({"alertname": "Slow"}, "", "pause"),
)
NOW = 10_000.0


def alert(status: str = "firing", starts: float = NOW, **labels: str) -> dict[str, Any]:
    when = dt.datetime.fromtimestamp(starts, dt.UTC).isoformat()
    return {"status": status, "labels": labels, "annotations": {"summary": "5 % fail"}, "startsAt": when}


def parsed(*alerts: dict[str, Any]) -> list[Alert]:
    return [Alert.model_validate(a) for a in alerts]


def rolling(**changes: Any) -> ServiceState:
    rollout = Rollout(
        release=release(2), began_at=NOW - 60, entered_at=NOW, phase=Phase.SHIFTING, actor="ci", reason=""
    )
    return ServiceState(service="api", stable=release(1), rollout=replace(rollout, **changes))


def promoted(began: float = NOW - 60, until: float = NOW + 60) -> ServiceState:
    ended = Ended(
        release=release(2),
        kind="release",
        outcome=Outcome.PROMOTED,
        reason="",
        actor="ci",
        began_at=began,
        ended_at=NOW - 5,
    )
    return ServiceState(
        service="api", stable=release(2), previous=release(1), previous_until=until, history=(ended,)
    )


def test_the_first_rule_that_fits_decides_and_a_rollback_wins() -> None:
    errors = alert(alertname="Errors", team="shop", service="web")
    found = meant(parsed(alert(alertname="Slow", service="api"), errors), RULES)
    assert {service: [a for a, _ in asked] for service, asked in found.items()} == {
        "api": ["rollback", "pause"]
    }
    assert meant(parsed(alert(alertname="Errors", team="other")), RULES) == {}
    assert meant(parsed(alert(alertname="Slow")), RULES) == {}


def test_an_alert_is_about_the_rollout_that_is_under_way() -> None:
    firing = parsed(alert(starts=NOW - 59))[0]
    assert concerns(rolling(), "rollback", firing, NOW) == "api-2"
    assert concerns(rolling(), "rollback", parsed(alert(starts=NOW - 61))[0], NOW) == ""
    assert concerns(rolling(), "rollback", Alert(status="firing"), NOW) == "api-2"
    assert concerns(rolling(phase=Phase.ROLLING_BACK), "rollback", firing, NOW) == ""
    paused = rolling(mark=Mark(kind="paused", actor="ann", reason="", since=NOW))
    assert concerns(paused, "pause", firing, NOW) == ""
    assert concerns(paused, "rollback", firing, NOW) == "api-2"


def test_or_about_a_promotion_that_can_be_flipped_back_and_that_it_followed() -> None:
    firing = parsed(alert())[0]
    assert concerns(promoted(), "rollback", firing, NOW) == "api-2"
    assert concerns(promoted(), "pause", firing, NOW) == ""
    assert concerns(promoted(until=NOW - 1), "rollback", firing, NOW) == ""
    assert concerns(promoted(began=NOW + 1), "rollback", firing, NOW) == ""
    gone_back = promoted()
    revert = replace(gone_back.history[0], kind="revert")
    assert concerns(replace(gone_back, history=(revert,)), "rollback", firing, NOW) == ""


async def group(house: House, secret: str, *alerts: dict[str, Any], **more: Any) -> tuple[int, Any, Any]:
    body = {"version": "4", "status": "firing", "receiver": "r", "alerts": list(alerts), **more}
    return await house.ask("POST", PATH, secret, body)


async def test_an_alert_is_put_down_with_its_name_its_labels_and_the_release(house: House) -> None:
    house.rules = list(RULES)
    await house.put(rolling())
    secret = await house.secret("operator")
    status, told, _ = await group(house, secret, alert(alertname="Errors", team="shop"))
    assert status == 200
    (asked,) = await house.asked()
    assert asked == {
        "verb": "rollback",
        "service": "api",
        "who": "Errors via the operator",
        "why": "5 % fail (team=shop)",
        "release": "api-2",
    }
    assert len(told["requests"]) == 1


async def test_an_alert_from_before_hides_none_that_began_since(house: House) -> None:
    house.rules = list(RULES)
    await house.put(rolling())
    before = alert(starts=NOW - 999, alertname="Errors", team="shop", instance="a")
    since = alert(starts=NOW - 5, alertname="Errors", team="shop", instance="b")
    secret = await house.secret("operator")
    assert (await group(house, secret, before))[1] == {"requests": []}
    assert len((await group(house, secret, before, since))[1]["requests"]) == 1
    assert "instance=b" in (await house.asked())[0]["why"]


async def test_what_is_resolved_foreign_or_about_nothing_asks_for_nothing(house: House) -> None:
    house.rules = list(RULES)
    secret = await house.secret("operator")
    foreign = alert(alertname="DiskFull", service="api")
    gone = alert("resolved", alertname="Errors", team="shop")
    idle = alert(alertname="Errors", team="shop")
    status, told, _ = await group(house, secret, foreign, gone, idle)
    assert (status, told) == (200, {"requests": []})
    assert await house.asked() == []


async def test_alerts_that_were_cut_off_are_known_by_what_all_have_in_common(house: House) -> None:
    house.rules = list(RULES)
    await house.put(rolling())
    secret = await house.secret("operator")
    common = {"alertname": "Errors", "team": "shop"}
    status, told, _ = await group(house, secret, truncatedAlerts=3, commonLabels=common)
    assert (status, len(told["requests"])) == (200, 1)


async def test_a_token_that_may_not_and_a_body_that_is_none_are_refused(house: House) -> None:
    house.rules = list(RULES)
    await house.put(rolling())
    firing = alert(alertname="Errors", team="shop")
    assert (await group(house, await house.secret("submitter"), firing))[0] == 403
    assert (await group(house, await house.secret("operator", "web"), firing))[0] == 403
    assert (await group(house, "", firing))[0] == 401
    operator = await house.secret("operator")
    assert (await house.ask("POST", PATH, operator, {"status": "odd"}))[0] == 422
    many = [alert(alertname="Errors", n=str(n)) for n in range(1000)]
    assert (await group(house, operator, *many))[0] == 413
    assert await house.asked() == []


@pytest.mark.parametrize(
    "starts", ["1970-01-01T02:46:35", "1970-01-01T02:46:35Z", "1970-01-01T04:46:35+02:00"]
)
async def test_a_time_without_a_zone_is_utc(house: House, starts: str) -> None:
    """`rolling()` began at 02:45:40."""
    house.rules = list(RULES)
    await house.put(rolling())
    firing = {**alert(alertname="Errors", team="shop"), "startsAt": starts}
    status, told, _ = await group(house, await house.secret("operator"), firing)
    assert (status, len(told["requests"])) == (200, 1)


@pytest.mark.parametrize(
    "odd",
    [
        {"startsAt": "0001-01-01T00:00:00"},
        {"startsAt": "0001-01-01T00:00:00+14:00"},
        {"startsAt": "9999-12-31T23:59:59-14:00"},
        {"startsAt": "yesterday"},
        {"labels": {"alertname": 7}},
        {"status": "odd"},
    ],
    ids=str,
)
async def test_an_odd_alert_keeps_none_of_the_others_out(house: House, odd: dict[str, Any]) -> None:
    house.rules = list(RULES)
    await house.put(rolling())
    good = alert(alertname="Errors", team="shop")
    common = {"alertname": "Errors", "team": "shop"}
    alerts = ({**good, **odd}, good, {**good, "startsAt": "1970-01-01T02:46:35"})
    secret = await house.secret("operator")
    status, told, _ = await group(house, secret, *alerts, truncatedAlerts=1, commonLabels=common)
    assert (status, len(told["requests"])) == (200, 1), told


async def test_alerts_that_are_all_odd_are_refused(house: House) -> None:
    firing = {**alert(alertname="Errors"), "startsAt": "yesterday"}
    status, told, _ = await group(house, await house.secret("operator"), firing)
    assert status == 422
    assert told["detail"].startswith("alerts/0/startsAt: ")


@pytest.mark.parametrize("role", get_args(Role))
async def test_a_token_that_could_not_help_in_need_is_refused_before_it(house: House, role: Role) -> None:
    house.rules = list(RULES)
    secret = await house.secret(role)
    idle = alert(alertname="Errors", team="shop")
    for alerts in ([], [idle], [{**idle, "status": "resolved"}], [alert(alertname="DiskFull")]):
        status, told, _ = await group(house, secret, *alerts)
        if role in ("operator", "admin"):
            assert status == 200
        else:
            assert (status, told["detail"]) == (403, f"the {role} is {role} and may not rollback and pause")


@pytest.fixture
async def alertmanager(house: House, tmp_path: Path) -> AsyncIterator[str]:
    """A real one that sends everything to the door; yields its address."""
    secret, port = await house.secret("operator"), free_port()
    (tmp_path / "token").write_text(secret)
    (tmp_path / "alertmanager.yml").write_text(
        json.dumps(
            {
                "route": {
                    "receiver": "door",
                    "group_by": ["alertname"],
                    "group_wait": "200ms",
                    "group_interval": "1s",
                    "repeat_interval": "1s",
                },
                "receivers": [
                    {
                        "name": "door",
                        "webhook_configs": [
                            {
                                "url": house.url + PATH,
                                "max_alerts": 2,
                                "http_config": {
                                    "authorization": {"credentials_file": str(tmp_path / "token")}
                                },
                            }
                        ],
                    }
                ],
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        "prometheus-alertmanager",
        f"--config.file={tmp_path}/alertmanager.yml",
        f"--storage.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ},
    )
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(20):
        while True:
            try:
                async with house.session.get(f"{url}/-/ready") as answer:
                    if answer.status == 200:
                        break
            except OSError:
                await asyncio.sleep(0.1)
    yield url
    process.terminate()
    await process.wait()


async def test_a_real_alertmanager_takes_a_release_back_once(house: House, alertmanager: str) -> None:
    """Five alerts in a group of which two are sent; and it repeats them."""
    house.rules = [AlertRule({"alertname": "Errors"}, "api", "rollback")]
    await house.put(rolling())
    firing = [{"labels": {"alertname": "Errors", "path": f"/{n}"}} for n in range(5)]
    async with house.session.post(f"{alertmanager}/api/v2/alerts", json=firing) as answer:
        assert answer.status == 200
    async with asyncio.timeout(20):
        while not await house.asked():
            await asyncio.sleep(0.1)
    await house.put(rolling(phase=Phase.ROLLING_BACK))
    seen = len(await house.asked())
    await asyncio.sleep(3.0)  # it goes on to send them
    asked = await house.asked()
    assert len(asked) == seen
    assert {(a["verb"], a["service"], a["release"], a["who"]) for a in asked} == {
        ("rollback", "api", "api-2", "Errors via the operator")
    }
