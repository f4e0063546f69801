"""What every verb needs: the configuration, the store, and a clear word when one of them is not there."""

import asyncio
import contextlib
import errno
import getpass
import os
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich import markup
from rich.console import Console

from orchestrator.cli.exits import REFUSED, TIMED_OUT, UNREACHABLE, USAGE
from orchestrator.daemon.config import Config
from orchestrator.daemon.kept import KeptFiles, load_as_driven
from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.yaml_file import ConfigError
from orchestrator.ports.access import somebody
from orchestrator.ports.faults import Conflict, Fault
from orchestrator.rollout.told import harmless
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import Client, RedisStore, connect
from orchestrator.store.server import private_socket

T = TypeVar("T")

# In a pipe a row stays on its line.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 250)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Output(StrEnum):
    """How a verb answers."""

    TEXT = "text"
    JSON = "json"


ServiceArgument = Annotated[str, typer.Argument(help="Name of the service")]
ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="ORCHESTRATOR_CONFIG", help="Path of orchestrator.yaml"),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text for people, json for pipes")]


def _somebody(name: str) -> str:
    try:
        return somebody(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


WhoOption = Annotated[str, typer.Option("--who", help="Who asks, for the audit trail", callback=_somebody)]
DEFAULT_CONFIG = Path("/etc/orchestrator/orchestrator.yaml")


def escape(text: str) -> str:
    """A stranger's text for the console: no markup, and nothing that commands a terminal."""
    return markup.escape(harmless(text))


def me() -> str:
    """The account on this machine."""
    ci = os.environ.get("GITHUB_ACTOR") or os.environ.get("GITLAB_USER_LOGIN")
    return ci or f"{getpass.getuser()}@{socket.gethostname()}"


def config_or_exit(path: Path, *, quiet: bool = False) -> Config:
    """The configuration; exits when orchestrator.yaml is wrong, and warns of what else is."""
    try:
        found = load_as_driven(path)
    except ConfigError as error:
        for problem in error.problems:
            err.print(f"[red]error[/]: {escape(str(problem))}")
        if error.problems[0].text == os.strerror(errno.ENOENT):
            err.print(
                "       orchestrator init writes an example; --config or ORCHESTRATOR_CONFIG names another"
            )
        raise typer.Exit(USAGE) from None
    except OSError as error:
        raise _told(error) from None
    for problem in () if quiet else found.problems:
        err.print(f"[yellow]warning[/]: {escape(str(problem))}")
    return found


def check_known(config: Config, service: str, others: Iterable[str] = ()) -> None:
    """Whether a service is configured, rightly or not, or one of others; exits with those that are if not."""
    names = {*config.names, *others}
    if service in names:
        return
    if why := gone(config, service):
        raise typer.BadParameter(why)
    known = ", ".join(sorted(names)) or "none"
    raise typer.BadParameter(f"{service!r} is not known; there are: {known}")


def gone(config: Config, service: str) -> str:
    """That a service is driven without its file, and what mends that; '' where it is not."""
    kept = KeptFiles(config.settings.state_dir).path(service)
    if service in config.names or not kept.is_file():
        return ""
    return (
        f"{config.folder / service}.yaml is gone; {service} is driven as it was there last, which is kept in"
        f" {kept}: put it back, or run orchestrator remove {service}"
    )


def file_or_exit(config: Config, service: str) -> ServiceFile:
    """A service's file; exits when it is wrong, or there is none."""
    check_known(config, service)
    if service in config.unusable:
        raise typer.BadParameter(f"{service!r} can't be looked at before its file is right")
    return config.services[service]


@contextlib.asynccontextmanager
async def store_of(config: Config) -> AsyncIterator[RedisStore]:
    """The store that the daemon uses."""
    async with redis_of(config) as redis:
        yield RedisStore(redis, Keys(config.settings.redis.prefix))


@contextlib.asynccontextmanager
async def redis_of(config: Config) -> AsyncIterator[Client]:
    """The Redis that the daemon uses."""
    settings = config.settings
    redis = connect(settings.redis.url or f"unix://{private_socket(settings.state_dir)}")
    try:
        yield redis
    except Fault as error:
        if settings.redis.url or not str(error).startswith("Redis"):
            raise
        raise type(error)(f"{error} (the daemon runs this Redis: does it run?)") from error
    finally:
        await redis.aclose()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb; a fault of the other side is one line and an exit code, never a traceback."""
    try:
        return asyncio.run(work)
    except Conflict as error:
        err.print(f"[red]refused[/]: {escape(str(error))}")
        raise typer.Exit(REFUSED) from None
    except Fault as error:
        err.print(f"[red]error[/]: {escape(str(error))}")
        raise typer.Exit(UNREACHABLE) from None
    except TimeoutError:
        err.print("[red]error[/]: timed out")
        raise typer.Exit(TIMED_OUT) from None
    except BrokenPipeError:  # whoever read what it prints has enough
        raise
    except OSError as error:
        raise _told(error) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _told(error: OSError) -> typer.Exit:
    """The exit of a verb that the system has refused something: a disk, a folder, a permission."""
    words = filter(None, (error.filename, error.strerror or str(error)))
    err.print(f"[red]error[/]: {escape(': '.join(map(str, words)))}")
    return typer.Exit(UNREACHABLE)
