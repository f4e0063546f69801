"""Changes of several services that share a reload, with a double of nginx and real files."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import Complaint, RoutePlan, Workers
from orchestrator.rollout.model import Route
from orchestrator.traffic import files, reload, sight
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.listener import Answer
from orchestrator.traffic.options import EdgeOptions, ServerBlock, Tls
from orchestrator.traffic.render import Header, read_header
from tests.builders import server
from tests.simulation.nginx import MARK

DEADLINE, CLOSING = 0.4, 0.05
NAMES = [f"s{n}" for n in range(6)]


class Nginx:
    """`ports.EdgeProcess` and its listener: it serves the files of the last reload that it took.

    Attributes:
        refused: Services whose second generation it refuses without a word.
        named: Services whose second generation its test refuses by name.
        lost: A certificate that is gone.
        hides: It shows nothing of what it serves.
        seen: The releases of each service that had traffic after each reload.
        gentle: Of each reload, whether answers closed their connections.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[str, Header] = {}
        self.marks: dict[str, str] = {}
        self.refused: Collection[str] = ()
        self.named: Collection[str] = ()
        self.lost = ""
        self.hides = False
        self.tests = 0
        self.gentle: list[bool] = []
        self.seen: list[dict[str, frozenset[str]]] = []
        self.at_test: Callable[[], None] = lambda: None
        self.at_reload: Callable[[], None] = lambda: None

    def generation(self, service: str) -> int:
        """On the disk."""
        header = read_header((self.folder / f"{service}.conf").read_text())
        assert header is not None
        return header.generation

    def served(self, service: str) -> int:
        return self.loaded[service].generation

    async def test(self) -> None:
        self.tests += 1
        self.at_test()
        if self.lost:
            raise Fault(f'nginx: [emerg] cannot load certificate "{self.lost}": no such file')
        for service in self.named:
            if self.generation(service) == 2:
                raise Fault(f"nginx: [emerg] bad in {self.folder}/{service}.conf:1")

    async def reload(self) -> None:
        self.at_reload()
        self.gentle.append((self.folder / "switch" / ".closing").exists())
        if any(self.generation(service) == 2 for service in self.refused):
            return
        texts = {path.stem: path.read_text() for path in self.folder.glob("[a-z]*.conf")}
        found = {service: read_header(text) for service, text in texts.items()}
        self.loaded = {service: header for service, header in found.items() if header is not None}
        self.marks = {service: MARK.findall(texts[service])[-1] for service in self.loaded}
        self.seen.append({service: self.users_of(service) for service in self.loaded})

    def users_of(self, service: str) -> frozenset[str]:
        """The releases that its users get."""
        disk = self.loaded[service].on_disk
        assert disk is not None
        switch = self.folder / "switch" / service
        named = [switch.with_name(f"{service}.to.{s.release}") for s in disk.back]
        switched = any(path.exists() for path in (switch, *named))
        servers = disk.back if disk.back and switched else disk.route.servers
        return frozenset(s.release for s in servers)

    async def reopen(self) -> None: ...

    async def has_lua(self) -> bool:
        return False

    @property
    def reloads(self) -> int:
        """How many it has taken."""
        return len(self.seen)

    async def workers(self) -> Workers:
        return Workers()

    async def complaint(self) -> Complaint:
        return Complaint()

    async def ask(self, service: str) -> Answer:
        header = self.loaded.get(service)
        if header is None or self.hides:
            return Answer("404")
        return Answer("it", header.generation, self.marks[service])

    async def close(self) -> None: ...


def edge_of(nginx: Nginx) -> NginxEdge:
    edge = NginxEdge(
        nginx,
        nginx.folder,
        lambda _: EdgeOptions(),
        mode="reload",
        confirm_deadline=DEADLINE,
        closing_wait=CLOSING,
    )
    edge._listener = edge._reloader._listener = edge._sight._listener = nginx  # type: ignore[assignment]
    edge.prepare()
    return edge


def plan(service: str, generation: int, *releases: str, back: str = "") -> RoutePlan:
    names = [f"{service}-{release}" for release in releases or ("1",)]
    servers = tuple(server(name, f"127.0.0.1:{n + 1}") for n, name in enumerate(names))
    way = (server(f"{service}-{back}", "127.0.0.1:1"),)
    fallback = Route(generation=generation, servers=way) if back else None
    route = Route(generation=generation, servers=servers)
    return RoutePlan(service=service, route=route, stable=f"{service}-1", fallback=fallback)


def canary(service: str, generation: int = 2) -> RoutePlan:
    return plan(service, generation, "1", "2", back="1")


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    return Nginx(tmp_path)


