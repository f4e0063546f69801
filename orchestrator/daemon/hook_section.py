"""Hooks and the checklist, in `services/*.yaml`."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from orchestrator.daemon.section import Section
from orchestrator.daemon.units import Duration, limit
from orchestrator.rollout.policy import Check, Hook, HookPhase

Url = Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]


class HookSection(Section):
    """Somebody who is asked, or told."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    at: HookPhase
    command: list[str] = Field(
        [], description="Program and arguments; {image}, {digest}, {release} … are filled in"
    )
    url: Url | None = Field(None, description="Gets JSON; 200 to 202 passes, 5xx is asked again")
    opa: Url | None = Field(None, description="A decision of Open Policy Agent, /v1/data/...")
    secret_file: Annotated[str, StringConstraints(pattern=r"^/[^\x00\n]*$")] | None = Field(
        None, description="What the body is signed with"
    )
    timeout: Duration = Field(10.0, gt=0, le=3600, description="For one try")
    retries: int = Field(2, ge=0, le=10, description="After tries that gave no answer")
    on_failure: Annotated[str, StringConstraints(pattern=r"^(stop|go_on)$")] = "stop"

    def model_post_init(self, _: Any) -> None:
        """One way to ask."""
        if sum(map(bool, (self.command, self.url, self.opa))) != 1:
            raise ValueError("one of command, url and opa is needed")

    def hook(self) -> Hook:
        """As the core has it."""
        kind = "command" if self.command else "opa" if self.opa else "http"
        return Hook(
            name=self.name,
            at=self.at,
            kind=kind,  # type: ignore[arg-type]
            command=tuple(self.command),
            url=self.url or self.opa or "",
            secret_file=self.secret_file or "",
            timeout=self.timeout,
            retries=self.retries,
            required=self.on_failure == "stop",
        )


CheckName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


def checks(written: dict[str, Any]) -> tuple[Check, ...]:
    """The checklist: `true` for yes, or the least value, such as `98%`.

    Raises:
        ValueError: A value is neither.
    """
    found = []
    for name, value in written.items():
        if value is False or not isinstance(value, bool | int | float | str):
            raise ValueError(f"checklist/{name}: write true, or the least value")
        found.append(Check(name=name, least=1.0 if value is True else limit(value)))
    return tuple(found)
