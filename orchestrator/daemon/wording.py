"""What is wrong with a file, in words that say what would be right."""

import difflib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from orchestrator.daemon.gate_section import COMPARISON, LIMIT
from orchestrator.ports.addresses import masked

Schema = dict[str, Any]

SAME = {
    "replicas": "instances",
    "scale": "instances",
    "environment": "env",
    "envs": "env",
    "image": "images",
    "repository": "images",
    "name": "service",
    "healthcheck": "probe",
    "health": "probe",
    "livenessProbe": "probe",
    "readinessProbe": "probe",
    "expose": "port",
    "containerPort": "port",
    "mem_limit": "memory",
    "mem": "memory",
    "cpu": "cpus",
    "pids_limit": "pids",
    "stop_grace_period": "stop_grace",
    "args": "command",
    "upstream": "nginx",
    "canary": "strategy",
    "threshold": "max",
    "duration": "for",
}
"""What is called otherwise elsewhere."""

INSTEAD = {
    "volumes": "containers have none: keep data in a database or an object store; `tmpfs` are writable"
    " folders in memory, `secrets` are files of the host",
    "networks": "containers are on docker/network of orchestrator.yaml alone; attach what they must reach"
    " to it: docker network connect NETWORK CONTAINER",
    "network_mode": "containers are on docker/network of orchestrator.yaml alone",
    "ports": "nothing is published: write `port`, the one in the container, for example port: 8080",
    "depends_on": "a service is ready when its `probe` is; let it wait for what it needs by itself",
    "restart": "stable's containers always restart; a candidate's never do, as a death must be seen",
    "deploy": "write `instances`, `memory` and `cpus`",
    "resources": "write `memory` and `cpus`",
    "entrypoint": "`command` is what the image's entrypoint gets; for another entrypoint build an image",
    "build": "images are built elsewhere; `images` names the repositories that releases come from",
    "tag": "a release names it: orchestrator release SERVICE repository:tag",
    "container_name": "containers are called after the owner, the release and the instance",
    "hostname": "containers are called after the owner, the release and the instance",
    "labels": "containers have those of docs/reference/config.md alone",
    "logging": "it is json-file, 3 files of 10 MB",
    "privileged": "containers have no capabilities",
    "cap_add": "containers have no capabilities",
    "working_dir": "it is the image's",
}
"""Keys of others that have none here, and what to do."""


KINDS = {
    LIMIT: "a gate with a limit (max, min or max_ratio)",
    COMPARISON: "a gate that compares: it needs a limit (max, min or max_ratio)",
}
"""Of what one key may say, by pydantic's tag."""


def problem(model: type[BaseModel], error: Any) -> str:
    """One of pydantic's errors of a model, with its place."""
    loc = [part for part in error["loc"] if not str(part).startswith(("function-", "("))]
    if error["type"] == "extra_forbidden":
        kind = next((KINDS[part] for part in error["loc"] if part in KINDS), "")
        loc, text = loc[:-1], _unknown(str(loc[-1]), model, loc[:-1], kind)
    else:
        text = _words(error)
    place = "/".join(map(str, loc))
    return masked(f"{place}: {text}" if place else text)


def _unknown(key: str, model: type[BaseModel], where: Sequence[str | int], kind: str) -> str:
    schema = _schema(model)
    here = {name for part in _reach(schema, where) for name in part.get("properties", {})}
    if key in here:
        return f"key `{key}` is not for {kind}"
    same = SAME.get(key)
    text = f"unknown key `{key}`"
    if key in INSTEAD:
        return f"{text}: {INSTEAD[key]}"
    near = [same] if same in here else difflib.get_close_matches(key, here, n=1, cutoff=0.7)
    if near:
        return f"{text}; did you mean `{near[0]}`?"
    elsewhere = [path for path in _places(schema) if path.rpartition("/")[2] in (key, same)]
    if elsewhere:
        return f"{text}; did you mean {' or '.join(f'`{path}`' for path in elsewhere[:3])}?"
    return f"{text}; there are: {', '.join(sorted(here))}"


