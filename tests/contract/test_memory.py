"""Weights that change in nginx' memory, by its Lua module, beside the same by a reload."""

import asyncio
import contextlib
import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest
from structlog.testing import capture_logs

from examples.playground.lease import free_port
from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import EdgeProcess, RoutePlan
from orchestrator.rollout.observation import LocalRollback
from orchestrator.traffic import files, memory, shared
from orchestrator.traffic.edge import NginxEdge, _Change, _on_disk
from orchestrator.traffic.files import locked
from orchestrator.traffic.memory import Memory
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.process import children
from orchestrator.traffic.shared import Shared
from tests.contract.conftest import Site

dynamic = pytest.mark.parametrize("site", ["dynamic"], indirect=True)


async def _wait_for(site: Site, number: int, at_once: int = 32) -> None:
    """So many requests, some at a time."""
    left = iter(range(number))

    async def user() -> None:
        for _ in left:
            await site.ask()

    await asyncio.gather(*(user() for _ in range(at_once)))


@dynamic
async def test_weights_change_without_a_reload(site: Site) -> None:
    before = (await site.process.workers()).accepting
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-2"}
    assert (await site.process.workers()).accepting == before
    seen = await site.edge.observe("api")
    assert (seen.served, seen.confirmed, seen.drained) == (3, 3, True)


async def test_the_share_served_is_the_share_asked(site: Site) -> None:
    """One percent within half a point over 20,000 requests, two workers, right after the change."""
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1", weights=(99, 1)), 1)
    site.answered.clear()
    await _wait_for(site, 20_000)
    assert 100 <= site.answered["api-2"] <= 300
    assert site.answered.total() == 20_000


