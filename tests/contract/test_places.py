"""What a generated `server` block offers beside the weights, on a real nginx."""

import asyncio
from dataclasses import replace

import pytest

from orchestrator.rollout.model import Route
from orchestrator.traffic.options import EdgeOptions, ServerBlock
from tests.contract.conftest import Site
from tests.contract.test_audience import previewed


async def test_a_candidate_in_preview_gets_copies_of_what_only_reads(site: Site) -> None:
    site.change(mirror=True)
    await site.edge.apply(previewed(site, 3), 1)
    site.got.clear()
    for method in ("GET", "HEAD", "POST", "DELETE"):
        line = f"{method} /a%2Fb?c=d HTTP/1.1\r\nHost: x\r\n".encode()
        head, _ = await site.request(b"Content-Length: 0\r\n", start=line)
        assert head.startswith("HTTP/1.1 200")
    await asyncio.sleep(0.3)
    copied = [head.partition("\r\n")[0] for release, head in site.got if release == "api-2"]
    assert copied == ["GET /a%2Fb?c=d HTTP/1.1", "HEAD /a%2Fb?c=d HTTP/1.1"]
    assert len([release for release, _ in site.got if release == "api-1"]) == 4
    await site.edge.apply(site.plan(4, "api-1"), 1)
    site.got.clear()
    assert await site.who() == "api-1"
    await asyncio.sleep(0.2)
    assert len(site.got) == 1


async def test_a_copy_that_hangs_or_fails_is_nothing_to_the_user(site: Site) -> None:
    site.change(mirror=True)
    plan = previewed(site, 3)
    dead = replace(plan.route.preview[0], address="127.0.0.1:1")
    await site.edge.apply(replace(plan, route=replace(plan.route, preview=(dead,))), 1)
    assert await site.answers() == {"api-1"}


async def test_a_file_puts_a_service_into_maintenance(site: Site) -> None:
    page = site.folder.parent / "maintenance.html"
    page.write_text("back at noon")
    page.chmod(0o644)
    server = site.edge._options("api").server
    assert server is not None
    site.change(server=replace(server, maintenance_page=str(page)))
    await site.edge.apply(site.plan(3, "api-1"), 1)
    assert await site.answers() == {"api-1"}
    switch = site.folder / "switch" / "api.maintenance"
    switch.touch()
    head, body = await site.request()
    assert (head.split()[1], body) == ("503", "back at noon")
    assert "Retry-After: 60" in head
    switch.unlink()
    assert await site.answers() == {"api-1"}


async def test_services_share_a_server_block_by_path(site: Site) -> None:
    await site.edge.apply(site.plan(3, "api-1"), 1)
    own = site.edge._options("api")
    joined = EdgeOptions(server=ServerBlock(path="/admin/", join="api"))
    site.edge._options = lambda name: own if name == "api" else joined
    admin = replace(site.plan(1, "api-2"), service="admin")
    await site.edge.apply(admin, 1)
    ask = b"GET /admin/x HTTP/1.1\r\nHost: x\r\n"
    assert (await site.request(start=ask))[1] == "api-2 at another path"
    assert await site.answers() == {"api-1"}
    apart = EdgeOptions()
    site.edge._options = lambda name: own if name == "api" else apart
    await site.edge.apply(replace(site.plan(2, "api-2"), service="admin"), 1)
    assert (await site.request(start=ask))[1] == "api-1 at another path"
    assert not list(site.folder.glob("locations/*/*"))


async def test_servers_of_the_operator_are_asked_when_no_other_answers(site: Site) -> None:
    site.change(backup=(f"127.0.0.1:{site.backends['api-3']}",))
    plan = site.plan(3, "api-1")
    dead = replace(plan.route.servers[0], address="127.0.0.1:1")
    await site.edge.apply(replace(plan, route=Route(generation=3, servers=(dead,))), 1)
    assert await site.answers() == {"api-3"}
    await site.edge.apply(site.plan(4, "api-1"), 1)
    assert await site.answers() == {"api-1"}


@pytest.mark.parametrize("site", ["reload"], indirect=True)
async def test_two_services_may_have_the_longest_names(site: Site) -> None:
    site.edge._options = lambda _: EdgeOptions()
    for letter in "ab":
        await site.edge.apply(replace(site.plan(1, "api-1"), service=letter * 40), 1)
        assert (await site.edge.observe(letter * 40)).served == 1
