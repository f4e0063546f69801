"""The dashboard in a real Chromium."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from orchestrator.ports.access import MAY
from orchestrator.rollout.events import Event, GateJudged, GateLook, GatesLooked, PhaseEntered
from orchestrator.rollout.model import (
    Ended,
    Mark,
    Outcome,
    Phase,
    Release,
    Result,
    Rollout,
    Route,
    ServiceState,
)
from orchestrator.web.charts import charts
from tests.builders import release, server
from tests.door.browser import chromium, findings, opened, shot
from tests.door.conftest import House
from tests.samples import VERDICT, ended

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">\"'`{{7*7}}"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


def served(release: Release, weight: int, other: Release | None = None) -> Route:
    """So many percent for one release, the rest for another."""
    weights = [(release, weight), *([(other, 100 - weight)] if other else [])]
    return Route(
        generation=3,
        servers=tuple(server(r.id, f"10.0.0.{n}:80", weight=w) for n, (r, w) in enumerate(weights) if w),
    )


def rolling(now: float, step: int = 0, service: str = "api", **changes: Any) -> ServiceState:
    old = release(1, service=service, id=f"{service}-1")
    new = release(2, service=service, id=f"{service}-2", reason=HOSTILE, author="ann", link="https://ci/2")
    rollout = Rollout(
        release=new,
        began_at=now - 60,
        entered_at=now - 30,
        phase=Phase.SHIFTING,
        step=step,
        verdicts=(replace(VERDICT, result=Result.PASS),),
        actor="ci",
        reason="",
    )
    weight = new.policy.steps[step].weight
    return ServiceState(
        service=service, stable=old, rollout=replace(rollout, **changes), route=served(new, weight, old)
    )


def looked(now: float, service: str = "api", number: int = 40) -> list[Event]:
    """What the gates saw, a look every second."""
    name = f"{service}-2"
    found: list[Event] = [
        PhaseEntered(
            service=service,
            at=now - number,
            release=name,
            phase=Phase.SHIFTING,
            step=0,
            steps=3,
            weight=5,
            actor="ci",
            reason=HOSTILE,
        )
    ]
    for n in range(number):
        look = GateLook(
            gate="error_rate",
            unit="share",
            result=Result.INCONCLUSIVE,
            value=0.01 + n / 1000,
            baseline=0.01,
            samples=10 * n,
            baseline_samples=100 * n,
            harm=1.0 + n,
        )
        found.append(
            GatesLooked(
                service=service,
                at=now - number + n,
                release=name,
                step=0,
                weight=5,
                generation=3,
                harm=1.0 + n,
                looks=(look,),
            )
        )
    found.append(GateJudged(service=service, at=now, release=name, step=0, weight=5, verdict=VERDICT))
    return found


async def texts(page: Page, selector: str) -> list[str]:
    return [t.strip() for t in await page.locator(selector).all_inner_texts()]


async def test_nobody_looks_without_a_token_and_a_session_is_well_kept(
    house: House, browser: Browser
) -> None:
    page = await (await browser.new_context()).new_page()
    await page.goto(f"{house.url}/services/api")
    assert page.url == f"{house.url}/login"
    await page.get_by_label("Token").fill("rot_wrong")
    await page.get_by_role("button", name="Enter").click()
    await expect(page.get_by_role("alert")).to_contain_text("not known")
    assert await findings(page) == []
    await shot(page, "login")
    page = await opened(browser, house.url, await house.secret("viewer"))
    (cookie,) = await page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
    assert "rot_" not in cookie["value"]
    await page.get_by_role("button", name="Leave").click()
    await page.wait_for_url("**/login")
    house.session.cookie_jar.clear()
    answer = await house.session.get(
        house.url + "/v1/me", headers={"Cookie": f"{cookie['name']}={cookie['value']}"}
    )
    assert answer.status == 401


async def test_all_services_at_a_glance_and_a_change_is_seen_without_a_reload(
    house: House, browser: Browser
) -> None:
    now = house.clock.now()
    await house.put(rolling(now))
    page = await opened(browser, house.url, await house.secret("operator"))
    row = page.locator("#row-api")
    await expect(row).to_contain_text("shifting")
    await expect(row).to_contain_text("5 %")
    await expect(row).to_contain_text("ann")
    await expect(page.locator("#row-web")).to_contain_text("empty")
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    entered = looked(now)[0]
    await house.put(rolling(now, step=1), entered)
    await expect(row).to_contain_text(f"{rolling(now).rollout.release.policy.steps[1].weight} %")  # type: ignore[union-attr]
    waits = Mark(kind="awaiting_approval", actor="orchestrator", reason="the step wants it", since=now)
    await house.put(replace(rolling(now, step=1, mark=waits), dead=("api-1-0",)), entered)
    await expect(row).to_contain_text("awaiting approval: the step wants it")
    await expect(row).to_contain_text("api-1-0 is down")
    assert loads == []
    await shot(page, "home")
    await page.get_by_label("Show").fill("nothing like it")
    await expect(row).to_be_hidden()
    assert await findings(page) == []


async def test_a_release_shows_its_ladder_its_gates_its_curves_and_its_story(
    house: House, browser: Browser
) -> None:
    now = house.clock.now()
    await house.put(rolling(now), *looked(now))
    page = await opened(browser, house.url, await house.secret("operator"))
    await page.get_by_role("link", name="api-2").first.click()
    await expect(page.locator("h1")).to_contain_text("api-2")
    current = page.locator('li[aria-current="step"]')
    await expect(current).to_contain_text("5 %")
    assert await texts(page, "figcaption") == ["error_rate", "Evidence of harm"]
    line = page.locator("svg polyline.candidate")
    assert len((await line.get_attribute("points") or "").split()) >= 40
    await expect(page.locator("figure").first).to_contain_text("candidate 4.90 % over 390 requests")
    assert await page.locator("svg circle.fail").count() == 1
    await expect(page.locator("tbody")).to_contain_text("shifting 1/3 at 5 %")
    assert await page.title() == "api-2"
    await expect(page.locator("dl")).to_contain_text("onerror")
    assert await page.locator("img").count() == 0
    assert await findings(page) == []
    await shot(page, "release")
    over = ServiceState(
        service="api",
        stable=release(1),
        history=(
            Ended(
                release=release(2),
                kind="release",
                outcome=Outcome.ROLLED_BACK,
                reason="error_rate",
                actor="orchestrator",
                began_at=now - 60,
                ended_at=now,
            ),
        ),
    )
    await house.put(over, ended(2, now))
    await expect(page.locator("#release .outcome")).to_have_text("rolled back")
    await expect(page.locator("pre")).to_contain_text("panic: <!channel> boom")
    await shot(page, "release-ended")
    await page.goto(f"{house.url}/services/api")
    await expect(page.locator("tbody").last).to_contain_text("rolled back")
    await expect(page.locator("tbody").last).to_contain_text("ci, decided by orchestrator")
    assert await findings(page) == []
    await page.goto(f"{house.url}/releases/api-99")
    await expect(page.locator("h1")).to_have_text("Not here")
    await expect(page.locator("main")).to_contain_text("the last ones are: api-2, api-1")
    await page.goto(f"{house.url}/services/nope")
    await expect(page.locator("main")).to_contain_text("'nope' is not known; there are: api, web")


async def test_a_button_asks_first_and_says_what_became_of_it(house: House, browser: Browser) -> None:
    await house.put(rolling(house.clock.now()))
    page = await opened(browser, house.url, await house.secret("operator"))
    await page.get_by_role("button", name="rollback api-2").click()
    await page.get_by_role("button", name="Cancel").click()
    await asyncio.sleep(0.2)
    assert await house.asked() == []
    await page.get_by_role("button", name="rollback api-2").focus()
    await page.keyboard.press("Enter")
    await page.keyboard.type("checkout is broken")
    await page.keyboard.press("Enter")
    await expect(page.locator("#said")).to_contain_text("rollback of api-2 is asked for")
    (asked,) = await house.asked()
    assert asked == {
        "verb": "rollback",
        "service": "api",
        "release": "api-2",
        "who": "the operator",
        "why": "checkout is broken",
    }


async def test_a_release_that_waits_can_be_taken_out_of_the_queue(house: House, browser: Browser) -> None:
    await house.put(replace(rolling(house.clock.now()), queue=(release(3),)))
    page = await opened(browser, house.url, await house.secret("operator"))
    await page.goto(f"{house.url}/releases/api-3")
    await expect(page.locator("#release .phase")).to_have_text("queued")
    await page.get_by_role("button", name="abort api-3").click()
    await page.keyboard.press("Enter")
    await expect(page.locator("#said")).to_contain_text("abort of api-3 is asked for")
    assert await house.asked() == [
        {"verb": "abort", "service": "api", "release": "api-3", "who": "the operator"}
    ]
    await page.goto(f"{house.url}/releases/api-1")
    await expect(page.locator("#release .phase")).to_have_text("taken up as it was found")


@pytest.mark.parametrize("role", ["viewer", "submitter", "operator"])
async def test_buttons_are_there_for_who_may(house: House, browser: Browser, role: Any) -> None:
    await house.put(rolling(house.clock.now()))
    page = await opened(browser, house.url, await house.secret(role))
    shown = {await b.get_attribute("data-verb") for b in await page.locator("#row-api button").all()}
    assert shown == {"rollback", "pause", "promote", "freeze"} & MAY[role]


async def test_a_session_is_no_use_to_a_page_of_another_site(house: House, browser: Browser) -> None:
    """Neither with a form nor with a script that can't send our header."""
    await house.put(rolling(house.clock.now()))
    page = await opened(browser, house.url, await house.secret("operator"))
    (cookie,) = await page.context.cookies()
    headers = {"Cookie": f"{cookie['name']}={cookie['value']}", "Origin": "https://evil.example"}
    url = house.url + "/v1/services/api/rollback"
    for kind, text in (("application/json", "{}"), ("application/x-www-form-urlencoded", "reason=x")):
        answer = await house.session.post(url, headers={**headers, "Content-Type": kind}, data=text)
        assert answer.status == 403
    assert (await house.session.get(house.url + "/v1/me", headers=headers)).status == 200
    assert await house.asked() == []
    answer = await house.session.get(house.url + "/login")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


