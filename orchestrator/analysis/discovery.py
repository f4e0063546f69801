"""The document that Prometheus' `http_sd_configs` reads. Pure."""

from collections.abc import Iterable
from typing import Any

from orchestrator.ports.metrics import MetricSource, Target
from orchestrator.rollout.model import Route, ServiceState
from orchestrator.rollout.observation import Instance


def served(route: Route) -> list[Instance]:
    """The instances that a route names, as far as it tells of them."""
    return [
        Instance(
            name=s.instance,
            release=s.release,
            address=s.address,
            container=s.container,
            started_at=s.started_at,
            running=True,
        )
        for s in route.servers
    ]


def targets(state: ServiceState, instances: Iterable[Instance], source: MetricSource) -> list[Target]:
    """The running instances of a service, labelled service, release, instance and track."""
    found = []
    for instance in instances:
        if not instance.running or not instance.address:
            continue
        host, _, port = instance.address.rpartition(":")
        found.append(
            Target(
                address=instance.address if source.at_edge else f"{host}:{source.port or port}",
                at_edge=source.at_edge,
                labels={
                    "service": state.service,
                    "release": instance.release,
                    "instance": instance.name,
                    "track": track(state, instance.release),
                    "__metrics_path__": f"/instances/{instance.name}" if source.at_edge else source.path,
                },
            )
        )
    return found


def track(state: ServiceState, release: str) -> str:
    """What a release is to its service now."""
    if state.stable is not None and state.stable.id == release:
        return "stable"
    if state.rollout is not None and state.rollout.release.id == release:
        return "candidate"
    if state.previous is not None and state.previous.id == release:
        return "previous"
    return "retiring"


def document(found: Iterable[Target], here: str) -> list[dict[str, Any]]:
    """The JSON that `http_sd_configs` expects of the daemon, which whoever asks calls `here`."""
    return [{"targets": [here if t.at_edge else t.address], "labels": dict(t.labels)} for t in found]
