"""`config check`, `config show`, `config schema`, `init`."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from rich.table import Table

from orchestrator.cli.exits import USAGE
from orchestrator.cli.session import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    config_or_exit,
    err,
    escape,
    file_or_exit,
    gone,
    out,
)
from orchestrator.daemon.kept import KeptFiles
from orchestrator.daemon.section import Section
from orchestrator.daemon.service_file import ServiceFile, StepSection, StrategySection
from orchestrator.daemon.settings import Settings
from orchestrator.daemon.units import as_duration, as_share, as_size, seconds, share, size
from orchestrator.daemon.wording import may_be_secret
from orchestrator.ports.addresses import masked
from orchestrator.rollout.model import FULL
from orchestrator.rollout.policy import Comparison

app = typer.Typer(help="Check the configuration, print it, or print its schema.", no_args_is_help=True)


class Which(StrEnum):
    """The two kinds of files."""

    SERVICE = "service"
    SETTINGS = "settings"


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Check all files; every problem is printed with its file and path."""
    from orchestrator.daemon.doctor.files import env_problems

    found = config_or_exit(config, quiet=True)
    problems = [*found.problems, *env_problems(found)]
    for problem in problems:
        err.print(f"[red]error[/]: {escape(str(problem))}")
    if problems:
        raise typer.Exit(USAGE)
    folder = found.path.parent / found.settings.services_dir
    none = f"none: {folder} has no *.yaml"
    out.print(f"ok: {config} and {len(found.services)} services ({', '.join(found.services) or none})")