@functools.cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _reach(schema: Schema, where: Sequence[str | int]) -> list[Schema]:
    """What a place of a document may be, in a JSON Schema."""
    found = list(_choices(schema, schema))
    for part in where:
        found = [
            choice for one in found for inner in _inside(one, part) for choice in _choices(schema, inner)
        ]
    return found


def _choices(whole: Schema, part: Schema) -> Iterator[Schema]:
    yield part
    if "$ref" in part:
        yield from _choices(whole, whole["$defs"][part["$ref"].rpartition("/")[2]])
    for way in ("anyOf", "oneOf", "allOf"):
        for one in part.get(way, ()):
            yield from _choices(whole, one)


def _inside(part: Schema, key: str | int) -> Iterator[Schema]:
    if isinstance(key, int):
        inner = part.get("items")
    else:
        inner = part.get("properties", {}).get(key) or part.get("additionalProperties")
    if isinstance(inner, dict):
        yield inner


def _places(schema: Schema, part: Schema | None = None, path: str = "") -> Iterator[str]:
    """Every key that can be named without a list or a name of one's own, outermost first."""
    inner = [
        (name, one)
        for choice in _choices(schema, part or schema)
        for name, one in choice.get("properties", {}).items()
    ]
    yield from (f"{path}{name}" for name, _ in inner)
    for name, one in inner:
        yield from _places(schema, one, f"{path}{name}/")


def _words(error: Any) -> str:  # noqa: PLR0911  one a kind of error
    kind, given, about = error["type"], error["input"], error.get("ctx", {})
    shown = _shown(given, error["loc"])
    if kind == "missing":
        return "is required"
    if given is None:
        return "is empty; write a value, or remove the key"
    if kind in _WANTED:
        return f"{shown} is not {_WANTED[kind]}"
    match kind:
        case "literal_error" | "enum":
            return f"{shown} is not one of {about['expected']}{_meant(given, about['expected'])}"
        case "string_pattern_mismatch":
            wanted = (
                f"is not {what}" for start, what in _TEXTS.items() if about["pattern"].startswith(start)
            )
            return f"{shown} {next(wanted, 'does not match ' + about['pattern'])}"
        case "greater_than" | "greater_than_equal":
            return f"{shown} is too small; it must be {_bound(about)}"
        case "less_than" | "less_than_equal":
            return f"{shown} is too big; it must be {_bound(about)}"
        case "too_short":
            return f"needs at least {about['min_length']}"
        case "string_too_short" | "string_too_long":
            bound = about.get("min_length", about.get("max_length"))
            return f"is too {kind.removeprefix('string_too_')}; the limit is {bound} characters"
    text = str(error["msg"]).removeprefix("Value error, ")
    return text.replace("Input should be", "must be")


def may_be_secret(path: Sequence[str | int]) -> bool:
    """Whether a value may be a secret, by its place in the file: each of a container's env."""
    return tuple(path[:2]) == ("container", "env")


def _shown(given: Any, loc: Sequence[str | int]) -> str:
    """A value as it may be printed: not one that may be a secret, or stands where the path of one should."""
    if (
        not isinstance(given, str | int | float)
        or may_be_secret(loc)
        or (loc and str(loc[-1]).endswith("_file"))
    ):
        return "what is written"
    text = masked(repr(given))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


LONGEST = 80
"""Characters of a wrong value that are shown."""

_TEXTS = {
    "^/": "an absolute path; it begins with /",
    "^https?://": "an address; it begins with http:// or https://",
    "^([0-9]+(:": "a uid, or uid:gid, in numbers",
}
"""What texts must be, by how the pattern begins that they do not match."""

_WANTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text; put it in quotes",
    "list_type": "a list; write [one, two]",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping; write {key: value}"),
    **dict.fromkeys(("path_type",), "a path"),
}


def _bound(about: dict[str, Any]) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return next(f"{word} {about[key]:g}" for key, word in words.items() if key in about)


def _meant(given: Any, expected: str) -> str:
    names = [name.strip(" '") for name in expected.replace(" or ", ",").split(",")]
    near = difflib.get_close_matches(str(given), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