@dynamic
async def test_a_restarted_nginx_comes_back_with_the_same_weights(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    master = site.process.master()
    for pid in (master, *children(master)):
        os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{master}").exists():
        await asyncio.sleep(0.02)
    await asyncio.to_thread(
        subprocess.run, ["nginx", "-c", str(site.folder.parent / "nginx.conf")], check=True, timeout=10
    )
    assert await site.answers() == {"api-2"}
    assert (await site.edge.observe("api")).served == 3
    await site.edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-1", "api-2"}


@dynamic
@pytest.mark.parametrize(
    ("route", "secret", "why"),
    [
        ("generation 1\ntoken 1\nmain 127.0.0.1 1 1 api-1 a 0 1 2", "", "generation 2 under token 1"),
        ("generation 9\ntoken 0\nmain 127.0.0.1 1 1 api-1 a 0 1 2", "", "generation 2 under token 1"),
        ("generation 9\ntoken 1\nmain 127.0.0.1", "", "not understood"),
        ("", "", "no route"),
        ("generation 9\ntoken 1\nmain 127.0.0.1 1 1 api-1 a 0 1 2", "guessed", "not allowed"),
    ],
)
async def test_nginx_itself_refuses_what_is_older_or_not_ours(
    site: Site, route: str, secret: str, why: str
) -> None:
    right = (site.folder / "secret").read_text()
    shape = (await site.edge._listener.ask("api")).shape
    with pytest.raises(Fault, match=why):
        await site.edge._listener.put("api", route, secret=secret or right, shape=shape)
    assert (await site.edge.observe("api")).served == 2
    assert right not in (await site.edge._listener.ask("api")).text
    for file in ("api.conf", "api.rollback", "api.good", "secret"):
        assert stat.S_IMODE((site.folder / file).stat().st_mode) == 0o600, file


@dynamic
async def test_a_request_that_fails_is_tried_at_the_other_release(site: Site) -> None:
    plan = site.plan(3, "api-1", "api-2", back="api-1")
    dead = [replace(plan.route.servers[1], address=f"127.0.0.1:{n}") for n in (1, 2, 3)]
    route = replace(plan.route, servers=(*dead, plan.route.servers[0]))
    await site.edge.apply(replace(plan, route=route), 1)
    site.answered.clear()
    await _wait_for(site, 200)
    assert site.answered == {"api-1": 200}


@dynamic
async def test_a_backup_is_asked_when_nobody_else_answers(site: Site) -> None:
    plan = site.plan(3, "api-1", "api-2", back="api-1")
    dead = replace(plan.route.servers[1], address="127.0.0.1:1")
    backup = replace(plan.route.servers[0], backup=True)
    await site.edge.apply(replace(plan, route=replace(plan.route, servers=(dead, backup))), 1)
    assert await site.answers() == {"api-1"}
    await site.edge.apply(site.plan(4, "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-2"}


@dynamic
async def test_a_server_that_is_let_go_drains_before_it_is_stopped(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    slow = asyncio.create_task(site.ask(b"X-Slow: yes\r\n"))
    await asyncio.sleep(0.3)
    await site.edge.apply(site.plan(4, "api-1"), 1)
    assert not (await site.edge.observe("api")).drained
    assert await site.answers() == {"api-1"}
    assert (await slow)[0] == "api-2"
    async with asyncio.timeout(3):
        while not (await site.edge.observe("api")).drained:
            await asyncio.sleep(0.05)


@dynamic
async def test_without_the_snippet_nobody_knows_whether_a_server_has_drained(site: Site) -> None:
    text = f"server {{ listen 127.0.0.1:{site.port + 1}; location / {{ proxy_pass http://api; }} }}\n"
    (site.folder / "zz.conf").write_text(text)
    await site.process.reload()
    await asyncio.sleep(0.5)
    before, site.port = site.port, site.port + 1
    assert (await site.ask())[0].partition(" ")[0] in {"api-1", "api-2"}
    site.port = before
    await site.edge.apply(site.plan(3, "api-1"), 1)
    seen = await site.edge.observe("api")
    assert (seen.served, seen.drained) == (3, False)


async def test_the_rollback_file_put_in_place_by_hand_is_served(site: Site) -> None:
    (site.folder / "api.conf").write_text((site.folder / "api.rollback").read_text())
    await site.process.reload()
    await asyncio.sleep(0.5)
    assert await site.answers() == {"api-1"}
    assert (await site.edge.observe("api")).local is not None


async def test_an_edited_file_is_put_right_in_memory_too(site: Site) -> None:
    file = site.folder / "api.conf"
    text = file.read_text()
    other = site.backends["api-1"]
    for edited in (f"127.0.0.1:{site.backends['api-2']}", f"127.0.0.1 {site.backends['api-2']}"):
        text = text.replace(edited, edited[:10] + str(other))
    file.write_text(text)
    await site.process.reload()
    await asyncio.sleep(0.5)
    assert await site.answers() == {"api-1"}
    await site.edge.apply(site.plan(2, "api-1", "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-1", "api-2"}
    assert (site.folder / "api.edited").read_text() == text


@dynamic
async def test_a_route_whose_reply_is_lost_is_served_by_a_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = site.edge._listener.put

    async def lose(service: str, route: str, *, secret: str, shape: str) -> None:
        await put(service, route, secret=secret, shape=shape)
        raise Fault("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(site.edge._listener, "put", lose)
        await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    seen = await site.edge.observe("api")
    assert (seen.served, seen.confirmed, seen.file, seen.error) == (3, 3, "ours", "")
    before = (await site.process.workers()).accepting
    await site.edge.apply(site.plan(4, "api-1", back="api-1"), 1)
    assert (await site.process.workers()).accepting == before
    assert await site.answers() == {"api-1"}


@dynamic
async def test_a_route_that_may_have_been_taken_is_on_the_disk_when_its_change_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, taken = site.edge._listener.put, asyncio.Event()

    async def hang(service: str, route: str, *, secret: str, shape: str) -> None:
        await put(service, route, secret=secret, shape=shape)
        taken.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as patched:
        patched.setattr(site.edge._listener, "put", hang)
        step = asyncio.create_task(site.edge.apply(site.plan(3, "api-2", back="api-1"), 1))
        await taken.wait()
        step.cancel()
        await asyncio.wait({step})
    seen = await site.edge.observe("api")
    assert (seen.served, seen.confirmed, seen.floor, seen.file) == (3, 2, 3, "ours")


@dynamic
async def test_what_is_no_route_needs_a_reload(site: Site) -> None:
    workers = (await site.process.workers()).accepting
    options = site.edge._options("api")
    site.edge._options = lambda _: replace(options, keepalive=8)
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    assert not workers & (await site.process.workers()).accepting
    assert await site.answers() == {"api-2"}
    site.edge._options = lambda _: EdgeOptions(method="least_conn", server=options.server)
    await site.edge.apply(site.plan(4, "api-1", back="api-1"), 1)
    assert "least_conn;" in (site.folder / "api.conf").read_text()
    assert await site.answers() == {"api-1"}


@dynamic
async def test_a_route_for_another_file_than_nginx_runs_is_served_by_a_reload(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    site.change(keepalive=8)
    site.edge._served["api"].shape = site.edge._shape("api", (site.folder / "secret").read_text())
    with capture_logs() as logs:
        await site.edge.apply(site.plan(4, "api-2", back="api-1"), 1)
    assert "nginx runs another file" in str(logs)
    assert await site.answers() == {"api-2"}
    assert "keepalive 8;" in (site.folder / "api.conf").read_text()


@dynamic
async def test_a_rollback_takes_a_few_milliseconds(site: Site) -> None:
    """Not a figure, which the bench gives: that nothing is waited for."""
    site.edge._reloader._closing_wait = 60.0
    began = time.monotonic()
    with contextlib.suppress(Fault):
        await site.edge.retreat("api", "ann", "it burns")
    assert time.monotonic() - began < 5
    assert await site.answers() == {"api-1"}
    seen = await site.edge.observe("api")
    assert (seen.served, seen.on_disk.local.actor) == (3, "ann")  # type: ignore[union-attr]


async def _run_lua(site: Site, code: str) -> list[str]:
    """What a piece of Lua says in one of nginx's workers, where `dict` is the shared memory."""
    port = free_port()
    (site.folder / "zz.conf").write_text(
        f"server {{ listen 127.0.0.1:{port}; location / {{ content_by_lua_block {{"
        f" local dict = ngx.shared.release_orchestrator {code} }} }} }}\n"
    )
    await site.edge.reload()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
        return (await answer.text()).splitlines()


@dynamic
async def test_a_server_that_is_let_go_leaves_nothing_in_memory(site: Site) -> None:
    for generation in range(3, 9):
        plan = site.plan(generation, "api-1", back="api-1")
        old = replace(plan.route.servers[0], address=f"127.0.0.1:{generation}", release="api-9")
        await site.edge.apply(replace(plan, route=replace(plan.route, servers=(*plan.route.servers, old))), 1)
        await _wait_for(site, 8)
    await site.edge.apply(site.plan(9, "api-1"), 1)
    await site.edge.apply(site.plan(10, "api-1"), 1)
    keys = await _run_lua(site, "for _, key in ipairs(dict:get_keys(0)) do ngx.say(key) end")
    kept = [key.partition("@")[2] for key in keys if "@" in key]
    assert kept == [f"127.0.0.1:{site.backends['api-1']}"]


FILL = """
    local n = 0
    for size = 11, 0, -1 do
        while dict:safe_set('fill' .. n, ('x'):rep(2 ^ size)) do n = n + 1 end
    end
    ngx.say(n)
"""
"""Leaves no room for anything, whatever its size."""


@dynamic
async def test_a_memory_that_is_full_keeps_no_route_from_being_served_and_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SHARED_MEMORY", "lua_shared_dict release_orchestrator 32k;\n")
    site.change(keepalive=8)  # a reload, which makes the memory anew
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    await site.edge.apply(site.plan(4, "api-2", back="api-1"), 1)
    await _run_lua(site, FILL)
    assert await site.answers() == {"api-2"}
    with capture_logs() as logs:
        await site.edge.apply(site.plan(5, "api-1", back="api-1"), 1)
    assert "lua_shared_dict release_orchestrator: no memory" in str(logs)
    assert await site.answers() == {"api-1"}
    assert (await site.edge._listener.ask("api")).generation == 5
    log = (site.folder.parent / "nginx.error.log").read_text()
    assert "lua_shared_dict release_orchestrator: no memory" in log


@pytest.mark.parametrize("lies_there", ["{}\n", " {}", "{}{}", "x", "", "{}\r\n\x00\x7f\n", "\u00e4" * 32])
@dynamic
async def test_no_secret_that_lies_there_keeps_a_rollback_from_being_served(
    site: Site, lies_there: str
) -> None:
    """An editor's newline, a copy that went wrong: rollbacks go on."""
    secret = site.folder / "secret"
    secret.write_text(lies_there.replace("{}", secret.read_text()))
    site.change(keepalive=8)
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    await site.edge.apply(site.plan(4, "api-1", back="api-1"), 1)
    assert await site.answers() == {"api-1"}
    await site.edge.apply(site.plan(5, "api-2", back="api-1"), 1)
    assert (await site.edge.retreat("api", "ann", "it burns")).to == "api-1"
    assert await site.answers() == {"api-1"}
    assert re.fullmatch("[0-9a-f]{32}", secret.read_text().strip())


@dynamic
async def test_a_secret_is_made_once_and_beside_the_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, threads = site.folder / "secret", set[str]()
    replace = files.replace

    def look(path: Path, *text: Any, **more: Any) -> None:
        threads.add(threading.current_thread().name)
        replace(path, *text, **more)

    monkeypatch.setattr(files, "replace", look)
    secret.unlink()
    made = await asyncio.gather(*(site.edge._memory.secret() for _ in range(3)))
    assert set(made) == {secret.read_text()}
    assert threading.main_thread().name not in threads


@dynamic
async def test_without_a_secret_that_can_be_kept_weights_change_by_a_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Fault("secret: Operation not permitted")

    (site.folder / "secret").write_text("by somebody")
    monkeypatch.setattr("orchestrator.traffic.memory.write", refuse)
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-2"}
    assert (await site.edge.retreat("api", "ann", "it burns")).to == "api-1"
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("error", [ValueError("a header"), Fault("no answer"), RuntimeError("anything")])
@dynamic
async def test_where_the_memory_fails_the_switch_and_a_reload_take_users_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(aiohttp.ClientSession, "_request", broken_put(error))
    async with locked(site.folder / ".lock", 1.0):
        back = asyncio.create_task(site.edge.apply(site.plan(3, "api-1", back="api-1"), 1))
        async with asyncio.timeout(5):
            while await site.answers() != {"api-1"}:
                await asyncio.sleep(0.02)
        assert not back.done()
    await back
    assert (await site.edge.observe("api")).confirmed == 3
    await site.settled()
    await site.edge.apply(site.plan(4, "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-2"}
    assert (await site.edge.retreat("api", "ann", "it burns")).to == "api-1"
    assert await site.answers() == {"api-1"}


def broken_put(error: Exception) -> Callable[..., Coroutine[Any, Any, aiohttp.ClientResponse]]:
    """A request of aiohttp's that fails where it hands a route over."""
    request = aiohttp.ClientSession._request

    async def fail(
        self: aiohttp.ClientSession, method: str, *more: Any, **words: Any
    ) -> aiohttp.ClientResponse:
        if method == "PUT":
            raise error
        return await request(self, method, *more, **words)

    return fail


@pytest.mark.parametrize("by", ["daemon", "person"])
async def test_a_rollback_waits_for_no_other_process_that_holds_the_folder(site: Site, by: str) -> None:
    async with locked(site.folder / ".lock", 1.0):
        if by == "daemon":
            back = asyncio.ensure_future(site.edge.apply(site.plan(3, "api-1"), 1))
        else:
            back = asyncio.ensure_future(site.edge.retreat("api", "ann", "it burns"))  # type: ignore[arg-type]
        async with asyncio.timeout(3):
            while await site.answers() != {"api-1"}:
                await asyncio.sleep(0.02)
        assert not back.done()
    await back
    await site.settled()
    assert await site.answers() == {"api-1"}
    assert (await site.edge.observe("api")).served == 3


@pytest.mark.parametrize("by", ["daemon", "person"])
@pytest.mark.usefixtures("read_only")
@dynamic
async def test_a_route_in_memory_needs_no_disk_to_take_users_back(site: Site, by: str) -> None:
    daemons = by == "daemon"
    back = site.edge.apply(site.plan(3, "api-1"), 1) if daemons else site.edge.retreat("api", "ann", "")
    with pytest.raises(Fault, match="Read-only file system"):
        await back
    assert await site.answers() == {"api-1"}
    seen = await site.edge.observe("api")
    assert (seen.served, seen.switched_to, seen.switched_for) == (3, "" if daemons else "api-1", 0)


@dynamic
async def test_a_step_of_the_daemons_own_that_no_file_has_any_more_is_told_as_no_rollback(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    files = [site.folder / name for name in ("api.conf", "api.rollback")]
    texts = [file.read_text() for file in files]
    await site.edge.apply(site.plan(4, "api-2", "api-3", back="api-2"), 1)
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    later = person(site)
    seen = await later.observe("api")
    await later.close()
    assert (seen.served, seen.floor, seen.switched_to) == (4, 3, "")


def person(site: Site) -> NginxEdge:
    """Another process on this host, which a person has started."""
    return NginxEdge(
        site.process, site.folder, site.edge._options, listen=site.edge._listen, closing_wait=0.0
    )


@contextlib.asynccontextmanager
async def going_back(site: Site) -> AsyncIterator["asyncio.Task[LocalRollback]"]:
    """A rollback on this host that waits for its turn, with the users back already."""
    hand = person(site)
    hand._rounds._patience = 1.0
    async with site.edge._rounds.alone():
        back = asyncio.create_task(hand.retreat("api", "ann", "it burns"))
        async with asyncio.timeout(5):
            while await site.answers() != {"api-1"}:
                await asyncio.sleep(0.01)
        yield back
    await asyncio.wait({back})
    await hand.close()


@dynamic
async def test_a_rollback_on_the_host_that_is_given_up_is_known(site: Site) -> None:
    async with going_back(site) as back:
        back.cancel()
    assert back.cancelled()
    seen = await site.edge.observe("api")
    assert (seen.served, seen.floor) == (3, 2)
    assert (seen.switched_to, seen.switched_for) == ("api-1", 0)
    assert (site.folder / "switch" / "api.to.api-1").is_file(), "for an nginx that starts again"
    await site.edge.retreat("api", "host", "followed", 1)
    seen = await site.edge.observe("api")
    assert (seen.served, seen.floor, seen.confirmed) == (3, 3, 3)
    await site.settled()
    assert await site.answers() == {"api-1"}


@dynamic
@pytest.mark.parametrize(
    ("more", "served"),
    [("odd 1\nmain 127.0.0.1 {0} 1 api-2 a 0 1 2", {"api-2"}), ("server=127.0.0.1:{0}", {"api-1", "api-2"})],
    ids=["one line is odd", "no server is understood"],
)
async def test_a_route_that_another_version_left_in_memory_fails_no_request_and_can_be_replaced(
    site: Site, more: str, served: set[str]
) -> None:
    """Of what is not understood the rest counts; where nothing is left, the file does."""
    route = f"generation 3\ntoken 1\n{more.format(site.backends['api-2'])}".replace("\n", "\\n")
    leave = f'local d = ngx.shared.release_orchestrator; d:set("api", 99); d:set("api 99", "{route}")'
    port = free_port()
    text = f"server {{ listen 127.0.0.1:{port}; location / {{ content_by_lua_block {{ {leave} }} }} }}\n"
    (site.folder / "zz.conf").write_text(text)
    await site.process.reload()
    await asyncio.sleep(0.5)
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
        assert answer.status == 200
    assert await site.answers() == served
    await site.edge.apply(site.plan(4, "api-1", back="api-1"), 1)
    assert await site.answers() == {"api-1"}


@dynamic
async def test_no_step_takes_the_place_of_a_rollback_on_the_host(site: Site) -> None:
    """It was begun before and has the same generation."""
    async with going_back(site) as back:
        path, secret = site.edge.file("api"), site.edge._memory.known()
        disk = _on_disk(site.plan(3, "api-1", "api-2", back="api-1"))
        with pytest.raises(Fault, match="generation 3"):
            await site.edge._hand_over(_Change(path, None, disk, 1, secret))
        assert await site.answers() == {"api-1"}
    assert back.exception() is None or "by nginx' memory" in str(back.exception())


@dynamic
async def test_users_that_were_sent_elsewhere_meanwhile_are_not_said_to_be_back(site: Site) -> None:
    async with going_back(site) as back:
        path, secret = site.edge.file("api"), site.edge._memory.known()
        disk = _on_disk(site.plan(4, "api-1", "api-2", back="api-1"))
        await site.edge._hand_over(_Change(path, None, disk, 1, secret))
        await asyncio.wait({back})
    assert "has held" in str(back.exception())
    assert "users are back" not in str(back.exception())


@dynamic
async def test_a_rollback_on_the_host_goes_over_what_nginx_serves_not_what_an_older_file_says(
    site: Site,
) -> None:
    """The folder was put back to an earlier time while nginx ran on."""
    files = [site.folder / name for name in ("api.conf", "api.rollback")]
    texts = [file.read_text() for file in files]
    for generation in range(3, 6):
        await site.edge.apply(site.plan(generation, "api-2", "api-1", back="api-1"), generation)
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    hand = person(site)
    assert (await hand.retreat("api", "ann", "")).to == "api-1"
    await hand.close()
    seen = await site.edge.observe("api")
    assert seen.served == seen.floor == seen.highest > 5
    assert await site.answers() == {"api-1"}


@contextlib.asynccontextmanager
async def killed(site: Site, monkeypatch: pytest.MonkeyPatch, plan: RoutePlan) -> AsyncIterator[NginxEdge]:
    """A daemon ends between the file and nginx' memory; what is yielded is the next one."""
    reached = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        reached.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as patched:
        patched.setattr(site.edge._listener, "put", hang)
        step = asyncio.create_task(site.edge.apply(plan, 1))
        await reached.wait()
        step.cancel()
        await asyncio.wait({step})
    edge = person(site)
    seen = await edge.observe("api")
    assert (seen.served, seen.floor) == (2, 3)
    yield edge
    await edge.close()


@dynamic
async def test_a_daemon_that_was_killed_before_nginx_had_the_route_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = site.plan(3, "api-1", "api-3", back="api-1")
    async with killed(site, monkeypatch, plan) as edge:
        before = (await site.process.workers()).accepting
        await edge.apply(plan, 2)
        assert await site.answers() == {"api-1", "api-3"}
        seen = await edge.observe("api")
        assert (seen.served, seen.floor, seen.confirmed, seen.file) == (3, 3, 3, "ours")
        assert (await site.process.workers()).accepting == before


@dynamic
@pytest.mark.parametrize("to", ["api-1", "api-2"])
async def test_users_go_at_once_where_the_file_has_them_and_nginx_has_not(
    site: Site, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    async with (
        killed(site, monkeypatch, site.plan(3, "api-2", back="api-1")) as edge,
        locked(site.folder / ".lock", 1.0),
    ):
        waiting = asyncio.create_task(edge.apply(site.plan(4, to), 1))
        async with asyncio.timeout(3):
            while await site.answers() != {to}:
                await asyncio.sleep(0.02)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_an_nginx_that_gets_the_module_later_is_told_of_weights_by_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = AsyncMock(EdgeProcess)
    process.has_lua.return_value = False
    folder = Shared(tmp_path)
    found = Memory(process, tmp_path, "auto", folder)
    assert await found.secret() == ""
    process.has_lua.return_value = True
    assert await found.secret() == "", "nginx is not asked at each change"
    monkeypatch.setattr(memory, "LOOK_EVERY", 0.0)
    found = Memory(process, tmp_path, "auto", folder)
    process.has_lua.return_value = False
    assert await found.secret() == ""
    process.has_lua.return_value = True
    assert await found.secret() == found.known() != ""
