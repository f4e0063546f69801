"""The rollback switch and the gentle end of connections, on a real nginx with two real servers behind it."""

import asyncio
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import RoutePlan
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.files import remove, to_the_end
from orchestrator.traffic.switch import A_PERSONS
from tests.contract.conftest import Site, stop

FAR = 4e9
"""A time of the epoch that no clock shows yet."""


async def test_an_empty_file_takes_the_traffic_back_without_a_daemon(site: Site) -> None:
    assert await site.answers() == {"api-1", "api-2"}
    switch = site.folder / "switch" / "api"
    switch.touch()
    await asyncio.sleep(0.1)  # where Lua looks for it, it does so 100 times a second
    assert await site.answers() == {"api-1"}
    assert (await site.edge.observe("api")).switched_to == "api-1"
    switch.unlink()
    await asyncio.sleep(0.1)
    assert await site.answers() == {"api-1", "api-2"}


async def test_where_nobody_knows_how_a_service_is_served_its_switch_is_turned_on(site: Site) -> None:
    assert await site.edge.turn_back("api") == "api-1"
    await asyncio.sleep(0.1)
    assert await site.answers() == {"api-1"}
    seen = await site.edge.observe("api")
    assert (seen.switched_to, seen.switched_for) == ("api-1", 0), "a person's word"
    with pytest.raises(Fault, match="web has nothing to go back to on this host"):
        await site.edge.turn_back("web")


@pytest.mark.parametrize("own", [False, True])
async def test_workers_look_for_a_switch_that_they_may_not_read(site: Site, own: bool) -> None:
    before = os.umask(0o077)
    try:
        if own:
            site.edge._switches.turn_on("api", "api-1", 3)
        else:
            (site.folder / "switch" / "api").touch()
    finally:
        os.umask(before)
    await asyncio.sleep(0.1)
    assert await site.answers() == {"api-1"}


