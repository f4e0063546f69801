"""What an operator configured for a service, as the engine needs it."""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.ports.metrics import MetricSource
from orchestrator.rollout.policy import Check, Policy, Template


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """What an operator configured for a service, as the engine needs it.

    Attributes:
        images: Repositories that releases may come from.
        require_digest: Whether a tag is refused.
        checklist: What a request must be able to say of itself.
        policies: By strategy name; the default is under the empty name.
    """

    service: str
    images: tuple[str, ...]
    template: Template
    policies: Mapping[str, Policy]
    metrics: MetricSource
    require_digest: bool = False
    checklist: tuple[Check, ...] = ()
