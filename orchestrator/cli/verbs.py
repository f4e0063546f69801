"""What people and CI ask for: each verb is a request, put down in Redis."""

import json
from typing import Annotated

import typer

from orchestrator.cli.ask import carry_out
from orchestrator.cli.exits import REFUSED
from orchestrator.cli.session import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    ServiceArgument,
    WhoOption,
    check_known,
    config_or_exit,
    err,
    escape,
    me,
    out,
    run,
    store_of,
)
from orchestrator.daemon.config import Config
from orchestrator.daemon.units import limit, seconds
from orchestrator.ports.faults import Fault
from orchestrator.rollout.model import ServiceState, instance_names

app = typer.Typer()

ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why, for the audit trail")]
WaitOption = Annotated[bool, typer.Option("--wait", "-w", help="Return when it is over")]
TimeoutOption = Annotated[str, typer.Option("--timeout", help="For --wait, for example 30m; 0 is none")]


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


@app.command()
def restart(
    service: ServiceArgument,
    who: WhoOption = "",
    reason: ReasonOption = "",
    strategy: Annotated[str, typer.Option(help="An override from the service's file")] = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = "0",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Release stable's own image again, as the service's file has it today: env, instances, limits.

    It is a release of its own and climbs the whole ladder. --wait is that of `release`.
    """
    fields = {"verb": "restart", "service": service, "who": who or me(), "why": reason, "strategy": strategy}
    _send(config_or_exit(config), fields, wait=wait, timeout=_seconds(timeout), output=output)


def _checks(given: list[str]) -> str:
    """What was said for the checklist, as a request carries it."""
    found: dict[str, bool | float] = {}
    for line in given:
        name, sign, value = line.partition("=")
        if not name:
            raise typer.BadParameter(f"{line}: has no name; write NAME, or NAME=0.99")
        if sign and not value:
            raise typer.BadParameter(f"{line}: has no value; write {name}, or {name}=0.99")
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
            return await carry_out(
                store, fields, wait=wait, timeout=timeout, output=output, configured=config.services
            )

    raise typer.Exit(run(work()))


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
_rollout_verb("promote", "Skip the rest of the ladder: all traffic now, then the bake with its gates.")
_service_verb("freeze", "Start no further release of a service; rollbacks still work.")
_service_verb("unfreeze", "Start releases again.")


def _rollback_on_host(config: Config, service: str, who: str, reason: str, output: Output) -> None:
    from orchestrator.daemon.local import roll_back_here

    done, before = run(roll_back_here(config, service, who, reason or f"rolled back on the host by {who}"))
    if before and output is Output.TEXT:
        words = f"{done.actor} has gone back to {done.to} already: {done.reason}"
        out.print(f"{service}: {escape(words)}; nginx sends all traffic there, nothing changes")
    elif output is Output.JSON:
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
        return state.meant

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
    wait: WaitOption = False,
    timeout: TimeoutOption = "0",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """End the rollout that is under way, or a queued release, or call a removal off while nothing is gone."""
    fields = {"verb": "abort", "service": service, "who": who or me(), "why": reason, "release": release_id}
    _send(config_or_exit(config), fields, wait=wait, timeout=_seconds(timeout), output=output)


@app.command()
def remove(
    service: ServiceArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only what would go is told")] = False,
    reason: ReasonOption = "",
    who: WhoOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = "0",
    output: OutputOption = Output.TEXT,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Take a service down: its traffic, its instances, its files in nginx' folder. Images and its file stay.

    Without --yes nothing is done. Refused while a release is on its way, and where nginx needs the
    service. While nothing is gone, `abort` calls it off, and so does a release.
    """
    from orchestrator.daemon.doctor.nginx import named_elsewhere

    found = config_or_exit(config)
    places = run(named_elsewhere(found, service))
    for place in places:
        err.print(f"[yellow]warning[/]: {escape(place)} names it; take that out first, or nginx refuses")
    if not yes:
        run(_what_would_go(found, service))
        return
    if places:
        raise typer.Exit(REFUSED)
    fields = {"verb": "remove", "service": service, "who": who or me(), "why": reason}
    _send(found, fields, wait=wait, timeout=_seconds(timeout), output=output)


async def _what_would_go(config: Config, service: str) -> None:
    from orchestrator.traffic.edge import files_of

    async with store_of(config) as store:
        check_known(config, service, await store.services())
        state, _ = await store.load(service)
    for name in _instances(state):
        out.print(f"would stop    {name}")
    for path in files_of(config.settings.nginx.directory, service):
        if path.exists():
            out.print(f"would remove  {path}")
    out.print(f"Nothing is done without --yes. Before, take {service} out of server blocks of your own;")
    out.print(f"afterwards, remove its file from {config.folder} and reload the daemon.")


def _instances(state: ServiceState) -> list[str]:
    kept = [r for r in (state.stable, state.previous, *(r.release for r in state.retiring)) if r is not None]
    return [name for release in kept for name in instance_names(release)]


@app.command()
def reload(
    who: WhoOption = "", output: OutputOption = Output.TEXT, config: ConfigOption = DEFAULT_CONFIG
) -> None:
    """Let the running daemon read its files again: what changes from when on, and what is wrong."""
    fields = {"verb": "reload", "who": who or me()}
    _send(config_or_exit(config, quiet=True), fields, wait=False, timeout=0.0, output=output)
