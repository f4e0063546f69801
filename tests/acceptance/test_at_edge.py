"""Releases judged by what nginx has seen, with users who stay where they are."""

from typing import Any

import pytest

from examples.playground.load import Load
from orchestrator.rollout.model import Outcome
from tests.conftest import Images, Stacks

GATES: list[dict[str, Any]] = [
    {"metric": "error_rate", "budget": "5%"},
    {"metric": "latency", "quantile": 0.95, "warm_up": "2s", "budget": "5%"},
]
AT_EDGE: dict[str, Any] = {
    "metrics": {"preset": "nginx"},
    "gates": GATES,
    "strategy": {"steps": [30, 100], "min_step": "3s", "bake": "3s"},
}


@pytest.mark.parametrize("mode", ["reload", "dynamic"])
async def test_a_service_that_exposes_nothing_is_judged_by_what_nginx_has_seen(
    stack: Stacks, images: Images, mode: str
) -> None:
    s = await stack({"nginx": {"mode": mode}}, **AT_EDGE)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        ended = await s.ended("api-2", 90)
        assert (ended.outcome, ended.reason) == (Outcome.PROMOTED, "all steps passed")
        await s.push("api", images("v3", FAIL_RATE="0.3"))
        ended = await s.ended("api-3", 90)
        assert ended.outcome is Outcome.ROLLED_BACK
        assert "requests failed, stable 0.00 % of" in ended.reason
        await s.push("api", images("v4", SLOW_RATE="1", SLOW_BY="1s"))
        ended = await s.ended("api-4", 90)
        assert ended.outcome is Outcome.ROLLED_BACK
        assert ended.reason.startswith("p95 candidate")
        code, text = await s.cli("explain", "api-3")
        assert code == 0, text
        assert 'nginx_requests_total{service="api", release="api-3"' in text
        answer = await s.ask_prometheus('sum by (release) (nginx_requests_total{service="api", code="200"})')
        counted = {row["metric"]["release"]: float(row["value"][1]) for row in answer}
    assert load.seen.lost + load.seen.bad_gateway == 0, load.seen
    assert counted["api-2"] > 100