async def test_a_viewer_of_one_service_sees_no_other(house: House, browser: Browser) -> None:
    await house.put(rolling(house.clock.now()))
    page = await opened(browser, house.url, await house.secret("viewer", "web"))
    assert await page.locator("#row-api").count() == 0
    for path in ("/services/api", "/services/api/row", "/releases/api-2", "/releases/api-2/live"):
        answer = await page.goto(house.url + path)
        assert answer is not None
        assert answer.status == 404, path
        assert "ann" not in await page.content()


async def test_it_works_on_a_phone_in_the_dark(house: House, browser: Browser) -> None:
    now = house.clock.now()
    await house.put(rolling(now), *looked(now))
    small = {"width": 375, "height": 740}
    page = await opened(
        browser,
        house.url,
        await house.secret("operator"),
        viewport=small,
        color_scheme="dark",
        has_touch=True,
    )
    for path in ("/", "/releases/api-2"):
        await page.goto(house.url + path)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= small["width"], path
        assert await findings(page) == []
        await shot(page, f"phone{path.replace('/', '-').rstrip('-')}")
    back = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(21, 24, 28)"


async def test_it_loads_nothing_from_elsewhere(house: House, browser: Browser) -> None:
    await house.put(rolling(house.clock.now()))
    asked: list[str] = []
    context = await browser.new_context()
    context.on("request", lambda request: asked.append(request.url))
    page = await context.new_page()
    await page.goto(house.url)
    await page.get_by_label("Token").fill(await house.secret("viewer"))
    await page.get_by_role("button", name="Enter").click()
    await page.get_by_text("live", exact=True).wait_for()
    assert asked
    assert all(url.startswith((house.url, "data:")) for url in asked), asked


