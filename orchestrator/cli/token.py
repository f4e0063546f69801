"""`token create`, `token list`, `token revoke`: who may use the HTTP API."""

import json
import time
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from orchestrator.cli.exits import REFUSED
from orchestrator.cli.session import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    WhoOption,
    check_known,
    config_or_exit,
    err,
    escape,
    me,
    out,
    redis_of,
    run,
)
from orchestrator.daemon.config import Config
from orchestrator.daemon.units import seconds
from orchestrator.ports.access import Principal, Role, Token
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import Client
from orchestrator.store.tokens import RedisTokens

app = typer.Typer(help="Who may use the HTTP API.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="As the audit trail shows it: ci-api, ann")],
    role: Annotated[Role, typer.Option(help="What it may do")],
    service: Annotated[list[str] | None, typer.Option(help="Only for it; may be repeated")] = None,
    expires: Annotated[str, typer.Option(help="After how long, such as 90d; unset: never")] = "",
    who: WhoOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Make a token. Its secret is printed once, alone on standard output; only a digest is kept."""
    from orchestrator.intake.views import TokenBody

    found = config_or_exit(config)
    for one in service or []:
        check_known(found, one)
    try:
        body = TokenBody(name=name, role=role, services=service or [])
        life = seconds(expires) if expires else None
    except ValidationError as error:
        raise typer.BadParameter(f"NAME: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise typer.BadParameter(f"--expires: {error}") from None
    principal = Principal(name=body.name, role=body.role, services=tuple(body.services))
    now = time.time()  # noqa: TID251  when a person makes it

    async def work() -> tuple[Token, str]:
        async with redis_of(found) as redis:
            until = now + life if life else None
            return await _tokens(found, redis).create(principal, who or me(), now, until)

    token, secret = run(work())
    err.print(f"token {token.id} for {name}, {role} of {', '.join(principal.services) or 'all services'}")
    out.print(secret, markup=False)


def _tokens(config: Config, redis: Client) -> RedisTokens:
    return RedisTokens(redis, Keys(config.settings.redis.prefix))


@app.command("list")
def list_(output: OutputOption = Output.TEXT, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Print all tokens, without their secrets."""
    from orchestrator.intake.views import TokenView

    found = config_or_exit(config)

    async def work() -> list[Token]:
        async with redis_of(found) as redis:
            return await _tokens(found, redis).tokens()

    tokens = run(work())
    if output is Output.JSON:
        out.print(json.dumps([TokenView.of(t).model_dump() for t in tokens], indent=2), markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "name", "role", "services", "made by", "expires"):
        table.add_column(column)
    for token in tokens:
        who = token.principal
        ends = time.strftime("%Y-%m-%d", time.localtime(token.expires_at)) if token.expires_at else "never"
        services = ", ".join(who.services) or "all"
        table.add_row(token.id, who.name, who.role, services, token.created_by, ends)
    out.print(table)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="Its id: see token list")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Take a token back; a second later it does not work any more."""
    found = config_or_exit(config)

    async def work() -> bool:
        async with redis_of(found) as redis:
            return await _tokens(found, redis).revoke(token)

    if not run(work()):
        err.print(f"[red]refused[/]: there is no token {escape(repr(token))}; see `orchestrator token list`")
        raise typer.Exit(REFUSED)
    out.print(f"{token} does not work any more")
