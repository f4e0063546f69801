"""Gates on evidence, on the whole daemon with real Redis, Docker, Gin, nginx and Prometheus."""

import asyncio
import json
from typing import Any

import pytest

from examples.playground.load import Load
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.rollout.events import GatesLooked
from orchestrator.rollout.model import Outcome
from tests.conftest import Images, Stacks
from tests.forks import ForkedStack

COMPARED: list[dict[str, Any]] = [
    {"metric": "error_rate"},
    {"metric": "latency", "quantile": 0.95, "warm_up": "3s"},
]


async def test_five_percent_of_errors_are_seen_within_three_scrapes_and_explained(
    stack: Stacks, images: Images
) -> None:
    s = await stack(
        {"prometheus": {"interval": "500ms"}},
        scrape="5s",
        gates=COMPARED,
        strategy={"steps": [40, 100], "min_step": "10s", "bake": "10s"},
        no_data={"after": "60s"},
        deadlines={"start": "40s", "drain": "2s"},
    )
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v3", FAIL_RATE="0.05"), why="build 3")
        ended = await s.ended("api-2", 120)
    assert ended.outcome is Outcome.ROLLED_BACK
    assert "requests failed, stable 0.00 % of" in ended.reason
    looks = [e for e in await s.events() if isinstance(e, GatesLooked)]
    scrapes = [e for e in looks if any(g.gate == "error_rate" and g.block for g in e.looks)]
    assert 2 <= len(scrapes) <= 3
    assert load.seen.errors["api-1"] == 0
    await _explained(s)


async def _explained(s: Stack) -> None:
    code, text = await s.cli("explain", "api-2")
    assert code == 0, text
    assert "rolled back after" in text
    assert "error_rate harm" in text
    assert 'http_requests_total{service="api", release="api-2"' in text
    code, text = await s.cli("explain", "api-2", "--output", "json")
    found = json.loads(text)
    assert (found["outcome"], found["stable"]) == ("rolled_back", "api-1")
    assert found["looks"][-1]["harm"] >= found["alarm"] == 100
    for query in found["queries"]:
        assert await s.ask_prometheus(query["promql"]) is not None
    code, text = await s.cli("replay", "api-2")
    assert code == 0, text
    assert "all verdicts are the same" in text
    code, text = await s.cli("replay", "api-9")
    assert (code, "is no release that is remembered of api" in text) == (2, True)
    code, text = await s.cli("rehearse", "api", "--days", "0.01", deadline=120)
    assert code == 0, text
    assert "good releases rolled back" in text
    assert "a good release takes" in text
    code, text = await s.cli("rehearse", "api", "--days", "0.01", "--output", "json", deadline=120)
    assert code == 0, text
    assert json.loads(text)["good_releases_rolled_back"] <= 0.02


@pytest.mark.timeout(400)
async def test_twenty_good_releases_are_all_promoted(images: Images) -> None:
    """Five services, each with four releases in a row."""
    names = [f"api{n}" for n in range(5)]
    quick: dict[str, Any] = {
        "gates": [{**gate, "budget": "5%"} for gate in COMPARED],
        "strategy": {"steps": [20, 100], "min_step": "3s", "bake": "3s"},
        "container": {"port": 8080, "memory": "64MiB", "cpus": 0.5, "probe": {"successes": 2}},
        "keep_previous": "1s",
    }
    versions = [images("v1"), images("v2")]
    async with ForkedStack(lambda port: {n: service_file(n, port(n), **quick) for n in names}) as s:

        async def row(name: str) -> list[str]:
            await s.push(name, versions[0])
            await s.ended(f"{name}-1")
            outcomes = []
            async with Load(s.url(name), 40):
                for number in range(2, 6):
                    await s.push(name, versions[number % 2])
                    ended = await s.ended(f"{name}-{number}", 120)
                    outcomes.append(f"{ended.outcome}: {ended.reason}")
            return outcomes

        rows = await asyncio.gather(*map(row, names))
    assert [outcome for outcomes in rows for outcome in outcomes] == ["promoted: all steps passed"] * 20


async def test_a_container_that_burns_its_cpu_goes_back_by_what_docker_counts(
    stack: Stacks, images: Images
) -> None:
    s = await stack(
        metrics={"cpu": "docker"},
        container={  # a fifth of a CPU, which the kernel grants on a busy machine as well
            "port": 8080,
            "memory": "64MiB",
            "cpus": 0.2,
            "probe": {"successes": 2},
        },
        gates=[
            {"metric": "cpu", "max": "60%", "for": "2s", "window": "5s"},
            {"metric": "cpu", "name": "trial", "max": "1%", "dry_run": True},
        ],
        strategy={"steps": [20, 100], "first_hold": "40s", "bake": "2s"},
    )
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 50):
        await s.push("api", images("v6", BURN="yes"))
        ended = await s.ended("api-2")
    assert ended.outcome is Outcome.ROLLED_BACK
    assert ended.reason.startswith("cpu_limit ")
    assert "limit 60.00 %" in ended.reason
