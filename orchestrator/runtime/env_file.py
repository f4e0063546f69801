"""`env_file` of a service: variables for its containers. The grammar is in docs/reference/config.md."""

import re
from pathlib import Path

from orchestrator.ports.faults import Fault
from orchestrator.ports.given import read_given

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)
"""What a variable may be called."""

_EXPORT = re.compile(r"export[ \t]+(?!=)")
_COMMENT = re.compile(r"(^|[ \t])#.*")


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file.

    Raises:
        Fault: It can't be read, or a line is wrong; names the path and the line, never a value.
    """
    try:
        return parse(read_given(path).decode("utf-8-sig"))
    except OSError as error:
        raise Fault(f"env_file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise Fault(f"env_file {path}: is not UTF-8") from None
    except ValueError as error:
        raise Fault(f"env_file {path}: {error}") from None


def parse(text: str) -> dict[str, str]:
    """The variables of a file's text; of those with one name the last counts.

    Raises:
        ValueError: A line is wrong; names it, and nothing that may be a secret.
    """
    env: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(" \t\r")
        if not stripped or stripped.startswith("#"):
            continue
        try:
            name, value = _variable(_EXPORT.sub("", stripped, count=1))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        env[name] = value
    return env


def _variable(line: str) -> tuple[str, str]:
    name, found, value = line.partition("=")
    name, value = name.rstrip(" \t"), value.lstrip(" \t")
    if not found:
        raise ValueError("there is no '='; write NAME=value")
    if not NAME.fullmatch(name):
        raise ValueError(
            "what is before '=' is no name; it has letters, digits, '_', '.' and '-', and no digit first"
        )
    if "\0" in value:
        raise ValueError("there is a zero byte")
    if value[:1] in ("'", '"'):
        inside, closed, rest = value[1:].partition(value[0])
        if not closed:
            raise ValueError("the quote is not closed; a value is one line")
        if _COMMENT.sub("", rest).strip():
            raise ValueError("something comes after the closing quote")
        return name, inside
    return name, _COMMENT.sub("", value).rstrip(" \t")
