"""Which request goes to which release, on a real nginx: by a header, a cookie, or who the user is."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route
from orchestrator.traffic.options import Audience
from tests.contract.conftest import Site

FORCED = Audience(header="X-Release", cookie="release")
BY_COOKIE = Audience(sticky=("cookie_session",))
STABLE, CANDIDATE, SECOND = (
    b"X-Release: stable\r\n",
    b"X-Release: candidate\r\n",
    b"Cookie: release=api-2\r\n",
)


def previewed(site: Site, generation: int) -> RoutePlan:
    """All traffic at stable, and a candidate that is up."""
    whole = site.plan(generation, "api-1", "api-2", back="api-1")
    first, second = whole.route.servers
    return replace(whole, route=Route(generation=generation, servers=(first,), preview=(second,)))


async def each(site: Site, users: Iterable[int]) -> dict[int, str]:
    """Who answers each user."""
    some = asyncio.Semaphore(16)

    async def one(user: int) -> tuple[int, str]:
        async with some:
            return user, await site.who(b"Cookie: session=user-%d\r\n" % user)

    return dict(await asyncio.gather(*map(one, users)))


async def test_a_header_or_a_cookie_names_the_release_that_answers(site: Site) -> None:
    site.change(audience=FORCED)
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1", weights=(99, 1)), 1)
    for asked, answers in ((STABLE, "api-1"), (CANDIDATE, "api-2"), (SECOND, "api-2")):
        assert {await site.who(asked) for _ in range(4)} == {answers}
    assert await site.who(SECOND + STABLE) == "api-1", "the header is weightier"
    others = [await site.who(b"X-Release: api-22\r\n") for _ in range(8)]
    assert others.count("api-2") <= 1, "an unknown name leaves it to the weights"


async def test_testers_reach_a_candidate_before_it_has_any_weight(site: Site) -> None:
    site.change(audience=replace(FORCED, sticky=("cookie_session",)))
    await site.edge.apply(previewed(site, 3), 1)
    await site.settled()
    assert await site.who(CANDIDATE) == await site.who(SECOND) == "api-2"
    assert await site.answers() == {"api-1"}
    assert set((await each(site, range(40))).values()) == {"api-1"}


async def test_a_version_cookie_does_not_outlive_a_rollback(site: Site) -> None:
    site.change(audience=replace(FORCED, sticky=("cookie_session",)))
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert await site.who(SECOND) == "api-2"
    switch = site.folder / "switch" / "api"
    switch.touch()
    await asyncio.sleep(0.1)
    assert {await site.who(SECOND), await site.who(CANDIDATE)} == {"api-1"}
    switch.unlink()
    await site.edge.retreat("api", "ann", "it burns")
    assert {await site.who(SECOND), await site.who(CANDIDATE)} == {"api-1"}
    assert set((await each(site, range(20))).values()) == {"api-1"}


async def test_a_release_id_names_no_other_release(site: Site) -> None:
    site.change(audience=FORCED)
    await site.edge.apply(site.plan(3, "api-1", "api-3", back="api-1", weights=(99, 1)), 1)
    assert [await site.who(SECOND) for _ in range(8)].count("api-3") <= 1
    assert await site.who(CANDIDATE) == "api-3"


async def test_a_user_who_saw_the_candidate_keeps_it_while_its_share_grows(site: Site) -> None:
    site.change(audience=BY_COOKIE)
    users, seen, generation = range(1000), set[int](), 2
    for share in (5, 25, 60):
        generation += 1
        weights = (100 - share, share)
        await site.edge.apply(site.plan(generation, "api-1", "api-2", back="api-1", weights=weights), 1)
        now = {user for user, who in (await each(site, users)).items() if who == "api-2"}
        assert seen <= now
        assert abs(len(now) - 10 * share) < 50, "three standard deviations at 60 %"
        seen = now
    again = {user for user, who in (await each(site, users)).items() if who == "api-2"}
    assert again == seen
    await site.edge.apply(site.plan(6, "api-1"), 1)
    await site.edge.apply(site.plan(7, "api-1", "api-3", back="api-1", weights=(75, 25)), 1)
    next_time = {user for user, who in (await each(site, users)).items() if who == "api-3"}
    assert 0.15 < len(next_time & seen) / len(next_time) < 0.85, "others are first in the next release"


async def test_requests_of_nobody_in_particular_are_spread_by_weight(site: Site) -> None:
    site.change(audience=BY_COOKIE)
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1", weights=(75, 25)), 1)
    site.answered.clear()
    for _ in range(40):
        await site.who()
    assert 6 <= site.answered["api-2"] <= 14


async def test_a_user_without_a_cookie_gets_one_and_stays(site: Site) -> None:
    site.change(audience=Audience(sticky=("uid_got", "uid_set"), issued="release_user"))
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    first = set()
    for _ in range(12):
        head, who = await site.request()
        cookie = head.partition("Set-Cookie: ")[2].partition(";")[0]
        assert cookie.startswith("release_user=")
        later, same = await site.request(b"Cookie: " + cookie.encode() + b"\r\n")
        assert (same, "Set-Cookie" in later) == (who, False)
        first.add(who)
    assert first == {"api-1", "api-2"}


async def test_an_address_is_a_user_too(site: Site) -> None:
    site.change(audience=Audience(sticky=("remote_addr",)))
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert len(await site.answers()) == 1


async def test_a_named_release_that_does_not_answer_costs_nobody_a_request(site: Site) -> None:
    site.change(audience=FORCED)
    plan = site.plan(3, "api-1", "api-2", back="api-1", weights=(99, 1))
    dead = replace(plan.route.servers[1], address="127.0.0.1:1")
    await site.edge.apply(replace(plan, route=replace(plan.route, servers=(plan.route.servers[0], dead))), 1)
    assert {await site.who(CANDIDATE) for _ in range(6)} == {"api-1"}


@pytest.mark.parametrize("method", ["ip_hash", "least_conn"])
async def test_other_ways_to_choose_a_server_know_who_is_who_as_well(site: Site, method: str) -> None:
    site.change(audience=FORCED, method=method)
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    assert await site.who(CANDIDATE) == "api-2"
    assert await site.answers() <= {"api-1", "api-2"}
    stays = site.plan(4, "api-2", "api-1", back="api-1")
    first, second = stays.route.servers
    await site.edge.apply(
        replace(stays, route=replace(stays.route, servers=(first, replace(second, backup=True)))), 1
    )
    assert await site.answers() == {"api-2"}
