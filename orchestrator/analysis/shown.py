"""The queries of a gate as a person pastes them into Prometheus. Pure."""

import math

from orchestrator.analysis.query import latencies, quote, requests
from orchestrator.ports.metrics import ENGINE, MetricSource
from orchestrator.rollout.policy import Comparison, Limit


def shown(
    gate: Limit | Comparison, source: MetricSource, service: str, release: str, bound: float | None = None
) -> str:
    """PromQL that draws what a gate looks at, for one release; '' when Prometheus does not have it.

    A graph of `increase()` is near to what is judged and not equal: the daemon takes differences of counters.

    Args:
        gate: The rule.
        source: Where requests are counted.
        service: The service's name.
        release: The release's id.
        bound: For a comparison of latency, the bound in seconds that it uses.
    """
    which = f"service={quote(service)}, release={quote(release)}"
    if gate.metric == "query" and isinstance(gate, Limit):
        return gate.query.replace("$service", service)
    if gate.metric == "counts" and isinstance(gate, Comparison):
        parts = (f"sum by (release) (increase(({text})[5m:]))" for text in (gate.bad, gate.total))
        return " / ".join(parts).replace("$service", service)
    if gate.metric == "cpu":
        return "" if source.cpu == ENGINE else f"max(rate({source.cpu}{{{which}}}[1m]))"
    if gate.metric == "error_rate":
        failed, users = requests(source, which, failed=True), requests(source, which)
        return f"(sum(increase({failed}[5m])) or vector(0)) / sum(increase({users}[5m]))"
    if isinstance(gate, Limit):
        buckets = latencies(source, which)
        return f"histogram_quantile({gate.quantile:g}, sum by (le) (rate({buckets}[1m])))"
    return _slow(source, which, bound if bound is not None else math.inf)


def _slow(source: MetricSource, which: str, bound: float) -> str:
    fast = latencies(source, f"{which}, le={quote(f'{bound / source.latency_unit:g}')}")
    users = latencies(source, f'{which}, le="+Inf"')
    return f"1 - sum(increase({fast}[5m])) / sum(increase({users}[5m]))"
