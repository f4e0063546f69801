"""What people are told, and that it arrives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from aiohttp import web

from examples.playground.lease import free_port
from orchestrator.daemon.channels import subscriptions
from orchestrator.daemon.door_section import USUAL, Kind
from orchestrator.daemon.settings import Settings
from orchestrator.engine.tasks import eternal
from orchestrator.notify import postman as postman_module
from orchestrator.notify.postman import Postman
from orchestrator.notify.text import LOG_LINES, Language, message, plain
from orchestrator.ports.faults import Fault
from orchestrator.rollout.events import Event, RouteConfirmed, ServiceTroubled
from orchestrator.rollout.model import Outcome, ServiceState
from tests.door.conftest import House, until
from tests.samples import EVENTS, ended


@pytest.mark.parametrize("language", get_args(Language))
def test_every_event_that_can_be_chosen_has_a_text(language: Language) -> None:
    chosen = [e for e in EVENTS if e.kind in get_args(Kind)]
    assert {e.kind for e in chosen} == set(get_args(Kind))
    for event in chosen:
        text = message(event, language)
        assert text is not None
        assert "api" in text.title
        assert "{" not in text.title + text.body
        assert "\n" not in text.title
    assert message(RouteConfirmed(service="api", at=1, generation=1), language) is None


def test_the_end_names_metric_value_limit_baseline_samples_who_and_what_to_do() -> None:
    text = message(ended(), "en")
    assert text is not None
    assert text.title == "api-7: rolled back"
    for fact in (
        "error_rate",
        "8.89 %",
        "45 requests",
        "0.21 %",
        "1,009",
        "limit 1.00 %",
        "by: orchestrator",
    ):
        assert fact in text.body, fact
    assert "orchestrator explain api-7" in text.body
    assert "panic" in text.body
    chinese = message(ended(), "zh")
    assert chinese is not None
    assert chinese.title == "api-7: 已回滚"
    for fact in ("error_rate", "8.89 %", "45 个请求", "0.21 %", "操作人:orchestrator"):
        assert fact in chinese.body, fact


def test_a_log_in_a_message_is_bounded_and_commands_nothing() -> None:
    text = message(ended(logs="0\n" * 30 + "\x1b[31mpanic <!channel>\x1b[0m"), "en")
    assert text is not None
    *_, panic, _ = text.body.splitlines()
    assert panic == "  panic <\u200b!channel>"
    assert text.body.count("\n  ") == LOG_LINES


@pytest.mark.parametrize("language", get_args(Language))
def test_nginx_that_does_not_follow_is_told_with_where_it_is_seen_where_users_are(language: Language) -> None:
    text = message(next(e for e in EVENTS if e.kind == "edge_stuck"), language)
    assert text is not None
    assert "orchestrator status api" in text.body


def test_no_line_of_a_message_calls_anybody_or_commands_a_terminal() -> None:
    hostile = "https://ci.example.com/<!channel>\x1b[2J"
    trouble = ServiceTroubled(service="api", at=1.0, reason=f"KeyError: {hostile}")
    for event in (trouble, ended(link=hostile, author=hostile, reason=hostile, actor=hostile)):
        text = message(event, "en")
        assert text is not None
        assert "<!channel>" not in text.body
        assert "\x1b" not in text.body


def test_the_end_names_who_released_it_and_where_it_was_built() -> None:
    text = message(ended(author="ann via ci", link="https://ci/17"), "en")
    assert text is not None
    assert text.body.splitlines()[1:3] == ["released by: ann via ci", "https://ci/17"]
    back = message(ended(journey="revert", outcome=Outcome.PROMOTED, verdict=None, logs=""), "en")
    assert back is not None
    assert (back.title, back.severity) == ("api-7: has the traffic again", "success")


@pytest.mark.parametrize("hostile", ["<!channel>", "@here", "@ALL", "<@U123>", "<#C1>", "@everyone"])
def test_a_strangers_text_calls_nobody(hostile: str) -> None:
    assert hostile not in plain(f"see {hostile} now")
    assert plain("two\nlines\r\n\x1b[31m!") == "two lines !"


class Receiver:
    """Takes what is posted; can be down."""

    def __init__(self) -> None:
        self.port = free_port()
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.answers: Callable[[str, Any], tuple[int, Any]] = lambda _path, _body: (200, {})
        self._runner: web.AppRunner | None = None

    async def up(self) -> None:
        async def take(request: web.Request) -> web.Response:
            body = await request.json() if request.can_read_body else {}
            status, answer = self.answers(request.path_qs, body)
            if status < 400:
                self.got.append((request.path_qs, body))
            return web.json_response(answer, status=status)

        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def down(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    await found.up()
    yield found
    await found.down()


def settings(tmp_path: Path, *channels: dict[str, Any]) -> Settings:
    return Settings.model_validate({"state_dir": str(tmp_path), "notify": list(channels)})


@contextlib.asynccontextmanager
async def told(house: House, found: Settings) -> AsyncIterator[None]:
    """Every channel reads; waits until each has begun."""
    tasks = []
    for to in subscriptions(found):
        run = Postman(to, house.store, house.store, house.clock).run
        tasks.append(asyncio.create_task(eternal(to.name, run), name=to.name))
        async with asyncio.timeout(5):
            while not await house.store.bookmark(to.name):
                await asyncio.sleep(0.01)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def put(house: House, *events: Event) -> None:
    await house.put(ServiceState(service="api"), *events)


async def test_a_receiver_that_was_down_gets_everything_once_and_in_order(
    house: House, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one beside it waits for nothing."""
    monkeypatch.setattr(postman_module, "LONGEST_PAUSE", 1.0)
    other = Receiver()
    await other.up()
    (tmp_path / "urls").write_text(
        f"# the team\njson://127.0.0.1:{receiver.port}/a\njson://127.0.0.1:{other.port}/b\n"
    )
    now = house.clock.now()
    async with told(house, settings(tmp_path, {"name": "team", "urls_file": str(tmp_path / "urls")})):
        await put(house, ended(1, now))
        await until(lambda: len(receiver.got) == 1 and len(other.got) == 1)
        await receiver.down()
        await put(house, *(ended(n, now) for n in range(2, 12)))
        await until(lambda: len(other.got) == 11)
        assert len(receiver.got) == 1
        await receiver.up()
        await until(lambda: len(receiver.got) == 11, 20)
        await asyncio.sleep(0.5)
    for seen in (receiver, other):
        titles = [body["title"] for _, body in seen.got]
        assert titles == [f"api-{n}: rolled back" for n in range(1, 12)]
    await other.down()


