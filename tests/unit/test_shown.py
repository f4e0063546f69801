"""The queries that a person pastes."""

import re
from dataclasses import replace
from typing import Literal

import pytest

from orchestrator.analysis.presets import PRESETS
from orchestrator.analysis.shown import shown
from orchestrator.rollout.policy import P95_EFFECTS, Comparison, Limit

SOURCE = PRESETS["client_golang"]
P95 = Comparison(name="p95", metric="latency", quantile=0.95, effects=P95_EFFECTS)


@pytest.mark.parametrize(
    ("bound", "unit", "written", "not_written"),
    [
        (5.0, 1.0, ["5", "5.0"], ["50", "15", "5.05"]),
        (0.25, 1.0, ["0.25"], ["0.250", "0125", "25"]),
        (0.0123456789, 1.0, ["0.0123456789"], ["0.0123457"]),
        (0.12100000000000001, 1.0, ["0.12100000000000001"], ["0.121"]),
        (300 * 0.001, 0.001, ["300", "300.0"], ["299"]),
        (2.5e6, 1.0, ["2.5e+06", "2500000", "2500000.0"], ["2.5"]),
        (float("inf"), 1.0, ["+Inf"], ["Inf"]),
        (1e-05, 1.0, ["1e-05"], ["0.00001"]),
    ],
)
def test_a_bound_is_found_however_it_is_written(
    bound: float, unit: float, written: list[str], not_written: list[str]
) -> None:
    query = shown(P95, replace(SOURCE, latency_unit=unit), "api", "api-1", bound)
    (pattern,) = re.findall(r'le=~"((?:[^"\\\\]|\\\\.)*)"', query)
    pattern = pattern.replace("\\\\", "\\")
    assert all(re.fullmatch(pattern, text) for text in written)
    assert not any(re.fullmatch(pattern, text) for text in not_written)


def test_the_query_of_a_comparison_is_quoted_as_promql() -> None:
    assert 'le=~"5(\\\\.0)?"' in shown(P95, SOURCE, "api", "api-1", 5.0)


@pytest.mark.parametrize(
    ("window", "written"), [(60.0, "1m"), (90.0, "90s"), (600.0, "10m"), (0.5, "500ms"), (3600.0, "60m")]
)
@pytest.mark.parametrize("metric", ["error_rate", "latency", "cpu"])
def test_the_query_of_a_limit_is_over_the_window_of_the_limit(
    metric: Literal["error_rate", "latency", "cpu"], window: float, written: str
) -> None:
    query = shown(Limit(name="x", metric=metric, max=1.0, window=window), SOURCE, "api", "api-1")
    assert set(re.findall(r"\[(\w+)\]", query)) == {written}
