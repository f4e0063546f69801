"""Hooks after a release has ended: real programs, events and bookmarks on a real Redis."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from orchestrator.engine.tasks import courtesy
from orchestrator.hooks import afterwards as afterwards_module
from orchestrator.hooks.afterwards import Afterwards
from orchestrator.hooks.runner import HookRunner
from orchestrator.ports.faults import Fault
from orchestrator.rollout.hooks import HookCall, HookResult
from orchestrator.rollout.model import Ended, Outcome, ServiceState
from orchestrator.rollout.policy import Hook, HookPhase
from tests.builders import release
from tests.door.conftest import House, until
from tests.samples import ended


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afterwards_module, "LOOK", 0.02)


class Programs:
    """Hooks that write down what they are told, and wait where they are held."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        self._log.touch()
        self._held = folder / "held"
        self._script = folder / "hook.sh"
        self._script.write_text(
            f"told=$(cat)\nprintf '%s\\n' \"$told\" >> {self._log}\n"  # one write a line
            f'while [ -e {self._held} ] && [ "$1" = slow ]; do sleep 0.05; done\n'
        )
        self.of: dict[str, list[Hook]] = {}

    def hook(self, name: str, at: HookPhase = "after_promotion", **more: Any) -> Hook:
        command = ("sh", str(self._script), name)
        return Hook(name=name, at=at, kind="command", command=command, **{"timeout": 60.0, **more})

    def hold(self) -> None:
        self._held.touch()

    def let_go(self) -> None:
        self._held.unlink()

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    @property
    def names(self) -> list[str]:
        return [f"{told['release']} {told['hook']}" for told in self.told]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@contextlib.asynccontextmanager
async def daemon(
    house: House, programs: Programs, store: Any = None, runner: HookRunner | None = None
) -> AsyncIterator[Afterwards]:
    """What a daemon runs; it must not end."""
    store = store or house.store
    found = Afterwards(runner or HookRunner(), store, store, lambda service: programs.of.get(service, []))
    task = asyncio.create_task(courtesy("hooks", found.run, first_pause=0.02), name="hooks")
    async with asyncio.timeout(5):
        while not await house.store.bookmark("hooks"):
            await asyncio.sleep(0.01)
    try:
        yield found
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def put(house: House, number: int, service: str = "api", outcome: Outcome = Outcome.PROMOTED) -> None:
    """A release has ended."""
    now = house.clock.now()
    event = ended(number, now, service=service, release=f"{service}-{number}", outcome=outcome)
    over = Ended(
        release=release(number, id=f"{service}-{number}", service=service),
        kind="release",
        outcome=outcome,
        reason="r",
        actor="a",
        began_at=now - 1,
        ended_at=now,
    )
    state, _ = await house.store.load(service)
    await house.put(ServiceState(service=service, history=(over, *state.history)), event)


async def noted(house: House) -> None:
    """Until a daemon that starts again would have nothing to do."""
    async with asyncio.timeout(10):
        while await house.store.bookmark("hooks") != await house.store.last_event_id():
            await asyncio.sleep(0.02)


async def test_each_is_told_once_whom_it_concerns(house: House, programs: Programs) -> None:
    programs.of["api"] = [programs.hook("one"), programs.hook("back", "after_rollback"), programs.hook("two")]
    async with daemon(house, programs):
        await put(house, 1)
        await put(house, 2, outcome=Outcome.ROLLED_BACK)
        await put(house, 3, outcome=Outcome.ABORTED)
        await put(house, 4, service="web")
        await noted(house)
    assert programs.names == ["api-1 one", "api-1 two", "api-2 back"]
    told = programs.told[-1]
    assert (told["outcome"], told["actor"], told["because"]) == ("rolled_back", "orchestrator", "error_rate")