async def test_what_happened_while_nobody_ran_is_told_afterwards_and_nothing_twice(
    house: House, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "urls").write_text(f"json://127.0.0.1:{receiver.port}/a")
    found = settings(tmp_path, {"name": "team", "urls_file": str(tmp_path / "urls")})
    now = house.clock.now()
    await put(house, ended(1, now))  # before anybody subscribed
    async with told(house, found):
        await put(house, ended(2, now))
        async with asyncio.timeout(10):  # until it is noted that it was sent
            while await house.store.bookmark("team.0") != await house.store.last_event_id():
                await asyncio.sleep(0.02)
        assert len(receiver.got) == 1
    await put(house, ended(3, now), ended(4, now - 90_000))  # the last is of the day before
    async with told(house, found):
        await until(lambda: len(receiver.got) >= 2)
        await asyncio.sleep(0.3)
    assert [body["title"] for _, body in receiver.got][:2] == ["api-2: rolled back", "api-3: rolled back"]


async def test_a_channel_hears_only_what_it_asked_for(
    house: House, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "urls").write_text(f"json://127.0.0.1:{receiver.port}/a")
    one = {
        "name": "team",
        "urls_file": str(tmp_path / "urls"),
        "services": ["api"],
        "outcomes": ["failed"],
        "events": ["release_ended", "edge_stuck"],
    }
    now = house.clock.now()
    async with told(house, settings(tmp_path, one)):
        await put(
            house,
            ended(1, now),
            ended(2, now, service="web", outcome=Outcome.FAILED),
            *(e for e in EVENTS if e.kind != "release_ended"),
            ended(3, now, outcome=Outcome.FAILED),
        )
        await until(lambda: len(receiver.got) >= 2)
        await asyncio.sleep(0.2)
    titles = [body["title"] for _, body in receiver.got]
    assert titles == ["api: nginx does not confirm generation 3", "api-3: failed before it had traffic"]