@app.command()
def show(
    service: Annotated[str, typer.Argument(help="One service; all files by default")] = "",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Print every value that holds, and what gives it: the file, a preset, or the default.

    With --output json times are in seconds, sizes in bytes.
    """
    found = config_or_exit(config)
    keeper = KeptFiles(found.settings.state_dir)
    kept = {n: s for n, s in keeper.services().items() if n not in found.services and service in ("", n)}
    if service and not kept:
        file_or_exit(found, service)
    for name in kept:
        last = f"{name} is driven as its file was when it was right last: {keeper.path(name)}"
        why = gone(found, name) or last
        err.print(f"[yellow]warning[/]: {escape(why)}")
    files: dict[Path, Section] = {found.files[n]: s for n, s in found.services.items() if service in ("", n)}
    files |= {keeper.path(n): s for n, s in kept.items()}
    sections = files if service else {found.path: found.settings, **files}
    told = {file: list(values(section, given(section))) for file, section in sections.items()}
    if output is Output.JSON:
        plain = {
            str(file): [{"key": row.key, "value": row.value, "from": row.origin} for row in rows]
            for file, rows in told.items()
        }
        out.print(json.dumps(plain, indent=2), markup=False)
        return
    for file, rows in told.items():
        table = Table("key", "value", "from", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            style = "" if row.origin == "file" else "dim"
            table.add_row(row.key, escape(row.text), row.origin, style=style)
        out.print(f"[bold]{escape(str(file))}[/]")
        out.print(table)


Given = dict[str, tuple[Any, str]]
"""By key: what holds where the file says nothing, and what gives it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A key with its value, as it may be written too, and where that is from."""

    key: str
    value: Any
    text: str
    origin: str


def given(section: Section) -> Given:
    """What holds of a service where its file says nothing, and another key or a preset does."""
    if not isinstance(section, ServiceFile):
        return {}
    source, preset = section.metrics.source(), f"preset {section.metrics.preset}"
    found: Given = {f"metrics/{key}": (value, preset) for key, value in asdict(source).items()}
    found["metrics/ignore"] = (dict(source.ignore), preset)
    if not source.port:
        found["metrics/port"] = (section.container.port, "container/port")
    for n, gate in enumerate(section.gates):
        usual, keys = gate.gate(), type(gate).model_fields
        found |= {f"gates/{n}/{key}": (getattr(usual, key, None), "default") for key in keys}
        if isinstance(usual, Comparison):
            found[f"gates/{n}/effects"] = ([effect for effect, _ in usual.effects], "default")
    strategies = {"strategy": section.strategy, **{f"overrides/{n}": s for n, s in section.overrides.items()}}
    for place, strategy in strategies.items():
        found |= {f"{place}/{key}": (v, "default") for key, v in _usual(strategy, section.compared).items()}
    return found


def _usual(strategy: StrategySection, compared: bool) -> dict[str, Any]:
    """What a strategy does where it does not say."""
    advance = strategy.advance or ("on_evidence" if compared else "on_hold")
    bare = strategy.model_copy(update={"kind": "canary", "steps": [1, 2, FULL], "holdback": 0})
    first, later, last = (step.hold for step in bare.ladder(compared=compared))
    found: dict[str, Any] = {"advance": advance, "bake": last}
    if advance == "on_hold":
        found |= {"first_hold": first, "hold": later}
    steps = {step.weight: step for step in strategy.ladder(compared=compared)}
    for n, step in enumerate(strategy.steps):
        if isinstance(step, StepSection) and step.weight in steps:
            whole = steps[step.weight]
            found |= {f"steps/{n}/hold": whole.hold, f"steps/{n}/deadline": whole.deadline}
    return found


def values(section: Section, usual: Given, path: str = "") -> Iterator[Row]:
    """Each key with what holds, without what may be a secret."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{path}{field.alias or name}"
        inner: dict[str, Any] = {"": value} if isinstance(value, Section) else {}
        if isinstance(value, list) and value and all(isinstance(v, Section) for v in value):
            inner = {f"/{n}": v for n, v in enumerate(value)}
        elif isinstance(value, dict) and value and all(isinstance(v, Section) for v in value.values()):
            inner = {f"/{n}": v for n, v in value.items()}
        for part, one in inner.items():
            yield from values(one, usual, f"{key}{part}/")
        if not inner:
            plain = section.model_dump(mode="json", include={name})[name]
            origin = "file" if name in section.model_fields_set else "default"
            if plain in (None, []) and key in usual:
                plain, origin = usual[key]
            shown = _without_secrets(plain, key.split("/"))
            yield Row(key, shown, _as_written(shown, field), origin)


_UNSET = re.compile(r"(?i)unset(: .+)")
_WRITTEN: dict[Any, Callable[[Any], str]] = {seconds: as_duration, size: as_size, share: as_share}


def _as_written(value: Any, field: FieldInfo) -> str:
    """A value as a file may have it."""
    if value is None:
        return "unset"
    if value == "" and (says := _UNSET.search(field.description or "")):
        return f"unset{says[1]}"
    kinds = [part.func for part in _parts(field) if isinstance(part, BeforeValidator)]
    written = next((_WRITTEN[kind] for kind in kinds if kind in _WRITTEN), None)
    if written is None or not isinstance(value, int | float):
        return json.dumps(value, ensure_ascii=False)
    return written(value)


def _parts(field: FieldInfo) -> Iterator[Any]:
    """What a key's type is made of; that of `Duration | None` lies deeper."""
    yield from field.metadata
    for kind in get_args(field.annotation):
        yield from getattr(kind, "__metadata__", ())


def _without_secrets(value: Any, path: list[str]) -> Any:
    """A value as it may be shown, by its place in the file: an anchor elsewhere makes it no less a secret."""
    if isinstance(value, dict):
        return {key: _without_secrets(one, [*path, key]) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_secrets(one, path) for one in value]
    if not isinstance(value, str):
        return value
    return "***" if may_be_secret(path) else masked(value)


@app.command()
def schema(
    which: Annotated[Which, typer.Argument(help="services/*.yaml or orchestrator.yaml")] = Which.SERVICE,
) -> None:
    """Print the JSON Schema, for editors."""
    model = ServiceFile if which is Which.SERVICE else Settings
    out.print(json.dumps(model.model_json_schema(), indent=2), markup=False)


def examples() -> Path:
    """The commented examples: inside an installed package, or the repository's own `config/`."""
    packaged = Path(__file__).parent / "examples"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "config"


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write")] = Path("/etc/orchestrator"),
) -> None:
    """Write commented example configuration. A file that exists is never written over."""
    source = examples()
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        target = folder / file.relative_to(source)
        if target.exists():
            out.print(f"kept    {target}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        out.print(f"written {target}")
