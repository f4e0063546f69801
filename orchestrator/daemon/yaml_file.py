"""One YAML file as a checked model."""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.daemon.wording import problem
from orchestrator.ports.given import read_given

M = TypeVar("M", bound=BaseModel)

ODD = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
"""What PyYAML raises, beside its own errors, of a value that is not what its tag says."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file."""

    file: Path
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


class ConfigError(Exception):
    """What is wrong with a file that is needed."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class _Int(int):
    """A number that is text as it was written, where text is wanted: `"0644"`, not `"420"`."""

    written: str

    def __str__(self) -> str:
        return self.written


class _Float(float):
    """Likewise: `"1.10"`, not `"1.1"`."""

    written: str

    def __str__(self) -> str:
        return self.written


_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """YAML whose plain words are read as by YAML 1.2, and that refuses a key that is there twice.

    By YAML 1.1 `1000:50` is 60050, `0644` is 420, `no` is false and `2026-11-01` a date. Of a key that is
    there twice it silently drops one. An error tells the place and shows no line, which may hold a secret.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  as PyYAML has it

    def get_mark(self) -> yaml.Mark:
        return yaml.Mark(self.name, self.index, self.line, self.column, None, 0)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ODD:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"what is written is not of type {kind}", node.start_mark
            ) from None

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        found = super().construct_scalar(node)
        if isinstance(found, str) and _SURROGATE.search(found):  # it can't be written anywhere
            raise yaml.constructor.ConstructorError(
                None,
                None,
                "half of a surrogate pair is no character; write the character itself, or \\U and 8 digits",
                node.start_mark,
            )
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        twice = next((k for k in keys if keys.count(k) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _number(kind: type[_Int | _Float], value: Callable[[str], Any]) -> Callable[[_Loader, Any], Any]:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        found = kind(value(text))
        found.written = text
        return found

    return construct


_INFINITE = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}

for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$", re.ASCII), _first
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _number(_Int, int))
_Loader.add_constructor(
    "tag:yaml.org,2002:float", _number(_Float, lambda text: float(_INFINITE.get(text.lower(), text)))
)


def read(path: Path, model: type[M]) -> M:
    """One file as a model.

    Raises:
        ConfigError: It can't be read, or says something that the model does not take.
    """
    return check(path, parse(path), model)


def parse(path: Path) -> Any:
    """What a file says.

    Raises:
        ConfigError: It can't be read, or is no YAML.
    """
    return document(path, content(path))


def content(path: Path) -> bytes:
    """What stands in a file.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        return read_given(path)
    except OSError as error:
        raise ConfigError([Problem(path, error.strerror or str(error))]) from error


def document(path: Path, body: bytes) -> Any:
    """What the content of a file says.

    Raises:
        ConfigError: It is no YAML.
    """
    try:
        text = body.decode("utf-8-sig")  # what editors on Windows put first is no part of the text
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
    except UnicodeDecodeError:
        told = "is not UTF-8"
    except yaml.YAMLError as error:
        told = " ".join(str(error).split()).replace('in "<unicode string>", line', "at line")
    except RecursionError:
        told = "is nested too deep"
    except ODD:  # while it is split into words: an escape, or the version of YAML
        told = "has a number or a character that is out of range"
    raise ConfigError([Problem(path, told)])


def check(path: Path, data: Any, model: type[M]) -> M:
    """What a file says, as a model.

    Raises:
        ConfigError: The model does not take it.
    """
    try:
        return model.model_validate({} if data is None else data)
    except ValidationError as error:
        raise ConfigError([Problem(path, problem(model, e)) for e in error.errors()]) from error
