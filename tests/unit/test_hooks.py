"""Hooks and the checklist, in the core and in the engine."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.engine.conductor import Conductor
from orchestrator.engine.dispatcher import to_command
from orchestrator.intake.parse import parse
from orchestrator.ports.faults import Fault
from orchestrator.rollout.command import Rollback, Submit
from orchestrator.rollout.events import ImageResolved, PhaseEntered
from orchestrator.rollout.hooks import HookCall, HookResult, unchecked
from orchestrator.rollout.model import Outcome, Phase, ServiceState
from orchestrator.rollout.policy import Check, Hook
from tests.builders import LADDER, policy, submit
from tests.contract.fakes import FakeHooks
from tests.simulation import loop as virtual
from tests.unit.sim import Behaviour, Sim
from tests.unit.test_engine import PLAN, Kit, small

FINE, NO = HookResult(passed=True, text="fine"), HookResult(passed=False, text="3 critical findings")


def hook(name: str, at: Any) -> Hook:
    return Hook(name=name, at=at, kind="command", command=("true",))


SCAN, ASK = hook("scan", "preflight"), hook("ask", "before_step")


def test_a_release_starts_only_when_its_preflight_hooks_have_passed(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(hooks=(SCAN, hook("later", "after_promotion")))))
    sim.run(5)
    assert sim.state.rollout is not None
    assert sim.state.rollout.phase is Phase.PREFLIGHT
    assert len([e for e in sim.events if isinstance(e, ImageResolved) and e.release == "api-2"]) == 1
    assert not [i for i in sim.instances.values() if i.release == "api-2"]
    sim.hooks["scan"] = FINE
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED


def test_a_preflight_hook_that_says_no_ends_it_with_its_words(sim: Sim) -> None:
    sim.hooks["scan"] = NO
    sim.send(submit(2, policy=policy(hooks=(SCAN,))))
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "hook scan: 3 critical findings")


def test_hooks_that_say_nothing_meet_the_deadline_of_preflight(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(hooks=(SCAN,), preflight_deadline=20.0)))
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "the hooks of api-2 had not passed after 20 s")


def test_a_hook_before_a_step_holds_the_weight_until_it_has_passed(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(hooks=(ASK,))))
    sim.until_phase(Phase.STARTING)
    sim.run(30)
    assert sim.share("api-2") == 0
    sim.hooks["ask"] = FINE
    sim.until_phase(Phase.SHIFTING, 0, held=True)
    del sim.hooks["ask"]
    sim.run(60)
    rollout = sim.state.rollout
    assert rollout is not None
    assert (rollout.step, rollout.hooks_for) == (0, 1)
    assert sim.share("api-2") == policy().steps[0].weight
    sim.hooks["ask"] = FINE
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    entered = [
        e.step for e in sim.events if isinstance(e, PhaseEntered) and e.weight and e.release == "api-2"
    ]
    assert entered == [0, 1, 2]


def test_while_a_hook_is_asked_the_gates_watch_on(sim: Sim) -> None:
    sim.hooks["ask"] = FINE
    sim.send(submit(2, policy=policy(hooks=(ASK,))))
    sim.until_phase(Phase.SHIFTING, 0, held=True)
    del sim.hooks["ask"]
    sim.run(60)
    sim.behaviours["api-2"] = Behaviour(errors=0.5)
    assert sim.until_ended("api-2").outcome is Outcome.ROLLED_BACK


def test_a_hook_before_a_step_that_says_no_takes_the_traffic_back(sim: Sim) -> None:
    sim.hooks["ask"] = FINE
    sim.send(submit(2, policy=policy(hooks=(ASK,))))
    sim.until_phase(Phase.SHIFTING, 0, held=True)
    sim.hooks["ask"] = NO
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.reason) == (Outcome.ROLLED_BACK, "hook ask: 3 critical findings")
    assert sim.share("api-1") == 100


def test_going_back_asks_nobody(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(hooks=(SCAN, ASK))))
    sim.hooks |= {"scan": FINE, "ask": FINE}
    sim.until_ended("api-2")
    sim.hooks.clear()
    sim.send(Rollback(request="9-0", actor="ann"))
    sim.run(10)
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rate": 0.99, "rehearsed": 1.0}, ""),
        ({"rate": 0.97, "rehearsed": 1.0}, "rate is 0.97, and must be 0.98 or more"),
        ({"rate": float("nan"), "rehearsed": 1.0}, "rate is nan, and must be 0.98 or more"),
        ({"rate": 1.0, "rehearsed": 0.0}, "rehearsed is 0, and must be 1 or more"),
        ({}, "rate is missing; rehearsed is missing"),
    ],
    ids=str,
)
def test_a_checklist_says_what_is_lacking(given: dict[str, float], says: str) -> None:
    assert unchecked((Check(name="rate", least=0.98), Check(name="rehearsed")), given) == says


def test_a_request_without_its_checklist_is_refused() -> None:
    plan = replace(PLAN, checklist=(Check(name="rate", least=0.98),))
    fields = {"service": "api", "image": "repo/api:1"}
    assert to_command(parse("1-0", fields), plan) == "checklist: rate is missing"
    assert isinstance(
        to_command(parse("1-0", {**fields, "checks": '{"rate": 0.99, "more": true}'}), plan), Submit
    )


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": "yes"}', '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}']
)
def test_checks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(Fault, match="checks: is not a JSON object such as"):
        parse("1-0", {"service": "api", "image": "repo/api:1", "checks": text})


def _hooked(number: int) -> Submit:
    command: Submit = small(number)
    return replace(command, policy=replace(command.policy, hooks=(SCAN, ASK)))


def test_hooks_before_the_first_step_that_say_nothing_meet_its_deadline(sim: Sim) -> None:
    sim.send(submit(2, policy=policy(hooks=(ASK,))))
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "hook ask: no answer within 60 s")


def test_hooks_before_a_later_step_have_the_time_that_it_may_take(sim: Sim) -> None:
    first = replace(LADDER[0], hold=10.0, deadline=12.0)
    sim.hooks["ask"] = FINE
    sim.send(submit(2, policy=policy(hooks=(ASK,), limits=(), steps=(first, *LADDER[1:]))))
    sim.until_phase(Phase.SHIFTING)
    del sim.hooks["ask"]
    sim.run(50)
    assert sim.share("api-2") == 5
    ended = sim.until_ended("api-2")
    assert (ended.outcome, ended.reason) == (Outcome.ROLLED_BACK, "hook ask: no answer within 60 s")
    assert sim.share("api-2") == 0


@pytest.mark.parametrize(("required", "outcome"), [(True, Outcome.FAILED), (False, Outcome.PROMOTED)])
def test_a_hook_that_outlasts_its_own_deadlines_has_said_nothing(required: bool, outcome: Outcome) -> None:
    """Whoever runs it: the engine does not wait for longer."""

    class Hung(FakeHooks):
        async def ask(self, call: HookCall) -> HookResult:
            await asyncio.Event().wait()
            raise AssertionError

    async def story() -> ServiceState:
        kit = Kit(hooks=Hung())
        task = asyncio.create_task(kit.conductor.run(), name="conductor")
        scan = replace(SCAN, retries=0, timeout=1.0, required=required)
        kit.conductor.submit(small(1, hooks=(scan,), preflight_deadline=1e9))
        while not (await kit.state()).history:
            await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await kit.state()

    (ended,) = virtual.run(story()).history
    assert ended.outcome is outcome
    assert required == (ended.reason == "hook scan: no answer within 16 s")


async def test_the_engine_asks_each_hook_once_a_step_and_forgets_them() -> None:
    kit = Kit()
    plan = PLAN
    kit.conductor = Conductor(plan, kit.parts)
    task = asyncio.create_task(kit.conductor.run(), name="conductor")
    try:
        kit.conductor.submit(_hooked(1))
        await kit.until(lambda s: s.stable is not None)
        kit.conductor.submit(_hooked(2))
        await kit.until(lambda _: len(kit.hooks.asked) > 2)
        assert kit.hooks.asked[:3] == [
            "api-1:preflight:-1:scan",
            "api-2:preflight:-1:scan",
            "api-2:before_step:0:ask",
        ]
        assert len(kit.hooks.asked) == len(set(kit.hooks.asked))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