async def test_a_rollback_waits_for_no_other_file(site: Site) -> None:
    disk_is_slow = threading.Event()
    writing = [asyncio.create_task(to_the_end(disk_is_slow.wait)) for _ in range(20)]
    going_back = asyncio.create_task(site.edge.apply(site.plan(3, "api-1"), 1))
    try:
        await asyncio.sleep(0.2)
        assert await site.answers() == {"api-1"}
        assert not going_back.done()
    finally:
        disk_is_slow.set()
        await asyncio.gather(going_back, *writing)


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_rollback_leads_nobody_where_nginx_led_before_it_read_the_file(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third release is given up before nginx has read its first step, and the first one is still warm."""
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    reload, may = site.process.reload, asyncio.Event()

    async def late() -> None:
        await may.wait()
        await reload()

    monkeypatch.setattr(site.process, "reload", late)
    step = asyncio.create_task(site.edge.apply(site.plan(4, "api-2", "api-3", back="api-2"), 1))
    async with asyncio.timeout(5):
        while "api-3" not in (site.folder / "api.conf").read_text():
            await asyncio.sleep(0.01)
    back = asyncio.create_task(site.edge.apply(site.plan(5, "api-2", back="api-1"), 1))
    person = NginxEdge(
        site.process, site.folder, site.edge._options, listen=site.edge._listen, closing_wait=0.0
    )
    by_hand = asyncio.create_task(person.retreat("api", "ann", "it burns"))
    await asyncio.sleep(0.2)
    assert await site.answers() == {"api-2"}
    by_hand.cancel()
    await asyncio.wait({by_hand})
    may.set()
    await asyncio.gather(step, back)
    assert await site.answers() == {"api-2"}
    await site.settled()
    assert await site.answers() == {"api-2"}
    await person.close()


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_that_leads_where_all_users_are_goes_with_the_next_step(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-1"), 1)
    await asyncio.sleep(0.02)  # more than a tick of the kernel's clock
    (site.folder / "switch" / "api").touch()
    await site.edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert not site.edge._switches.all("api")
    assert await site.answers() == {"api-1", "api-2"}


async def test_no_step_goes_on_over_a_switch_that_a_person_has_turned(site: Site) -> None:
    (site.folder / "switch" / "api").touch()
    await asyncio.sleep(0.1)
    with pytest.raises(Fault, match="switch/api is there"):
        await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-1"}
    assert (await site.edge.retreat("api", "host", "followed", 1)).to == "api-1"
    assert (await site.edge.observe("api")).on_disk.local.reason == "followed"  # type: ignore[union-attr]
    await site.settled()
    assert not (site.folder / "switch" / "api").exists()
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_rollback_takes_effect_before_its_reload(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse() -> None:
        raise Fault("no reload today")

    with monkeypatch.context() as patched:
        patched.setattr(site.process, "reload", refuse)
        with pytest.raises(Fault, match="no reload today"):
            await site.edge.apply(site.plan(3, "api-1"), 1)
        assert await site.answers() == {"api-1"}
    await site.edge.apply(site.plan(3, "api-1"), 1)  # the second try goes on from there
    await site.settled()
    assert await site.answers() == {"api-1"}
    await site.edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-1", "api-2"}


async def test_a_rollback_waits_for_no_other_service(site: Site) -> None:
    async with site.edge._rounds.alone():  # another service's change, which nginx does not come to confirm
        going_back = asyncio.create_task(site.edge.apply(site.plan(3, "api-1"), 1))
        await asyncio.sleep(0.2)
        assert await site.answers() == {"api-1"}
        assert not going_back.done()
    await going_back
    await site.settled()
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_that_is_left_over_does_not_hold_the_next_release_back(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-1"), 1)
    assert site.edge._switches.turned_for("api", "api-1") == 3
    await site.edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    assert not site.edge._switches.all("api")
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_of_the_daemons_own_gives_way_to_its_next_word(
    site: Site, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """nginx hung while a rollback was wanted, and meanwhile the next release is."""

    async def refuse() -> None:
        raise Fault("it hangs")

    with monkeypatch.context() as patched:
        patched.setattr(site.process, "reload", refuse)
        for plan in (site.plan(3, "api-1"), site.plan(4, "api-1", "api-2", back="api-1")):
            with pytest.raises(Fault, match="it hangs"):
                await site.edge.apply(plan, 1)
            assert await site.answers() == {"api-1"}
        seen = await site.edge.observe("api")
        assert (seen.switched_to, seen.switched_for) == ("api-1", 3), "nobody has rolled back here"
    edge = site.edge
    if restarted:
        edge = NginxEdge(site.process, site.folder, edge._options, listen=edge._listen, closing_wait=0.0)
    await edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    await edge.close()
    assert not edge._switches.all("api")
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_that_was_left_on_goes_when_a_newer_route_is_served(site: Site) -> None:
    """A daemon was killed between the confirmation of its next word and the end of its last one."""
    switch = site.folder / "switch" / "api.to.api-1"
    site.edge._switches.turn_on("api", "api-1", 1)
    assert await site.answers() == {"api-1"}
    await site.edge.observe("api")
    assert not switch.exists()
    assert await site.answers() == {"api-1", "api-2"}
    site.edge._switches.turn_on("api", "api-1", 2)
    seen = await site.edge.observe("api")
    assert (seen.switched_to, seen.switched_for, switch.exists()) == ("api-1", 2, True)


async def test_going_back_to_the_previous_release_is_a_switch_too(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-2", back="api-1"), 1)
    (site.folder / "switch" / "api").touch()
    await asyncio.sleep(0.1)
    assert await site.answers() == {"api-1"}
    seen = await site.edge.observe("api")
    assert seen.switched_to == "api-1"  # still there: it says something that nobody has followed
    assert (await site.edge.retreat("api", "host", "back", 1)).to == "api-1"
    await site.settled()
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_connections_are_closed_by_an_answer_before_a_reload(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await site.ask())[1] == "keep-alive"
    seen: list[str] = []
    reload = site.process.reload

    async def look_first() -> None:
        seen.append((await site.ask())[1])
        await reload()

    monkeypatch.setattr(site.process, "reload", look_first)
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert seen == ["close"]
    assert (await site.ask())[1] == "keep-alive"


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_nobody_waits_for_a_server_that_has_had_traffic_and_may_hang(site: Site) -> None:
    site.edge._reloader._closing_wait = 60.0
    async with asyncio.timeout(5):
        await site.edge.apply(site.plan(3, "api-2"), 1)
    assert await site.answers() == {"api-2"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_nobody_waits_when_all_that_were_served_have_died(site: Site) -> None:
    site.edge._reloader._closing_wait = 60.0
    for release in ("api-1", "api-2"):
        await stop(site.servers[release])
    async with asyncio.timeout(5):
        await site.edge.apply(site.plan(3, "api-3"), 1)
    assert await site.answers() == {"api-3"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_reload_that_fails_or_a_crash_leaves_connections_as_they_were(site: Site) -> None:
    (site.folder / "zz.conf").write_text("this is not nginx;\n")
    with pytest.raises(Fault):
        await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert (await site.ask())[1] == "keep-alive"
    site.edge._switches.close_connections()
    assert (await site.ask())[1] == "close"
    site.edge.prepare()
    assert (await site.ask())[1] == "keep-alive"


@pytest.mark.parametrize("by", ["daemon", "person"])
@pytest.mark.usefixtures("full")
async def test_users_go_back_though_the_disk_of_the_folder_is_full(site: Site, by: str) -> None:
    daemons = by == "daemon"
    plan = site.plan(3, "api-1", back="api-1")
    back = site.edge.apply(plan, 1) if daemons else site.edge.retreat("api", "ann", "")
    with pytest.raises(Fault, match="No space left on device"):
        await back
    await asyncio.sleep(0.1)
    assert await site.answers() == {"api-1"}
    seen = await site.edge.observe("api")
    told = ("api-1", 0 if not daemons else 3) if not (daemons and site.dynamic) else ("", 0)
    assert (seen.switched_to, seen.switched_for) == told
    (site.folder / "fill").unlink()
    await site.edge.apply(site.plan(4, "api-1"), 1)
    await site.settled()
    await site.edge.apply(site.plan(5, "api-1", "api-2", back="api-1"), 1)
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.usefixtures("full")
async def test_a_step_that_the_disk_has_no_room_for_is_not_served(site: Site) -> None:
    with pytest.raises(Fault, match=r"^[^;]*No space left on device$"):
        await site.edge.apply(site.plan(3, "api-1", "api-3", back="api-1"), 1)
    assert await site.answers() == {"api-1", "api-2"}
    seen = await site.edge.observe("api")
    assert (seen.served, seen.floor, seen.confirmed, seen.file) == (2, 2, 2, "ours")


async def test_a_change_that_is_refused_leaves_the_snippets_that_its_file_needs(site: Site) -> None:
    snippet = site.folder / "snippets" / "api.conf"
    before = snippet.read_text()
    site.change(counted=True)
    (site.folder / "zz.conf").write_text("this is not nginx;\n")
    with pytest.raises(Fault, match="this"):
        await site.edge.apply(site.plan(3, "api-1", "api-3", back="api-1"), 1)
    assert snippet.read_text() == before


@pytest.mark.parametrize("to", ["", "api-1"])
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_that_is_turned_on_while_a_step_is_tried_stands_in_its_way(
    site: Site, to: str
) -> None:
    await site.edge.apply(site.plan(3, "api-1"), 1)
    (site.folder / "zz.conf").write_text("this is not nginx;\n")
    with pytest.raises(Fault, match="this"):
        await site.edge.apply(site.plan(4, "api-1", "api-2", back="api-1"), 1)
    await asyncio.sleep(0.02)  # more than a tick of the kernel's clock
    assert site.edge._switches.turn_on("api", to)
    (site.folder / "zz.conf").unlink()
    switch = site.edge._switches.path("api", to)

    def step(generation: int, decided: float) -> RoutePlan:
        plan = site.plan(generation, "api-1", "api-2", back="api-1")
        return replace(plan, route=replace(plan.route, changed_at=decided))

    for generation, decided in ((4, A_PERSONS), (5, FAR)):  # time in which nobody looked is no part of it
        await site.edge.observe("api")
        with pytest.raises(Fault, match=re.escape(f"{switch} is there")):
            await site.edge.apply(step(generation, decided), 1)
    assert await site.answers() == {"api-1"}
    await site.edge.apply(replace(step(6, FAR), stable="api-2"), 1)
    assert not switch.exists(), "the release has been promoted without this edge"
    await site.edge.apply(site.plan(7, "api-1"), 1)
    (site.folder / "zz.conf").write_text("this is not nginx;\n")
    with pytest.raises(Fault, match="this"):
        await site.edge.apply(step(8, 1.0), 1)
    await asyncio.sleep(0.02)
    assert site.edge._switches.turn_on("api", to)
    (site.folder / "zz.conf").unlink()
    with pytest.raises(Fault, match=re.escape(f"{switch} is there")):
        await site.edge.apply(step(8, 1.0), 1)
    next_one = site.plan(9, "api-1", "api-3", back="api-1")
    await site.edge.apply(replace(next_one, route=replace(next_one.route, changed_at=FAR)), 1)
    assert not switch.exists(), "it was meant for another release"
    await site.edge.apply(site.plan(10, "api-1"), 1)
    assert site.edge._switches.turn_on("api", to)
    await site.edge.apply(step(11, FAR), 1)
    assert not switch.exists(), "it is from before that was decided"
    await site.edge.apply(site.plan(12, "api-1"), 1)
    assert site.edge._switches.turn_on("api", to)
    os.utime(switch, (A_PERSONS, A_PERSONS))
    await site.edge.apply(step(13, 1.0), 1)
    assert not switch.exists(), "it is from before the last change"
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.parametrize("to", ["", "api-2"])
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_no_switch_that_leads_nowhere_stands_in_the_way_of_going_back(site: Site, to: str) -> None:
    """A revert to a release that was started anew: its file leads to it, the one that is served nowhere."""
    await site.edge.apply(site.plan(3, "api-2"), 1)
    revert = replace(site.plan(4, "api-1", back="api-1"), stable="api-2")
    (site.folder / "zz.conf").write_text("this is not nginx;\n")
    with pytest.raises(Fault, match="this"):
        await site.edge.apply(revert, 1)
    await asyncio.sleep(0.02)
    assert site.edge._switches.turn_on("api", to)
    (site.folder / "zz.conf").unlink()
    await site.edge.apply(revert, 1)
    assert await site.answers() == {"api-1"}
    async with asyncio.timeout(5):
        while site.edge._switches.all("api"):
            await site.edge.observe("api")
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_of_the_daemons_own_that_a_person_touches_is_a_persons(site: Site) -> None:
    site.edge._switches.turn_on("api", "api-1", 3)
    assert (await site.edge.observe("api")).switched_for == 3
    (site.folder / "switch" / "api.to.api-1").touch()
    seen = await site.edge.observe("api")
    assert (seen.switched_to, seen.switched_for) == ("api-1", 0)


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_of_an_older_version_is_a_daemons_word(site: Site) -> None:
    """It has the generation in the file; the new version was started while it was on."""
    switch = site.folder / "switch" / "api.to.api-1"
    switch.write_text("2")
    seen = await site.edge.observe("api")
    assert (seen.switched_to, seen.switched_for) == ("api-1", 2)
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert not switch.exists()
    assert await site.answers() == {"api-1", "api-2"}


@pytest.mark.parametrize("text", ["0", "x", "-1", "9" * 5000, "9999999999"])
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_that_no_daemon_has_written_is_a_persons_word(site: Site, text: str) -> None:
    (site.folder / "switch" / "api.to.api-1").write_text(text)
    seen = await site.edge.observe("api")
    assert (seen.switched_to, seen.switched_for) == ("api-1", 0)


@pytest.mark.parametrize("name", ["api.to.api-2.aside", "api.to.api-2.aside1"])
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_what_was_moved_aside_is_no_switch_and_stays(site: Site, name: str) -> None:
    aside = site.folder / "switch" / name
    (aside / "theirs").mkdir(parents=True)
    (file := aside.with_name(f"{name}2")).write_text("too long for a file of ours")
    site.edge._switches.turn_on("api", "api-2", 2)
    await site.edge.apply(site.plan(3, "api-2", "api-3", back="api-2"), 1)
    assert not site.edge._switches.all("api")
    assert (aside / "theirs").is_dir()
    assert file.exists()
    assert await site.answers() == {"api-2", "api-3"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_switch_that_can_not_be_put_away_keeps_no_other_on_and_no_route_from_being_confirmed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("api-2", "api-1"):
        site.edge._switches.turn_on("api", release, 2)

    def refuse(path: Path) -> None:
        if path.name == min(p.name for p in on):
            raise Fault(f"{path}: Operation not permitted")
        remove(path)

    on = site.edge._switches.all("api")
    monkeypatch.setattr("orchestrator.traffic.switch.remove", refuse)
    await site.edge.apply(site.plan(3, "api-1", "api-3", back="api-1"), 1)
    assert [path.name for path in site.edge._switches.all("api")] == ["api.to.api-1"]
    assert (await site.edge.observe("api")).confirmed == 3


@pytest.mark.parametrize("generation", [3, 4])
@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_a_persons_rollback_that_was_followed_holds_no_later_step_back(
    site: Site, generation: int
) -> None:
    """Its switch is on for as long as old workers have requests."""
    slow = asyncio.create_task(site.ask(b"X-Slow: yes\r\n"))
    await asyncio.sleep(0.3)
    await site.edge.retreat("api", "ann", "it burns")
    if generation == 4:
        await site.edge.apply(site.plan(4, "api-1"), 1)
    await site.edge.apply(site.plan(5, "api-1", "api-3", back="api-1"), 1)
    assert await site.answers() == {"api-1", "api-3"}
    assert (await site.edge.observe("api")).switched_to == ""
    assert (await slow)[0] in {"api-1", "api-2"}