async def test_a_hook_takes_as_long_as_its_own_timeout_and_holds_no_other_service(
    house: House, programs: Programs
) -> None:
    programs.of = {"api": [programs.hook("quick"), programs.hook("slow")], "web": [programs.hook("other")]}
    programs.hold()
    async with daemon(house, programs):
        await put(house, 1)
        await until(lambda: "api-1 slow" in programs.names)
        for number in range(2, 5):
            await put(house, number, service="web")
        await put(house, 2)
        await until(lambda: "web-4 other" in programs.names)
        assert "api-2 quick" not in programs.names
        programs.let_go()
        await noted(house)
    api = [name for name in programs.names if name.startswith("api")]
    assert api == ["api-1 quick", "api-1 slow", "api-2 quick", "api-2 slow"]
    assert len(programs.names) == 7


async def test_a_hook_that_gives_no_answer_in_time_is_told_as_often_as_it_says(
    house: House, programs: Programs
) -> None:
    slow = programs.hook("slow", timeout=0.2, retries=1)
    programs.of["api"] = [slow, programs.hook("next")]
    programs.hold()
    async with daemon(house, programs):
        await put(house, 1)
        await noted(house)
    assert programs.names == ["api-1 slow", "api-1 slow", "api-1 next"]


async def test_a_daemon_that_starts_again_tells_only_what_was_interrupted(
    house: House, programs: Programs
) -> None:
    programs.of = {"api": [programs.hook("quick"), programs.hook("slow")], "web": [programs.hook("other")]}
    programs.hold()
    async with daemon(house, programs):
        await put(house, 1)
        await until(lambda: "api-1 slow" in programs.names)
        await put(house, 2, service="web")
        await until(lambda: "web-2 other" in programs.names)
        async with asyncio.timeout(5):
            while not await house.store.bookmark("hooks/web"):
                await asyncio.sleep(0.01)
    async with daemon(house, programs):
        await until(lambda: programs.names.count("api-1 slow") == 2)
        programs.let_go()
        await noted(house)
    assert programs.names == ["api-1 quick", "api-1 slow", "web-2 other", "api-1 slow"]
    assert len({told["id"] for told in programs.told if told["hook"] == "slow"}) == 1
    async with daemon(house, programs):
        await put(house, 3, service="web")
        await noted(house)
    assert programs.names[4:] == ["web-3 other"]


async def test_a_redis_that_is_away_interrupts_no_hook(house: House, programs: Programs) -> None:
    class Flaky:
        """Journal and bookmarks on a Redis that can be away."""

        away = False

        def __getattr__(self, name: str) -> Any:
            found = getattr(house.store, name)

            async def asked(*args: Any) -> Any:
                if self.away:
                    raise Fault("Redis: away")
                return await found(*args)

            return asked

    programs.of["api"] = [programs.hook("slow"), programs.hook("next")]
    programs.hold()
    flaky = Flaky()
    async with daemon(house, programs, flaky):
        await put(house, 1)
        await until(lambda: programs.names == ["api-1 slow"])
        flaky.away = True
        with capture_logs() as lines:
            await until(lambda: len(lines) > 3)
        programs.let_go()
        flaky.away = False
        await noted(house)
    assert programs.names == ["api-1 slow", "api-1 next"]


async def test_a_bug_in_a_hook_and_a_damaged_state_cost_the_hooks_of_one_release(
    house: House, programs: Programs
) -> None:
    class Broken(HookRunner):
        async def ask(self, call: HookCall, more: Any = None) -> HookResult:
            if call.release.id == "api-1":
                raise ZeroDivisionError
            return await super().ask(call, more)

    programs.of = {name: [programs.hook("one")] for name in ("api", "web", "shop")}
    await house.store.set_bookmark("hooks", "0-0")
    await put(house, 1)
    await put(house, 2)
    await put(house, 3, service="web")
    await house.redis.hset(house.keys.state("web"), "data", "{")
    await put(house, 4, service="shop")
    with capture_logs() as lines:
        async with daemon(house, programs, runner=Broken()):
            await noted(house)
    assert sorted(programs.names) == ["api-2 one", "shop-4 one"]
    failed = [line for line in lines if line["event"] == "hooks_failed"]
    assert sorted((line["release"], line["exc_info"]) for line in failed) == [
        ("api-1", True),
        ("web-3", True),
    ]
