"""States and events as JSON, validated on the way in: what is damaged is not guessed at."""

import json
from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from orchestrator.ports.faults import Fault, Refused
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState


@cache
def _state() -> TypeAdapter[ServiceState]:
    return TypeAdapter(ServiceState)


@cache
def _event() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])  # else each kind is tried in turn


def dump_state(state: ServiceState) -> bytes:
    """A state as JSON."""
    return _dump(_state(), state)


def _dump(adapter: TypeAdapter[Any], value: Any) -> bytes:
    """As JSON, whatever others have said: text that is no Unicode is written with question marks."""
    try:
        return adapter.dump_json(value)
    except (UnicodeEncodeError, PydanticSerializationError):
        return json.dumps(_plain(adapter.dump_python(value, mode="json"))).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def load_state(data: bytes | str) -> ServiceState:
    """A state from JSON.

    Raises:
        Refused: It is not a state; the message names the first wrong path.
    """
    try:
        return _state().validate_json(data)
    except ValidationError as error:
        raise Refused(f"stored state is damaged: {_first(error)}") from None


def dump_event(event: Event) -> bytes:
    """An event as JSON; `kind` tells which."""
    return _dump(_event(), event)


def load_event(data: bytes | str) -> Event:
    """An event from JSON.

    Raises:
        Fault: It is not an event.
    """
    try:
        return _event().validate_json(data)
    except ValidationError as error:
        raise Fault(f"stored event is damaged: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'/'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
