"""Durations, shares and sizes as people write them."""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?", re.ASCII)
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
    """A limit on anything: `0.5%` is 0.005, `300ms` is 0.3 (seconds), a bare number is itself.

    Raises:
        ValueError: It is none of these, or not finite.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")  # noqa: TRY004  pydantic reports ValueError
    if isinstance(value, str):
        text, percent = value.strip().removesuffix("%"), value.strip().endswith("%")
        try:
            found = (
                float(text) / (100 if percent else 1) if percent or _NUMBER.fullmatch(text) else seconds(text)
            )
        except ValueError:
            raise ValueError(f"{value!r} is not a limit; write 0.5%, 300ms or a plain number") from None
    else:
        found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{value!r} is not finite")
    return found


def share(value: Any) -> float:
    """A share of requests, or of a CPU: `0.5%`, or 0.005.

    Raises:
        ValueError: It is neither, or above 100 %; or a bare number that could mean percent.
    """
    text = str(value).strip()
    number = text.removesuffix("%").strip()
    if _PART.match(text):
        raise ValueError(f"{value!r} is a time, and this is a share; write 0.5%")
    try:
        found = float(number)
    except ValueError:
        raise ValueError(f"{value!r} is not a share; write 0.5%, or 0.005") from None
    if isinstance(value, bool) or not math.isfinite(found) or found < 0:
        raise ValueError(f"{value!r} is not a share; write 0.5%, or 0.005")
    if text.endswith("%"):
        found /= 100
    elif found >= 1:
        raise ValueError(f"{text} would be {found:.0%}; write {number}% for {number} in a hundred")
    if found > 1:
        raise ValueError(f"{text} is more than all; a share is at most 100%")
    return found


MOST_BARE = 10.0
"""Seconds of a latency from which on a bare number is more likely to mean milliseconds."""


def latency(value: Any) -> float:
    """A latency: `300ms`, `1.5s`, or a few seconds.

    Raises:
        ValueError: It is neither; or a bare number that could mean milliseconds.
    """
    if isinstance(value, str) and value.strip().endswith("%"):
        raise ValueError(f"{value!r} is a share, and a latency is a time; write 300ms")
    found = seconds(value)
    if not isinstance(value, str) and found >= MOST_BARE:
        raise ValueError(f"{value} would be seconds; write {value}ms or {value}s")
    return found


def size(value: Any) -> int:
    """`256MiB`, `256m`, `1g`, or a number of bytes; always powers of 1024, as Docker has it.

    Raises:
        ValueError: It is none of these.
    """
    match = re.fullmatch(r"([0-9]+)\s*([bkmg]?)(?:i?b)?", str(value).strip().lower(), re.ASCII)
    if match is None or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a size; write 256MiB or 1GiB")
    found = int(match[1]) * _BYTES[match[2]]
    if not match[2] and found < _BYTES["m"]:
        raise ValueError(f"{value} would be bytes; write {value}MiB or {value}GiB")
    return found


def as_duration(value: float) -> str:
    """Seconds as `seconds` takes them: `1h30m`, `250ms`."""
    rest, parts = round(value * 1000, 6), []
    for unit, length in reversed(_SECONDS.items()):
        whole = round(length * 1000)
        number = rest if unit == "ms" else rest // whole
        rest -= number * whole
        if number:
            parts.append(f"{number:g}{unit}")
    return "".join(parts) or "0s"


def as_size(value: int) -> str:
    """Bytes as `size` takes them: `512MiB`."""
    for unit in ("g", "m", "k"):
        if value and value % _BYTES[unit] == 0:
            return f"{value // _BYTES[unit]}{unit.upper()}iB"
    return f"{value}B"


def as_share(value: float) -> str:
    """A share as `share` takes it: `0.5%`."""
    return f"{value * 100:g}%"


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
Share = Annotated[
    float, BeforeValidator(share), _text, WithJsonSchema({"type": ["string", "number"], "examples": ["0.5%"]})
]
Size = Annotated[
    int, BeforeValidator(size), WithJsonSchema({"type": ["string", "integer"], "examples": ["256MiB"]})
]
