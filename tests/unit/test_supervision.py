"""What the daemon does for all services at once: what is odd about one of them is its own trouble."""

import asyncio
import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.daemon import config, serve, yaml_file
from orchestrator.daemon.config import load
from orchestrator.daemon.kept import KeptFiles
from orchestrator.daemon.serve import TARGETS_WITHHELD, Daemon
from orchestrator.daemon.service_file import ServiceFile
from orchestrator.observability.logs import LineWriter
from orchestrator.ports.faults import Away
from orchestrator.ports.service import ServicePlan
from orchestrator.rollout.events import ReleaseAccepted, ServiceRemoved
from orchestrator.rollout.model import Route, Server, ServiceState
from orchestrator.rollout.observation import Instance, Observation
from orchestrator.store.keys import Keys
from orchestrator.store.lease import Lease
from orchestrator.store.redis_store import connect
from orchestrator.traffic import files
from orchestrator.traffic.files import to_the_end


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """One that drives `api` and `web`."""
    (tmp_path / "services").mkdir()
    (tmp_path / "orchestrator.yaml").write_text(f"state_dir: {tmp_path / 'state'}")
    for name in ("api", "web"):
        write(tmp_path, name)
    return Daemon(load(tmp_path / "orchestrator.yaml"), LineWriter(io.StringIO()))


def write(folder: Path, name: str, more: str = "") -> None:
    text = f"{{service: {name}, images: [repo/{name}], container: {{port: 8080}}{more}}}"
    (folder / "services" / f"{name}.yaml").write_text(text)


class Told:
    """In the place of the dispatcher: what it was told last."""

    def configure(self, plans: Mapping[str, ServicePlan], _: Any, closed: Mapping[str, str]) -> None:
        self.plans, self.closed = plans, closed


class Fine:
    """In the place of the doors."""

    def reload(self, _: Any) -> str:
        return ""


GROUP: Any = None
FINE: Any = Fine()


