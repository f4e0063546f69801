"""`config check`, `config schema`, `init`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.session import DEFAULT_CONFIG, ConfigOption, config_or_exit, out
from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.settings import Settings

app = typer.Typer(help="Check the configuration, or print its schema.", no_args_is_help=True)


class Which(StrEnum):
    """The two kinds of files."""

    SERVICE = "service"
    SETTINGS = "settings"


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Check all files; every problem is printed with its file and path."""
    found = config_or_exit(config)
    out.print(
        f"ok: {config} and {len(found.services)} services ({', '.join(sorted(found.services)) or 'none'})"
    )


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
