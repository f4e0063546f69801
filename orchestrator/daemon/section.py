"""What all parts of the configuration have in common."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.ports.faults import Fault
from orchestrator.ports.given import read_given


class Section(BaseModel):
    """A mapping that knows its keys and refuses others. Numbers are taken where text is wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, defer_build=True)


def address(value: str) -> str:
    """`address:port`.

    Raises:
        ValueError: It is not.
    """
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal():
        raise ValueError(f"{value!r} is not address:port")
    return value


def secret_of(path: Path, place: str) -> str:
    """What a file with a secret says, without the space around it.

    Raises:
        Fault: It can't be read, or says nothing; names the setting.
    """
    try:
        found = read_given(path).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Fault(f"{place} {path}: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise Fault(f"{place} {path}: is empty")
    return found
