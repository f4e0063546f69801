"""A real Chromium, Debian's own, driven by Playwright."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

SHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"
SERIOUS = ("serious", "critical")

expect.set_options(timeout=20_000)  # ms; a busy machine draws late


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: make setup installs it"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


async def opened(browser: Browser, url: str, secret: str, **context: Any) -> Page:
    """The home page, after somebody has shown their token."""
    page = await (await browser.new_context(**context)).new_page()
    await page.goto(f"{url}/")
    await page.get_by_label("Token").fill(secret)
    await page.get_by_role("button", name="Enter").click()
    await page.get_by_text("live", exact=True).wait_for()
    return page


async def shot(page: Page, name: str) -> None:
    """Keep a picture."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


async def findings(page: Page) -> list[str]:
    """What axe-core finds serious, or worse."""
    found = await Axe().run(page)
    return [
        f"{v['id']}: {v['help']}: {[n['html'][:200] for n in v['nodes']][:3]}"
        for v in found.response["violations"]
        if v["impact"] in SERIOUS
    ]
