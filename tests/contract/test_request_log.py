"""Requests that are counted from a log of a real nginx, which is rotated meanwhile."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import AnsweredCounts
from orchestrator.traffic.process import HostNginx
from orchestrator.traffic.request_log import RequestLog
from tests.contract.conftest import Site

SLOW = b"X-Slow: yes\r\n"


@pytest.fixture
async def counted(site: Site) -> AsyncIterator[RequestLog]:
    requests = RequestLog(site.process, site.folder, largest=10_000)
    old = os.umask(0o077)  # as in the systemd unit
    requests.prepare()
    os.umask(old)
    site.change(counted=True)
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    task = asyncio.create_task(requests.run())
    await asyncio.sleep(0.1)
    yield requests
    assert not task.done(), task.exception()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    requests.close()


def of(site: Site, counted: RequestLog, release: str) -> AnsweredCounts:
    return counted.counts(f"{release}-0", f"127.0.0.1:{site.backends[release]}")


async def all_counted(site: Site, counted: RequestLog, number: int) -> tuple[AnsweredCounts, AnsweredCounts]:
    """What both releases have answered, once it is as many as this or the time is up."""
    both = of(site, counted, "api-1"), of(site, counted, "api-2")
    for _ in range(30):
        if sum(c.codes.total() for c in both) >= number:
            break
        await asyncio.sleep(0.1)
    return both


async def test_not_one_request_is_miscounted_while_the_log_is_rotated(
    site: Site, counted: RequestLog
) -> None:
    of(site, counted, "api-1"), of(site, counted, "api-2")
    begun = set()
    for _ in range(12):
        await asyncio.gather(*(site.ask() for _ in range(100)))
        begun.add((site.folder / "log" / "requests.log").stat().st_ino)
        await asyncio.sleep(0.3)
    first, second = await all_counted(site, counted, 1200)
    assert len(begun) > 2, "it was rotated"
    assert first.codes == {"200": site.answered["api-1"]}
    assert second.codes == {"200": site.answered["api-2"]}
    assert first.buckets.total() == site.answered["api-1"]
    assert [path.name for path in (site.folder / "log").iterdir()] == ["requests.log"]


async def test_every_attempt_counts_where_it_was_made(site: Site, counted: RequestLog) -> None:
    plan = site.plan(4, "api-1", "api-2", back="api-1")
    dead = replace(plan.route.servers[1], address="127.0.0.1:1")
    route = replace(plan.route, servers=(plan.route.servers[0], dead))
    site.change(max_fails=0)
    await site.edge.apply(replace(plan, route=route), 1)
    of(site, counted, "api-1"), counted.counts("api-2-0", "127.0.0.1:1")
    site.answered.clear()
    for _ in range(20):
        await site.ask()
    await asyncio.sleep(0.8)
    assert of(site, counted, "api-1").codes == {"200": 20}
    failed = counted.counts("api-2-0", "127.0.0.1:1").codes
    assert set(failed) == {"502"}
    assert 8 <= failed["502"] <= 12


async def test_a_user_who_has_waited_in_vain_counts_for_whom_he_has_waited(
    site: Site, counted: RequestLog
) -> None:
    await site.edge.apply(site.plan(4, "api-1"), 1)
    await site.settled()
    of(site, counted, "api-1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.6):
            await site.ask(SLOW)
    await asyncio.sleep(1.6)
    seen = of(site, counted, "api-1")
    assert set(seen.codes) <= {"499", "200"}
    assert seen.codes.total() == 1
    assert seen.seconds >= 0.5
    assert await site.who(SLOW) == "api-1"
    await asyncio.sleep(0.6)
    assert seen.codes["200"] >= 1
    assert seen.seconds > 1.9


async def test_an_address_that_another_instance_gets_begins_at_zero(site: Site, counted: RequestLog) -> None:
    of(site, counted, "api-1"), of(site, counted, "api-2")
    for _ in range(10):
        await site.ask()
    first, _ = await all_counted(site, counted, 10)
    assert first.codes.total() > 0
    again = counted.counts("api-9-0", f"127.0.0.1:{site.backends['api-1']}")
    assert again.codes.total() == 0
    counted.forget(set())
    assert of(site, counted, "api-2").codes.total() == 0


async def test_a_log_that_cannot_be_read_is_no_log_without_requests(site: Site) -> None:
    requests = RequestLog(site.process, site.folder)
    log = site.folder / "log" / "requests.log"
    log.unlink(missing_ok=True)
    log.mkdir()
    with pytest.raises(Fault, match="not read yet"):
        of(site, requests, "api-1")
    with pytest.raises(Fault, match=r"requests\.log"):
        await requests.run()
    with pytest.raises(Fault, match=r"requests\.log"):
        of(site, requests, "api-1")


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_rotation_that_nginx_cannot_follow_is_taken_back(
    site: Site, counted: RequestLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise Fault("not today")

    with monkeypatch.context() as patched:
        patched.setattr(site.process, "reopen", refuse)
        counted._largest = 0
        log = site.folder / "log" / "requests.log"
        before = log.stat().st_ino
        with pytest.raises(Fault, match="not today"):
            await counted._rotate()
        assert log.stat().st_ino == before
        counted._largest = 10_000
    of(site, counted, "api-1"), of(site, counted, "api-2")
    for _ in range(5):
        await site.ask()
    first, second = await all_counted(site, counted, 5)
    assert first.codes.total() + second.codes.total() == 5


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_log_that_nobody_reads_any_more_is_no_log_without_requests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = RequestLog(site.process, site.folder)

    async def breaks() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(site.process, "reopen", breaks)
    requests.prepare()
    assert not requests.look()
    assert of(site, requests, "api-1").codes.total() == 0
    requests._largest = 0
    with pytest.raises(ZeroDivisionError):
        await requests.run()
    with pytest.raises(Fault, match=r"requests\.log: ZeroDivisionError"):
        of(site, requests, "api-1")
    requests.close()


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_log_that_is_removed_is_told_and_taken_up_again(site: Site) -> None:
    requests = RequestLog(site.process, site.folder)
    requests.prepare()
    site.change(counted=True)
    await site.edge.apply(site.plan(3, "api-1", back="api-1"), 1)
    task = asyncio.create_task(requests.run())
    await asyncio.sleep(0.1)
    (site.folder / "log" / "requests.log").unlink()
    with pytest.raises(Fault, match=r"requests\.log"):
        await task
    with pytest.raises(Fault, match=r"requests\.log"):
        of(site, requests, "api-1")
    task = asyncio.create_task(requests.run())
    await asyncio.sleep(0.5)
    seen = of(site, requests, "api-1")
    for _ in range(10):
        await site.ask()
    await asyncio.sleep(0.8)
    assert seen.codes == {"200": 10}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    requests.close()


async def test_others_run_while_a_long_log_is_counted(tmp_path: Path) -> None:
    requests = RequestLog(HostNginx(), tmp_path)  # which is not asked: nothing is rotated
    requests.prepare()
    task = asyncio.create_task(requests.run())
    await asyncio.sleep(0)
    requests.look()
    seen, looks = requests.counts("api-1-0", "10.0.0.1:80"), set[int]()
    with requests._path.open("a") as file:
        file.writelines(f"200|10.0.0.1:80|200|0.{n % 1000:03}|0.{n % 997:03}\n" for n in range(100_000))
    while seen.codes.total() < 100_000:
        await asyncio.sleep(0)
        looks.add(seen.codes.total())
    assert len(looks) > 10
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    requests.close()
