"""`--wait` on a real redis-server that is killed and started again: what is said is true."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import ask as ask_module
from orchestrator.cli import exits
from orchestrator.cli.ask import carry_out
from orchestrator.cli.session import Output
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.ports.faults import Away, Fault
from orchestrator.ports.requests import Request
from orchestrator.rollout.command import Abort, Freeze, Remove, Rollback, handle
from orchestrator.rollout.events import ConfigReloaded, ReleaseEnded, RouteConfirmed, ServiceRemoved
from orchestrator.rollout.model import Ended, Mark, Outcome, Phase, Retiring, Rollout, ServiceState
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import RedisStore, connect
from orchestrator.store.server import PrivateRedis
from tests.builders import release, submit
from tests.samples import ended
from tests.unit.test_engine import Kit

RELEASE = {"verb": "release", "service": "api", "image": "repo/api:1", "who": "ci"}
ROLLBACK = {"verb": "rollback", "service": "api", "who": "ann"}


@dataclass
class Bench:
    """A server, the command line's client, and what a daemon would do by another one."""

    server: PrivateRedis
    store: RedisStore
    daemon: RedisStore
    redis: Any
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def kill(self) -> None:
        assert self.server._process is not None
        self.server._process.kill()

    async def start(self, *, empty: bool = False) -> None:
        assert self.server._process is not None
        await self.server._process.wait()
        if empty:
            for file in self.server.socket.parent.glob("appendonlydir/*"):
                file.unlink()
        await self.server.start()
        await self.redis.set("t:lease", 1)

    async def asked(self) -> list[tuple[str, dict[str, str]]]:
        """What was asked, once anything was."""
        while True:
            with contextlib.suppress(Exception):
                if found := await self.redis.xrange("t:requests"):
                    return [(str(entry), fields) for entry, fields in found]
            await asyncio.sleep(0.02)

    async def answer(self, make: Callable[[str], Any]) -> None:
        """Carry out what was asked."""
        ((entry, _),) = await self.asked()
        state, version = await self.daemon.load("api")
        state, events = handle(state, make(entry), 1000.0)
        await self.daemon.commit(state, version, events)

    async def put(self, state: ServiceState, *events: Any) -> None:
        _, version = await self.daemon.load("api")
        await self.daemon.commit(state, version, events)

    def carry_out(self, fields: dict[str, str], **changes: Any) -> asyncio.Task[int]:
        given = {"wait": True, "timeout": 20.0, "output": Output.TEXT, "configured": ("api",), **changes}
        task = asyncio.create_task(carry_out(self.store, fields, **given), name="command line")
        self.tasks.add(task)
        return task


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(ask_module, "AGAIN", 0.05)
    server = PrivateRedis(tmp_path)
    await server.start()
    clients = [connect(server.url, timeout=2.0) for _ in range(2)]
    await clients[1].set("t:lease", 1)
    keys = Keys("t")
    found = Bench(server, RedisStore(clients[0], keys), RedisStore(clients[1], keys, 1), clients[1])
    yield found
    for task in found.tasks:
        task.cancel()
    await asyncio.gather(*found.tasks, return_exceptions=True)
    for client in clients:
        await client.aclose()
    await server.stop()


async def heard(capsys: pytest.CaptureFixture[str], words: str, seen: list[str]) -> None:
    """Until something was printed; what was printed is kept in `seen`."""
    async with asyncio.timeout(10):
        while words not in "".join(seen):
            found = capsys.readouterr()
            seen += [found.out, found.err]
            await asyncio.sleep(0.02)


