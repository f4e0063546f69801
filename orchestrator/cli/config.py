"""`config check`, `config show`, `config schema`, `init`."""

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
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
from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.settings import Settings
from orchestrator.daemon.wording import may_be_secret
from orchestrator.ports.addresses import masked

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
    """Print every value that holds, and whether a file says it or it is the default. Times are in seconds."""
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
    told = {
        file: [{"key": k, "value": v, "from": origin} for k, v, origin in values(section)]
        for file, section in sections.items()
    }
    if output is Output.JSON:
        out.print(json.dumps({str(file): rows for file, rows in told.items()}, indent=2), markup=False)
        return
    for file, rows in told.items():
        table = Table("key", "value", "from", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            value = "unset" if row["value"] is None else json.dumps(row["value"], ensure_ascii=False)
            style = "dim" if row["from"] == "default" else ""
            table.add_row(row["key"], escape(value), row["from"], style=style)
        out.print(f"[bold]{escape(str(file))}[/]")
        out.print(table)


def values(section: Section, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each key with its value and where that is from, without what may be a secret."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{path}{field.alias or name}"
        inner: dict[str, Any] = {"": value} if isinstance(value, Section) else {}
        if isinstance(value, list) and value and all(isinstance(v, Section) for v in value):
            inner = {f"/{n}": v for n, v in enumerate(value)}
        elif isinstance(value, dict) and value and all(isinstance(v, Section) for v in value.values()):
            inner = {f"/{n}": v for n, v in value.items()}
        for part, one in inner.items():
            yield from values(one, f"{key}{part}/")
        if not inner:
            plain = section.model_dump(mode="json", include={name})[name]
            shown = _without_secrets(plain, key.split("/"))
            yield key, shown, "file" if name in section.model_fields_set else "default"


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