@pytest.fixture
async def edge(nginx: Nginx, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NginxEdge]:
    monkeypatch.setattr(reload, "RUN", 2)  # it has no workers from before that answer for a while
    edge = edge_of(nginx)
    await asyncio.gather(*(edge.apply(plan(name, 1), 1) for name in NAMES))
    nginx.tests, nginx.gentle, nginx.seen = 0, [], []
    yield edge
    await edge.close()


async def told(edge: NginxEdge, plans: list[RoutePlan]) -> dict[str, str]:
    """What services are told that change at once; empty where nginx serves them."""
    answers = await asyncio.gather(*(edge.apply(p, 1) for p in plans), return_exceptions=True)
    return {p.service: "" if a is None else str(a) for p, a in zip(plans, answers, strict=True)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def failing(monkeypatch: pytest.MonkeyPatch, path: Path, at: Collection[int], error: Exception) -> None:
    """Let some of the writes of a file fail; its first is number 1."""
    count, write = 0, files.write

    def attempt(where: Path, text: str, *, private: bool = False) -> None:
        nonlocal count
        count += where == path
        if where == path and count in at:
            raise error
        write(where, text, private=private)

    monkeypatch.setattr("orchestrator.traffic.edge.write", attempt)


async def test_one_that_is_given_up_between_two_rounds_is_never_served(edge: NginxEdge, nginx: Nginx) -> None:
    nginx.refused = ["s0"]
    first = asyncio.create_task(edge.apply(plan("s0", 2), 1))
    second = asyncio.create_task(edge.apply(canary("s1"), 1))
    await until(lambda: nginx.generation("s1") == 2)
    await until(lambda: nginx.generation("s1") == 1)
    second.cancel()
    await edge.apply(plan("s1", 3), 1)
    await asyncio.gather(first, second, return_exceptions=True)
    assert [seen["s1"] for seen in nginx.seen if seen["s1"] != {"s1-1"}] == []
    assert nginx.served("s1") == 3


async def test_one_that_is_given_up_while_another_prepares_is_never_served(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, gate, reached = edge._secret, asyncio.Event(), asyncio.Event()

    async def slow(service: str) -> str:
        if service == "s0":
            reached.set()
            await gate.wait()
        return await secret(service)

    monkeypatch.setattr(edge, "_secret", slow)
    first = asyncio.create_task(edge.apply(plan("s0", 2), 1))
    second = asyncio.create_task(edge.apply(canary("s1"), 1))
    await reached.wait()
    await asyncio.sleep(0.02)
    second.cancel()
    back = asyncio.create_task(edge.apply(plan("s1", 3), 1))
    await asyncio.sleep(0.02)
    gate.set()
    await asyncio.gather(first, back)
    assert [seen["s1"] for seen in nginx.seen if seen["s1"] != {"s1-1"}] == []


async def test_one_that_is_given_up_before_the_reload_is_taken_out_of_it(
    edge: NginxEdge, nginx: Nginx
) -> None:
    first = asyncio.create_task(edge.apply(plan("s0", 2), 1))
    second = asyncio.create_task(edge.apply(canary("s1"), 1))

    def give_up() -> None:
        second.cancel()

    nginx.at_test = give_up
    await asyncio.gather(first, second, return_exceptions=True)
    assert (nginx.served("s0"), nginx.served("s1"), nginx.generation("s1")) == (2, 1, 1)
    assert second.cancelled()


async def test_a_way_back_whose_switch_could_not_be_turned_is_tried_again_before_its_reload(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asyncio.create_task(edge.apply(canary("s1"), 1))
    back: list[asyncio.Task[None]] = []
    users: list[frozenset[str]] = []
    tries, turn_on = 0, edge._switches.turn_on

    def full_at_first(service: str, to: str, generation: int) -> bool:
        nonlocal tries
        tries += 1
        return tries > 1 and turn_on(service, to, generation)

    monkeypatch.setattr(edge._switches, "turn_on", full_at_first)

    def at_reload() -> None:
        if nginx.generation("s1") == 2 and not back:
            back.append(asyncio.create_task(edge.apply(plan("s1", 3), 1)))
        elif back:
            users.append(nginx.users_of("s1"))

    nginx.at_reload = at_reload
    await first
    await back[0]
    assert users == [{"s1-1"}]
    assert nginx.served("s1") == 3


async def test_where_nginx_names_nobody_the_others_are_served_and_their_wait_is_not_theirs(
    edge: NginxEdge, nginx: Nginx
) -> None:
    nginx.refused = ["s0"]
    answers = await told(edge, [plan(name, 2) for name in NAMES])
    assert "does not show generation 2" in answers.pop("s0")
    assert set(answers.values()) == {""}
    for name in answers:
        assert (await edge.observe(name)).waited > DEADLINE, "the attempt that all have shared"
    assert (await edge.observe("s5")).waited > 2 * DEADLINE


async def test_what_comes_meanwhile_is_served_between_those_that_are_tried_alone(
    edge: NginxEdge, nginx: Nginx
) -> None:
    nginx.refused = ["s0", "s1"]
    tasks = [asyncio.create_task(edge.apply(plan(name, 2), 1)) for name in NAMES[:5]]
    await until(lambda: len(nginx.gentle) == 2)  # refused and taken back
    await edge.apply(plan("s5", 2), 1)
    assert [name for name in NAMES[:5] if nginx.served(name) == 2] == []
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [nginx.served(name) for name in NAMES] == [1, 1, 2, 2, 2, 2]


async def test_one_that_was_refused_alone_shares_no_reload_until_it_is_served(
    edge: NginxEdge, nginx: Nginx
) -> None:
    nginx.refused = ["s0"]
    assert (await told(edge, [plan("s0", 2)]))["s0"]
    answers = await told(edge, [plan(name, 2) for name in NAMES])
    assert [name for name, why in answers.items() if why] == ["s0"]
    assert len(nginx.seen) == 3, "two that put back, one that all others have shared"
    assert await told(edge, [plan("s0", 3)]) == {"s0": ""}
    nginx.seen = []
    assert await told(edge, [plan("s0", 4), plan("s1", 4)]) == {"s0": "", "s1": ""}
    assert len(nginx.seen) == 1


async def test_another_process_gets_the_folder_between_two_that_are_tried_alone(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.apply(canary("s5"), 1)
    nginx.refused = NAMES[:4]
    tasks = [asyncio.create_task(edge.apply(plan(name, 2), 1)) for name in NAMES[:4]]
    await until(lambda: edge._rounds.changing("s0"))
    assert (await edge_of(nginx).retreat("s5", "ann", "it burns")).to == "s5-1"
    assert not all(task.done() for task in tasks)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_refused_text_that_could_not_be_put_back_is_not_the_last_good_one(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    nginx.named = ["s0"]
    failing(monkeypatch, edge.file("s0"), [2], Fault(f"{edge.file('s0')}: No space left on device"))
    assert "No space left" in (await told(edge, [plan("s0", 2)]))["s0"]
    assert nginx.generation("s0") == 2
    assert "bad in" in (await told(edge, [plan("s0", 2)]))["s0"]
    assert nginx.generation("s0") == 1


async def test_one_that_can_not_be_put_back_keeps_no_other_from_it(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    nginx.hides = True
    failing(monkeypatch, edge.file("s0"), [2], Fault(f"{edge.file('s0')}: No space left on device"))
    answers = await told(edge, [plan(name, 2) for name in NAMES[:3]])
    assert [name for name, why in answers.items() if "No space left" in why] == ["s0"]
    assert [nginx.generation(name) for name in NAMES[:3]] == [2, 1, 1]


@pytest.mark.parametrize("error", [Fault("disk: No space left on device"), TypeError("a bug")])
async def test_one_that_can_not_be_written_is_told_alone(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, edge.file("s1"), [1], error)
    answers = await told(edge, [plan(name, 2) for name in NAMES[:3]])
    assert answers == {"s0": "", "s1": str(error), "s2": ""}
    assert [nginx.served(name) for name in NAMES[:3]] == [2, 1, 2]
    assert nginx.tests == 1


@pytest.mark.parametrize("times", [1, 3])
async def test_what_is_taken_back_is_read_by_nginx_though_nobody_waits_for_it(
    edge: NginxEdge, nginx: Nginx, times: int
) -> None:
    nginx.hides = True
    task = asyncio.create_task(edge.apply(canary("s0"), 1))
    await until(lambda: nginx.generation("s0") == 2)
    await until(lambda: nginx.generation("s0") == 1)
    await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
    await asyncio.gather(task, return_exceptions=True)
    assert nginx.served("s0") == 1


async def test_what_is_taken_back_is_read_by_nginx_when_the_daemon_stops(
    edge: NginxEdge, nginx: Nginx
) -> None:
    nginx.hides = True
    task = asyncio.create_task(edge.apply(canary("s0"), 1))
    await until(lambda: nginx.generation("s0") == 2)
    await until(lambda: nginx.generation("s0") == 1)
    await edge.close()
    await asyncio.gather(task, return_exceptions=True)
    assert nginx.served("s0") == 1


async def test_every_reload_of_calm_changes_lets_clients_close_their_connections_first(
    edge: NginxEdge, nginx: Nginx
) -> None:
    nginx.refused = ["s0"]
    await told(edge, [plan(name, 2) for name in NAMES[:3]])
    assert len(nginx.gentle) >= 6
    assert all(nginx.gentle)


async def test_files_are_put_back_beside_the_loop(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[bool] = set()
    replace = files.replace

    def look(path: Path, text: str, **more: object) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            threads.add(True)
        else:
            threads.add(False)
        replace(path, text, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "replace", look)
    nginx.named = ["s0"]
    await told(edge, [plan(name, 2) for name in NAMES[:3]])
    assert threads == {True}


async def test_a_rollback_that_gets_no_turn_says_that_users_are_back(edge: NginxEdge, nginx: Nginx) -> None:
    await edge.apply(canary("s0"), 1)
    person = edge_of(nginx)
    person._rounds._patience = 0.05
    async with edge._rounds.alone():
        with pytest.raises(
            Fault, match=r"has held .*; users are back on s0-1 already, by .*/switch/s0\.to\.s0-1$"
        ):
            await person.retreat("s0", "ann", "it burns")
        nginx.loaded.clear()
        with pytest.raises(Fault, match=r"has held \S+ for 0 s$"):
            await person.retreat("s0", "ann", "it burns")


async def test_a_reload_that_nginx_does_not_take_up_is_waited_for_by_other_processes(
    edge: NginxEdge, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the one that puts back what was there: the folder is held for longer than a confirmation."""

    async def stuck() -> Workers:
        return Workers(accepting=frozenset({1}))

    monkeypatch.setattr(reload, "TAKEN_UP", 1.0)
    monkeypatch.setattr("orchestrator.traffic.edge.LOCK_MARGIN", 0.6)
    monkeypatch.setattr(nginx, "workers", stuck)
    other, nginx.refused = edge_of(nginx), ["s0"]
    changing = asyncio.create_task(edge.apply(plan("s0", 2), 1))
    await until(lambda: nginx.generation("s0") == 2)
    async with other._rounds.alone():
        assert changing.done()
    assert "still accept" in str(changing.exception())
    await other.close()


async def test_a_switch_that_is_turned_while_its_service_changes_is_seen(
    edge: NginxEdge, nginx: Nginx
) -> None:
    await edge.apply(canary("s0"), 1)
    nginx.hides = True
    task = asyncio.create_task(edge.apply(plan("s0", 3, "1", "2", "3", back="1"), 1))
    await until(lambda: nginx.generation("s0") == 3)
    (nginx.folder / "switch" / "s0").touch()
    assert edge._rounds.changing("s0")
    assert (await edge.observe("s0")).switched_to == "s0-1"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_certificate_that_is_gone_is_told_to_all_with_the_service_whose_it_is(
    nginx: Nginx, edge: NginxEdge
) -> None:
    await asyncio.gather(*(edge.apply(plan(name, 1), 1) for name in NAMES))
    tls = Tls(certificate="/tls/of-s1.pem", key="/tls/key.pem")
    edge._options = lambda name: EdgeOptions(server=ServerBlock(tls=tls) if name == "s1" else None)
    await edge.apply(plan("s1", 2), 1)
    nginx.lost = tls.certificate
    with pytest.raises(
        Fault, match=rf'"/tls/of-s1.pem".* \(named in {nginx.folder}/s1.conf: s1; until it is right'
    ):
        await edge.apply(plan("s0", 2), 1)
    done = await asyncio.gather(
        *(edge.apply(plan(name, 3), 1) for name in ("s0", "s1", "s2")), return_exceptions=True
    )
    assert [f"{nginx.folder}/s1.conf: s1" in str(error) for error in done] == [True] * 3
    nginx.lost = ""
    await edge.apply(plan("s0", 4), 1)
    assert nginx.served("s0") == 4


async def test_a_change_has_not_drained_by_what_a_look_from_before_it_saw(
    nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sight, "FRESH", 1000.0)

    async def workers() -> Workers:
        return Workers(frozenset({nginx.reloads}), retiring=frozenset(range(nginx.reloads)))

    nginx.workers = workers  # type: ignore[method-assign]
    edge = edge_of(nginx)
    await edge.apply(plan("api", 1), 1)
    await edge.observe("api")
    await edge.apply(canary("api"), 1)
    seen = await edge.observe("api")
    assert (seen.served, seen.confirmed, seen.drained) == (2, 2, False)


async def test_a_rollback_that_waited_for_a_change_stands_when_that_has_been_put_back(
    edge: NginxEdge, nginx: Nginx
) -> None:
    await edge.apply(plan("api", 1, back="1"), 1)
    nginx.refused = ["api"]
    trying = asyncio.create_task(edge.apply(canary("api"), 1))
    async with asyncio.timeout(20):
        while len(nginx.gentle) < 2:
            await asyncio.sleep(0)
    nginx.refused = []
    assert (await edge.retreat("api", "ann", "bad")).to == "api-1"
    await asyncio.gather(trying, return_exceptions=True)
    with pytest.raises(Fault, match="generation 2 under token 1 is refused"):
        await edge.apply(canary("api"), 1)
    assert nginx.users_of("api") == {"api-1"}
    assert (await edge.observe("api")).local is not None
