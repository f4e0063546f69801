"""What is measured, and where it is counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.rollout.observation import Reading

ENGINE = "docker"
"""What `MetricSource.cpu` says when the Engine is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSource:
    """Where a service's requests are counted.

    Attributes:
        requests: Counter of requests.
        status_label: The label that holds the status code.
        error_pattern: Regular expression of the status codes that are errors.
        latency: Base name of a histogram, without `_bucket`; empty when there is none.
        latency_unit: Seconds that one unit of the histogram's bounds is worth.
        ignore: Label to regular expression: series that are not users' requests.
        path: The path that Prometheus scrapes.
        port: The port that Prometheus scrapes; 0 is the service's own.
        cpu: Counter of CPU seconds, or `ENGINE`.
        at_edge: Whether the daemon counts them, from what nginx tells, and is scraped for each instance.
    """

    requests: str
    status_label: str
    error_pattern: str
    latency: str
    latency_unit: float = 1.0
    ignore: tuple[tuple[str, str], ...] = ()
    path: str = "/metrics"
    port: int = 0
    cpu: str = "process_cpu_seconds_total"
    at_edge: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricQuery:
    """What is to be read for one service.

    Attributes:
        queries: Gate name to PromQL of a value.
        counts: Gate name to PromQL of the operator's counters of all and of the bad ones.
        history: Gate name to how many seconds of the past are asked for.
        cpu: Whether CPU seconds are wanted.
        instances: Those whose samples are wanted; where one is absent, the reading says why.
    """

    service: str
    source: MetricSource
    queries: tuple[tuple[str, str], ...] = ()
    counts: tuple[tuple[str, str, str], ...] = ()
    history: tuple[tuple[str, float], ...] = ()
    cpu: bool = False
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """One address that Prometheus is to scrape.

    Attributes:
        at_edge: The daemon answers for it, at the path in its labels.
    """

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    at_edge: bool = False


class Metrics(Protocol):
    """Measurements."""

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        """One look for all services at once; a failure is in the readings, never raised."""
        ...
