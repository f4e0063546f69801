"""Comparisons on a real Prometheus: what makes other gates err."""

import asyncio
import time
from dataclasses import replace

import pytest

from orchestrator.analysis.presets import PRESETS
from orchestrator.daemon.clock import SystemClock
from orchestrator.ports.metrics import MetricQuery
from orchestrator.rollout.decide import decide
from orchestrator.rollout.model import Phase, Result, Rollout, Verdict
from orchestrator.rollout.policy import Comparison
from tests.builders import submit, template
from tests.integration.conftest import Kit, requests
from tests.unit.sim import Sim
from tests.unit.test_comparison import ERRORS, compared

API = MetricQuery(service="api", source=PRESETS["client_golang"])
STABLE, CANDIDATE = "api-1-0", "api-2-0"


class Case:
    """A rollout at its first weight, judged on what the real Prometheus answers."""

    def __init__(self, kit: Kit, rule: Comparison = ERRORS, query: MetricQuery = API) -> None:
        self.kit, self.query = kit, query
        self.sim = Sim(now=SystemClock().now() - 300)
        one = template(instances=1)
        self.sim.send(submit(1, template=one))
        self.sim.until_ended("api-1")
        self.sim.send(submit(2, template=one, policy=compared(rule)))
        self.sim.until_phase(Phase.SHIFTING, held=True)
        rollout = replace(self.rollout, evidence=(), block_from=None, looked_at=None)
        self.sim.state = replace(self.sim.state, rollout=rollout)
        self.sim.readings.clear()

    @property
    def rollout(self) -> Rollout:
        assert self.sim.state.rollout is not None
        return self.sim.state.rollout

    @property
    def verdict(self) -> Verdict:
        return self.rollout.verdicts[0]

    @property
    def blocks(self) -> int:
        return self.rollout.evidence[0].blocks if self.rollout.evidence else 0

    async def look(self) -> None:
        self.sim.readings.append(await self.kit.read(self.query))
        self.sim.now = SystemClock().now()
        self.sim.state, events = decide(self.sim.state, self.sim.observe(), self.sim.now)
        self.sim.events += events

    async def say(self, stable: str | None, candidate: str | None) -> None:
        """Change what the exporters say and look until both changes were scraped and counted."""
        blocks = self.blocks
        for name, text in ((STABLE, stable), (CANDIDATE, candidate)):
            if text is not None:
                self.kit.exporters[name].text = text
        await asyncio.sleep(1.1)
        limit = time.monotonic() + 10
        while self.rollout.phase is Phase.SHIFTING and self.blocks <= blocks:
            assert time.monotonic() < limit, self.rollout.verdicts
            await self.look()
            await asyncio.sleep(0.2)

    async def begin(self, stable: str, candidate: str) -> None:
        """The counters from before the first request; two scrapes must have seen them."""
        self.kit.exporters[STABLE].text, self.kit.exporters[CANDIDATE].text = stable, candidate
        await self.kit.until(self.query, lambda r: {STABLE, CANDIDATE} <= r.samples.keys())
        await asyncio.sleep(1.1)
        await self.look()


async def test_a_counter_that_is_born_at_500_is_500_errors(kit: Kit) -> None:
    case = Case(kit)
    await case.begin(requests(10_000, 10), requests(0))
    await case.say(requests(20_000, 20), requests(1000, 500))
    assert case.verdict.bad == 500
    await case.say(requests(30_000, 30), requests(2000, 1000))
    assert case.rollout.phase is Phase.ROLLING_BACK
    assert "of 2,000 requests failed" in case.rollout.reason


async def test_an_error_series_that_is_not_there_is_no_error(kit: Kit) -> None:
    case = Case(kit)
    await case.begin(requests(10_000), requests(0))
    for n in range(1, 4):
        await case.say(requests(10_000 + 9000 * n), requests(500 * n))
    assert (case.verdict.result, case.verdict.bad) == (Result.PASS, 0)
    assert case.verdict.samples >= 500


@pytest.mark.parametrize(
    "wrong", ['http_requests_sum{code="200"} %d\n', 'http_requests_total{status="500"} %d\n']
)
async def test_a_name_or_a_label_that_is_wrong_never_passes(kit: Kit, wrong: str) -> None:
    case = Case(kit)
    await case.begin(requests(10_000), wrong % 0)
    for n in range(1, 8):
        if case.rollout.phase is Phase.SHIFTING:
            assert case.verdict.result is not Result.PASS
            await case.say(requests(10_000 + 2000 * n), wrong % (100 * n))
    assert case.rollout.phase is Phase.ROLLING_BACK
    assert "no request reached the candidate" in case.rollout.reason


