"""`services/*.yaml`: what a service is, how it is released, and what must hold meanwhile."""

import functools
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from orchestrator.analysis.presets import PRESETS
from orchestrator.daemon.gate_section import ComparisonSection, EvidenceSection, GateSection, LimitSection
from orchestrator.daemon.hook_section import CheckName, HookSection, checks
from orchestrator.daemon.nginx_section import ServiceNginxSection
from orchestrator.daemon.section import Section
from orchestrator.daemon.units import Duration, Size
from orchestrator.ports.metrics import MetricSource
from orchestrator.ports.service import ServicePlan
from orchestrator.rollout.model import SERVICE_NAME
from orchestrator.rollout.plan import ladder, ladder_errors
from orchestrator.rollout.policy import Policy, Preview, Probe, Step, Template
from orchestrator.runtime.env_file import NAME
from orchestrator.traffic.options import EdgeOptions

AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00\n]*$")]


class ProbeSection(Section):
    """Readiness."""

    kind: Literal["http", "tcp"] = "http"
    path: Annotated[str, StringConstraints(pattern=r"^/[!-~]*$")] = "/health"
    timeout: Duration = Field(1.0, gt=0)
    successes: int = Field(3, ge=1, le=100)
    failures: int = Field(3, ge=1, le=100)


class SecretSection(Section):
    """A file that is mounted read-only."""

    source: AbsolutePath = Field(description="On the host")
    target: AbsolutePath = Field(description="In the container")


