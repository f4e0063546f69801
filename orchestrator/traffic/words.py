"""What goes over the board between the daemon and the other edges."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter, ValidationError

from orchestrator.ports.traffic import RoutePlan
from orchestrator.rollout.observation import Edge
from orchestrator.traffic.options import EdgeOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRoute:
    """What every edge ought to serve for a service.

    Attributes:
        token: The fencing token of the daemon that wants it.
        options: How it is served; other hosts have no files of services.
    """

    plan: RoutePlan
    token: int
    options: EdgeOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one edge says of a service.

    Attributes:
        tried: The generation that it tried to serve last.
    """

    edge: Edge
    tried: int = 0


WANTED: TypeAdapter[WantedRoute] = TypeAdapter(WantedRoute)
REPORT: TypeAdapter[Report] = TypeAdapter(Report)


def told(texts: Mapping[str, str]) -> dict[str, Report]:
    """What an edge has said on the board, by service."""
    return {service: understood(text) for service, text in texts.items()}


@lru_cache(maxsize=4096)  # most reports say what the one before has said
def understood(text: str) -> Report:
    """What an edge has said of a service."""
    try:
        return REPORT.validate_json(text)
    except ValidationError:
        return Report(edge=Edge(error="what it says is not understood: is it of another version?"))
