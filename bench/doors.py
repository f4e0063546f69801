"""`python -m bench.doors [ROLLBACKS]`: a signed rollback under a load of API requests, and the dashboard.

A rollback is timed from the first byte of the signed request until nginx shows the new generation. Beside it
other tokens send 500 API requests a second. The dashboard has 200 services of which 20 roll; its first paint
is what Chromium reports, and a change is timed from its commit until the page shows it.
"""

import asyncio
import contextlib
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import docker
from rich.console import Console
from rich.table import Table

from bench.recovery import SERVICE, percentile
from examples.playground import gin
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.intake.signed import PATH, signature
from orchestrator.rollout.model import ServiceState
from orchestrator.store.redis_store import connect
from orchestrator.store.server import PrivateRedis
from orchestrator.traffic.render import probe_host
from tests.builders import template
from tests.door.browser import chromium, opened
from tests.door.conftest import House
from tests.door.test_notify import Receiver, settings, told
from tests.door.test_pages import looked, rolling
from tests.samples import ended

out = Console(highlight=False, width=100)

ROLLBACKS = 30
LOAD = 500
TOKENS = 20
SERVICES, ROLLING = 200, 20
CHANGES = 40
MESSAGES, DOWN = 30, 60.0


@contextlib.asynccontextmanager
async def loaded(stack: Stack, tokens: list[str], answers: Counter[int]) -> AsyncIterator[None]:
    """So many API requests a second from many tokens: reads of all kinds, and commands that are refused."""
    paths = ["/v1/services", "/v1/services/api", "/v1/services/api/releases", "/v1/releases/api-1", "/v1/me"]
    url = f"http://127.0.0.1:{stack.door}"

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        headers = {"Authorization": f"Bearer {tokens[number % len(tokens)]}"}
        method, path = "GET", paths[number % len(paths)]
        if number % 25 == 0:  # every such command goes through the stream, and the daemon refuses it
            method, path = "POST", "/v1/services/api/resume"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.request(method, url + path, headers=headers) as answer:
                await answer.read()
                answers[answer.status] += 1

    async def send() -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        connector = aiohttp.TCPConnector(limit=200)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            began, number = time.monotonic(), 0
            async with asyncio.TaskGroup() as group:
                while True:
                    await asyncio.sleep(max(began + number / LOAD - time.monotonic(), 0.0))
                    group.create_task(one(session, number))
                    number += 1

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Caller:
    """Signs and sends; looks at nginx."""

    def __init__(self, stack: Stack, secret: bytes, session: aiohttp.ClientSession) -> None:
        self._stack, self._secret, self._session = stack, secret, session

    async def rollback(self) -> None:
        """Ask for it."""
        body = json.dumps({"verb": "rollback", "service": "api", "who": "bench"}).encode()
        now, nonce = str(int(time.time())), secrets.token_hex(16)  # noqa: TID251  as a caller does
        headers = {
            "X-Release-Key": "bench",
            "X-Release-Timestamp": now,
            "X-Release-Nonce": nonce,
            "X-Release-Signature": signature(self._secret, now, nonce, "POST", PATH, body),
        }
        url = f"http://127.0.0.1:{self._stack.door}{PATH}"
        async with self._session.post(url, data=body, headers=headers) as answer:
            assert answer.status == 202, await answer.text()

    async def generation(self) -> int:
        """What nginx shows."""
        url = f"http://127.0.0.1:{self._stack.generation}/generation"
        async with self._session.get(url, headers={"Host": probe_host("api")}) as answer:
            return int((await answer.text()).split()[1])


async def rollbacks(number: int) -> None:
    """Print how long a signed rollback takes without and with the load."""
    client = docker.from_env()
    images = [gin.build(client, v) for v in ("v1", "v2")]
    client.close()
    with tempfile.TemporaryDirectory(prefix="bench-doors-") as name:
        secret = Path(name) / "secret"
        secret.write_text(secrets.token_hex(32))
        key = {"id": "bench", "name": "bench", "role": "operator", "secret_file": str(secret)}
        config = {"webhooks": [key], "api": {"rate": 100.0, "burst": 200}}
        service = {**SERVICE, "keep_previous": "1h"}
        stack = Stack(lambda port: {"api": service_file("api", port("api"), **service)}, config)
        async with stack, aiohttp.ClientSession() as session:
            tokens = []
            for n in range(TOKENS):
                _, said = await stack.cli("token", "create", f"load {n}", "--role", "operator")
                tokens.append(next(line for line in said.splitlines() if line.startswith("rot_")))
            for n, image in enumerate(images, start=1):
                await stack.push("api", image)
                if n > 1:
                    await stack.push("api", "", verb="promote")
                await stack.ended(f"api-{n}")
            caller = Caller(stack, secret.read_text().encode(), session)
            table = Table(title=f"a signed rollback until nginx shows it, {number} times, seconds")
            for column in ("beside it", "median", "p99", "answers to the load"):
                table.add_column(column)
            for rate in (0, LOAD):
                answers: Counter[int] = Counter()
                async with contextlib.AsyncExitStack() as stacked:
                    if rate:
                        await stacked.enter_async_context(loaded(stack, tokens, answers))
                        await asyncio.sleep(2.0)
                    took = [await timed(caller, stack) for _ in range(number)]
                told = ", ".join(f"{count} of {status}" for status, count in sorted(answers.items())) or "-"
                table.add_row(
                    f"{rate} requests/s", *(f"{percentile(took, q):.2f}" for q in (0.5, 0.99)), told
                )
            out.print(table)


