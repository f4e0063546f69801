"""Many services that change at once, on a real nginx: they share reloads, and none pays for another."""

import asyncio
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import RoutePlan, Workers
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions, ServerBlock, Tls
from tests.contract.conftest import Site

reload_alone = pytest.mark.parametrize("site", ["reload"], indirect=True)

NAMES = [f"s{n}" for n in range(10)]
UNNAMED = ServerBlock(tls=Tls(certificate="/nowhere.pem", key="/nowhere.key"))
"""nginx refuses it without a word of the file that wants it."""


@dataclass
class Asked:
    """How often nginx was asked, and a gate at which its test waits."""

    of: Counter[str] = field(default_factory=Counter)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> Asked:
    site.edge._reloader._deadline = 10.0  # ten services on a busy machine
    asked = Asked()
    asked.gate.set()

    def counted(name: str) -> None:
        original = getattr(site.process, name)

        async def call() -> None:
            asked.of[name] += 1
            if name == "test":
                asked.reached.set()
                await asked.gate.wait()
            await original()

        monkeypatch.setattr(site.process, name, call)

    counted("test")
    counted("reload")
    return asked


def plan(site: Site, service: str, generation: int = 1, *releases: str, **more: Any) -> RoutePlan:
    return replace(site.plan(generation, *(releases or ("api-1",)), **more), service=service)


def serve_otherwise(site: Site, blocks: Mapping[str, ServerBlock]) -> None:
    """Let these services have server blocks of their own, and the others what they have."""
    usual = site.edge._options("api")
    site.edge._options = lambda name: replace(usual, server=blocks.get(name, usual.server))


async def all_at_once(site: Site, names: list[str] = NAMES, generation: int = 1) -> dict[str, str]:
    """What services are told that change at once; empty where nginx serves them."""
    plans = [plan(site, name, generation) for name in names]
    answers = await asyncio.gather(*(site.edge.apply(p, 1) for p in plans), return_exceptions=True)
    for answer in answers:
        assert answer is None or isinstance(answer, Fault), answer
    told = {name: str(answer or "") for name, answer in zip(names, answers, strict=True)}
    for name, why in told.items():
        seen = await site.edge.observe(name)
        assert (seen.confirmed == generation, seen.error) == (why == "", why), name
    return told


def without(told: dict[str, str], guilty: str) -> dict[str, str]:
    return {name: why for name, why in told.items() if name != guilty}


WELL = dict.fromkeys(NAMES, "")


async def test_services_that_change_at_once_share_a_reload(site: Site, asked: Asked) -> None:
    assert await all_at_once(site) == WELL
    assert asked.of["reload"] <= 2
    assert asked.of["test"] <= 2


@reload_alone
async def test_what_comes_while_a_reload_is_under_way_shares_the_next(site: Site, asked: Asked) -> None:
    asked.gate.clear()
    first = asyncio.create_task(site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1))
    await asked.reached.wait()
    rest = asyncio.create_task(all_at_once(site))
    await asyncio.sleep(0.1)
    assert asked.of["test"] == 1
    asked.gate.set()
    await first
    assert await rest == WELL
    assert asked.of["reload"] == 2


async def test_one_that_nginx_refuses_by_name_is_refused_alone(site: Site, asked: Asked) -> None:
    serve_otherwise(site, {"s3": ServerBlock(listen="127.0.0.1:99999")})
    told = await all_at_once(site)
    assert "s3.conf" in told["s3"]
    assert without(told, "s3") == without(WELL, "s3")
    assert asked.of["test"] <= 3
    assert not site.edge.file("s3").exists()
    await site.process.test()


async def test_one_that_nginx_refuses_without_its_name_is_found_and_refused_alone(site: Site) -> None:
    serve_otherwise(site, {"s3": UNNAMED})
    told = await all_at_once(site)
    assert "nowhere.pem" in told["s3"]
    assert without(told, "s3") == without(WELL, "s3")
    await site.process.test()


