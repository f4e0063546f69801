"""What is true of several edges together, on an own edge and a board that tests write."""

import asyncio
import contextlib
import functools
import io
import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from orchestrator.daemon import edge as edge_module
from orchestrator.daemon import watch
from orchestrator.daemon.config import load
from orchestrator.daemon.doctor.edges import edges
from orchestrator.daemon.serve import Daemon
from orchestrator.engine.tasks import unless_cancelled
from orchestrator.observability.logs import LineWriter
from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.model import Route
from orchestrator.rollout.observation import Edge, LocalRollback, OnDisk
from orchestrator.store.board import RedisBoard
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import connect
from orchestrator.store.server import PrivateRedis, private_socket
from orchestrator.traffic import follower as follower_module
from orchestrator.traffic.fleet import FRESH, Fleet, OnFailure
from orchestrator.traffic.follower import ROUNDS, Follower
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.words import REPORT, WANTED, Report, WantedRoute
from tests.builders import server
from tests.conftest import LogLines


@dataclass
class OneEdge:
    """An edge that does at once what it is told, or fails."""

    seen: Edge = field(default_factory=lambda: Edge(served=0, drained=True))
    fails: str = ""
    applied: list[int] = field(default_factory=list)
    held: asyncio.Event | None = None

    async def apply(self, plan: RoutePlan, token: int) -> None:
        self.applied.append(plan.route.generation)
        if self.held is not None:
            await self.held.wait()
        if self.fails:
            raise Fault(self.fails)
        number = plan.route.generation
        self.seen = replace(
            self.seen,
            served=None if plan.route.gone else number,
            confirmed=number,
            floor=number,
            on_disk=OnDisk(route=plan.route, stable=plan.stable),
        )

    async def take_back_at_once(self, plan: RoutePlan, token: int) -> None:
        pass

    async def observe(self, service: str) -> Edge:
        return self.seen

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        return LocalRollback(to="api-1", actor=actor, reason=reason)

    def prepare(self) -> None:
        pass

    async def close(self) -> None:
        pass


@dataclass
class Paper:
    """A board in memory."""

    texts: dict[str, str] = field(default_factory=dict)
    version: int = 0
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    unheard: set[str] = field(default_factory=set)
    torn: bool = False
    calls: list[str] = field(default_factory=list)

    async def want(self, service: str, text: str) -> None:
        self.calls.append("want")
        self.texts[service] = text
        self.version += 1

    async def news(self, known: str, wait: float = 0.0) -> tuple[str, Mapping[str, str]] | None:
        return None if known == str(self.version) else (str(self.version), dict(self.texts))

    async def report(self, edge: str, texts: Mapping[str, str]) -> None:
        self.said[edge] = dict(texts)

    async def reports(self) -> Mapping[str, Mapping[str, str] | None]:
        self.calls.append("reports")
        if self.torn:
            raise Fault("Redis: connection refused")
        return dict.fromkeys(self.unheard) | {name: dict(texts) for name, texts in self.said.items()}

    def say(self, edge: str, service: str = "api", **seen: Any) -> None:
        """What another edge says of a service."""
        tried = seen.pop("tried", seen.get("confirmed", 0))
        report = Report(edge=Edge(**{"drained": True, **seen}), tried=tried)
        self.said.setdefault(edge, {})[service] = REPORT.dump_json(report).decode()


def plan(generation: int) -> RoutePlan:
    route = Route(generation=generation, servers=(server("api-1", "10.1.0.1:80"),))
    return RoutePlan(service="api", route=route, stable="api-1")


def together(on_failure: OnFailure = "all_back", fresh: float = 0.0) -> tuple[Fleet, OneEdge, Paper]:
    own, board = OneEdge(), Paper()
    fleet = Fleet(
        own,  # type: ignore[arg-type]
        board,
        lambda _: EdgeOptions(),
        deadline=0.3,
        on_failure=on_failure,
        fresh=fresh,
    )
    return fleet, own, board


async def test_the_others_are_told_while_users_of_this_host_go_back() -> None:
    fleet, own, board = together()
    told = asyncio.Event()

    async def want(service: str, text: str) -> None:
        told.set()

    async def take_back(plan: RoutePlan, token: int) -> None:
        async with asyncio.timeout(20):
            await told.wait()

    board.want, own.take_back_at_once = want, take_back  # type: ignore[method-assign]
    await fleet.apply(plan(2), 1)
    assert own.applied == [2]

    async def refused(service: str, text: str) -> None:
        raise Stale("somebody else drives")

    board.want = refused  # type: ignore[method-assign]
    with pytest.raises(Stale):
        await fleet.apply(plan(3), 1)
    assert own.applied == [2]


async def test_the_looks_at_all_services_share_one_reading() -> None:
    fleet, _, board = together(fresh=FRESH)
    board.say("b", served=1, confirmed=1)
    await asyncio.gather(*(fleet.observe(f"s{n}") for n in range(100)))
    await fleet.observe("api")
    assert board.calls == ["reports"]
    await asyncio.sleep(FRESH)
    board.torn = True
    seen = await asyncio.gather(*(fleet.observe(f"s{n}") for n in range(100)))
    assert board.calls == ["reports"] * 2
    assert all(edge.unread for edge in seen)
    board.torn = False
    assert not (await fleet.observe("api")).unread, "a reading that failed is not shared"


async def test_a_change_does_not_wait_until_looks_read_the_board_again() -> None:
    fleet, _, board = together(fresh=60.0)
    board.say("b", served=1, confirmed=1)
    await fleet.observe("api")
    applying = asyncio.create_task(fleet.apply(plan(2), 1))
    await asyncio.sleep(0.1)
    assert not applying.done()
    board.say("b", served=2, confirmed=2)
    await applying
    assert fleet._left["api"] == {}
    assert fleet._followed["api"] == {"b"}


async def test_a_change_is_waited_for_until_all_have_confirmed_it() -> None:
    fleet, own, board = together()
    board.say("b", served=1, confirmed=1)
    applying = asyncio.create_task(fleet.apply(plan(2), 1))
    await asyncio.sleep(0.1)
    assert own.applied == [2]
    assert not applying.done()
    assert (await fleet.observe("api")).confirmed == 1
    board.say("b", served=2, confirmed=2)
    await applying
    seen = await fleet.observe("api")
    assert (seen.served, seen.confirmed, seen.failed, seen.error) == (2, 2, "", "")