class ContainerSection(Section):
    """How a container is run. Hardened by default."""

    port: int = Field(ge=1, le=65535)
    instances: int = Field(1, ge=1, le=100)
    env: dict[str, str] = Field({}, description="Visible in docker inspect: no secrets")
    env_file: AbsolutePath | None = None
    secrets: list[SecretSection] = Field([])
    command: list[str] = Field([], description="Replaces the image's own")
    user: str = Field(
        "",
        pattern=r"^([0-9]+(:[0-9]+)?)?$",
        description="uid[:gid]; unset: the image's own user, or 65534:65534 where that is root",
    )
    read_only: bool = True
    tmpfs: list[AbsolutePath] = Field([])
    memory: Size = Field(512 * 1024**2, ge=6 * 1024**2)
    cpus: float = Field(1.0, gt=0)
    pids: int = Field(256, ge=1)
    stop_grace: Duration = 30.0
    probe: ProbeSection = ProbeSection()

    @field_validator("env", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        """Every value is text; YAML's `true` is too."""
        if not isinstance(value, dict):
            return value
        for number, (name, text) in enumerate(value.items(), 1):
            if not NAME.fullmatch(str(name)):  # it is not shown: `PASSWORD=secret` is none either
                raise ValueError(f"name {number} is none; a name has letters, digits, '_', '.' and '-'")
            if text is None:
                raise ValueError(f'{name}: is empty; write {name}: "" for an empty value')
        return {n: str(v).lower() if isinstance(v, bool) else v for n, v in value.items()}

    def template(self) -> Template:
        """As the core has it."""
        return Template(
            port=self.port,
            instances=self.instances,
            env=tuple(sorted(self.env.items())),
            env_file=self.env_file,
            secrets=tuple((s.source, s.target) for s in self.secrets),
            command=tuple(self.command),
            user=self.user,
            read_only=self.read_only,
            tmpfs=tuple(self.tmpfs),
            memory=self.memory,
            cpus=self.cpus,
            pids=self.pids,
            stop_grace=self.stop_grace,
            probe=Probe(**self.probe.model_dump()),
        )


class MetricsSection(Section):
    """Where requests are counted: a preset, and any name that differs from it."""

    preset: Literal["client_golang", "go-gin-prometheus", "opentelemetry", "nginx"] = "client_golang"
    requests: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")] | None = None
    status_label: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")] | None = None
    error_pattern: str | None = None
    latency: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")] | None = None
    latency_unit: Duration | None = Field(None, description="1ms for histograms in milliseconds")
    ignore: dict[Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")], str] | None = None
    path: Annotated[str, StringConstraints(pattern=r"^/[!-~]*$")] | None = None
    port: int | None = Field(None, ge=1, le=65535)
    cpu: str | None = Field(
        None,
        pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$",
        description="Counter of CPU seconds; docker asks the Engine",
    )

    @model_validator(mode="after")
    def _right(self) -> "MetricsSection":
        theirs = self.model_fields_set - {"preset", "cpu", "error_pattern"}
        if self.preset == "nginx" and theirs:
            raise ValueError(f"{min(theirs)}: is not asked for where nginx counts")
        return self

    def source(self) -> MetricSource:
        """The preset with what was written over it."""
        own = {k: v for k, v in self.model_dump(exclude={"preset", "ignore"}).items() if v is not None}
        if self.ignore is not None:
            own["ignore"] = tuple(self.ignore.items())
        preset = PRESETS[self.preset]
        names = preset.__dataclass_fields__
        return MetricSource(**{**{n: getattr(preset, n) for n in names}, **own})


class StepSection(Section):
    """One rung, where a bare weight does not say enough."""

    weight: int = Field(ge=1, le=100)
    hold: Duration | None = Field(None, description="Unset: as for a bare weight")
    min_requests: int = Field(0, ge=0)
    deadline: Duration | None = Field(None, description="Unset: hold + step_deadline")
    approve: bool = False


def _rung(value: Any) -> str:
    return "(step)" if isinstance(value, dict | StepSection) else "(weight)"


Rung = Annotated[
    Annotated[int, Tag("(weight)")] | Annotated[StepSection, Tag("(step)")], Discriminator(_rung)
]


class PreviewSection(Section):
    """The candidate is up, without traffic, in `upstream SERVICE_preview`."""

    hold: Duration = 0.0
    approve: bool = False


class StrategySection(Section):
    """How traffic moves."""

    kind: Literal["canary", "blue-green"] = "canary"
    advance: Literal["on_evidence", "on_hold"] | None = Field(
        None, description="Unset: on_evidence if a gate compares with stable, else on_hold"
    )
    steps: list[Rung] = Field([5, 15, 40, 100], description="Weights, or steps in full")
    holdback: int = Field(
        5, ge=0, le=50, description="Percent that stable keeps in the bake, to compare with"
    )
    min_step: Duration = Field(30.0, description="on_evidence: the least time at a weight")
    max_step: Duration = Field(1800.0, description="on_evidence: after it a clean step needs no proof")
    first_hold: Duration | None = Field(None, description="on_hold: for the first bare weight; unset: 30m")
    hold: Duration | None = Field(None, description="on_hold: for later bare weights; unset: 15m")
    bake: Duration | None = Field(None, description="Unset: 2m on_evidence, 15m on_hold")
    min_requests: int = Field(0, ge=0, description="For bare weights below 100")
    step_deadline: Duration = Field(3600.0, description="What a step may take beyond its hold")
    preview: PreviewSection | None = None

    def ladder(self, *, compared: bool) -> tuple[Step, ...]:
        """The steps in full; `compared`: whether a gate compares with stable, so that some is held back."""
        proven = compared and self.advance != "on_hold"
        rungs = [] if self.kind == "blue-green" else self.steps
        full = {s.weight: s for s in rungs if isinstance(s, StepSection)}
        bare = ladder(
            [s if isinstance(s, int) else s.weight for s in rungs],
            holds=(self.min_step,) * 2 if proven else (_or(self.first_hold, 1800.0), _or(self.hold, 900.0)),
            bake=_or(self.bake, 120.0 if proven else 900.0),
            holdback=self.holdback if compared else 0,
            max_hold=self.max_step if proven else None,
            min_requests=self.min_requests,
            deadline=self.step_deadline,
        )
        return tuple(self._written(s, full[s.weight]) if s.weight in full else s for s in bare)

    def _written(self, step: Step, section: StepSection) -> Step:
        hold = _or(section.hold, step.hold)
        return replace(
            step,
            hold=hold,
            min_requests=section.min_requests,
            deadline=_or(section.deadline, hold + self.step_deadline),
            approve=section.approve,
        )

    def advance_error(self, *, compared: bool) -> str:
        """What is wrong with the way of advancing; '' when nothing is."""
        if self.advance == "on_evidence" and not compared:
            return "advance: on_evidence needs a gate that compares with stable, such as {metric: error_rate}"
        written = [k for k in ("first_hold", "hold") if getattr(self, k) is not None]
        if written and compared and self.advance != "on_hold":
            return (
                f"{written[0]}: is for advance: on_hold; where a gate compares, steps take min_step or more"
            )
        return ""

    def count_error(self) -> str:
        """That requests are wanted, where nothing counts them; '' where none are."""
        wanted = {"min_requests": self.min_requests} | {
            f"steps/{n}/min_requests": s.min_requests
            for n, s in enumerate(self.steps)
            if isinstance(s, StepSection)
        }
        if self.kind == "blue-green" or not (found := next((k for k, n in wanted.items() if n), "")):
            return ""
        return (
            f"{found}: requests are counted where there are gates, and there are none; remove it, or add"
            " one that only reports: {metric: error_rate, max: 5%, dry_run: true}"
        )

    @model_validator(mode="after")
    def _right(self) -> "StrategySection":
        weights = [s if isinstance(s, int) else s.weight for s in self.steps]
        if self.kind == "canary" and weights != sorted(set(weights)):
            raise ValueError(f"steps: weights {weights} must ascend, each once")
        errors = ladder_errors(self.ladder(compared=False))
        if errors:
            raise ValueError("; ".join(f"steps/{e}" for e in errors))
        if self.max_step < self.min_step:
            raise ValueError(f"max_step: {self.max_step:g} s is shorter than min_step, {self.min_step:g} s")
        return self


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


class NoDataSection(Section):
    """What happens when nothing can be measured."""

    after: Duration = Field(120.0, gt=0)
    do: Literal["hold", "pause", "rollback"] = "rollback"


class DeadlineSection(Section):
    """Every phase has one."""

    queue: Duration = 86400.0
    preflight: Duration = 600.0
    start: Duration = 120.0
    pause: Duration = 86400.0
    confirm: Duration = 60.0
    drain: Duration = 30.0


class ServiceFile(Section):
    """The whole file."""

    service: str
    images: list[str] = Field(min_length=1, description="Repositories that releases may come from")
    require_digest: bool = False
    container: ContainerSection
    metrics: MetricsSection = MetricsSection()
    strategy: StrategySection = StrategySection()
    overrides: dict[str, StrategySection] = Field({}, description="Strategies that a request may ask for")
    gates: list[GateSection] = Field([], description="Limits, and comparisons with stable")
    evidence: EvidenceSection = EvidenceSection()
    no_data: NoDataSection = NoDataSection()
    on_inconclusive: Literal["hold", "pause", "rollback"] = "pause"
    on_new_release: Literal["supersede", "queue", "reject"] = "supersede"
    sample_max_age: Duration = 60.0
    deadlines: DeadlineSection = DeadlineSection()
    keep_previous: Duration = 3600.0
    keep_images: int = Field(5, ge=0)
    nginx: ServiceNginxSection = ServiceNginxSection()
    checklist: dict[CheckName, Any] = Field(
        {}, description="What a request must say: true, or the least value"
    )
    hooks: list[HookSection] = Field([], description="Who is asked, or told")

    @field_validator("images")
    @classmethod
    def _repositories(cls, value: list[str]) -> list[str]:
        for place, image in enumerate(value):
            bare = image.partition("://")[2] or image
            repository, at, _ = bare.partition("@")
            folder, slash, last = repository.rpartition("/")
            name, colon, _ = last.partition(":")
            if at or colon or bare != image:
                extra = "a digest" if at else "a tag" if colon else "a scheme"
                raise ValueError(
                    f"{place}: {image!r} has {extra}; name the repository alone: {folder}{slash}{name}"
                )
        return value

    @model_validator(mode="after")
    def _right(self) -> "ServiceFile":
        if not SERVICE_NAME.fullmatch(self.service):
            raise ValueError(
                f"service: {self.service!r} is not a lower-case DNS label of at most 40 characters"
            )
        strategies = {"strategy": self.strategy, **{f"overrides/{n}": s for n, s in self.overrides.items()}}
        for place, strategy in strategies.items():
            wrong = strategy.advance_error(compared=self.compared)
            wrong = wrong or (strategy.count_error() if not self.gates else "")
            if wrong:
                raise ValueError(f"{place}/{wrong}")
        checks(self.checklist)
        hooks = [h.name for h in self.hooks]
        if len(set(hooks)) != len(hooks):
            raise ValueError(f"hooks: names {hooks} must differ")
        names = [g.gate().name for g in self.gates]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise ValueError(f"gates: {twice!r} is there twice; give one of them a name of its own")
        if self.nginx.mirror and self.strategy.preview is None:
            raise ValueError("nginx/mirror: copies requests to a candidate in preview; set strategy/preview")
        lowest = min(step.weight for step in self.strategy.ladder(compared=self.compared))
        if self.nginx.method == "least_conn" and lowest < 20:  # noqa: PLR2004
            raise ValueError(
                f"nginx/method: least_conn does not keep small weights ({lowest} % was served as 23 % when"
                " measured); use round_robin, or start the ladder at 20"
            )
        return self

    @property
    def compared(self) -> bool:
        """Whether a gate compares with stable."""
        return any(isinstance(g, ComparisonSection) and not g.dry_run for g in self.gates)

    def _policy(self, strategy: StrategySection) -> Policy:
        deadlines: dict[str, Any] = {f"{k}_deadline": v for k, v in self.deadlines.model_dump().items()}
        preview = strategy.preview
        return Policy(
            kind="blue_green" if strategy.kind == "blue-green" else "canary",
            steps=strategy.ladder(compared=self.compared),
            preview=Preview(hold=preview.hold, approve=preview.approve) if preview else None,
            limits=tuple(g.gate() for g in self.gates if isinstance(g, LimitSection)),
            comparisons=tuple(g.gate() for g in self.gates if isinstance(g, ComparisonSection)),
            certainty=replace(self.evidence.certainty(), sticky=self.nginx.sticky is not None),
            no_data_after=self.no_data.after,
            on_no_data=self.no_data.do,
            on_inconclusive=self.on_inconclusive,
            on_new_release=self.on_new_release,
            sample_max_age=self.sample_max_age,
            keep_previous=self.keep_previous,
            keep_images=self.keep_images,
            hooks=tuple(h.hook() for h in self.hooks),
            **deadlines,
        )

    def plan(self) -> ServicePlan:
        """As the engine has it."""
        named = {name: self._policy(strategy) for name, strategy in self.overrides.items()}
        return ServicePlan(
            service=self.service,
            images=tuple(self.images),
            template=self.container.template(),
            policies={"": self._policy(self.strategy), **named},
            metrics=self.metrics.source(),
            require_digest=self.require_digest,
            checklist=checks(self.checklist),
        )

    @functools.cached_property
    def edge(self) -> EdgeOptions:
        """As the edge has it."""
        return replace(self.nginx.options(), counted=self.metrics.source().at_edge)
