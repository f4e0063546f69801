"""What holds a channel, what it gets over, and that none of it ends the daemon: on a real Redis."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from examples.playground.lease import free_port
from orchestrator.daemon.channels import readers
from orchestrator.daemon.settings import Settings
from orchestrator.engine.tasks import courtesy
from orchestrator.notify import postman as postman_module
from orchestrator.notify.postman import BUGS, Postman, Reader
from orchestrator.ports.faults import Away, Fault, Refused, Stale
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.store.redis_store import RedisStore
from tests.door.conftest import House, until
from tests.samples import ended

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postman_module, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(postman_module, "LOOK", 0.02)


Answer = dict[str, Any]


class Elsewhere:
    """Jira, Grafana, Slack, a webhook and a collector in one, and a proxy before them that has its days.

    Attributes:
        taken: What was said to them, in order.
        proxy: What is answered instead, one after the other.
        refuse: Answers instead of a release that is named in a body, for ever.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.taken: list[str] = []
        self.proxy: list[Answer] = []
        self.refuse: dict[str, Answer] = {}

    async def take(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode("latin-1")
        if self.proxy:
            return web.Response(**self.proxy.pop(0))
        for release, answer in self.refuse.items():
            if release in body:
                return web.Response(**answer)
        if request.method == "POST":
            self.taken.append(body)
        answer = {"ok": True, "ts": "1.0", "issues": [], "id": 1}
        return web.json_response(answer)

    def of(self, number: int) -> int:
        """How often a release was told."""
        return sum(f"api-{number}" in body for body in self.taken)


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    found = Elsewhere()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", found.take)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", found.port).start()
    yield found
    await runner.cleanup()


NAMES = ("jira", "grafana", "chat", "slack", "traces")


def reader(name: str, url: str, store: RedisStore, folder: Path) -> Reader:
    """One of the readers that settings describe."""
    secret = folder / "secret"
    secret.write_text(url.replace("http:", "json:") + "/hook\n" if name == "chat" else "s3cret\n")
    told = {"name": "n", "events": ["release_ended"]}
    token = {"url": url, "token_file": str(secret)}
    sections: dict[str, Any] = {
        "jira": {"notify": [{**told, "jira": {**token, "project": "OPS"}}]},
        "grafana": {"notify": [{**told, "grafana": token}]},
        "chat": {"notify": [{**told, "urls_file": str(secret)}]},
        "slack": {
            "slack": {
                "team": "T0001",
                "signing_secret_file": str(secret),
                "channel": "C0001",
                "token_file": str(secret),
                "api_url": f"{url}/api/",
            }
        },
        "traces": {"traces": {"endpoint": f"{url}/v1/traces"}},
    }
    settings = Settings.model_validate({"state_dir": str(folder), **sections[name]})
    (found,) = readers(settings, store, store)
    return found


