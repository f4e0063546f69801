"""What goes wrong at the door, as problem details (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    title: str = Field(description="The status in words")
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="What is wrong here, and what would be right")


class Problem(Exception):  # noqa: N818  the word of RFC 9457
    """An answer other than the one that was asked for."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}

    def answer(self) -> web.Response:
        """As it goes out."""
        body = ProblemDetails(title=self.status.phrase, status=self.status, detail=str(self))
        return web.Response(
            body=body.model_dump_json().encode(),
            status=self.status,
            headers={**self.headers, "Content-Type": MEDIA_TYPE},
        )
