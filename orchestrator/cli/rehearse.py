"""`rehearse`: what the gates would make of good releases at this service's own traffic."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress

from orchestrator.analysis.rehearsal import DISPERSIONS, Past, Rehearsal, Replays
from orchestrator.cli.session import Output, out
from orchestrator.daemon.adapters import make_prometheus
from orchestrator.daemon.config import Config
from orchestrator.daemon.rehearse import read_past
from orchestrator.engine.conductor import counters_of
from orchestrator.ports.faults import Fault
from orchestrator.rollout.policy import Policy

ROUTED = 200
"""Replays that tell how long a good release takes."""


async def rehearse(
    config: Config, service: str, *, days: float, replays: int, seed: int, output: Output
) -> None:
    """Read the past, replay, print.

    Raises:
        Fault: Prometheus does not answer, or knows too little.
    """
    plan = config.services[service].plan()
    policy = plan.policies[""]
    if not policy.comparisons:
        raise typer.BadParameter(
            f"{service!r} has no gate that compares; add one, such as {{metric: error_rate}}"
        )
    past = Past(config.settings.prometheus.interval)
    prometheus = make_prometheus(config.settings)
    end = time.time()  # noqa: TID251  the past of Prometheus ends now
    quiet = Console(stderr=True, quiet=output is Output.JSON)
    try:
        with Progress(console=quiet, transient=True) as progress:
            reading = progress.add_task("reading Prometheus", total=1.0)
            query = counters_of(plan, policy)
            async for done in read_past(prometheus, query, past, end - days * 86400, end):
                progress.update(reading, completed=done)
            if past.total.requests < 1:
                raise Fault(f"Prometheus has no requests of {service!r} in the last {days:g} days")
            rehearsal = Rehearsal(policy, past, random.Random(seed))  # noqa: S311  no secret
            found = _play(rehearsal, replays, progress)
    finally:
        prometheus.close()
    if output is Output.JSON:
        out.print(json.dumps(document(service, days, past, rehearsal, found), indent=2), markup=False)
    else:
        report(service, days, past, rehearsal, found)


Found = dict[str, Any]


def _play(rehearsal: Rehearsal, number: int, progress: Progress) -> Found:
    """The replays with instances for one dispersion after the other, until one is calm enough."""
    certainty = rehearsal.policy.certainty
    number = max(number, round(2 / certainty.alpha))
    tried: dict[float, Replays] = {}
    chosen = None
    for dispersion in DISPERSIONS if rehearsal.has_siblings else ():
        task = progress.add_task(f"an instance as the candidate, phi {dispersion:g}", total=number)
        tried[dispersion] = _last(rehearsal.instances(number, dispersion), task, progress)
        if tried[dispersion].false_rate <= certainty.alpha / 2:
            chosen = dispersion
            break
    task = progress.add_task("requests routed at random", total=ROUTED)
    routed = _last(rehearsal.routed(ROUTED, chosen or certainty.dispersion), task, progress)
    return {"tried": tried, "phi": chosen, "routed": routed}


def _last(replays: Iterator[Replays], task: Any, progress: Progress) -> Replays:
    found = None
    for found in replays:
        progress.update(task, completed=found.number)
    assert found is not None
    return found


def document(service: str, days: float, past: Past, rehearsal: Rehearsal, found: Found) -> dict[str, Any]:
    """What the replays say, as JSON."""
    routed: Replays = found["routed"]
    tried: dict[float, Replays] = found["tried"]
    return {
        "service": service,
        "days": days,
        "requests_a_second": past.rate,
        "false_rollbacks": {
            f"{phi:g}": {"replays": r.number, "rolled_back": r.rolled_back} for phi, r in tried.items()
        },
        "phi": found["phi"],
        "good_release_seconds": {"median": routed.quantile(0.5), "p95": routed.quantile(0.95)},
        "good_releases_held": routed.held / routed.number,
        "good_releases_rolled_back": routed.false_rate,
        "undecidable": rehearsal.undecidable(),
        "unusable": rehearsal.unusable,
    }


def report(service: str, days: float, past: Past, rehearsal: Rehearsal, found: Found) -> None:
    """Print what the replays say."""
    total = past.total
    out.print(
        f"[bold]{service}[/]: {total.requests:,.0f} requests in {len(past.moments):,} scrape intervals of the"
        f" last {days:g} days, {past.rate:.3g} a second, {total.errors / total.requests:.3%} failed"
    )
    for name in rehearsal.unusable:
        out.print(f"[yellow]{name} can't be judged[/]: the histogram has no bound above it")
    _report_instances(rehearsal.policy, found["tried"], found["phi"])
    routed: Replays = found["routed"]
    median, late = routed.quantile(0.5), routed.quantile(0.95)
    if median is None or late is None:
        out.print("[red]no good release was promoted[/] in the replays")
    else:
        out.print(
            f"a good release takes {median:.0f} s (median), {late:.0f} s (p95) from its first traffic on;"
            f" {routed.held / routed.number:.0%} would ask a person"
        )
    for text in rehearsal.undecidable():
        out.print(f"[yellow]too little traffic[/]: {text}")


def _report_instances(policy: Policy, tried: dict[float, Replays], phi: float | None) -> None:
    if not tried:
        out.print("[yellow]never two instances at a time[/]: what clusters on one of them can't be seen")
    for dispersion, replays in tried.items():
        causes = "".join(f", {name} {n}" for name, n in replays.by.items())
        back = f"{replays.rolled_back} of {replays.number} good releases rolled back"
        who = f"an instance as the candidate, phi {dispersion:g}"
        out.print(f"{who}: {back}, {replays.false_rate:.1%}{causes}")
    if phi is not None:
        now = policy.certainty.dispersion
        advice = "that is what is set" if phi == now else f"set evidence: {{phi: {phi:g}}}; it is {now:g} now"
        most = policy.certainty.alpha / 2
        out.print(f"[green]phi {phi:g}[/] keeps false rollbacks below {most:.2%}: {advice}")
    elif tried:
        out.print(f"[red]no phi up to {DISPERSIONS[-1]:g} suffices[/]: the instances differ too much")
