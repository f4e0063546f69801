"""Small releases and policies for tests."""

from dataclasses import replace
from typing import Any

from orchestrator.rollout.command import Submit
from orchestrator.rollout.model import Release, Server
from orchestrator.rollout.policy import Limit, Policy, Probe, Step, Template

ERRORS = Limit(name="errors", metric="error_rate", max=0.02, sustained=2.0, window=10.0, min_requests=10)
P99 = Limit(name="p99", metric="latency", max=0.3, max_ratio=2.0, margin=0.05, window=10.0, min_requests=10)
LADDER = (
    Step(weight=5, hold=10.0, min_requests=20, deadline=60.0),
    Step(weight=40, hold=5.0, deadline=60.0),
    Step(weight=100, hold=5.0, deadline=60.0),
)


def policy(**changes: Any) -> Policy:
    base = Policy(
        kind="canary",
        steps=LADDER,
        limits=(ERRORS, P99),
        no_data_after=15.0,
        start_deadline=20.0,
        preflight_deadline=30.0,
        pause_deadline=300.0,
        confirm_deadline=8.0,
        drain_deadline=10.0,
        keep_previous=100.0,
        queue_deadline=500.0,
    )
    return replace(base, **changes)


def template(**changes: Any) -> Template:
    return replace(Template(port=8080, instances=2, probe=Probe(successes=2)), **changes)


def release(number: int = 1, **changes: Any) -> Release:
    base = Release(
        id=f"api-{number}",
        service="api",
        image=f"repo/api:{number}",
        template=template(),
        policy=policy(),
        author="ci",
        reason="build",
        submitted_at=1000.0,
        request=f"{number}-0",
        digest=f"sha256:{number}",
    )
    return replace(base, **changes)


def server(release: str, address: str, **changes: Any) -> Server:
    """Where nginx sends a release's first instance its share."""
    base = Server(
        address=address,
        weight=1,
        release=release,
        instance=f"{release}-0",
        container="c",
        started_at="t",
    )
    return replace(base, **changes)


def submit(number: int = 1, **changes: Any) -> Submit:
    base = Submit(
        request=f"{number}-0",
        actor="ci",
        reason=f"build {number}",
        image=f"repo/api:{number}",
        template=template(),
        policy=policy(),
    )
    return replace(base, **changes)