def planless(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ServiceFile.plan

    def picky(file: ServiceFile) -> ServicePlan:
        if file.service == "web":
            raise KeyError("weight")
        return plan(file)

    monkeypatch.setattr(ServiceFile, "plan", picky)


def test_a_bug_in_planning_one_service_drives_the_others(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    planless(monkeypatch)
    told: Any = Told()
    daemon._configure(told, GROUP)
    assert told.plans.keys() == {"api"}
    assert told.closed == {"web": "internal error, see the daemon's log: KeyError: 'weight'"}


def test_a_service_that_can_no_longer_be_planned_is_driven_as_before(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Any = Told()
    daemon._configure(told, GROUP)
    before = told.plans["web"]
    planless(monkeypatch)
    for _ in range(2):
        daemon._configure(told, GROUP)
        assert told.plans["web"] is before
        assert told.closed.keys() == {"web"}


async def test_a_bug_in_reading_the_files_again_is_told_with_it(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("a bug")

    monkeypatch.setattr(serve, "changes", broken)
    told: Any = Told()
    event = await daemon._reload("ann", "1-0", told, GROUP, FINE)
    assert (event.actor, event.request, event.changes) == ("ann", "1-0", ())
    assert event.problems == ("internal error, see the daemon's log: IndexError: a bug",)


async def test_a_bug_in_checking_one_file_stops_no_other(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = yaml_file.check

    def picky(path: Path, *more: Any) -> Any:
        if path.name == "web.yaml":
            raise RecursionError("too deep")
        return check(path, *more)

    monkeypatch.setattr(config, "check", picky)
    write(tmp_path, "api", ", require_digest: true")
    told: Any = Told()
    event = await daemon._reload("ann", "1-0", told, GROUP, FINE)
    assert event.changes == ("api: require_digest at once",)
    wrong = f"{tmp_path}/services/web.yaml: internal error, see the daemon's log: RecursionError: too deep"
    assert event.problems == (wrong,)
    assert told.plans.keys() == {"api", "web"}


@pytest.mark.parametrize("odd", ["pipe", "endless", "large"])
async def test_what_is_no_file_of_a_person_is_told_and_not_read(
    daemon: Daemon, tmp_path: Path, odd: str
) -> None:
    path = tmp_path / "services" / "odd.yaml"
    match odd:
        case "pipe":
            os.mkfifo(path)
        case "endless":
            path.symlink_to("/dev/zero")
        case _:
            path.write_text("service: odd\n" + "# dump\n" * 40_000)
    told: Any = Told()
    event = await daemon._reload("ann", "1-0", told, GROUP, FINE)
    why = "has more than 256 KiB" if odd == "large" else "is no regular file"
    assert event.problems == (f"{path}: {why}",)
    assert told.plans.keys() == {"api", "web"}


class Answers:
    """In the place of the dispatcher: answers at the second try."""

    def __init__(self) -> None:
        self.replies, self.tried, self.answered = self, 0, asyncio.Event()

    def configure(self, *_: Any) -> None:
        pass

    async def answer(self, request: str, event: Any) -> None:
        self.tried += 1
        if self.tried == 1:
            raise Away("Redis does not answer")
        self.told = (request, event.request)
        self.answered.set()


async def test_the_loop_goes_on_while_files_are_read_and_whoever_asked_is_answered(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        reading.set()
        assert go_on.wait(20), "the loop stood still"
        return load(*args)

    monkeypatch.setattr(serve, "load", slow)
    answers: Any = Answers()
    task = asyncio.create_task(daemon._keep_reloading(answers, GROUP, FINE))
    daemon._want_reload("ann", "1-0")
    try:
        async with asyncio.timeout(20):
            while not reading.is_set():
                await asyncio.sleep(0.01)
            go_on.set()
            await answers.answered.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (answers.told, answers.tried) == (("1-0", "1-0"), 2)


async def test_a_reload_that_is_delivered_again_before_it_is_answered_is_carried_out_once(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    def counted(*args: Any) -> Any:
        reads.append(1)
        return load(*args)

    monkeypatch.setattr(serve, "load", counted)
    for request in ("1-0", "1-0", "2-0", "1-0"):
        daemon._want_reload("ann", request)
    answers: Any = Answers()
    task = asyncio.create_task(daemon._keep_reloading(answers, GROUP, FINE))
    async with asyncio.timeout(20):
        while daemon._unanswered:
            await asyncio.sleep(0.01)
    assert (len(reads), answers.told) == (2, ("2-0", "2-0"))
    daemon._want_reload("SIGHUP")
    daemon._want_reload("SIGHUP")
    async with asyncio.timeout(20):
        while len(reads) < 4:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_loop_goes_on_while_files_are_kept_and_a_service_removed_meanwhile_is_not(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, go_on, keep = threading.Event(), threading.Event(), KeptFiles.keep

    def slow(*args: Any) -> None:
        keeping.set()
        assert go_on.wait(20), "the loop stood still"
        keep(*args)

    monkeypatch.setattr(KeptFiles, "keep", slow)
    told: Any = Told()
    task = asyncio.create_task(daemon._reload("ann", "1-0", told, GROUP, FINE))
    async with asyncio.timeout(20):
        while not keeping.is_set():
            await asyncio.sleep(0.01)
        removed = ServiceRemoved(service="web", at=1.0, actor="ann", reason="")
        daemon._publish(state("web"), daemon.config.services["web"].plan(), Observation(), (removed,))
        go_on.set()
        await task
    assert [path.name for path in (tmp_path / "state" / "services").iterdir()] == ["api.yaml"]


async def test_a_service_released_again_after_its_removal_is_driven_without_its_file_too(
    daemon: Daemon, tmp_path: Path
) -> None:
    plan, seen = daemon.config.services["web"].plan(), Observation()
    removed = ServiceRemoved(service="web", at=1.0, actor="ann", reason="")
    accepted = ReleaseAccepted(
        service="web",
        at=2.0,
        release="web-2",
        image="repo/web:2",
        actor="ann",
        reason="",
        request="2-0",
    )
    (tmp_path / "services" / "web.yaml").unlink()
    told: Any = Told()
    daemon._publish(state("web"), plan, seen, (removed, accepted))
    await daemon._reload("ann", "1-0", told, GROUP, FINE)
    assert told.plans.keys() == {"api", "web"}
    daemon._publish(state("web"), plan, seen, (removed,))
    await daemon._reload("ann", "1-0", told, GROUP, FINE)
    assert told.plans.keys() == {"api"}


def test_a_file_that_cannot_be_kept_keeps_no_other_from_it(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "kept" / "services" / "api.yaml").mkdir(parents=True)
    kept = KeptFiles(tmp_path / "kept")
    kept.keep(daemon.config)
    assert (tmp_path / "kept" / "services" / "web.yaml").is_file()


def state(service: str) -> ServiceState:
    server = Server(
        address=f"10.0.0.{len(service)}:8080",
        weight=1,
        release=f"{service}-1",
        instance=f"{service}-1-0",
        container="c1",
        started_at="t1",
    )
    return ServiceState(service=service, route=Route(generation=1, servers=(server,)))


def show(daemon: Daemon, service: str, seen: Observation) -> None:
    daemon._publish(state(service), daemon.config.services[service].plan(), seen, ())


def running(name: str) -> Observation:
    found = Instance(
        name=name, release="web-1", address="10.0.0.9:80", container="c9", started_at="t9", running=True
    )
    return Observation(instances=(found,), runtime_ok=True)


def addresses(daemon: Daemon) -> list[str] | None:
    found = daemon._target_document("here:1")
    return None if found is None else sorted(a for one in found for a in one["targets"])


def test_a_service_that_cannot_be_looked_at_holds_back_no_targets_of_others(daemon: Daemon) -> None:
    daemon._drives_since = daemon._clock.now()
    show(daemon, "web", running("web-1-0"))
    assert addresses(daemon) is None
    show(daemon, "api", Observation(runtime_ok=False))
    assert addresses(daemon) == ["10.0.0.3:8080", "10.0.0.9:80"]


def test_a_service_whose_state_cannot_be_read_holds_them_back_for_a_while_only(daemon: Daemon) -> None:
    show(daemon, "web", running("web-1-0"))
    daemon._drives_since = daemon._clock.now()
    assert addresses(daemon) is None
    daemon._drives_since = daemon._clock.now() - TARGETS_WITHHELD
    assert addresses(daemon) == ["10.0.0.9:80"]


async def test_files_are_written_while_every_thread_of_the_loop_waits_for_somebody_else(
    tmp_path: Path,
) -> None:
    """Names are looked up there too: a hook whose name server is silent must hold up no route."""
    answer = threading.Event()
    waiting = [asyncio.ensure_future(asyncio.to_thread(answer.wait)) for _ in range(64)]
    try:
        async with asyncio.timeout(20):
            await to_the_end(lambda: files.write(tmp_path / "api.conf", "text"))
    finally:
        answer.set()
        await asyncio.gather(*waiting)
    assert (tmp_path / "api.conf").read_text() == "text"


async def test_a_daemon_whose_lease_was_not_renewed_is_not_ready(daemon: Daemon, tmp_path: Path) -> None:
    redis = connect(f"unix://{tmp_path}/none.sock")
    daemon._lease = Lease(redis, Keys("t"), tmp_path)
    for why in ("standby: another daemon may hold the lease", ""):
        daemon._unready = why
        daemon._lease._renewed = asyncio.get_running_loop().time()
        assert daemon._why_unready() == why
        daemon._lease._renewed -= 60.0
        assert daemon._why_unready() == (why or "the lease was not renewed in time: does Redis answer?")
    await redis.aclose()
