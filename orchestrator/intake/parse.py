"""A stream entry's fields as a request. Pure; whatever comes in, the answer is a request or a reason."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from orchestrator.intake import strict_json
from orchestrator.ports.access import Verb, author, somebody
from orchestrator.ports.faults import Fault
from orchestrator.ports.requests import Request
from orchestrator.rollout.told import CONTROL

MAX_BYTES = 64 * 1024
IMAGE = (
    r"^[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
LONGEST = 2000
"""Letters of a reason; doors that can't ask again cut it."""
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=LONGEST)]
Known = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.@/-]{0,79}$"), AfterValidator(somebody)
]
"""Whom a token, a key or a chat stands for, in the audit trail."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{0,80}\z", max_length=80)]


def _exact(text: str) -> str:
    """What names something is taken as it is; without some of its letters it would name something else."""
    if found := CONTROL.search(text):
        raise ValueError(f"has a control character, {found[0]!a}")
    return text


class Fields(BaseModel):
    """What a producer may write. Unknown fields are refused, so that a typing error is not ignored."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    verb: Verb | Literal["reload"] = "release"
    service: Annotated[str, StringConstraints(max_length=40), AfterValidator(_exact)] = ""
    image: Annotated[str, StringConstraints(max_length=512), AfterValidator(_exact)] = ""
    who: Annotated[
        Text, AfterValidator(author), Field(description="who asks; the account of the CI job, or a person")
    ] = "unknown"
    why: Text = ""
    link: Annotated[str, StringConstraints(max_length=2000, pattern=r"^(https?://\S+)?\z")] = ""
    key: Annotated[str, StringConstraints(max_length=200), AfterValidator(_exact)] = ""
    strategy: Annotated[str, StringConstraints(max_length=40), AfterValidator(_exact)] = ""
    release: Name = ""
    to: Name = ""
    checks: Annotated[str, StringConstraints(max_length=4000)] = ""

    @model_validator(mode="after")
    def _service(self) -> "Fields":
        if self.verb == "reload" and self.service:
            raise ValueError("service: reload is about the files of all services; leave it out")
        if self.verb != "reload" and not self.service:
            raise ValueError("service: is required")
        return self

    @model_validator(mode="after")
    def _image_for_release(self) -> "Fields":
        if self.verb == "release" and not re.fullmatch(IMAGE.strip("^$"), self.image, re.ASCII):
            raise ValueError(
                f"image: {self.image[:80]!r} is not an image reference (name:tag or name@sha256:...)"
            )
        return self


def parse(entry: str, fields: Mapping[str, str]) -> Request:
    """The request that an entry holds.

    Args:
        entry: The id of the stream entry.
        fields: Its fields; what was not UTF-8 has come in as replacement characters.

    Raises:
        Fault: It holds none; the message names each wrong field and what would be right.
    """
    size = sum(len(k.encode()) + len(v.encode()) for k, v in fields.items())
    if size > MAX_BYTES:
        raise Fault(f"the request is {size} bytes long, the limit is {MAX_BYTES}")
    try:
        found = Fields.model_validate(dict(fields))
    except ValidationError as error:
        raise Fault("; ".join(map(wrong_field, error.errors()[:5]))) from None
    checks = _checks(found.checks)
    values: dict[str, Any] = {k: CONTROL.sub("", v) for k, v in found.model_dump(exclude={"checks"}).items()}
    return Request(id=entry, checks=checks, **values)


Said = StrictBool | Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""What can be said for a line of a checklist."""

_CHECKS = TypeAdapter(dict[Annotated[str, StringConstraints(max_length=40)], Said])


def _checks(text: str) -> dict[str, float]:
    """What is said for the checklist: a JSON object of yes, no, or numbers."""
    if not text:
        return {}
    try:
        given = _CHECKS.validate_python(strict_json.loads(text.encode()))
    except (Fault, ValidationError):
        raise Fault(
            'checks: is not a JSON object such as {"migrations_rehearsed": true, "tests_pass_rate": 0.99}'
        ) from None
    return {name: float(value) for name, value in given.items()}


def wrong_field(error: ErrorDetails) -> str:
    """A problem that pydantic found, with the path of the field."""
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        text = "unknown field"
    path = "/".join(str(p)[:80] for p in error["loc"])
    return f"{path}: {text}" if path else text
