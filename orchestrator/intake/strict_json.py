"""JSON from strangers. Pure."""

import json
from typing import Any, NoReturn

from orchestrator.ports.faults import Fault

MAX_DEPTH = 32


def loads(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Fault: It is not UTF-8 or not JSON by RFC 8259, nests deeper than `MAX_DEPTH`, or names a key twice.
    """
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if "\\ud" in text.lower():  # half of a pair is no letter, and can't be written anywhere
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise Fault(f"not JSON: {str(error)[:200]}") from None
    return found


def _check_depth(text: str) -> None:
    """Before it is parsed, because a parser pays for every level."""
    depth, quoted, escaped = 0, False, False
    for letter in text:
        if quoted:
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = True
            elif letter == '"':
                quoted = False
        elif letter == '"':
            quoted = True
        elif letter in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
        elif letter in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!a} is there twice")
        found[name] = value
    return found


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")