async def test_one_whose_reload_nginx_refuses_is_found_and_refused_alone(site: Site) -> None:
    """A listen port that somebody else has: the test passes, the reload is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        serve_otherwise(site, {"s1": ServerBlock(listen=f"127.0.0.1:{taken.getsockname()[1]}")})
        told = await all_at_once(site, NAMES[:4])
    assert "in use" in told["s1"] or "does not show" in told["s1"]
    assert without(told, "s1") == {name: "" for name in NAMES[:4] if name != "s1"}


async def test_what_is_nobodys_fault_is_told_to_all_after_two_tests(site: Site, asked: Asked) -> None:
    (site.folder / "zz.conf").write_text("this is not nginx;\n")
    told = await all_at_once(site)
    assert {why.partition(" in /")[0] for why in told.values()} == {'nginx: [emerg] unknown directive "this"'}
    assert asked.of == {"test": 2}
    assert not [path for name in NAMES for path in (site.edge.file(name),) if path.exists()]


@reload_alone
async def test_one_that_is_given_up_takes_nothing_from_those_that_share_its_reload(
    site: Site, asked: Asked
) -> None:
    asked.gate.clear()
    tasks = [asyncio.create_task(site.edge.apply(plan(site, name), 1)) for name in NAMES[:3]]
    await asked.reached.wait()
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.sleep(0.05)
    asked.gate.set()
    given_up = await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert [type(error) for error in given_up] == [asyncio.CancelledError] * 2
    await tasks[2]
    assert (await site.edge.observe("s2")).served == 1
    assert asked.of["test"] == 1


@reload_alone
async def test_a_reload_that_everybody_has_given_up_is_not_waited_for(site: Site, asked: Asked) -> None:
    asked.gate.clear()
    before = site.edge.file("api").read_text()
    changes = [site.plan(3, "api-2", back="api-1"), plan(site, "s1")]
    tasks = [asyncio.create_task(site.edge.apply(change, 1)) for change in changes]
    await asked.reached.wait()
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(2):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert site.edge.file("api").read_text() == before
    assert not site.edge.file("s1").exists()
    asked.gate.set()
    await site.edge.apply(site.plan(4, "api-2", back="api-1"), 1)
    assert (await site.edge.observe("api")).served == 4


@reload_alone
async def test_one_that_is_given_up_while_it_waits_is_not_served(site: Site, asked: Asked) -> None:
    asked.gate.clear()
    first = asyncio.create_task(site.edge.apply(site.plan(3, "api-1"), 1))
    await asked.reached.wait()
    waiting = asyncio.create_task(site.edge.apply(plan(site, "s1"), 1))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert site.edge._rounds.changing("api")
    asked.gate.set()
    await first
    assert (asked.of["reload"], site.edge.file("s1").exists()) == (1, False)


@reload_alone
async def test_two_changes_of_one_service_are_made_one_after_the_other(site: Site, asked: Asked) -> None:
    asked.gate.clear()
    first = asyncio.create_task(site.edge.apply(plan(site, "s1"), 1))
    await asked.reached.wait()
    more = [asyncio.create_task(site.edge.apply(plan(site, "s1", n), 1)) for n in (2, 3)]
    asked.gate.set()
    await asyncio.gather(first, *more)
    assert (await site.edge.observe("s1")).served == 3
    assert asked.of["reload"] == 3


async def test_what_a_crash_has_left_of_several_is_put_right_by_the_next_daemon(site: Site) -> None:
    """It was killed after it had written their files and before nginx was asked."""
    assert await all_at_once(site, NAMES[:3]) == dict.fromkeys(NAMES[:3], "")
    good = {name: site.edge.file(name).read_text() for name in NAMES[:3]}
    assert await all_at_once(site, NAMES[:3], 2) == dict.fromkeys(NAMES[:3], "")
    for name in NAMES[:3]:
        site.edge.file(name).with_suffix(".good").write_text(good[name])
    later = NginxEdge(site.process, site.folder, site.edge._options, listen=site.edge._listen)
    broken = site.folder / "zz.conf"
    broken.write_text("this is not nginx;\n")
    changed = EdgeOptions(keepalive=8)
    later._options = lambda _: changed
    plans = [plan(site, name, 3) for name in NAMES[:3]]
    answers = await asyncio.gather(*(later.apply(p, 2) for p in plans), return_exceptions=True)
    assert all(isinstance(answer, Fault) for answer in answers)
    assert {name: site.edge.file(name).read_text() for name in NAMES[:3]} == good
    broken.unlink()
    await asyncio.gather(*(later.apply(p, 2) for p in plans))
    assert [(await later.observe(name)).served for name in NAMES[:3]] == [3, 3, 3]
    await later.close()


@reload_alone
async def test_the_time_that_a_change_waits_for_others_is_told(site: Site, asked: Asked) -> None:
    asked.gate.clear()
    first = asyncio.create_task(site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1))
    await asked.reached.wait()
    waiting = asyncio.create_task(site.edge.apply(plan(site, "s1"), 1))
    await asyncio.sleep(0.2)
    assert (await site.edge.observe("s1")).waited >= 0.2
    assert (await site.edge.observe("api")).waited < 0.2
    asked.gate.set()
    await asyncio.gather(first, waiting)
    told = (await site.edge.observe("s1")).waited
    assert told >= 0.2
    await asyncio.sleep(0.2)
    assert (await site.edge.observe("s1")).waited == told, "its turn has come: that is nginx's own time"
    await site.edge.apply(plan(site, "s1", 2), 1)
    assert (await site.edge.observe("s1")).waited < 0.2


@reload_alone
async def test_a_reload_that_nginx_ignores_is_not_believed_for_a_known_generation(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same generation with another way back: what nginx shows must be of the whole file."""

    async def ignore() -> None:
        return

    with monkeypatch.context() as patched:
        patched.setattr(site.edge._reloader, "_deadline", 1.0)
        patched.setattr(site.process, "reload", ignore)
        patched.setattr(site.process, "workers", _unseen)
        with pytest.raises(Fault, match="does not show generation 2"):
            await site.edge.apply(site.plan(2, "api-1", "api-2", back="api-2"), 1)
    await site.edge.apply(site.plan(2, "api-1", "api-2", back="api-2"), 1)
    (site.folder / "switch" / "api").touch()
    assert await site.answers() == {"api-2"}


async def _unseen() -> Workers:
    return Workers()


async def test_a_rollback_on_the_host_waits_for_no_other_service(site: Site) -> None:
    async with site.edge._rounds.alone():
        going_back = asyncio.create_task(site.edge.retreat("api", "ann", "it burns"))
        async with asyncio.timeout(5):
            while await site.answers() != {"api-1"}:
                await asyncio.sleep(0.01)
        assert not going_back.done()
    assert (await going_back).to == "api-1"
    await site.settled()
    assert await site.answers() == {"api-1"}
