"""The queries of a gate as a person pastes them into Prometheus. Pure."""

import math
import re

from orchestrator.analysis.query import latencies, quote, requests
from orchestrator.ports.metrics import ENGINE, MetricSource
from orchestrator.rollout.policy import Comparison, Limit

ALL = "5m"
"""Of a comparison, which has no window of its own: it counts from the first look on."""


def shown(
    gate: Limit | Comparison, source: MetricSource, service: str, release: str, bound: float | None = None
) -> str:
    """PromQL that draws what a gate looks at, for one release; '' when Prometheus does not have it.

    A graph of `increase()` is near to what is judged and not equal: the daemon takes differences of counters.
    A limit's is over the window of the limit.

    Args:
        gate: The rule.
        source: Where requests are counted.
        service: The service's name.
        release: The release's id.
        bound: For a comparison of latency, the bound in seconds that it uses.
    """
    which = f"service={quote(service)}, release={quote(release)}"
    window = _window(gate.window) if isinstance(gate, Limit) else ALL
    if gate.metric == "query" and isinstance(gate, Limit):
        return gate.query.replace("$service", service)
    if gate.metric == "counts" and isinstance(gate, Comparison):
        parts = (f"sum by (release) (increase(({text})[{ALL}:]))" for text in (gate.bad, gate.total))
        return " / ".join(parts).replace("$service", service)
    if gate.metric == "cpu":
        return "" if source.cpu == ENGINE else f"max(rate({source.cpu}{{{which}}}[{window}]))"
    if gate.metric == "error_rate":
        failed, users = requests(source, which, failed=True), requests(source, which)
        return f"(sum(increase({failed}[{window}])) or vector(0)) / sum(increase({users}[{window}]))"
    if isinstance(gate, Limit):
        buckets = latencies(source, which)
        return f"histogram_quantile({gate.quantile:g}, sum by (le) (rate({buckets}[{window}])))"
    return _slow(source, which, bound if bound is not None else math.inf)


def _slow(source: MetricSource, which: str, bound: float) -> str:
    fast = latencies(source, f"{which}, le=~{quote(_written(bound, source.latency_unit))}")
    users = latencies(source, f'{which}, le="+Inf"')
    return f"1 - sum(increase({fast}[{ALL}])) / sum(increase({users}[{ALL}]))"


def _window(seconds: float) -> str:
    """A range as PromQL has it, whose numbers are whole."""
    for size, unit in ((60.0, "m"), (1.0, "s")):
        if seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"


def _written(bound: float, unit: float) -> str:
    """A pattern for the ways in which `le` is written.

    client_golang writes `5`, OpenMetrics and Prometheus 3 `5.0`; from a million on Go writes `1e+06`.
    """
    if math.isinf(bound):
        return r"\+Inf"
    short = float(f"{bound / unit:.12g}")  # 0.3 / 0.001 is not quite 300
    value = short if short * unit == bound else bound / unit
    plain = f"{value:.0f}" if value == int(value) else repr(value)
    ways = [re.escape(plain) + (r"(\.0)?" if value == int(value) else "")]
    if value >= 1e6 and value == int(value):  # noqa: PLR2004  from here on Go writes an exponent
        digits, power = f"{value:.16e}".split("e")
        ways.append(re.escape(f"{digits.rstrip('0').rstrip('.')}e{power}"))
    return "|".join(ways)