async def test_a_stale_target_of_the_candidate_is_no_data_and_of_stable_is_a_hold(kit: Kit) -> None:
    case = Case(kit)
    await case.begin(requests(10_000), requests(0))
    await case.say(requests(12_000), requests(100))
    for name, result in ((CANDIDATE, Result.NO_DATA), (STABLE, Result.INCONCLUSIVE)):
        kit.exporters[name].up = False
        await kit.until(API, lambda r, name=name: name not in r.samples)  # type: ignore[misc]
        await case.look()
        assert case.verdict.result is result
        assert f"{name} is not scraped or its target is down" in case.verdict.text
        kit.exporters[name].up = True
        await kit.until(API, lambda r, name=name: name in r.samples)  # type: ignore[misc]
    await case.say(requests(14_000), requests(200))
    assert case.rollout.evidence[0].step.requests == 200


async def test_a_reset_in_mid_step_counts_what_the_new_process_counted(kit: Kit) -> None:
    case = Case(kit)
    await case.begin(requests(10_000, 100), requests(0))
    await case.say(requests(12_000, 120), requests(100))
    await case.say(requests(300, 3), requests(150))
    step = case.rollout.evidence[0].step
    assert (step.stable_requests, step.stable_bad, step.requests) == (2300, 23, 150)


async def test_a_scrape_is_a_block_however_often_it_is_read_and_whenever_each_side_is_scraped(
    kit: Kit,
) -> None:
    case = Case(kit)
    await case.begin(requests(10_000), requests(0))
    began, before, looks = time.monotonic(), case.blocks, 0
    total = 10_000
    while time.monotonic() - began < 6:
        total += 400
        kit.exporters[STABLE].text, kit.exporters[CANDIDATE].text = requests(total), requests(total // 20)
        await case.look()
        looks += 1
        await asyncio.sleep(0.1)
    assert looks > 20
    assert 3 <= case.blocks - before <= 8
    step = case.rollout.evidence[0].step
    assert step.requests <= total // 20
    assert step.stable_requests <= total - 10_000


async def test_nan_is_no_data(kit: Kit) -> None:
    case = Case(kit)
    await case.begin(requests(10_000), requests(0))
    kit.exporters[CANDIDATE].text = 'http_requests_total{path="/ping",code="200"} NaN\n'
    await kit.until(API, lambda r: CANDIDATE not in r.samples)
    await case.look()
    assert case.verdict.result is Result.NO_DATA


async def test_prometheus_that_is_restarted_in_mid_step_takes_no_evidence_away(kit: Kit) -> None:
    case = Case(kit)
    await case.begin(requests(10_000), requests(0))
    for n in range(1, 3):
        await case.say(requests(10_000 + 2000 * n), requests(100 * n))
    before = case.rollout.evidence[0]
    kit.kill()
    await case.look()
    assert case.verdict.result is Result.NO_DATA
    assert case.rollout.evidence[0] == before
    kit.start()
    await kit.until(API, lambda r: {STABLE, CANDIDATE} <= r.samples.keys())
    await case.say(requests(20_000), requests(500))
    while case.rollout.evidence[0].step.requests < 500:  # one side may have been scraped before the other
        await case.say(requests(21_000), None)
    after = case.rollout.evidence[0]
    assert after.blocks > before.blocks
    assert after.step.requests == 500
    assert case.rollout.phase is Phase.SHIFTING


async def test_counters_of_the_operators_own_and_their_past(kit: Kit) -> None:
    rule = Comparison(
        name="pay",
        metric="counts",
        total='payments_total{service="$service"}',
        bad='payments_total{service="$service", result="failed"}',
        margin=0.03,
        budget=0.065,
    )
    query = replace(API, counts=((rule.name, rule.total, rule.bad),))

    def paid(good: int, failed: int) -> str:
        text = requests(good) + f'payments_total{{result="ok"}} {good}\n'
        return text + (f'payments_total{{result="failed"}} {failed}\n' if failed else "")

    case = Case(kit, rule, query)
    await case.begin(paid(10_000, 200), paid(0, 0))
    await case.say(paid(12_000, 240), paid(100, 30))
    assert (case.verdict.samples, case.verdict.bad) == (130, 30)
    assert (case.verdict.baseline_samples, case.verdict.baseline_bad) == (2040, 40)
    await asyncio.sleep(3.1)  # the past is looked at every 3 s: one look falls before the next change
    kit.exporters[STABLE].text = paid(14_000, 280)
    asked = replace(query, history=(("pay", 30.0), ("error_rate", 30.0)))
    past = await kit.until(asked, lambda r: "pay" in r.history)
    assert 0 <= past.history["pay"] <= 1
    assert past.history.get("error_rate", 0.0) == 0.0


async def test_cpu_seconds_of_an_instance(kit: Kit) -> None:
    for name, used in ((STABLE, 7.5), (CANDIDATE, 2.25)):
        kit.exporters[name].text = requests(1) + f"process_cpu_seconds_total {used}\n"
    reading = await kit.until(replace(API, cpu=True), lambda r: {STABLE, CANDIDATE} <= r.samples.keys())
    found = {name: sample.cpu for name, sample in reading.samples.items()}
    stamps = {name: sample.stamp for name, sample in reading.samples.items()}
    assert found == {STABLE: (stamps[STABLE], 7.5), CANDIDATE: (stamps[CANDIDATE], 2.25)}
    without = await kit.read(API)
    assert without.samples[STABLE].cpu is None