class Counted:
    """What was counted."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.dropped: list[str] = []


@contextlib.asynccontextmanager
async def delivered(house: House, to: Reader, bookmarks: Any = None) -> AsyncIterator[Counted]:
    """As the daemon runs it; it must not end."""
    counted = Counted()
    postman = Postman(to, house.store, bookmarks or house.store, house.clock, counted.dropped.append)
    work = courtesy(to.name, postman.run, counted.failed.append, first_pause=0.02, longest_pause=0.05)
    task = asyncio.create_task(work, name=to.name)
    async with asyncio.timeout(5):
        while not await house.store.bookmark(to.name):
            await asyncio.sleep(0.01)
    try:
        yield counted
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def put(house: House, *numbers: int, service: str = "api") -> None:
    now = house.clock.now()
    events = [ended(n, now, service=service) for n in numbers]
    await house.put(ServiceState(service=service), *events)


JSON = {"content_type": "application/json"}
NOT_THEIRS: dict[str, Answer] = {
    "no JSON": {"text": "upstream connect error", **JSON},
    "plain text": {"text": "upstream connect error", "content_type": "text/plain"},
    "plain text with 502": {
        "status": 502,
        "text": "upstream connect error",
        "content_type": "text/plain",
    },
    "a page": {"text": "<html>sign in</html>", "content_type": "text/html"},
    "a list": {"text": "[]", **JSON},
    "a full list": {"text": "[1]", **JSON},
    "null": {"text": "null", **JSON},
    "a string": {"text": '"ok"', **JSON},
    "other letters": {"body": b"\xff\xfe{", **JSON},
    "503": {"status": 503, "body": b"\xff\xfe", **JSON},
    "too many": {"status": 429, "text": '{"ok": false, "error": "ratelimited"}', **JSON},
    "too slow": {"status": 408, "text": "{}", **JSON},
}


@pytest.mark.parametrize("name", ["jira", "grafana", "slack"])
async def test_what_a_proxy_answers_is_no_refusal_and_no_bug(
    house: House, elsewhere: Elsewhere, tmp_path: Path, name: str
) -> None:
    async with delivered(house, reader(name, elsewhere.url, house.store, tmp_path)) as counted:
        elsewhere.proxy = list(NOT_THEIRS.values())
        with capture_logs() as lines:
            await put(house, 7)
            await until(lambda: elsewhere.of(7) > 0)
    assert counted.dropped == counted.failed == []
    failed = [line for line in lines if line["event"] == "notification_failed"]
    assert [line["log_level"] for line in failed] == ["warning"] * len(NOT_THEIRS), failed
    assert all("s3cret" not in str(line) and str(elsewhere.port) not in str(line) for line in failed)


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("jira", {"status": 400, "text": '{"errors": {"issuetype": "not valid"}}', **JSON}, "not valid"),
        ("jira", {"status": 401, "body": b"\xff"}, "status 401"),
        ("grafana", {"status": 403, "text": "no role"}, "no role"),
        ("slack", {"text": '{"ok": false, "error": "channel_not_found"}', **JSON}, "channel_not_found"),
        ("slack", {"text": '{"ok": false, "error": "invalid_auth"}', **JSON}, "invalid_auth"),
        ("slack", {"status": 404, "text": "no such page"}, "status 404"),
    ],
)
async def test_what_is_refused_is_told_once_and_dropped_and_the_next_is_told(
    house: House, elsewhere: Elsewhere, tmp_path: Path, name: str, answer: Answer, says: str
) -> None:
    elsewhere.refuse["api-7"] = answer
    async with delivered(house, reader(name, elsewhere.url, house.store, tmp_path)) as counted:
        with capture_logs() as lines:
            await put(house, 7, 8)
            await until(lambda: elsewhere.of(8) > 0)
            await until(lambda: bool(counted.dropped))
    assert elsewhere.of(7) == 0
    assert counted.dropped == ["slack" if name == "slack" else "n"]
    (line,) = [line for line in lines if line["event"].startswith("notification_")]
    assert (line["event"], line["log_level"], line["release"]) == ("notification_dropped", "error", "api-7")
    assert says in line["reason"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_notifiers_bug_that_passes_costs_no_message(
    house: House, elsewhere: Elsewhere, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, tries = reader(name, elsewhere.url, house.store, tmp_path), []
    take = to.take

    async def trips(event: Event) -> None:
        tries.append(event)
        if len(tries) < BUGS:
            raise AttributeError("'list' object has no attribute 'get'")
        await take(event)

    monkeypatch.setattr(type(to), "take", lambda _, event: trips(event))
    async with delivered(house, to) as counted:
        with capture_logs() as lines:
            await put(house, 7, 8)
            await until(lambda: elsewhere.of(7) > 0 and elsewhere.of(8) > 0)
    assert counted.dropped == counted.failed == []
    assert next(line for line in lines if line.get("exc_info"))["event"] == "notification_failed"


class Trips:
    """A reader that does not get over one event."""

    name = "trips"

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.tries = 0
        self.taken: list[str] = []

    def wants(self, event: Event) -> bool:
        return True

    async def take(self, event: Event) -> None:
        if event.release == "api-7":
            self.tries += 1
            raise self.error.with_traceback(None)  # else each raise adds to it
        self.taken.append(event.release)


@pytest.mark.parametrize(
    ("error", "tries"),
    [(ZeroDivisionError(), BUGS), (ExceptionGroup("", [KeyError()]), BUGS), (Refused(), 1)],
)
async def test_an_event_that_a_reader_does_not_get_over_is_dropped(
    house: House, error: Exception, tries: int
) -> None:
    to = Trips(error)
    async with delivered(house, to) as counted:
        await put(house, 6, 7, 8)
        await until(lambda: len(to.taken) == 2)
    assert to.taken == ["api-6", "api-8"]
    assert (to.tries, counted.dropped, counted.failed) == (tries, ["trips"], [])


@pytest.mark.parametrize("error", [Away("later"), Fault("Redis: later")])
async def test_what_is_away_is_tried_again_and_keeps_its_place(house: House, error: Exception) -> None:
    to = Trips(error)
    async with delivered(house, to) as counted:
        await put(house, 6, 7, 8)
        await until(lambda: to.tries > BUGS + 3)
        assert to.taken == ["api-6"]
        to.error = Refused("never")
        await until(lambda: len(to.taken) == 2)
    assert counted.dropped == ["trips"]


async def test_a_reader_that_is_stale_stops(house: House) -> None:
    postman = Postman(Trips(Stale("newer")), house.store, house.store, house.clock)
    await house.store.set_bookmark("trips", "0-0")
    await put(house, 7)
    with pytest.raises(Stale, match="newer"):
        await postman.run()


async def test_a_reader_that_is_stopped_in_the_midst_of_a_message_stops_at_once(house: House) -> None:
    begun = asyncio.Event()

    class Slow(Trips):
        async def take(self, event: Event) -> None:
            self.tries += 1
            begun.set()
            await asyncio.sleep(60)

    to = Slow(Fault())
    task = asyncio.create_task(Postman(to, house.store, house.store, house.clock).run())
    await house.store.set_bookmark("trips", "0-0")
    await put(house, 7)
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert to.tries == 1


async def test_what_was_told_is_not_told_again_where_only_its_bookmark_could_not_be_set(house: House) -> None:
    class Flaky:
        """Bookmarks on a Redis that fails with every second one."""

        def __init__(self) -> None:
            self.sets = 0

        async def bookmark(self, reader: str) -> str:
            return await house.store.bookmark(reader)

        async def set_bookmark(self, reader: str, entry: str) -> None:
            self.sets += 1
            if self.sets % 2 == 0:
                raise Fault("Redis: away")
            await house.store.set_bookmark(reader, entry)

    to = Trips(Refused())
    async with delivered(house, to, Flaky()) as counted:
        await put(house, 1, 2, 3)
        await until(lambda: len(counted.failed) >= 2 and len(to.taken) == 3)
        last = await house.store.last_event_id()
        async with asyncio.timeout(5):
            while await house.store.bookmark("trips") != last:
                await put(house, 4)
                last = await house.store.last_event_id()
                await asyncio.sleep(0.1)
    assert [r for r in to.taken if r != "api-4"] == ["api-1", "api-2", "api-3"]


async def test_an_event_that_is_damaged_holds_nobody(house: House) -> None:
    to = Trips(Refused())
    async with delivered(house, to):
        for data in ("{", "[" * 3000, '{"kind": "release_ended"}', json.dumps({"kind": "x"})):
            await house.redis.xadd(house.keys.events, {"kind": "release_ended", "data": data})
        await house.redis.xadd(house.keys.events, {"other": "fields"})
        await put(house, 8)
        await until(lambda: to.taken == ["api-8"])


async def test_a_state_that_is_damaged_holds_no_message_of_another_service(
    house: House, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    await house.store.set_bookmark("slack", "0-0")
    await put(house, 7, service="web")
    await house.redis.hset(house.keys.state("web"), "data", "{")
    await put(house, 8)
    async with delivered(house, reader("slack", elsewhere.url, house.store, tmp_path)) as counted:
        await until(lambda: elsewhere.of(8) > 0)
    assert (elsewhere.of(7), counted.dropped) == (0, ["slack"])