async def test_jira_gets_one_issue_a_release(house: House, receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("jira-secret\n")
    jira = {
        "url": f"http://127.0.0.1:{receiver.port}",
        "project": "OPS",
        "token_file": str(tmp_path / "token"),
    }
    known: list[str] = []
    broken = [True]

    def answers(path: str, body: Any) -> tuple[int, Any]:
        if path.startswith("/rest/api/2/search"):
            return 200, {"issues": [label for label in known if label in path]}
        known.append(body["fields"]["labels"][0])
        if broken.pop() if broken else False:
            return 502, "the issue is made, and its answer is lost"
        return 201, {"key": "OPS-1"}

    receiver.answers = answers
    async with told(house, settings(tmp_path, {"name": "inc", "jira": jira, "events": ["release_ended"]})):
        await put(house, ended(7, house.clock.now()))
        await until(lambda: len(known) == 1 and len(receiver.got) >= 2, 15)
        await asyncio.sleep(0.5)
    assert len(known) == 1


async def test_grafana_gets_an_annotation_over_the_time_of_a_release(
    house: House, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("grafana-secret\n")
    grafana = {"url": f"http://127.0.0.1:{receiver.port}/", "token_file": str(tmp_path / "token")}
    now = house.clock.now()
    async with told(house, settings(tmp_path, {"name": "g", "grafana": grafana})):
        await put(house, ended(7, now))
        await until(lambda: bool(receiver.got))
    ((path, body),) = receiver.got
    assert path == "/api/annotations"
    assert (body["time"], body["timeEnd"]) == (int((now - 42.0) * 1000), int(now * 1000))
    assert body["tags"] == [
        "release-orchestrator",
        "service:api",
        "event:release_ended",
        "outcome:rolled_back",
    ]
    assert body["text"].startswith("api-7: rolled back\nimage: repo/api:1")


@pytest.mark.parametrize("number", range(len(USUAL)))
def test_what_is_usual_can_be_chosen(number: int) -> None:
    assert USUAL[number] in get_args(Kind)


def test_an_address_that_is_not_understood_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("nonsense://user:hunter2@host")
    with pytest.raises(Fault) as refused:
        subscriptions(settings(tmp_path, {"name": "team", "urls_file": str(tmp_path / "urls")}))
    assert "line 1: this nonsense:// address" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_the_addresses_of_common_chats_are_understood(tmp_path: Path) -> None:
    urls = [
        "slack://xoxb-1-2-3/C1",
        "wecombot://key",
        "dingtalk://secret@token",
        "feishu://token",
        "workflows://host/workflow/signature",
        "tgram://123456789:abcdefghijklmnopqrstuvwxyz012345678/1",
        "mailto://user:pass@example.com",
        "json://example.com/hook",
        "pagerduty://abcdefghijklmnopqrst@abcdefghijklmnopqrst",
    ]
    (tmp_path / "urls").write_text("\n".join(urls))
    found = subscriptions(
        settings(tmp_path, {"name": "t", "urls_file": str(tmp_path / "urls"), "language": "zh"})
    )
    assert [s.name for s in found] == [f"t.{n}" for n in range(len(urls))]
