"""`orchestrator`: the command line."""

import json
import os
import sys
import time
from typing import Annotated

import typer
from rich.table import Table

import orchestrator
from orchestrator.cli import config as config_command
from orchestrator.cli import token as token_command
from orchestrator.cli.ask import ask, follow, report
from orchestrator.cli.edges import show_edges
from orchestrator.cli.exits import OK, OUTCOMES
from orchestrator.cli.explain import Story, explain, run_again, story_of
from orchestrator.cli.rehearse import rehearse
from orchestrator.cli.session import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    WhoOption,
    config_or_exit,
    me,
    out,
    run,
    store_of,
)
from orchestrator.cli.show import COLOURS, history_rows, status_table, verdict_lines
from orchestrator.cli.watch import watch_events, watch_live
from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor import examine
from orchestrator.daemon.edge import run_edge
from orchestrator.daemon.local import reload_here, roll_back_here
from orchestrator.daemon.serve import serve as serve_daemon
from orchestrator.daemon.units import limit, seconds
from orchestrator.observability.logs import configure
from orchestrator.ports.faults import Fault
from orchestrator.rollout.events import CommandAccepted, ReleaseAccepted
from orchestrator.rollout.model import Outcome, ServiceState
from orchestrator.store.codec import dump_state

app = typer.Typer(
    help="Blue-green and canary releases on Docker behind nginx, judged on Prometheus metrics.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(config_command.app, name="config")
app.add_typer(token_command.app, name="token")
app.command("init")(config_command.init)

ServiceArgument = Annotated[str, typer.Argument(help="Name of the service")]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why, for the audit trail")]
WaitOption = Annotated[bool, typer.Option("--wait", "-w", help="Return when it is over")]
TimeoutOption = Annotated[str, typer.Option("--timeout", help="For --wait, for example 30m; 0 is none")]


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
    found = config_or_exit(config)
    writer = configure(found.settings.log.format, found.settings.log.level)
    code = serve_daemon(found, writer)
    sys.stdout.flush()
    os._exit(code)  # threads of hung SDK calls must not hold the exit


@app.command()
def release(
    service: ServiceArgument,
    image: Annotated[str, typer.Argument(help="repository:tag or repository@sha256:...")],
    who: WhoOption = "",
    reason: ReasonOption = "",
    link: Annotated[str, typer.Option(help="Where the build can be seen")] = "",
    key: Annotated[str, typer.Option(help="Idempotency key: the same key again is the same release")] = "",
    strategy: Annotated[str, typer.Option(help="An override from the service's file")] = "",
    check: Annotated[
        list[str] | None, typer.Option(help="For the checklist: migrations_rehearsed, tests_pass_rate=0.99")
    ] = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = "0",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Release an image. With --wait the exit code tells the outcome: see docs/reference/cli.md."""
    fields = {
        "verb": "release",
        "service": service,
        "image": image,
        "who": who or me(),
        "why": reason,
        "link": link,
        "key": key,
        "strategy": strategy,
        "checks": _checks(check or []),
    }
    _send(config_or_exit(config), fields, wait=wait, timeout=_seconds(timeout), output=output)


def _checks(given: list[str]) -> str:
    """What was said for the checklist, as a request carries it."""
    found: dict[str, bool | float] = {}
    for line in given:
        name, _, value = line.partition("=")
        try:
            found[name] = value in ("", "true") if value in ("", "true", "false") else limit(value)
        except ValueError as error:
            raise typer.BadParameter(f"{name}: {error}") from None
    return json.dumps(found) if found else ""


def _seconds(text: str) -> float:
    try:
        return seconds(float(text) if text.isdecimal() else text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _send(config: Config, fields: dict[str, str], *, wait: bool, timeout: float, output: Output) -> None:
    async def work() -> int:
        async with store_of(config) as store:
            asked = await ask(store, fields)
            code = report(asked, output)
            if code != OK or not wait:
                return code
            answer = asked.answer
            followed = answer.release if isinstance(answer, ReleaseAccepted) else ""
            if isinstance(answer, ReleaseAccepted) and answer.duplicate:
                state, _ = await store.load(fields["service"])
                ended = state.journeys(followed)
                if ended:
                    return OUTCOMES[ended[-1].outcome]
            after = asked.seen
            if isinstance(answer, CommandAccepted):
                after = _before(after)
            return await follow(store, fields["service"], followed, after, timeout, output)

    raise typer.Exit(run(work()))


def _before(event_id: str) -> str:
    """The id just before, because a command's own end may be in the same commit."""
    ms, _, number = event_id.partition("-")
    return f"{int(ms)}-{max(int(number) - 1, 0)}"


def _service_verb(verb: str, doc: str) -> None:
    """Register a verb about a whole service."""

    def command(
        service: ServiceArgument,
        reason: ReasonOption = "",
        who: WhoOption = "",
        output: OutputOption = Output.TEXT,
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        fields = {"verb": verb, "service": service, "who": who or me(), "why": reason}
        _send(config_or_exit(config), fields, wait=False, timeout=0.0, output=output)

    command.__doc__ = doc
    app.command(verb)(command)


def _rollout_verb(verb: str, doc: str) -> None:
    """Register a verb about the rollout that is under way."""

    def command(
        service: ServiceArgument,
        release_id: Annotated[
            str, typer.Option("--release", help="Refuse when another one is under way")
        ] = "",
        reason: ReasonOption = "",
        who: WhoOption = "",
        output: OutputOption = Output.TEXT,
        config: ConfigOption = DEFAULT_CONFIG,
    ) -> None:
        fields = {"verb": verb, "service": service, "who": who or me(), "why": reason, "release": release_id}
        _send(config_or_exit(config), fields, wait=False, timeout=0.0, output=output)

    command.__doc__ = doc
    app.command(verb)(command)


_rollout_verb("pause", "Let the rollout stand still; its gates go on watching.")
_rollout_verb("resume", "Go on after a pause.")
_rollout_verb("approve", "Let a rollout go on that waits for a person.")
_rollout_verb(
    "promote", "Skip the rest of the ladder: all traffic now, watched by the gates of the last step."
)
_service_verb("freeze", "Start no further release of a service; rollbacks still work.")
_service_verb("unfreeze", "Start releases again.")


def _check_known(config: Config, service: str) -> None:
    if service not in config.services:
        known = ", ".join(sorted(config.services)) or "none"
        raise typer.BadParameter(f"{service!r} is not known; there are: {known}")


def _rollback_on_host(config: Config, service: str, who: str, reason: str, output: Output) -> None:
    _check_known(config, service)
    done = run(roll_back_here(config, service, who, reason or f"rolled back on the host by {who}"))
    if output is Output.JSON:
        out.print(json.dumps({"service": service, "to": done.to, "actor": who}), markup=False)
    else:
        out.print(f"{service}: nginx sends all traffic to {done.to}; the daemon follows when it can")


@app.command()
def rollback(
    service: ServiceArgument,
    to: Annotated[str, typer.Option(help="An earlier promoted release; the last good one by default")] = "",
    local: Annotated[
        bool, typer.Option("--local", help="On nginx' host, with Redis or the daemon down")
    ] = False,
    reason: ReasonOption = "",
    who: WhoOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = "0",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Go back: from the rollout that is under way, else from stable to the last good release.

    With --local nginx is given the file that lies ready for it on this host; nothing else is asked. The
    daemon follows when it can.
    """
    found = config_or_exit(config)
    if local:
        _rollback_on_host(found, service, who or me(), reason, output)
        return

    async def meant() -> str:
        async with store_of(found) as store:
            try:
                state, _ = await store.load(service)
            except Fault as error:
                raise Fault(f"{error}; on nginx' host, add --local to go back without it") from error
        if state.rollout is not None:
            return state.rollout.release.id
        return state.stable.id if state.stable else ""

    fields = {
        "verb": "rollback",
        "service": service,
        "who": who or me(),
        "why": reason,
        "to": to,
        "release": run(meant()),
    }
    _send(found, fields, wait=wait, timeout=_seconds(timeout), output=output)


@app.command()
def abort(
    service: ServiceArgument,
    release_id: Annotated[str, typer.Option("--release", help="A queued release")] = "",
    reason: ReasonOption = "",
    who: WhoOption = "",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """End the rollout that is under way, or a queued release."""
    fields = {"verb": "abort", "service": service, "who": who or me(), "why": reason, "release": release_id}
    _send(config_or_exit(config), fields, wait=False, timeout=0.0, output=output)


async def _states(config: Config, service: str) -> list[ServiceState]:
    async with store_of(config) as store:
        names = [service] if service else sorted({*config.services, *await store.services()})
        return [(await store.load(name))[0] for name in names]


@app.command()
def status(
    service: Annotated[str, typer.Argument(help="One service; all by default")] = "",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Show what every service is doing."""
    found = config_or_exit(config)
    if service:
        _check_known(found, service)
    states = run(_states(found, service))
    if output is Output.JSON:
        out.print(json.dumps([json.loads(dump_state(s)) for s in states], indent=2), markup=False)
        return
    out.print(status_table(states, time.time()))  # noqa: TID251  for people
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
    found = config_or_exit(config)

    async def work() -> None:
        async with store_of(found) as store:
            if output is Output.TEXT and out.is_terminal:
                await watch_live(store, sorted(found.services), service)
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
    state = run(_states(config_or_exit(config), service))[0]
    rows = history_rows(state)
    if output is Output.JSON:
        out.print(json.dumps(rows, indent=2), markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("release", "outcome", "image", "when", "seconds", "by", "reason"):
        table.add_column(column)
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["ended_at"]))
        outcome = f"[{COLOURS[Outcome(row['outcome'])]}]{row['outcome']}[/]"
        name = row["release"] + (" (back)" if row["kind"] == "revert" else "")
        table.add_row(name, outcome, row["image"], when, f"{row['seconds']:g}", row["actor"], row["reason"])
    out.print(table)


ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="For example api-7")]


@app.command("explain")
def explain_command(
    release_id: ReleaseArgument,
    brief: Annotated[bool, typer.Option("--brief", help="Without the table of every look")] = False,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Show why a release ended as it did: evidence over time, every look, the queries to paste."""
    found = config_or_exit(config)
    explain(run(_story(found, release_id)), found, output, brief=brief)


@app.command("replay")
def replay_command(
    release_id: ReleaseArgument,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Decide a release again from the measurements that were kept; exit code 1 when a verdict differs."""
    if not run_again(run(_story(config_or_exit(config), release_id)), output):
        raise typer.Exit(1)


async def _story(config: Config, release_id: str) -> Story:
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
    found = config_or_exit(config)
    _check_known(found, service)
    run(rehearse(found, service, days=days, replays=replays, seed=seed, output=output))


@app.command()
def edge(
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Write what nginx has to start with, and end")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Run beside an nginx on another host: serve what the daemon wants, and say that it is served."""
    found = config_or_exit(config)
    if not prepare:
        configure(found.settings.log.format, found.settings.log.level)
    run(run_edge(found, once=prepare))


@app.command()
def edges(
    forget: Annotated[str, typer.Option(help="An edge that is no more")] = "",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """What the nginx of other hosts serve, and which of them are away."""
    raise typer.Exit(run(show_edges(config_or_exit(config), forget, output)))


@app.command(name="reload-nginx")
def reload_nginx(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Let nginx read its files again, on its host: for a certificate that was renewed, also in a rollout."""
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
    checks = run(examine(config_or_exit(config)))
    if output is Output.JSON:
        rows = [{"check": c.name, "ok": c.ok, "detail": c.detail, "mend": c.mend} for c in checks]
        out.print(json.dumps(rows, indent=2), markup=False)
    else:
        for check in checks:
            mark = "[green]ok[/]  " if check.ok else "[red]FAIL[/]"
            out.print(f"{mark} {check.name}: {check.detail}")
            if check.mend and not check.ok:
                out.print(f"       mend: {check.mend}", style="yellow")
    if not all(c.ok for c in checks):
        raise typer.Exit(1)
