"""What the daemon tells Prometheus of itself."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.ports.traffic import AnsweredCounts
from orchestrator.rollout.events import (
    Event,
    GateJudged,
    InstanceDied,
    ReleaseAccepted,
    ReleaseEnded,
    RequestRefused,
)
from orchestrator.rollout.evidence import harm_of_all
from orchestrator.rollout.model import FULL, Phase, ServiceState
from orchestrator.rollout.observation import Observation

PHASES = ("idle", *(p.value for p in Phase))


class DaemonMetrics:
    """All metrics in a registry of their own; names begin with `orchestrator_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        add: Any = {"registry": self.registry}
        self._phase = Gauge("orchestrator_phase", "1 for the current phase", ["service", "phase"], **add)
        self._weight = Gauge(
            "orchestrator_weight_percent", "Share of traffic by release", ["service", "release"], **add
        )
        self._generation = Gauge("orchestrator_generation", "Generation wanted", ["service"], **add)
        self._confirmed = Gauge("orchestrator_generation_confirmed", "Generation served", ["service"], **add)
        self._queue = Gauge("orchestrator_queue_depth", "Releases that wait", ["service"], **add)
        self._paused = Gauge("orchestrator_paused", "1 while a rollout stands still", ["service"], **add)
        self._frozen = Gauge("orchestrator_frozen", "1 while no release may start", ["service"], **add)
        self._drift = Gauge("orchestrator_edge_drift", "1 while nginx' file is not ours", ["service"], **add)
        self._stuck = Gauge("orchestrator_edge_stuck", "1 while nginx does not confirm", ["service"], **add)
        self._ready = Gauge("orchestrator_instances_ready", "Ready instances", ["service", "release"], **add)
        self._docker = Gauge("orchestrator_docker_up", "1 while Docker answers", ["service"], **add)
        self._measured = Gauge(
            "orchestrator_measurements_up", "1 while Prometheus answers for a rollout", ["service"], **add
        )
        self._accepted = Counter("orchestrator_releases_accepted", "Releases accepted", ["service"], **add)
        self._refused = Counter("orchestrator_requests_refused", "Requests refused", **add)
        self._harm = Gauge(
            "orchestrator_evidence_of_harm",
            "Evidence against the candidate; 1 says nothing",
            ["service"],
            **add,
        )
        self._verdicts = Counter(
            "orchestrator_verdicts", "Changes of a gate's result", ["service", "gate", "result"], **add
        )
        self._deaths = Counter("orchestrator_instance_deaths", "Instances that died", ["service"], **add)
        self._seconds = Histogram(
            "orchestrator_release_seconds",
            "Duration of a journey by outcome",
            ["service", "outcome"],
            buckets=(5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200),
            **add,
        )
        self.certificate = Gauge(
            "orchestrator_certificate_expires_timestamp_seconds",
            "When the certificate ends that nginx shows",
            ["service"],
            **add,
        )
        self._edges = Gauge("orchestrator_edge_up", "1 while the edge of a host speaks", ["edge"], **add)
        self._problems = Gauge("orchestrator_config_problems", "Problems of a file", ["file"], **add)
        self.store = Gauge("orchestrator_store_up", "1 while Redis answers", **add)
        self.disk = Gauge("orchestrator_disk_free_bytes", "What can be written there", ["path"], **add)
        self.trimmed = Counter("orchestrator_requests_trimmed", "Requests removed before their time", **add)
        self.pending = Gauge("orchestrator_requests_pending", "Requests not carried out yet", **add)
        self.stall = Gauge("orchestrator_loop_stall_seconds", "Longest stall of the loop lately", **add)
        self.ahead = Gauge(
            "orchestrator_clock_ahead_seconds", "Time of decisions less the host's clock", **add
        )
        self.dropped = Gauge("orchestrator_log_lines_dropped", "Log lines dropped", **add)
        self._failures = Counter(
            "orchestrator_task_failures", "Ends of work that no release waits for", ["task"], **add
        )
        self._undelivered = Counter(
            "orchestrator_notifications_dropped", "Messages that a channel did not get", ["channel"], **add
        )
        self._releases: dict[str, set[str]] = {}

    def notification_dropped(self, channel: str) -> None:
        """Count a message that a channel did not get."""
        self._undelivered.labels(channel).inc()

    def task_failed(self, name: str) -> None:
        """Count an end of a task that must not end."""
        self._failures.labels(name).inc()

    def count(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, ReleaseAccepted) and not event.duplicate:
            self._accepted.labels(event.service).inc()
        elif isinstance(event, RequestRefused):
            self._refused.inc()
        elif isinstance(event, GateJudged):
            self._verdicts.labels(event.service, event.verdict.gate, event.verdict.result.value).inc()
        elif isinstance(event, InstanceDied):
            self._deaths.labels(event.service).inc()
        elif isinstance(event, ReleaseEnded):
            self._seconds.labels(event.service, event.outcome.value).observe(event.seconds)

    def show_problems(self, by_file: Mapping[str, int]) -> None:
        """Set how many problems each file of the configuration has; a file without any is absent."""
        self._problems.clear()
        for file, number in by_file.items():
            self._problems.labels(file).set(number)

    def show_edges(self, up: Mapping[str, bool]) -> None:
        """Set which edges of other hosts say what they serve; one that is not known is absent."""
        self._edges.clear()
        for edge, speaks in up.items():
            self._edges.labels(edge).set(speaks)

    def show(self, state: ServiceState, seen: Observation) -> None:
        """Set the gauges of a service."""
        service, rollout = state.service, state.rollout
        now = rollout.phase.value if rollout else "idle"
        for phase in PHASES:
            self._phase.labels(service, phase).set(phase == now)
        live = {s.release for s in state.route.servers} | {i.release for i in seen.instances}
        for gone in self._releases.get(service, set()) - live:
            self._weight.remove(service, gone)
            self._ready.remove(service, gone)
        for release in live:
            self._weight.labels(service, release).set(state.route.share(release) * FULL)
            ready = sum(i.running and i.health == "ready" for i in seen.of(release))
            self._ready.labels(service, release).set(ready)
        self._releases[service] = live
        self._generation.labels(service).set(state.route.generation)
        self._confirmed.labels(service).set(state.confirmed)
        self._queue.labels(service).set(len(state.queue))
        self._paused.labels(service).set(rollout is not None and rollout.mark is not None)
        self._frozen.labels(service).set(state.frozen is not None)
        self._drift.labels(service).set(state.drifted_since is not None)
        self._stuck.labels(service).set(state.stuck_since is not None)
        self._docker.labels(service).set(seen.runtime_ok)
        self._harm.labels(service).set(
            harm_of_all(rollout.release.policy.comparisons, rollout.evidence) if rollout else 0.0
        )
        self._measured.labels(service).set(not (seen.readings and seen.readings[-1].error))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


def seen_by_nginx(counts: AnsweredCounts) -> bytes:
    """What nginx has seen of an instance, as Prometheus reads it."""
    requests = CounterMetricFamily("nginx_requests", "Attempts by status code", labels=["code"])
    for code, number in sorted(counts.codes.items()):
        requests.add_metric([code], number)
    total = 0
    cumulative = []
    for bound in (*counts.bounds, math.inf):
        total += counts.buckets[bound]
        cumulative.append(("+Inf" if bound == math.inf else f"{bound:g}", float(total)))
    times = HistogramMetricFamily("nginx_request_duration_seconds", "Time to the head of an answer")
    times.add_metric([], cumulative, counts.seconds)

    class Seen(Collector):
        def collect(self) -> Iterable[Metric]:
            return (requests, times)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Seen())
    return generate_latest(registry)
