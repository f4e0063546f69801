"""`gates` and `evidence` of a service's file: limits on values, and comparisons with stable."""

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.daemon.section import Section
from orchestrator.daemon.units import Duration, Limit, Share, latency, share
from orchestrator.rollout import policy
from orchestrator.rollout.policy import ERROR_EFFECTS, P95_EFFECTS, P99_EFFECTS, Certainty, Comparison

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,40}$")]
PromQL = Annotated[str, StringConstraints(max_length=4000)]


class LimitSection(Section):
    """A value and what it must not pass; beyond it for `for` seconds without a break it rolls back."""

    name: Name = Field("", validate_default=False)
    metric: Literal["error_rate", "latency", "cpu", "query"]
    quantile: float = Field(0.99, gt=0, lt=1)
    max: Limit | None = Field(None, description="Absolute limit, in the metric's unit")
    min: Limit | None = Field(None, description="Absolute lower limit, likewise")
    max_ratio: float | None = Field(None, gt=0, description="Limit as a multiple of stable's value")
    margin: Limit = Field(0.0, description="Added to the relative limit")
    sustained: Duration = Field(0.0, alias="for", description="How long it must stay broken")
    window: Duration = Field(60.0, gt=0, description="History that a value is computed over")
    min_requests: int = Field(1, ge=0, description="Fewer in the window: inconclusive")
    query: PromQL = Field("", description="PromQL; $service is the service's name")
    dry_run: bool = Field(False, description="Report, never decide")

    @field_validator("max", "min", "margin", mode="before")
    @classmethod
    def _unit(cls, value: Any, info: ValidationInfo) -> Any:
        read = {"error_rate": share, "cpu": share, "latency": latency}.get(info.data.get("metric", ""))
        return value if read is None or value is None else read(value)

    @model_validator(mode="after")
    def _right(self) -> "LimitSection":
        if (self.metric == "query") != bool(self.query):
            raise ValueError("query: is for metric: query, which needs it")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min: {self.min:g} is above max, {self.max:g}; nothing could pass")
        return self

    def gate(self) -> policy.Limit:
        """As the core has it; one without a name is called after what it measures."""
        name = self.name or f"{_metric(self.metric, self.quantile)}_limit"
        return policy.Limit(**{**self.model_dump(), "name": name})


class ComparisonSection(Section):
    """A gate without a limit: the candidate's share of bad requests against stable's, on evidence."""

    name: Name = Field("", validate_default=False)
    metric: Literal["error_rate", "latency", "counts"]
    quantile: float = Field(0.99, gt=0, lt=1, description="latency: slower than stable's is bad")
    total: PromQL = Field("", description="counts: the counter of all; $service is the service's name")
    bad: PromQL = Field("", description="counts: the counter of the bad ones")
    history: Duration = Field(0.0, description="Compare with the service's own past, this long")
    ratio: float | None = Field(None, gt=0, description="How many times as bad as stable is still good")
    margin: Share | None = Field(None, description="What is added to that, a share of requests")
    budget: Share | None = Field(None, gt=0, description="How much worse is harm, at full traffic")
    effects: list[Share] = Field([], description="Excesses that are watched for; unset: by the metric")
    weight: float | None = Field(
        None, gt=0, description="Part of the evidence; unset: 0.48 errors, 0.26 others"
    )
    warm_up: Duration | None = Field(None, description="Not judged at first; unset: 30s for latency")
    dry_run: bool = Field(False, description="Report, never decide")

    @model_validator(mode="before")
    @classmethod
    def _limit_wanted(cls, data: Any) -> Any:
        metric = data.get("metric") if isinstance(data, dict) else None
        if metric in ("query", "cpu"):
            raise ValueError(f"max: metric: {metric} needs max, min or max_ratio; it does not count requests")
        return data

    @model_validator(mode="after")
    def _right(self) -> "ComparisonSection":
        own = self.metric == "counts"
        if own != bool(self.total) or own != bool(self.bad):
            raise ValueError("total: total and bad are for metric: counts, which needs both")
        if own and not self.name:
            raise ValueError("name: metric: counts needs one")
        if self.history and self.metric == "latency":
            raise ValueError("history: is for error_rate and counts; latency is compared with stable")
        if any(not 0 < e < 1 for e in self.effects):
            raise ValueError("effects: each is a share of requests between 0 and 1, such as 1%")
        gate = self.gate()
        if gate.budget <= gate.margin:
            raise ValueError(f"budget: {gate.budget:g} must be above margin, {gate.margin:g}")
        return self

    def gate(self) -> Comparison:
        """As the core has it, with what is usual for the metric."""
        written = self.model_dump(exclude={"effects", "name"}, exclude_none=True)
        if self.effects:
            written["effects"] = tuple((effect, 1.0 / len(self.effects)) for effect in self.effects)
        usual = _usual(self.metric, self.quantile, self.margin)
        return Comparison(**{"name": self.name or _metric(self.metric, self.quantile), **usual, **written})


def _usual(metric: str, quantile: float, margin: float | None) -> dict[str, Any]:
    if metric == "error_rate":
        return {"ratio": 1.0, "margin": 0.001, "budget": 0.005, "effects": ERROR_EFFECTS, "weight": 0.48}
    if metric == "counts":
        wide = 0.002 if margin is None else margin
        effects = {"effects": P95_EFFECTS, "weight": 0.26, "usual": 0.01}
        return {"ratio": 1.0, "margin": wide, "budget": 2 * wide + 0.005, **effects}
    tail = P99_EFFECTS if quantile > 0.97 else P95_EFFECTS  # noqa: PLR2004  between the two that were studied
    effects = {"effects": tail, "weight": 0.26, "usual": 1.0 - quantile, "warm_up": 30.0}
    return {"ratio": 1.25, "margin": 0.002, "budget": 0.02, **effects}


def _metric(metric: str, quantile: float) -> str:
    return f"p{quantile * 100:g}" if metric == "latency" else metric


LIMIT, COMPARISON = "(limit)", "(comparison)"


def _kind(value: Any) -> str:
    """A gate with a limit is one; without, it compares."""
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return LIMIT if {"max", "min", "max_ratio"} & set(keys) else COMPARISON


GateSection = Annotated[
    Annotated[LimitSection, Tag(LIMIT)] | Annotated[ComparisonSection, Tag(COMPARISON)], Discriminator(_kind)
]


class EvidenceSection(Section):
    """How sure the comparisons must be."""

    alpha: Share = Field(0.01, gt=0, lt=0.5, description="Good releases rolled back at most")
    beta: Share = Field(0.05, gt=0, lt=0.5, description="Harmful steps called safe at most")
    suspicion: float = Field(10.0, gt=1, description="Evidence of harm from which on no step is left")
    phi: float = Field(
        1.0, ge=1, description="Divides all evidence: errors that come in bursts; see rehearse"
    )
    no_traffic: float = Field(20.0, gt=0, description="Requests expected and none come: rolled back")

    def certainty(self) -> Certainty:
        """As the core has it."""
        return Certainty(**self.model_dump(exclude={"phi"}), dispersion=self.phi)
