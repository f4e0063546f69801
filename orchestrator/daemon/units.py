"""Durations, shares and sizes as people write them."""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", re.ASCII)


def seconds(value: Any) -> float:
    """`30m`, `1h30m`, `250ms`, or a number of seconds.

    Raises:
        ValueError: It is none of these, or below zero.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    else:
        text = str(value).strip().replace(" ", "")
        parts = _PART.findall(text)
        if not parts or "".join(a + b for a, b in parts) != text:
            raise ValueError(f"{value!r} is not a duration; write 250ms, 30s, 15m, 1h30m or 1d")
        found = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not math.isfinite(found) or found < 0:
        raise ValueError(f"{value!r} is not a duration of 0 s or more")
    return found


def limit(value: Any) -> float:
    """A gate's limit: `0.5%` is 0.005, `300ms` is 0.3 (seconds), a bare number is itself.

    Raises:
        ValueError: It is none of these, or not finite.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")  # noqa: TRY004  pydantic reports ValueError
    if isinstance(value, str):
        text = value.strip()
        try:
            found = float(text.removesuffix("%")) / 100 if text.endswith("%") else seconds(text)
        except ValueError:
            raise ValueError(f"{value!r} is not a limit; write 0.5%, 300ms or a plain number") from None
    else:
        found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{value!r} is not finite")
    return found


def size(value: Any) -> int:
    """`256MiB`, `256m`, `1g`, or a number of bytes; always powers of 1024, as Docker has it.

    Raises:
        ValueError: It is none of these.
    """
    match = re.fullmatch(r"([0-9]+)\s*([bkmg]?)(?:i?b)?", str(value).strip().lower(), re.ASCII)
    if match is None or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a size; write 256MiB or 1GiB")
    return int(match[1]) * _BYTES[match[2]]


_text = PlainSerializer(float, return_type=float)
Duration = Annotated[
    float,
    BeforeValidator(seconds),
    _text,
    WithJsonSchema({"type": ["string", "number"], "examples": ["15m"]}),
]
Limit = Annotated[
    float, BeforeValidator(limit), _text, WithJsonSchema({"type": ["string", "number"], "examples": ["0.5%"]})
]
Size = Annotated[
    int, BeforeValidator(size), WithJsonSchema({"type": ["string", "integer"], "examples": ["256MiB"]})
]