async def test_a_release_is_followed_through_outages_before_and_after_its_answer(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    waiting = bench.carry_out(RELEASE)
    await bench.asked()
    for part in ("answer", "end"):
        bench.kill()
        await heard(capsys, "waiting", seen)
        await bench.start()
        await heard(capsys, "answers again", seen)
        text = "".join(seen)
        assert (text.count("waiting"), text.count("answers again")) == (1, 1)  # once an outage
        seen.clear()
        if part == "answer":
            await bench.answer(lambda entry: submit(1, request=entry))
            await heard(capsys, "accepted", seen)
            seen.clear()
    await bench.put(ServiceState(service="api"), ended(1, outcome=Outcome.SUPERSEDED))
    assert await waiting == exits.OUTCOMES[Outcome.SUPERSEDED]


async def test_what_redis_has_taken_without_an_answer_is_not_asked_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops in the middle of the push, until the command line has given up the first try."""
    assert bench.server._process is not None
    process, push, tries = bench.server._process, bench.store.push, 0

    async def in_the_middle(*given: Any) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            process.send_signal(signal.SIGSTOP)
        if tries == 2:
            process.send_signal(signal.SIGCONT)
        return await push(*given)

    monkeypatch.setattr(bench.store, "push", in_the_middle)
    waiting = bench.carry_out(RELEASE)
    await bench.answer(lambda entry: submit(1, request=entry))
    await bench.put(ServiceState(service="api"), ended(1, outcome=Outcome.PROMOTED))
    assert await waiting == exits.OK
    assert tries >= 2
    assert len(await bench.asked()) == 1


@pytest.mark.parametrize("answered", [False, True])
async def test_a_server_that_comes_back_empty_is_told_and_is_no_outcome(
    bench: Bench, capsys: pytest.CaptureFixture[str], answered: bool
) -> None:
    waiting = bench.carry_out(RELEASE)
    await bench.asked()
    if answered:
        await bench.answer(lambda entry: submit(1, request=entry))
        await heard(capsys, "accepted", [])
    bench.kill()
    await bench.start(empty=True)
    assert await waiting == exits.TIMED_OUT
    told = capsys.readouterr().err
    assert "Redis came back without the request" in told
    assert "orchestrator status api" in told
    assert ("api-1" in told) == answered


@pytest.mark.parametrize(
    ("when", "limit", "says"),
    [
        ("before the push", 1.0, "it is not known whether Redis has taken the request"),
        ("before the answer", 1.0, "after 1 s: no daemon has answered; the request is kept until one does"),
        ("before the end", 5.0, "timed out after 5 s: api-1 is queued; see `orchestrator status api`"),
    ],
)
async def test_a_time_out_says_what_is_known(
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    limit: float,
    says: str,
) -> None:
    last = bench.store.last_event_id

    async def then_it_dies() -> str:
        found = await last()
        bench.kill()
        return found

    if when == "before the push":
        monkeypatch.setattr(bench.store, "last_event_id", then_it_dies)
    waiting = bench.carry_out(RELEASE, timeout=limit)
    if when != "before the push":
        await bench.asked()
    if when == "before the end":
        await bench.answer(lambda entry: submit(1, request=entry))
    assert await waiting == exits.TIMED_OUT
    assert says in " ".join(capsys.readouterr().err.split())
    if when == "before the push":
        await bench.start()


async def test_a_server_that_refuses_after_it_has_taken_the_request_is_no_outcome_either(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = bench.carry_out(RELEASE)
    await bench.answer(lambda entry: submit(1, request=entry))
    await heard(capsys, "accepted", [])
    await bench.redis.delete("t:events")
    await bench.redis.set("t:events", "no")
    assert await waiting == exits.TIMED_OUT
    told = " ".join(capsys.readouterr().err.split())
    assert "WRONGTYPE" in told
    assert "api-1 is queued; see" in told


async def test_a_refusal_after_a_reply_that_was_lost_says_nothing_of_the_first_try(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    push = bench.store.push

    async def loses_its_reply(*given: Any) -> str:
        await push(*given)
        await bench.redis.delete("t:requests", *await bench.redis.keys("t:nonce:*"))
        await bench.redis.set("t:requests", "no")
        monkeypatch.undo()
        raise Away("Redis: timeout")

    monkeypatch.setattr(bench.store, "push", loses_its_reply)
    assert await bench.carry_out(RELEASE) == exits.TIMED_OUT
    told = " ".join(capsys.readouterr().err.split())
    assert "WRONGTYPE" in told
    assert "it is not known whether Redis has taken the request" in told
    with pytest.raises(Fault, match="WRONGTYPE"):
        await bench.carry_out(RELEASE)


async def test_without_redis_nothing_was_asked(bench: Bench) -> None:
    bench.kill()
    with pytest.raises(Fault):
        await bench.carry_out(RELEASE)
    await bench.start()
    assert await bench.redis.xlen("t:requests") == 0


async def test_without_wait_an_answer_is_waited_for_as_long_as_a_daemon_takes(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask_module, "ANSWER", 1.0)
    assert await bench.carry_out(RELEASE, wait=False, timeout=0.0) == exits.TIMED_OUT
    assert "timed out after 1 s: no daemon has answered" in " ".join(capsys.readouterr().err.split())


async def test_with_wait_a_daemon_that_comes_late_is_told_of_and_waited_for(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask_module, "ANSWER", 0.1)
    waiting = bench.carry_out(RELEASE)
    await heard(capsys, "no daemon has answered yet", [])
    await bench.answer(lambda entry: submit(1, request=entry))
    await bench.put(ServiceState(service="api"), ended(1, outcome=Outcome.PROMOTED))
    assert await waiting == exits.OK


def taken_back(outcome: Outcome) -> ReleaseEnded:
    return ended(2, outcome=outcome)


def reverted(outcome: Outcome) -> ReleaseEnded:
    return ended(1, outcome=outcome, journey="revert")


@pytest.mark.parametrize(
    ("rolling", "end", "code"),
    [
        (True, taken_back(Outcome.ROLLED_BACK), exits.OK),
        (True, taken_back(Outcome.ABORTED), exits.OK),  # before it had traffic
        (False, reverted(Outcome.PROMOTED), exits.OK),
        (False, reverted(Outcome.ROLLED_BACK), exits.OUTCOMES[Outcome.ROLLED_BACK]),
        (False, reverted(Outcome.FAILED), exits.OUTCOMES[Outcome.FAILED]),
    ],
)
async def test_a_rollback_that_did_what_was_asked_is_a_success(
    bench: Bench, rolling: bool, end: ReleaseEnded, code: int
) -> None:
    rollout = Rollout(
        release=release(2), began_at=1.0, entered_at=1.0, phase=Phase.SHIFTING, actor="ci", reason=""
    )
    before = (ended(5, outcome=Outcome.REJECTED),)
    state = ServiceState(service="api", stable=release(2), previous=release(1))
    await bench.put(ServiceState(service="api", stable=release(1), rollout=rollout) if rolling else state)
    waiting = bench.carry_out(ROLLBACK)
    await bench.answer(lambda entry: Rollback(request=entry, actor="ann"))
    await bench.put(state, *before, end)  # the end of another release is none of it
    assert await waiting == code


async def test_a_release_of_a_frozen_service_says_what_it_waits_for(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    state, events = handle(
        ServiceState(service="api"), Freeze(request="1-0", actor="dave", reason="sale"), 1.0
    )
    await bench.put(state, *events)
    waiting = bench.carry_out(RELEASE)
    await bench.answer(lambda entry: submit(1, request=entry))
    seen: list[str] = []
    await heard(capsys, "waiting for `orchestrator unfreeze api`", seen)
    assert "queued: frozen by dave: sale" in "".join(seen)
    await bench.put(state, ended(1, outcome=Outcome.REJECTED, reason="waited 86400 s in the queue"))
    assert await waiting == exits.REFUSED


@pytest.mark.parametrize("outcome", [None, *Outcome])
async def test_a_key_that_was_used_waits_for_the_outcome_of_that_release(
    bench: Bench, capsys: pytest.CaptureFixture[str], outcome: Outcome | None
) -> None:
    """None: it ended too long ago to be known."""
    state, events = handle(ServiceState(service="api"), submit(1, key="build"), 1.0)
    await bench.put(state, *events)
    await bench.put(_over(state, outcome))
    waiting = bench.carry_out({**RELEASE, "key": "build"})
    await bench.answer(lambda entry: submit(1, request=entry, key="build"))
    assert await waiting == (exits.TIMED_OUT if outcome is None else exits.OUTCOMES[outcome])
    assert ("api-1 ended too long ago" in capsys.readouterr().err) == (outcome is None)


@pytest.mark.parametrize(("configured", "hinted"), [(("api", "web"), True), (("api",), False)])
async def test_a_service_that_the_daemon_has_not_read_yet_is_told_apart(
    bench: Bench, capsys: pytest.CaptureFixture[str], configured: tuple[str, ...], hinted: bool
) -> None:
    waiting = bench.carry_out({**RELEASE, "service": "web"}, configured=configured)
    ((entry, fields),) = await bench.asked()
    await _refused_by_a_dispatcher(bench, entry, fields)
    assert await waiting == exits.REFUSED
    assert ("is in the configuration here" in capsys.readouterr().err) == hinted


async def _refused_by_a_dispatcher(bench: Bench, entry: str, fields: dict[str, str]) -> None:
    await bench.redis.xgroup_create("t:requests", "orchestrator", id="0")
    await bench.redis.xreadgroup("orchestrator", "driver", {"t:requests": ">"})
    dispatcher = Dispatcher(Kit().parts, bench.daemon)
    request = Request(id=entry, verb="release", service="web", who="ci", image="repo/api:1")
    await dispatcher.dispatch(request, fields)


def _over(state: ServiceState, outcome: Outcome | None) -> ServiceState:
    """With its one release in the history, or without a trace of it."""
    if outcome is None:
        return replace(state, queue=())
    (queued,) = state.queue
    end = Ended(
        release=queued, kind="release", outcome=outcome, reason="", actor="ci", began_at=1.0, ended_at=2.0
    )
    return replace(state, queue=(), history=(end,))


async def test_a_removal_is_followed_to_its_end_through_an_outage(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    waiting = bench.carry_out({"verb": "remove", "service": "api", "who": "ann"})
    await bench.answer(lambda entry: Remove(request=entry, actor="ann"))
    await heard(capsys, "remove by ann", seen)
    bench.kill()
    await heard(capsys, "waiting", seen)
    await bench.start()
    state, _ = await bench.daemon.load("api")
    await bench.put(state, ServiceRemoved(service="api", at=2.0, actor="ann", reason=""))
    assert await waiting == exits.OK


@pytest.mark.parametrize("problems", [(), ("api.yaml: [no]",)])
async def test_a_reload_prints_what_changes_and_what_is_wrong(
    bench: Bench, capsys: pytest.CaptureFixture[str], problems: tuple[str, ...]
) -> None:
    waiting = bench.carry_out({"verb": "reload", "who": "ann"}, wait=False)
    ((entry, _),) = await bench.asked()
    told = ConfigReloaded(
        service="", at=1.0, actor="ann", request=entry, changes=("web: is new",), problems=problems
    )
    await bench.put(ServiceState(service="api"), told)
    assert await waiting == (exits.USAGE if problems else exits.OK)
    assert capsys.readouterr() == ("web: is new\n", "".join(f"wrong: {p}\n" for p in problems))


@pytest.mark.parametrize(
    ("fields", "command", "says"),
    [
        (
            ROLLBACK,
            Rollback,
            "the rollback goes on until nginx has confirmed it; see `orchestrator status api`",
        ),
        (
            {"verb": "remove", "service": "api", "who": "ann"},
            Remove,
            (
                "the removal of api goes on; while nothing of it is gone `orchestrator abort api` calls"
                " it off; see `orchestrator status api`"
            ),
        ),
    ],
)
async def test_a_time_out_says_what_of_each_verb_goes_on(
    bench: Bench, capsys: pytest.CaptureFixture[str], fields: dict[str, str], command: Any, says: str
) -> None:
    promoted = [
        Ended(
            release=release(n),
            kind="release",
            outcome=Outcome.PROMOTED,
            reason="",
            actor="ci",
            began_at=1.0,
            ended_at=2.0,
        )
        for n in (1, 2)
    ]
    await bench.put(ServiceState(service="api", stable=release(2), history=tuple(promoted)))
    waiting = bench.carry_out(fields, timeout=4.0)
    await bench.answer(lambda entry: command(request=entry, actor="ann"))
    assert await waiting == exits.TIMED_OUT
    assert f"timed out after 4 s: {says}" in " ".join(capsys.readouterr().err.split())


async def test_a_time_out_says_that_a_release_goes_back(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = bench.carry_out(RELEASE, timeout=4.0)
    await bench.answer(lambda entry: submit(1, request=entry))
    back = Rollout(
        release=release(1), phase=Phase.ROLLING_BACK, began_at=1.0, entered_at=2.0, actor="x", reason="errors"
    )
    await bench.put(ServiceState(service="api", stable=release(9), rollout=back))
    assert await waiting == exits.TIMED_OUT
    told = " ".join(capsys.readouterr().err.split())
    assert "timed out after 4 s: api-1: going back to api-9 since" in told
    assert "goes on" not in told


async def test_a_time_out_without_redis_says_that_it_is_not_known_how_it_stands(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = bench.carry_out(RELEASE, timeout=4.0)
    await bench.answer(lambda entry: submit(1, request=entry))
    await heard(capsys, "accepted", [])
    bench.kill()
    assert await waiting == exits.TIMED_OUT
    told = " ".join(capsys.readouterr().err.split())
    assert "the release of api-1 goes on without this command; how it stands is not known" in told


async def test_a_removal_that_is_called_off_ends_the_wait_as_aborted(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    await bench.put(ServiceState(service="api", stable=release(1)))
    waiting = bench.carry_out({"verb": "remove", "service": "api", "who": "ann"})
    await bench.answer(lambda entry: Remove(request=entry, actor="ann"))
    await heard(capsys, "remove by ann", [])
    state, version = await bench.daemon.load("api")
    state, events = handle(state, Abort(request="9-9", actor="bob"), 1001.0)
    await bench.daemon.commit(state, version, events)
    assert await waiting == exits.OUTCOMES[Outcome.ABORTED]
    assert "abort by bob; the removal by ann is called off: api-1 stays" in capsys.readouterr().out


async def test_a_key_of_ci_that_is_sent_again_does_not_end_the_wait_for_a_removal(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    state, _ = handle(ServiceState(service="api"), submit(1, key="build"), 1.0)
    await bench.put(replace(_over(state, Outcome.PROMOTED), stable=release(1)))
    waiting = bench.carry_out({"verb": "remove", "service": "api", "who": "ann"})
    await bench.answer(lambda entry: Remove(request=entry, actor="ann"))
    await heard(capsys, "remove by ann", [])
    state, version = await bench.daemon.load("api")
    state, events = handle(state, submit(1, key="build", request="9-9"), 1001.0)
    await bench.daemon.commit(state, version, events)
    await heard(capsys, "accepted", [])
    await bench.put(state, ServiceRemoved(service="api", at=2.0, actor="ann", reason=""))
    assert await waiting == exits.OK


async def test_a_release_that_begins_anew_what_has_been_let_go_ends_the_wait_for_a_removal(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = bench.carry_out({"verb": "remove", "service": "api", "who": "ann"})
    await bench.answer(lambda entry: Remove(request=entry, actor="ann"))
    await heard(capsys, "remove by ann", [])
    state, version = await bench.daemon.load("api")
    state, events = handle(state, submit(1, request="9-9"), 1001.0)
    await bench.daemon.commit(state, version, events)
    assert await waiting == exits.OUTCOMES[Outcome.ABORTED]


ABORT = {"verb": "abort", "service": "api", "who": "bob"}


async def test_a_rollback_from_a_route_that_nobody_knows_is_over_when_nginx_confirms(bench: Bench) -> None:
    state = ServiceState(service="api", stable=release(1), unknown=(9, 1.0), stuck_since=11.0)
    await bench.put(state)
    waiting = bench.carry_out(ROLLBACK)
    await bench.answer(lambda entry: Rollback(request=entry, actor="ann"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await bench.put(state, RouteConfirmed(service="api", at=2.0, generation=10))
    assert await waiting == exits.OK


@pytest.mark.parametrize("what", ["rollout", "queued", "removal"])
async def test_an_abort_that_did_what_was_asked_is_a_success(bench: Bench, what: str) -> None:
    rollout = Rollout(
        release=release(2), began_at=1.0, entered_at=1.0, phase=Phase.SHIFTING, actor="ci", reason=""
    )
    state = ServiceState(service="api", stable=release(1), rollout=rollout, queue=(release(3),))
    named = {"release": "api-3"} if what == "queued" else {}
    if what == "removal":
        retiring = (Retiring(release=release(1), was="stable"),)
        mark = Mark(kind="removing", actor="ann", reason="unused", since=1.0)
        state = ServiceState(service="api", removal=mark, retiring=retiring)
    await bench.put(state)
    waiting = bench.carry_out(ABORT | named)
    await bench.answer(lambda entry: Abort(request=entry, actor="bob", release=named.get("release", "")))
    if what == "rollout":
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await bench.put(state, ended(2, outcome=Outcome.ABORTED))
    assert await waiting == exits.OK