async def test_an_edge_that_fails_fails_all_and_at_once() -> None:
    fleet, _, board = together()
    fleet._deadline = 60.0
    board.say("b", served=1, confirmed=1, error="nginx -t: no", tried=2)
    board.say("c", served=2, confirmed=2)
    with pytest.raises(Fault, match="edge b: nginx -t: no"):
        await fleet.apply(plan(2), 1)
    seen = await fleet.observe("api")
    assert seen.failed == seen.error == "edge b: nginx -t: no"


async def test_one_that_says_nothing_of_it_until_the_deadline_fails_too() -> None:
    fleet, _, board = together()
    board.said["b"] = {}
    with pytest.raises(Fault, match="edge b: generation 2 is not served"):
        await fleet.apply(plan(2), 1)


async def test_or_it_is_left_behind() -> None:
    fleet, _, board = together("go_on")
    board.say("b", served=1, confirmed=1, error="nginx -t: no", tried=2)
    board.say("c", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    seen = await fleet.observe("api")
    assert (seen.confirmed, seen.failed) == (2, "")
    assert seen.error == "edge b: nginx -t: no"


async def test_one_that_was_left_behind_and_has_caught_up_is_one_of_them_again() -> None:
    fleet, _, board = together("go_on")
    board.say("b", served=1, confirmed=1)
    await fleet.apply(plan(2), 1)
    assert (await fleet.observe("api")).error == "edge b: generation 2 is not served"
    board.say("b", served=2, confirmed=2, drained=False)
    seen = await fleet.observe("api")
    assert (seen.error, seen.drained) == ("", False)


async def test_one_that_hangs_is_waited_for_once_and_not_at_each_change() -> None:
    fleet, _, board = together("go_on")
    board.say("b", served=1, confirmed=1)
    await fleet.apply(plan(2), 1)
    fleet._deadline = 60.0
    async with asyncio.timeout(5):
        await fleet.apply(plan(3), 1)
        await fleet.apply(replace(plan(3), service="web"), 1)
    assert (await fleet.observe("api")).error == "edge b: generation 3 is not served"
    board.say("b", served=3, confirmed=3)
    assert (await fleet.observe("api")).error == ""
    applying = asyncio.create_task(fleet.apply(plan(4), 1))
    await asyncio.sleep(0.1)
    assert not applying.done(), "it has caught up, and is waited for again"
    board.say("b", served=4, confirmed=4)
    await applying


async def test_a_look_at_another_service_does_not_let_one_that_hangs_be_waited_for_again() -> None:
    fleet, own, board = together("go_on")
    board.say("b", served=1, confirmed=1)
    await fleet.apply(plan(2), 1)
    own.seen = replace(own.seen, served=5, confirmed=5, floor=5)
    board.say("b", "web", served=5, confirmed=5)
    fleet._deadline = 60.0
    own.held = asyncio.Event()
    applying = asyncio.create_task(fleet.apply(replace(plan(6), service="web"), 1))
    await asyncio.sleep(0)
    seen = await fleet.observe("web")  # own and b both serve what was wanted before
    assert (seen.served, seen.error) == (5, "")
    own.held.set()
    async with asyncio.timeout(5):
        await applying
    assert (await fleet.observe("web")).error == "edge b: generation 6 is not served"


async def test_one_that_hangs_at_two_services_is_waited_for_when_it_has_caught_up_at_both() -> None:
    fleet, _, board = together("go_on")
    board.say("b", served=1, confirmed=1)
    web = replace(plan(2), service="web")
    await asyncio.gather(fleet.apply(plan(2), 1), fleet.apply(web, 1))
    fleet._deadline = 60.0
    board.say("b", served=2, confirmed=2)
    async with asyncio.timeout(5):
        await fleet.apply(replace(plan(3), service="shop"), 1)
    board.say("b", "web", served=2, confirmed=2)
    applying = asyncio.create_task(fleet.apply(replace(plan(4), service="shop"), 1))
    await asyncio.sleep(0.1)
    assert not applying.done(), "though nobody has looked at api or web"
    board.say("b", "shop", served=4, confirmed=4)
    await applying


async def test_others_are_told_first_and_then_it_is_read_once_who_has_caught_up() -> None:
    fleet, _, board = together("go_on")
    board.say("b", served=1, confirmed=1)
    await asyncio.gather(*(fleet.apply(replace(plan(2), service=f"s{n}"), 1) for n in range(5)))
    board.calls.clear()
    await fleet.apply(plan(3), 1)
    assert board.calls[:2] == ["want", "reports"]
    assert set(board.calls[2:]) == {"reports"}, "each look of the wait for others"


async def test_one_that_fails_while_another_hangs_does_not_hang() -> None:
    fleet, _, board = together("go_on")
    board.say("b", served=1, confirmed=1)
    board.say("c", served=1, confirmed=1, error="nginx -t: no", tried=2)
    await fleet.apply(plan(2), 1)
    fleet._deadline = 60.0
    applying = asyncio.create_task(fleet.apply(replace(plan(3), service="web"), 1))
    await asyncio.sleep(0.1)
    assert not applying.done(), "c is waited for"
    board.say("c", "web", served=3, confirmed=3)
    await applying


async def test_one_of_another_version_cannot_follow() -> None:
    fleet, _, board = together()
    board.said["b"] = {"api": '{"words of": "a newer edge"}'}
    with pytest.raises(Fault, match="edge b: what it says is not understood"):
        await fleet.apply(plan(2), 1)


async def test_one_that_followed_and_is_away_fails_all() -> None:
    fleet, _, board = together()
    board.say("b", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    board.said.clear()
    assert (await fleet.observe("api")).failed == "edge b has not been heard of"
    await fleet.apply(plan(3), 1)  # it is away: nobody waits for it
    seen = await fleet.observe("api")
    assert (seen.confirmed, seen.failed) == (3, "")


async def test_one_that_is_lost_while_a_change_waits_for_it_fails_all() -> None:
    fleet, own, board = together()
    board.say("b", served=2, confirmed=2)
    board.say("c", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    fleet._deadline = 60.0
    applying = asyncio.create_task(fleet.apply(plan(3), 1))
    board.say("c", served=3, confirmed=3)
    await asyncio.sleep(0.1)
    assert not applying.done()
    del board.said["b"]
    await applying
    own.seen = replace(own.seen, served=3, confirmed=3)
    assert (await fleet.observe("api")).failed == "edge b has not been heard of"
    board.say("c", served=4, confirmed=4)
    await fleet.apply(plan(4), 1)  # users go back, and no later release knows of it
    assert (await fleet.observe("api")).failed == ""


async def test_one_that_comes_late_is_told_again() -> None:
    fleet, _, board = together()
    await fleet.apply(plan(2), 1)
    board.said["b"] = {}
    assert (await fleet.observe("api")).served == 0, "what is served is not what is wanted"


async def test_a_rollback_on_another_host_is_seen() -> None:
    fleet, _, board = together()
    board.say("b", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    by_hand = LocalRollback(to="api-1", actor="ann", reason="it burns")
    board.say("b", served=3, confirmed=2, floor=3, on_disk=OnDisk(route=plan(3).route, local=by_hand))
    seen = await fleet.observe("api")
    assert (seen.local, seen.floor) == (by_hand, 3)


async def test_what_one_host_serves_is_not_confirmed_for_all_by_a_board_that_cannot_be_read() -> None:
    fleet, own, board = together()
    board.say("b", served=1, confirmed=1)
    own.seen = replace(own.seen, served=1, confirmed=1)
    assert (await fleet.observe("api")).confirmed == 1
    own.seen = replace(own.seen, served=2, confirmed=2, switched_to="api-1")
    board.torn = True
    seen = await fleet.observe("api")
    assert (seen.confirmed, seen.drained, seen.switched_everywhere, seen.unread) == (1, False, False, True)
    board.say("b", served=2, confirmed=2)
    board.torn = False
    assert (await fleet.observe("api")).confirmed == 2
    board.say("b", served=3, confirmed=3)
    await fleet.observe("api")
    own.seen = replace(own.seen, served=3, confirmed=3)
    board.torn = True
    assert (await fleet.observe("api")).confirmed == 2, "all have confirmed that before"


async def test_without_the_board_this_hosts_file_and_way_back_are_seen() -> None:
    fleet, own, board = together()
    board.torn = True
    by_hand = LocalRollback(to="api-1", actor="ann", reason="it burns")
    disk = OnDisk(route=plan(3).route, local=by_hand)
    own.seen = replace(own.seen, on_disk=disk, floor=3, fallback=plan(1).route.servers)
    seen = await fleet.observe("api")
    assert (seen.local, seen.floor, seen.fallback) == (by_hand, 3, plan(1).route.servers)


async def test_one_that_nobody_could_hear_is_not_away() -> None:
    fleet, own, board = together()
    board.say("b", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    await fleet.observe("api")
    board.said.clear()
    board.unheard.add("b")
    own.seen = replace(own.seen, served=3, confirmed=3)
    seen = await fleet.observe("api")
    assert (seen.failed, seen.confirmed, seen.drained, seen.unread) == ("", 2, False, True)
    board.unheard.clear()
    assert (await fleet.observe("api")).failed == "edge b has not been heard of"


@pytest.mark.parametrize("on_failure", ["all_back", "go_on"])
async def test_a_change_waits_for_one_that_nobody_could_hear_and_its_silence_fails_nobody(
    on_failure: OnFailure,
) -> None:
    fleet, _, board = together(on_failure)
    board.unheard.add("b")
    with pytest.raises(Fault, match="edge b could not be heard of"):
        await fleet.apply(plan(2), 1)
    seen = await fleet.observe("api")
    assert (seen.confirmed, seen.failed, seen.error) == (0, "", "")
    fleet._deadline = 60.0
    applying = asyncio.create_task(fleet.apply(plan(2), 1))
    await asyncio.sleep(0.1)
    assert not applying.done()
    board.say("b", served=2, confirmed=2)
    await applying
    assert (await fleet.observe("api")).confirmed == 2


async def test_one_that_is_lost_while_nobody_can_hear_it_is_lost_in_mid_rollout() -> None:
    fleet, _, board = together()
    board.say("b", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    board.said.clear()
    board.unheard.add("b")
    with pytest.raises(Fault, match="edge b could not be heard of"):
        await fleet.apply(plan(3), 1)
    board.unheard.clear()
    assert (await fleet.observe("api")).failed == "edge b has not been heard of"


GENERATIONS = st.integers(1, 3)
EDGES = st.builds(
    Edge,
    served=st.none() | GENERATIONS,
    confirmed=GENERATIONS,
    file=st.sampled_from(["ours", "edited", "missing"]),
    drained=st.booleans(),
    floor=GENERATIONS,
    error=st.sampled_from(["", "nginx -t: no"]),
    unread=st.booleans(),
    switched_to=st.sampled_from(["", "api-1"]),
    silence=st.sampled_from(["", "nginx does not run"]),
)
HEARD = st.dictionaries(st.sampled_from("bcd"), EDGES, max_size=3)
ACTS = st.sampled_from(["look", "apply 2", "apply 3"])
LOOKS = st.tuples(ACTS, EDGES, HEARD, st.sets(st.sampled_from("bcd")))


@given(
    looks=st.lists(st.tuples(LOOKS, st.booleans()), min_size=2, max_size=6),
    on_failure=st.sampled_from(["all_back", "go_on"]),
)
def test_a_look_that_missed_an_edge_claims_no_more_than_the_last_that_saw_all(
    looks: list[tuple[Any, bool]], on_failure: OnFailure
) -> None:
    async def tell() -> None:
        fleet, own, board = together(on_failure)
        fleet._deadline = 0.0
        whole, others = Edge(), dict[str, Edge]()
        for (act, own.seen, heard, unheard), board.torn in looks:
            board.said.clear()
            for name, edge in heard.items():
                board.say(name, **{f.name: getattr(edge, f.name) for f in fields(edge)})
            board.unheard = unheard - heard.keys()
            if act != "look":
                with contextlib.suppress(Fault):
                    await fleet.apply(plan(int(act[-1])), 1)
            seen = await fleet.observe("api")
            if not board.torn:
                others = {n: e for n, e in others.items() if n in board.unheard} | heard
            if not board.torn and not board.unheard:
                whole = seen
                continue
            assert seen.unread
            assert seen.confirmed <= min(whole.confirmed, own.seen.confirmed)
            assert not seen.drained
            assert not seen.switched_everywhere
            assert not (board.torn and seen.failed)
            assert not any(f"edge {name} has" in seen.failed for name in board.unheard)
            left = fleet._left.get("api", {})
            kept = [e for n, e in others.items() if n not in left or e.confirmed == own.seen.confirmed]
            assert seen.floor >= max([own.seen.floor, *(e.floor for e in kept)])
            assert bool(seen.silence) == any(e.silence for e in (own.seen, *kept))
            assert (seen.file == "ours") == all(e.file == "ours" for e in (own.seen, *kept))

    asyncio.run(tell())


async def test_an_instance_drains_at_every_edge() -> None:
    fleet, _, board = together()
    board.say("b", served=2, confirmed=2, drained=False)
    await fleet.apply(plan(2), 1)
    assert not (await fleet.observe("api")).drained


async def test_an_edge_that_is_silent_is_named() -> None:
    fleet, own, board = together()
    await fleet.apply(plan(2), 1)
    board.say("b", served=None, confirmed=2, silence="nginx does not run")
    board.say("c", served=2, confirmed=2)
    assert (await fleet.observe("api")).silence == "edge b: nginx does not run"
    own.seen = replace(own.seen, served=None, silence="nginx does not serve api")
    seen = await fleet.observe("api")
    assert (seen.served, seen.silence) == (None, "nginx does not serve api; edge b: nginx does not run")


async def test_the_switch_has_all_users_only_where_it_is_on_at_every_edge() -> None:
    fleet, own, board = together()
    board.say("b", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    own.seen = replace(own.seen, switched_to="api-1")
    seen = await fleet.observe("api")
    assert (seen.switched_to, seen.switched_everywhere) == ("api-1", False)
    board.say("b", served=2, confirmed=2, switched_to="api-1")
    seen = await fleet.observe("api")
    assert (seen.switched_to, seen.switched_everywhere) == ("api-1", True)


async def test_where_another_edge_sees_nothing_nobody_knows_what_all_serve() -> None:
    fleet, _, board = together()
    board.say("b", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    board.say("b", unread=True, error="/x/api.conf: Permission denied", tried=2)
    seen = await fleet.observe("api")
    assert (seen.unread, seen.failed, seen.error) == (True, "", "edge b: /x/api.conf: Permission denied")


async def test_an_edge_that_sees_nothing_for_a_moment_fails_nobody() -> None:
    fleet, own, board = together()
    fleet._deadline = 60.0
    board.say("b", unread=True, error="/x/api.conf: Permission denied", tried=2)
    applying = asyncio.create_task(fleet.apply(plan(2), 1))
    await asyncio.sleep(0.1)
    assert not applying.done()
    board.say("b", served=2, confirmed=2)
    await applying
    assert own.applied == [2]


async def test_a_follower_serves_what_is_wanted_and_says_so() -> None:
    edge, board = OneEdge(), Paper()
    follower = Follower(board, "b", lambda _: edge)  # type: ignore[arg-type, return-value]
    fleet, own, _ = together()
    fleet._board = board
    applying = asyncio.create_task(fleet.apply(plan(2), 1))
    board.said["b"] = {}
    for _ in range(4):
        await asyncio.sleep(0.02)
        await follower.follow()
    await applying
    assert (edge.applied, own.applied) == ([2], [2])
    edge.fails = "nginx -t: no"
    failing = asyncio.create_task(fleet.apply(plan(3), 1))
    for _ in range(4):
        await asyncio.sleep(0.02)
        await follower.follow()
    with pytest.raises(Fault, match="edge b: nginx -t: no"):
        await failing
    assert edge.applied == [2, 3], "not again and again"
    board.texts["api"] = '{"words of": "a newer daemon"}'
    board.version += 1
    await follower.follow()
    assert follower._wanted["api"].plan.route.generation == 3
    await follower.close()


async def test_a_follower_that_has_lost_a_file_lays_it_down_again() -> None:
    edge, board = OneEdge(), Paper()
    follower = Follower(board, "b", lambda _: edge)  # type: ignore[arg-type, return-value]
    wanted = WantedRoute(plan=plan(2), token=1, options=EdgeOptions())
    await board.want("api", WANTED.dump_json(wanted).decode())
    edge.seen = Edge(served=2, confirmed=2, floor=2, file="missing")
    await follower.follow()
    await asyncio.sleep(0)
    assert edge.applied == [2]
    await follower.close()


async def test_what_is_to_be_gone_is_taken_away_everywhere_once() -> None:
    fleet, own, board = together()
    edge = OneEdge()
    follower = Follower(board, "b", lambda _: edge)  # type: ignore[arg-type, return-value]
    board.said["b"] = {}
    gone = RoutePlan(service="api", route=Route(generation=3, gone=True))
    applying = asyncio.create_task(fleet.apply(gone, 1))
    for _ in range(6):
        await asyncio.sleep(0.02)
        follower._due["api"] = 0.0
        await follower.follow()
    await applying
    assert (edge.applied, own.applied) == ([3], [3])
    seen = await fleet.observe("api")
    assert (seen.served, seen.confirmed, seen.error) == (None, 3, "")
    await follower.close()


@dataclass
class HangingEdge(OneEdge):
    """An edge whose nginx takes a while to be asked about."""

    asked: int = 0
    most: int = 0

    async def observe(self, service: str) -> Edge:
        self.asked += 1
        self.most = max(self.most, self.asked)
        await asyncio.sleep(0.05)
        self.asked -= 1
        return self.seen


async def test_a_follower_does_not_ask_for_one_service_after_the_other() -> None:
    edge = HangingEdge()
    follower, board = following(edge)
    for n in range(10):
        wanted = WantedRoute(plan=replace(plan(2), service=f"s{n}"), token=1, options=EdgeOptions())
        await board.want(f"s{n}", WANTED.dump_json(wanted).decode())
    await follower.follow()
    assert edge.most == 10
    await follower.close()


@dataclass
class BlindEdge(OneEdge):
    """An edge that can't look at one of its services."""

    error: Exception | None = None
    served: set[str] = field(default_factory=set)

    async def apply(self, plan: RoutePlan, token: int) -> None:
        self.served.add(plan.service)
        await OneEdge.apply(self, plan, token)

    async def observe(self, service: str) -> Edge:
        if service == "odd":
            if self.error is None:
                await asyncio.Event().wait()
            else:
                raise self.error
        return self.seen if service in self.served else Edge(drained=True)

    async def put_down(self, plan: RoutePlan, token: int) -> None:
        if plan.service == "odd" and self.error is not None:
            raise self.error
        self.served.add(plan.service)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Fault("/x/odd.conf: Permission denied"), "/x/odd.conf: Permission denied"),
        (KeyError("odd"), "a bug, see the edge's log: KeyError: 'odd'"),
        (None, "no look at what is served ended within 0.05 s"),
    ],
)
async def test_an_edge_that_cannot_look_at_one_service_serves_and_tells_the_others(
    error: Exception | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.traffic.follower.LOOK_DEADLINE", 0.05)
    edge = BlindEdge(error=error)
    follower, board = following(edge)
    for service in ("api", "odd", "web"):
        await want(board, 2, service)
    with capture_logs() as logs:
        for _ in range(4):
            follower._due["api"] = 0.0
            await rounds(follower, 1)
    reports = {service: REPORT.validate_json(text) for service, text in board.said["b"].items()}
    assert {service: report.edge.error for service, report in reports.items()} == {
        "api": "",
        "odd": told,
        "web": "",
    }
    assert {service: report.edge.unread for service, report in reports.items() if report.edge.unread} == {
        "odd": True
    }
    assert (reports["api"].edge.confirmed, reports["web"].edge.confirmed) == (2, 2)
    assert edge.served == {"api", "web"}, "what is not seen is not changed"
    assert [entry["reason"] for entry in logs if entry["event"] == "edge_not_seen"] == [told], "once"
    await follower.close()


async def test_before_nginx_starts_all_is_written_that_can_be() -> None:
    edge = BlindEdge(error=Fault("/x/odd.conf: Permission denied"))
    follower, board = following(edge)
    for service in ("api", "odd", "web"):
        await want(board, 2, service)
    with pytest.raises(Fault, match=r"^/x/odd\.conf: Permission denied$"):
        await follower.prepare()
    assert edge.served == {"api", "web"}


@dataclass
class StuckEdge(OneEdge):
    """An edge whose nginx never confirms generation 7, and that makes one change at a time."""

    order: list[str] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def apply(self, plan: RoutePlan, token: int) -> None:
        number = plan.route.generation
        async with self.lock:
            self.order.append(f"begin {number}")
            try:
                if number == 7:
                    await asyncio.Event().wait()
                await OneEdge.apply(self, plan, token)
            finally:
                await asyncio.sleep(0)  # as when the last good file is put back
                self.order.append(f"end {number}")


def following(edge: OneEdge) -> tuple[Follower, Paper]:
    board = Paper()
    return Follower(board, "b", lambda _: edge), board  # type: ignore[arg-type, return-value]


async def want(board: Paper, generation: int, service: str = "api") -> None:
    wanted = WantedRoute(plan=replace(plan(generation), service=service), token=1, options=EdgeOptions())
    await board.want(service, WANTED.dump_json(wanted).decode())


async def rounds(follower: Follower, number: int = 4) -> None:
    """What the edge process does, without its pauses."""
    for _ in range(number):
        await follower.follow()
        for _ in range(20):
            await asyncio.sleep(0)


async def test_a_newer_generation_interrupts_the_one_that_is_being_tried() -> None:
    edge = StuckEdge()
    follower, board = following(edge)
    await want(board, 7)
    await rounds(follower)
    await want(board, 8)
    await rounds(follower)
    assert edge.order == ["begin 7", "end 7", "begin 8", "end 8"]
    assert _said(board).edge.confirmed == 8
    await follower.close()


async def test_the_same_generation_is_not_interrupted() -> None:
    edge = StuckEdge()
    follower, board = following(edge)
    await want(board, 7)
    await rounds(follower)
    await want(board, 7)
    await rounds(follower)
    assert edge.order == ["begin 7"]
    await follower.close()
    assert edge.order == ["begin 7", "end 7"]


async def test_what_is_served_and_does_not_show_is_not_served_again_at_once() -> None:
    edge = OneEdge()
    follower, board = following(edge)
    await want(board, 2)
    await rounds(follower)
    edge.seen = replace(edge.seen, file="missing")
    for _ in range(10):
        follower._due["api"] = 0.0
        await rounds(follower, 1)
    assert edge.applied == [2]
    follower._again["api"] = 2, 0.0
    follower._due["api"] = 0.0
    await rounds(follower)
    assert edge.applied == [2, 2]
    await follower.close()


async def test_a_failure_does_not_hold_a_newer_generation_up() -> None:
    edge = OneEdge(fails="nginx -t: no")
    follower, board = following(edge)
    await want(board, 2)
    await rounds(follower)
    assert edge.applied == [2]
    edge.fails = ""
    await want(board, 3)
    await rounds(follower)
    assert edge.applied == [2, 3]
    await follower.close()


@dataclass
class BrokenEdge(OneEdge):
    """An edge with a bug."""

    async def apply(self, plan: RoutePlan, token: int) -> None:
        self.applied.append(plan.route.generation)
        raise TypeError("of the edge's own")


async def test_an_error_is_told_until_what_failed_is_served_after_all() -> None:
    edge = OneEdge(fails="nginx -t: no")
    follower, board = following(edge)
    await want(board, 2)
    await rounds(follower)
    assert _said(board).edge.error == "nginx -t: no"
    edge.seen = Edge(served=2, confirmed=2, floor=2)  # somebody has mended and reloaded nginx
    follower._due["api"] = follower._next = 0.0
    await rounds(follower)
    assert (edge.applied, _said(board).edge.error) == ([2], "")
    await follower.close()


@pytest.mark.parametrize("earlier", [None, "", "nginx -t: no"], ids=["nothing", "a success", "a fault"])
async def test_a_bug_is_an_error_of_the_edge_and_is_tried_again_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch, earlier: str | None
) -> None:
    edge = BrokenEdge(fails=earlier or "")
    follower, board = following(edge)
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    if earlier is not None:
        with monkeypatch.context() as patched:
            patched.setattr(BrokenEdge, "apply", OneEdge.apply)
            await want(board, 1)
            await rounds(follower)
    tries: list[float] = []
    await want(board, 2)
    with capture_logs() as logs:
        while now < 200:
            before = len(edge.applied)
            await rounds(follower, 2)
            tries += [now] * (len(edge.applied) - before)
            now += 0.5
    assert _said(board).tried == 2
    assert _said(board).edge.error == "a bug, see the edge's log: TypeError: of the edge's own"
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert pauses == sorted(pauses)
    assert (0.5 < pauses[0] <= 2, pauses[-1] > 20) == (True, True)
    (first, *_) = [entry for entry in logs if entry["event"] == "edge_bug"]
    assert (first["log_level"], first["exc_info"]) == ("error", True)
    await follower.close()


def _said(board: Paper) -> Report:
    return REPORT.validate_json(board.said["b"]["api"])


@pytest.fixture
async def board(tmp_path: Path) -> AsyncIterator[RedisBoard]:
    server = PrivateRedis(tmp_path)
    await server.start()
    redis = connect(server.url)
    yield RedisBoard(redis, Keys("t"), ttl=0.5, token=7)
    await redis.aclose()
    await server.stop()


async def test_only_the_daemon_that_drives_says_what_is_wanted(board: RedisBoard) -> None:
    await board._redis.set("t:lease", 8)
    with pytest.raises(Stale):
        await board.want("api", "x")
    await board._redis.set("t:lease", 7)
    assert await board.news("") == ("0", {})
    await board.want("api", "x")
    news = await board.news("0")
    assert news is not None
    assert news[1] == {"api": "x"}
    assert await board.news(news[0]) is None
    await board.want("api", "y")
    assert (await board.news(news[0]))[1] == {"api": "y"}  # type: ignore[index]


@pytest.mark.parametrize("lost", ["nothing", "an entry", "a field", "all news", "all"])
async def test_news_come_at_once_and_what_is_missed_is_read_whole(board: RedisBoard, lost: str) -> None:
    redis = board._redis
    await redis.set("t:lease", 7)
    await board.want("api", "a1")
    await board.want("web", "w1")
    version, _ = await board.news("") or ("", {})
    assert await board.news(version, 0.05) is None
    hearing = asyncio.create_task(board.news(version, 60.0))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        await board.want("api", "a2")
        news = await hearing
    assert news is not None
    assert news[1] == {"api": "a2", "web": "w1"}
    await board.want("web", "w2")
    await board.want("api", "a3")
    if lost == "an entry":
        await redis.xtrim("t:wanted:news", 1, approximate=False)
    elif lost == "a field":
        await redis.xadd("t:wanted:news", {"hello": "world"})
    elif lost != "nothing":
        await redis.delete("t:wanted:news", *(["t:wanted"] if lost == "all" else []))
        if lost == "all":
            await board.want("web", "w2")
    await redis.config_resetstat()
    again = await board.news(news[0], 0.05)
    whole = "cmdstat_hgetall" in await redis.info("commandstats")
    assert again is not None
    assert (again[1], whole) == ({"web": "w2"} | ({} if lost == "all" else {"api": "a3"}), lost != "nothing")
    assert await board.news(again[0], 0.05) is None


async def test_an_edge_that_does_not_hear_what_is_wanted_says_so_once(
    board: RedisBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "PAUSE", 0.01)
    await board._redis.set("t:wanted", "of another type")
    follower = Follower(board, "b", lambda _: OneEdge())  # type: ignore[arg-type, return-value]
    with capture_logs() as logs:
        hearing = asyncio.create_task(edge_module._hear(follower, "b"))
        await asyncio.sleep(0.2)
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
    (told,) = [entry for entry in logs if entry["event"] == "edge_deaf"]
    assert "WRONGTYPE" in told["reason"]


async def test_nothing_has_drained_at_an_edge_that_did_not_follow() -> None:
    fleet, _, board = together("go_on")
    board.say("b", served=1, confirmed=1, tried=2, error="nginx: [emerg] unknown directive")
    board.say("c", served=2, confirmed=2)
    await fleet.apply(plan(2), 1)
    assert not (await fleet.observe("api")).drained
    board.say("b", served=2, confirmed=2)
    assert (await fleet.observe("api")).drained


async def test_what_arrives_late_does_not_take_the_place_of_what_is_newer(board: RedisBoard) -> None:
    def wanted(generation: int, token: int = 7) -> str:
        route = WantedRoute(plan=plan(generation), token=token, options=EdgeOptions())
        return WANTED.dump_json(route).decode()

    await board._redis.set("t:lease", 7)
    for generation in (2, 3, 3):
        await board.want("api", wanted(generation))
    await board.want("web", wanted(1))
    with pytest.raises(Fault, match="LATE generation 3 is wanted"):
        await board.want("api", wanted(2))
    assert (await board.news(""))[1] == {"api": wanted(3), "web": wanted(1)}  # type: ignore[index]
    await board._redis.set("t:lease", 8)
    board._token = 8
    await board.want("api", wanted(2, token=8))
    assert (await board.news(""))[1]["api"] == wanted(2, token=8)  # type: ignore[index]


async def test_a_change_needs_no_news(board: RedisBoard) -> None:
    await board._redis.set("t:lease", 7)
    await board.want("api", "a1")
    await board._redis.delete("t:wanted:news")
    await board._redis.set("t:wanted:news", "of another type")
    version, _ = await board.news("") or ("", {})
    await board.want("api", "a2")
    news = await board.news(version, 0.05)
    assert news is not None
    assert news[1] == {"api": "a2"}


async def test_edges_that_are_away_are_told_and_shown(
    board: RedisBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EDGES_EVERY", 0.01)
    (tmp_path / "orchestrator.yaml").write_text(
        f"{{redis: {{url: 'unix://{private_socket(tmp_path)}'}}, edges: {{enabled: true}}}}"
    )
    daemon = Daemon(load(tmp_path / "orchestrator.yaml"), LineWriter(io.StringIO()))
    metrics = daemon._metrics.registry
    up = functools.partial(metrics.get_sample_value, "orchestrator_edge_up", {"edge": "b"})

    async def shown(value: float | None) -> None:
        async with asyncio.timeout(10):
            while up() != value:
                await asyncio.sleep(0.01)

    await board.report("b", {})
    with capture_logs() as logs:
        watching = asyncio.create_task(unless_cancelled(daemon._watch.looks(board)["edges"]), name="edges")
        await shown(1.0)
        await shown(0.0)
        await board.report("b", {"api": "x"})
        await shown(1.0)
        await board.forget("b")
        await shown(None)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert [line["event"] for line in logs] == ["edge_is_away", "edge_is_back"]


async def test_an_edge_that_is_prepared_says_for_what(board: RedisBoard, tmp_path: Path) -> None:
    (tmp_path / "orchestrator.yaml").write_text(
        f"{{redis: {{url: 'unix://{private_socket(tmp_path)}', prefix: t}}, edges: {{name: b}},"
        f" state_dir: {tmp_path}, nginx: {{directory: {tmp_path}/edge}}}}"
    )
    config = load(tmp_path / "orchestrator.yaml")
    with capture_logs() as logs:
        await edge_module.run_edge(config, once=True)
        await board._redis.set("t:lease", 7)
        wanted = WantedRoute(plan=plan(2), token=7, options=EdgeOptions())
        await board.want("api", WANTED.dump_json(wanted).decode())
        await edge_module.run_edge(config, once=True)
    prepared = [line for line in logs if line["event"] == "edge_prepared"]
    assert [line["services"] for line in prepared] == [[], ["api"]]
    assert prepared[0]["reason"] == "nothing is wanted yet, or not under this redis/prefix"
    assert "reason" not in prepared[1]
    assert (tmp_path / "edge" / "api.conf").exists()


async def test_the_doctor_says_what_is_wrong_at_other_edges(board: RedisBoard, tmp_path: Path) -> None:
    (tmp_path / "orchestrator.yaml").write_text(
        f"{{redis: {{url: 'unix://{private_socket(tmp_path)}', prefix: t}}, edges: {{enabled: true}}}}"
    )
    config = load(tmp_path / "orchestrator.yaml")
    assert await edges(config) == []
    fine = Report(edge=Edge(served=2, confirmed=2), tried=2)
    ill = Report(edge=Edge(error="nginx -t: no"), tried=2)
    texts = {name: REPORT.dump_json(report).decode() for name, report in (("api", fine), ("web", ill))}
    patient = RedisBoard(board._redis, Keys("t"), ttl=60.0, token=7)
    await patient.report("b", {"api": texts["api"]})
    await patient.report("c", texts)
    await patient.report("d", {"api": texts["api"]})
    await board._redis.delete("t:edge:d")
    found = await edges(config)
    assert [(c.name, c.ok, c.detail) for c in found] == [
        ("edge b", True, "serves 1 services"),
        ("edge c", False, "web: nginx -t: no"),
        ("edge d", False, "is away: its agent says nothing"),
    ]
    assert "orchestrator edges --forget d" in found[-1].mend


async def test_an_edge_that_says_nothing_is_away_until_it_is_forgotten(board: RedisBoard) -> None:
    await board.report("b", {"api": "x"})
    await board.report("c", {})
    assert await board.reports() == {"b": {"api": "x"}, "c": {}}
    await asyncio.sleep(0.6)
    assert await board.reports() == {}
    assert await board.known() == ["b", "c"]
    assert await board.forget("b")
    assert not await board.forget("b")
    assert await board.known() == ["c"]


async def test_what_has_been_said_and_heard_is_neither_written_nor_read_again(board: RedisBoard) -> None:
    redis = board._redis
    for texts, told in (({"api": "x"}, 1), ({"api": "x"}, 1), ({"api": "y"}, 2), ({}, 3), ({}, 3)):
        await board.report("b", texts)
        assert await board.reports() == {"b": texts}
        stats = await redis.info("commandstats")
        assert [stats[f"cmdstat_{command}"]["calls"] for command in ("hset", "hgetall")] == [told, told]
    await redis.delete("t:edge:b")
    await board.report("b", {})
    assert await board.reports() == {"b": {}}, "what Redis has lost is said again"
    await redis.hset("t:edge:b", mapping={"": "", "api": "of an older version, which marks nothing"})
    assert await board.reports() == {"b": {"api": "of an older version, which marks nothing"}}
    await redis.hset("t:edge:b", "api", "z")
    assert await board.reports() == {"b": {"api": "z"}}


async def test_a_reading_that_ends_after_a_later_one_knows_nothing_of_it(
    board: RedisBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await board.report("b", {"api": "x"})
    assert await board.reports() == {"b": {"api": "x"}}
    read, let, pipeline = asyncio.Event(), asyncio.Event(), board._redis.pipeline

    def late(**options: Any) -> Any:
        pipe = pipeline(**options)
        execute = pipe.execute

        async def executed() -> list[Any]:
            found = await execute()
            read.set()
            await let.wait()
            return found

        monkeypatch.setattr(pipe, "execute", executed)
        return pipe

    with monkeypatch.context() as patched:
        patched.setattr(board._redis, "pipeline", late)
        early = asyncio.create_task(board.reports())
        await read.wait()
    await board.forget("b")
    assert await board.reports() == {"b": None}
    let.set()
    assert await early == {"b": {"api": "x"}}
    assert await board.reports() == {"b": None}


async def test_an_edge_whose_name_another_has_taken_says_its_own_again(board: RedisBoard) -> None:
    other = RedisBoard(board._redis, Keys("t"), 0.5)
    for who, text in ((board, "x"), (other, "y"), (board, "x"), (other, "y")):
        await who.report("b", {"api": text})
        assert await board.reports() == {"b": {"api": text}}


async def test_a_report_that_redis_does_not_have_any_more_is_said_again(board: RedisBoard) -> None:
    redis = board._redis
    await board.report("b", {"api": "x"})
    older: Any = await redis.hgetall("t:edge:b")
    await board.report("b", {"api": "y"})
    await redis.hset("t:edge:b", mapping=older)  # a replica that lagged, or a write that came late
    await board.report("b", {"api": "y"})
    assert await board.reports() == {"b": {"api": "y"}}
    await redis.srem("t:edges", "b")  # forgotten while it spoke
    await board.report("b", {"api": "y"})
    assert (await board.reports(), await board.known()) == ({"b": {"api": "y"}}, ["b"])


async def test_a_report_whose_reply_was_lost_is_not_taken_for_the_one_before(
    board: RedisBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await board.report("b", {"api": "x"})
    pipeline = board._redis.pipeline

    def deaf(**options: Any) -> Any:
        pipe = pipeline(**options)
        execute = pipe.execute

        async def executed() -> None:
            await execute()
            raise RedisConnectionError("no answer")

        monkeypatch.setattr(pipe, "execute", executed)
        return pipe

    with monkeypatch.context() as patched:
        patched.setattr(board._redis, "pipeline", deaf)
        with pytest.raises(Fault):
            await board.report("b", {"api": "y"})
    for _ in range(2):
        await board.report("b", {"api": "x"})
        assert await board.reports() == {"b": {"api": "x"}}


async def test_who_could_not_speak_while_redis_was_away_is_not_away_at_once(board: RedisBoard) -> None:
    await board.report("b", {"api": "x"})
    assert await board.reports() == {"b": {"api": "x"}}
    await asyncio.sleep(0.6)
    assert await board.reports() == {}
    await board._redis.rename("t:edges", "t:kept")
    await board._redis.set("t:edges", "no set: the next look fails")
    with pytest.raises(Fault):
        await board.reports()
    await board._redis.rename("t:kept", "t:edges")
    assert await board.reports() == {"b": None}, "the first look that succeeds"
    await asyncio.sleep(0.6)
    assert await board.reports() == {}


async def test_who_could_not_be_heard_before_the_daemon_looked_is_not_away_at_once(board: RedisBoard) -> None:
    await board._redis.sadd("t:edges", "b")
    assert await board.reports() == {"b": None}
    await asyncio.sleep(0.6)
    assert await board.reports() == {}


async def test_whose_word_a_redis_has_lost_is_not_away_before_it_would_have_run_out(
    board: RedisBoard,
) -> None:
    await board.report("b", {"api": "x"})
    assert await board.reports() == {"b": {"api": "x"}}
    await asyncio.sleep(0.4)
    await board.report("b", {"api": "y"})
    assert await board.reports() == {"b": {"api": "y"}}
    await asyncio.sleep(0.2)
    await board._redis.flushall()
    assert await board.reports() == {"b": None}
    await asyncio.sleep(0.6)
    assert await board.reports() == {}


def test_what_is_wanted_survives_the_way() -> None:
    wanted = WantedRoute(plan=plan(3), token=7, options=EdgeOptions(backup=("10.0.0.9:80",)))
    assert WANTED.validate_json(WANTED.dump_json(wanted)) == wanted


class Leads:
    """An edge whose looks take until they are let go, and which notes what is asked of it."""

    def __init__(self) -> None:
        self.order: list[str] = []

    async def take_back_at_once(self, plan: RoutePlan, token: int) -> None:
        self.order.append(f"take back {plan.service}")
        raise Fault("the folder is read-only")

    async def observe(self, service: str) -> Edge:
        self.order.append(f"look {service}")
        return Edge(unread=True)

    async def close(self) -> None:
        pass


async def test_users_are_taken_back_before_anything_is_looked_at() -> None:
    edge = Leads()
    follower, board = following(edge)  # type: ignore[arg-type]
    await want(board, 7)
    await want(board, 7, "web")
    await follower.follow()
    begin = edge.order[:2]
    assert sorted(begin) == ["take back api", "take back web"]
    assert sorted(edge.order[2:]) == ["look api", "look web"]
    await follower.close()


async def settle() -> None:
    """Let the tasks go on until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_users_are_taken_back_while_a_round_still_looks() -> None:
    class Slow(Leads):
        async def observe(self, service: str) -> Edge:
            await Leads.observe(self, service)
            await let.wait()
            return Edge(unread=True)

    edge, let = Slow(), asyncio.Event()
    follower, board = following(edge)  # type: ignore[arg-type]
    await want(board, 7)
    going = asyncio.create_task(follower.follow())
    async with asyncio.timeout(5):
        while "look api" not in edge.order:
            await asyncio.sleep(0)
    edge.order.clear()
    await want(board, 8)
    await follower.hear()
    await settle()
    assert edge.order == ["take back api"]
    let.set()
    await going
    await follower.follow()
    assert edge.order == ["take back api", "look api"], "the next round looks at once"
    await follower.close()


async def test_no_service_waits_for_another_that_is_taken_back_slowly() -> None:
    class Slow(Leads):
        async def take_back_at_once(self, plan: RoutePlan, token: int) -> None:
            self.order.append(f"take back {plan.service} {plan.route.generation}")
            if plan.service == "slow":
                await asyncio.Event().wait()

    edge = Slow()
    follower, board = following(edge)  # type: ignore[arg-type]
    await want(board, 7, "slow")
    await follower.hear()
    for generation in (8, 9):
        await want(board, generation, "api")
        await follower.hear()
        await settle()
        assert edge.order[-1] == f"take back api {generation}"
    await want(board, 8, "slow")
    await follower.hear()
    await settle()
    assert edge.order[-1] == "take back slow 8", "the earlier word is not gone on with"
    await follower.close()


async def test_a_bug_with_the_news_of_one_service_keeps_no_other_from_being_followed(
    monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    edge = Leads()
    follower, board = following(edge)  # type: ignore[arg-type]
    await want(board, 7, "odd")
    await want(board, 7, "web")
    read = WANTED.validate_json

    def odd(text: str) -> WantedRoute:
        if '"odd"' in text:
            raise KeyError("what nobody expected")
        return read(text)

    monkeypatch.setattr(follower_module, "WANTED", SimpleNamespace(validate_json=odd))
    await follower.follow()
    assert set(edge.order) == {"take back web", "look web"}
    assert [line["service"] for line in log_lines() if line["event"] == "edge_bug"] == ["odd"]
    await follower.close()


async def test_few_services_are_looked_at_in_one_round_and_all_within_a_second() -> None:
    edge = Leads()
    follower, board = following(edge)  # type: ignore[arg-type]
    names = [f"s{n}" for n in range(100)]
    for name in names:
        await want(board, 7, name)
    await follower.follow()
    edge.order.clear()
    follower._due = dict.fromkeys(names, 0.0)
    for _ in range(ROUNDS):
        before = len(edge.order)
        await follower.follow()
        assert len(edge.order) - before <= 1 + len(names) // ROUNDS
    assert {line.removeprefix("look ") for line in edge.order} == set(names)
    await follower.close()