async def test_a_page_that_was_cut_off_says_so_and_catches_up(house: House, browser: Browser) -> None:
    now = house.clock.now()
    await house.put(rolling(now))
    page = await opened(browser, house.url, await house.secret("operator"))
    await page.context.set_offline(True)
    for queue in tuple(house.tail._listeners):
        house.tail._let_go(queue)
    await expect(page.locator("#live")).to_contain_text("not connected")
    await house.put(rolling(now, step=1), looked(now)[0])
    await page.context.set_offline(False)
    await expect(page.locator("#live")).to_have_text("live", timeout=15_000)
    weight = rolling(now).rollout.release.policy.steps[1].weight  # type: ignore[union-attr]
    await expect(page.locator("#row-api")).to_contain_text(f"{weight} %")


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("application/x-www-form-urlencoded", b"token=rot_1_2", 401),
        ("application/x-www-form-urlencoded", b"token=%00%ff%d9%a1&token=2", 401),
        ("application/x-www-form-urlencoded", b"", 401),
        ("application/x-www-form-urlencoded", b"token=" + b"x" * 70_000, 413),
        ("application/x-www-form-urlencoded; charset=nope", b"token=x", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n", 415),
        ("application/json", b"{}", 415),
    ],
)
async def test_a_login_that_is_none_is_refused(house: House, kind: str, body: bytes, expected: int) -> None:
    headers = {"Content-Type": kind}
    async with house.session.post(house.url + "/login", data=body, headers=headers) as answer:
        assert answer.status == expected
        assert "Set-Cookie" not in answer.headers
    for path in (
        "/static/..%2fpages.py",
        "/static/%00",
        "/services/%00",
        "/releases/..%2f..",
        "/services/x%0d%0ay",
    ):
        async with house.session.get(house.url + path) as answer:
            assert answer.status in (200, 404), path  # 200: the page that asks who it is
            assert "def " not in await answer.text()


def test_a_chart_survives_whatever_was_measured() -> None:
    now = 1000.0
    assert charts([], 100.0) == []
    strange = []
    for n, value in enumerate((None, float("nan"), float("inf"), 0.0, 1e300, -5.0)):
        look = GateLook(gate="<g>", result=Result.PASS, value=value, baseline=value, samples=1)
        strange.append(
            GatesLooked(
                service="api",
                at=now + n,
                release="api-2",
                step=0,
                weight=5,
                generation=1,
                harm=0.0,
                looks=(look,),
            )
        )
    for number in range(1, len(strange) + 1):
        for chart in charts(strange[:number], 100.0):
            assert "nan" not in chart.svg
            assert "inf" not in chart.svg
            assert "<g>" not in chart.svg
    long = [replace(strange[3], at=now + n) for n in range(5000)]
    assert len(charts(long, 100.0)[0].svg) < 30_000
