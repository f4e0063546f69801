"""`orchestrator`: the command line. What only one verb needs, it imports when it runs."""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

import orchestrator
from orchestrator.cli import config as config_command
from orchestrator.cli import token as token_command
from orchestrator.cli import verbs
from orchestrator.cli.exits import OK
from orchestrator.cli.session import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    ServiceArgument,
    check_known,
    config_or_exit,
    err,
    escape,
    file_or_exit,
    gone,
    out,
    run,
    store_of,
)
from orchestrator.cli.show import history_rows, history_table, status_table, verdict_lines
from orchestrator.daemon.config import Config
from orchestrator.daemon.places import waiting
from orchestrator.rollout.model import ServiceState
from orchestrator.store.codec import dump_state

if TYPE_CHECKING:
    from orchestrator.cli.explain import Story

app = typer.Typer(
    help="Blue-green and canary releases on Docker behind nginx, judged on Prometheus metrics.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(verbs.app)
app.add_typer(config_command.app, name="config")
app.add_typer(token_command.app, name="token")
app.command("init")(config_command.init)


def _version(value: bool) -> None:
    if value:
        out.print(orchestrator.__version__)
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Blue-green and canary releases on Docker behind nginx, judged on Prometheus metrics."""


@app.command()
def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the daemon in the foreground."""
    from orchestrator.daemon.serve import serve as serve_daemon
    from orchestrator.observability.logs import configure

    found = config_or_exit(config, quiet=True)  # the log has what is wrong
    writer = configure(found.settings.log.format, found.settings.log.level)
    code = serve_daemon(found, writer)
    sys.stdout.flush()
    os._exit(code)  # threads of hung SDK calls must not hold the exit


async def _states(config: Config, service: str) -> list[ServiceState]:
    async with store_of(config) as store:
        if not await store.driven():
            err.print("[yellow]warning[/]: no daemon drives; this is how the last one left it")
        stored = await store.services()
        if service:
            check_known(config, service, stored)
        names = [service] if service else sorted({*config.names, *stored})
        states = [(await store.load(name))[0] for name in names]
    return [s for s in states if service or s.service in config.names or s.removal is None]


@app.command()
def status(
    service: Annotated[str, typer.Argument(help="One service; all by default")] = "",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Show what every service is doing."""
    found = config_or_exit(config)
    states = run(_states(found, service))
    servers = {name: file.nginx.server for name, file in found.services.items()}
    later = waiting(found.settings.nginx.directory, servers)
    missing = (gone(found, s.service) for s in states if s.service not in found.gone)  # those are told
    for why in filter(None, (*missing, *(later.get(s.service) for s in states))):
        err.print(f"[yellow]warning[/]: {escape(why)}")
    if output is Output.JSON:
        out.print(json.dumps([json.loads(dump_state(s)) for s in states], indent=2), markup=False)
        return
    out.print(status_table(states, time.time(), found.templates))  # noqa: TID251  for people
    if service and states[0].rollout:
        for line in verdict_lines(states[0].rollout):
            out.print(line)


@app.command()
def watch(
    service: Annotated[str, typer.Argument(help="One service; all by default")] = "",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Follow live. In a pipe, or with --output json, one line an event."""
    from orchestrator.cli.watch import watch_events, watch_live

    found = config_or_exit(config)

    async def work() -> None:
        async with store_of(found) as store:
            if service:
                check_known(found, service, await store.services())
            if output is Output.TEXT and out.is_terminal:
                await watch_live(store, found.templates, service)
            else:
                await watch_events(store, service, output)

    run(work())


@app.command()
def history(
    service: ServiceArgument,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """List finished releases, latest first."""
    found = config_or_exit(config)
    state = run(_states(found, service))[0]
    rows = history_rows(state)
    if output is Output.JSON:
        out.print(json.dumps(rows, indent=2), markup=False)
        return
    if not rows:
        removed = f": it was removed, by {state.removal.by}" if state.removal else ""
        out.print(f"no release of {service} is remembered{escape(removed)}")
        return
    out.print(history_table(rows))


ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="For example api-7")]


@app.command("explain")
def explain_command(
    release_id: ReleaseArgument,
    brief: Annotated[bool, typer.Option("--brief", help="Without the table of every look")] = False,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Show why a release ended as it did: evidence over time, every look, the queries to paste."""
    from orchestrator.cli.explain import explain

    found = config_or_exit(config)
    explain(run(_story(found, release_id)), found, output, brief=brief)


@app.command("replay")
def replay_command(
    release_id: ReleaseArgument,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Decide a release again from the measurements that were kept; exit code 1 when a verdict differs."""
    from orchestrator.cli.explain import run_again

    if not run_again(run(_story(config_or_exit(config), release_id)), output):
        raise typer.Exit(1)


async def _story(config: Config, release_id: str) -> "Story":
    from orchestrator.cli.explain import story_of

    async with store_of(config) as store:
        return await story_of(store, release_id)


@app.command("rehearse")
def rehearse_command(
    service: ServiceArgument,
    days: Annotated[float, typer.Option(help="How much of the past is read", min=0.001, max=60)] = 3.0,
    replays: Annotated[int, typer.Option(help="At least 2 / alpha are made", min=1, max=100_000)] = 200,
    seed: Annotated[int, typer.Option(help="The same seed draws the same")] = 1,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Replay the gates on the service's own past, with nothing wrong: false alarms, and how long it takes."""
    from orchestrator.cli.rehearse import rehearse

    found = config_or_exit(config)
    file_or_exit(found, service)
    run(rehearse(found, service, days=days, replays=replays, seed=seed, output=output))


@app.command()
def edge(
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Write what nginx has to start with, and end")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Run beside an nginx on another host: serve what the daemon wants, and say that it is served."""
    from orchestrator.daemon.edge import run_edge
    from orchestrator.observability.logs import configure

    found = config_or_exit(config)
    configure(found.settings.log.format, found.settings.log.level)
    run(run_edge(found, once=prepare))


@app.command()
def edges(
    forget: Annotated[str, typer.Option(help="An edge that is no more")] = "",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """What the nginx of other hosts serve, and which of them are away."""
    from orchestrator.cli.edges import show_edges

    raise typer.Exit(run(show_edges(config_or_exit(config), forget, output)))


@app.command(name="reload-nginx")
def reload_nginx(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Let nginx read its files again, on its host: for a certificate that was renewed, also in a rollout."""
    from orchestrator.daemon.local import reload_here

    found = config_or_exit(config)

    async def work() -> int:
        await reload_here(found)
        out.print("nginx has read its files again")
        return OK

    raise typer.Exit(run(work()))


@app.command()
def doctor(
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Check Redis, Docker, nginx, Prometheus and permissions; each problem comes with its mend."""
    from orchestrator.daemon.doctor import examine

    checks = run(examine(config_or_exit(config, quiet=True)))
    if output is Output.JSON:
        rows = [{"check": c.name, "ok": c.ok, "detail": c.detail, "mend": c.mend} for c in checks]
        out.print(json.dumps(rows, indent=2), markup=False)
    else:
        for check in checks:
            mark = "[green]ok[/]  " if check.ok else "[red]FAIL[/]"
            out.print(f"{mark} {escape(check.name)}: {escape(check.detail)}")
            if check.mend and not check.ok:
                out.print(f"       mend: {escape(check.mend)}", style="yellow")
    if not all(c.ok for c in checks):
        raise typer.Exit(1)