async def timed(caller: Caller, stack: Stack) -> float:
    """One rollback: seconds until nginx shows a new generation."""
    before, began = await caller.generation(), time.monotonic()
    await caller.rollback()
    while await caller.generation() == before:
        await asyncio.sleep(0.005)
    took = time.monotonic() - began

    async def over() -> bool:
        return (await stack.state()).rollout is None

    await stack.until(over, 20, "it is over")
    return took


@contextlib.asynccontextmanager
async def house_in(folder: Path) -> AsyncIterator[House]:
    """The door on a Redis of its own, without a daemon."""
    server = PrivateRedis(folder)
    await server.start()
    redis = connect(server.url)
    await redis.set("t:lease", 1)
    house = House(redis)
    await house.server.start()
    tail = asyncio.create_task(house.tail.run())
    try:
        yield house
    finally:
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)
        await house.session.close()
        await house.slack.close()
        await house.server.close()
        await redis.aclose()
        await server.stop()


async def dashboard() -> None:
    """Print first paint and how soon a change is seen."""
    with tempfile.TemporaryDirectory(prefix="bench-doors-") as name:
        async with house_in(Path(name)) as house:
            house.services = {f"s{n:03}": template() for n in range(SERVICES)}
            now = house.clock.now()
            for n, service in enumerate(sorted(house.services)):
                state = rolling(now, service=service)
                if n >= ROLLING:
                    state = type(state)(service=service, stable=state.stable, route=state.route)
                await house.put(state, *looked(now, service, 5))
            async with chromium() as browser:
                page = await opened(browser, house.url, await house.secret("operator"))
                paints = []
                for _ in range(5):
                    await page.reload()
                    await page.locator("#row-s199").wait_for()
                    paints.append(
                        await page.evaluate(
                            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                        )
                    )
                await page.get_by_text("live", exact=True).wait_for()
                seen = []
                for n in range(CHANGES):
                    service = f"s{n % ROLLING:03}"
                    step = 1 - n // ROLLING % 2
                    state = rolling(now, step=step, service=service)
                    assert state.rollout is not None
                    weight = state.rollout.release.policy.steps[step].weight
                    began = time.monotonic()
                    await house.put(state, looked(now, service, 1)[0])
                    await page.locator(f"#row-{service} .number").filter(has_text=f"{weight} %").wait_for()
                    seen.append(time.monotonic() - began)
    out.print(
        f"dashboard, {SERVICES} services, {ROLLING} rolling: first paint {max(paints):.0f} ms at the most of"
        f" {len(paints)} loads; a change is seen after {percentile(seen, 0.5) * 1000:.0f} ms (median),"
        f" {percentile(seen, 0.99) * 1000:.0f} ms (p99)"
    )


async def notifications() -> None:
    """Print what a receiver gets that is down for a minute."""
    with tempfile.TemporaryDirectory(prefix="bench-doors-") as name:
        async with house_in(Path(name)) as house:
            receiver = Receiver()
            (Path(name) / "urls").write_text(f"json://127.0.0.1:{receiver.port}/")
            channel = {"name": "team", "urls_file": str(Path(name) / "urls")}
            async with told(house, settings(Path(name), channel)):
                began = time.monotonic()
                for number in range(1, MESSAGES + 1):
                    await house.put(ServiceState(service="api"), ended(number, house.clock.now()))
                    await asyncio.sleep(DOWN / MESSAGES)
                await receiver.up()
                up = time.monotonic()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(180):
                        while len(receiver.got) < MESSAGES:
                            await asyncio.sleep(0.1)
                took = time.monotonic() - up
                await asyncio.sleep(5.0)
            await receiver.down()
    titles = [body["title"] for _, body in receiver.got]
    once, ordered = len(set(titles)), titles == sorted(titles, key=_number)
    out.print(
        f"notifications, receiver down for {up - began:.0f} s: {once} of {MESSAGES} delivered within"
        f" {took:.0f} s, {len(titles) - once} twice, in order: {ordered}"
    )


def _number(title: str) -> int:
    return int(title.partition(":")[0].rpartition("-")[2])


async def main(number: int) -> None:
    """Print everything."""
    await rollbacks(number)
    await dashboard()
    await notifications()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROLLBACKS))
