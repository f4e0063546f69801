"""`python -m bench.traffic [STEPS]`: what weight steps and rollbacks cost keepalive clients, on real parts.

The daemon's edge without the daemon, beside what a script does (`sed`, `nginx -s reload`), on the same nginx
and the same two Gin containers. Clients keep their connections and count only true losses; once they are
near, once behind a network of 10 ms round trip.
"""

import asyncio
import bisect
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from bench.recovery import percentile
from bench.traffic.haproxy import haproxy, installed
from bench.traffic.stage import CONNECTIONS, RATE, WEIGHTS, Heard, Stage, stage
from orchestrator.traffic.process import run

out = Console(highlight=False, width=110)

STEPS = 100
CHANGES = 500
ROLLBACKS = 40
RELOADS = 20
ROUNDS = 24
PACE = 1.4
"""Seconds from one step of the script to the next: about what one of ours takes."""


async def steps(on: Stage, number: int, network: str, step: Callable[[int], Awaitable[None]]) -> Heard:
    """So many weight steps under load."""
    async with on.clients(network) as heard:
        for n in range(number):
            began = time.monotonic()
            await step(WEIGHTS[n % 2])
            await asyncio.sleep(max(PACE - (time.monotonic() - began), 0.0))
    return heard[0]


def print_delays(title: str, delays: dict[str, list[float]], heard: Heard) -> None:
    """Print medians and tails of delays in seconds, and what the clients lost meanwhile."""
    table = Table(title=f"{title}, milliseconds")
    for column in ("", "median", "p99"):
        table.add_column(column, justify="right" if column else "left")
    for what, values in delays.items():
        table.add_row(what, *(f"{percentile(values, q) * 1000:.1f}" for q in (0.5, 0.99)))
    out.print(table)
    out.print(f"{heard.sent} requests, {sum(heard.lost.values())} lost")


async def changes(on: Stage, how: str, port: int, change: Callable[[str], Awaitable[None]]) -> None:
    """Print requests lost over many changes without a reload, and how long each takes to have effect."""
    took: list[float] = []
    late: list[float] = []
    async with on.clients("near", port) as heard:
        for n in range(CHANGES):
            began = time.monotonic()
            await change(("v1", "v2")[n % 2])
            took.append(time.monotonic() - began)
            late.append(began)
            await asyncio.sleep(0.05)
    marks = [at for at, _ in heard[0].marks]
    effect = []
    for n, began in enumerate(late):
        span = heard[0].marks[bisect.bisect(marks, began) : bisect.bisect(marks, began + took[n] + 0.05)]
        wrong = [at for at, who in span if who != ("v1", "v2")[n % 2]]
        effect.append(max(wrong, default=began) - began)
    title = f"{CHANGES} changes of all weights {how}"
    print_delays(title, {"the last request by the old weights": effect, "confirmed": took}, heard[0])


async def without_reload(on: Stage) -> None:
    """Print that for this edge, and for HAProxy before the same containers."""

    async def change(to: str) -> None:
        plan = on.plan(50)
        only = tuple(s for s in plan.route.servers if s.release == to)
        await on.edge.apply(replace(plan, route=replace(plan.route, servers=only)), 1)

    await changes(on, "in nginx' memory", on.port, change)
    if not installed():
        out.print("HAProxy: not measured, it is not installed")
        return
    async with haproxy(on) as (port, peer):
        await changes(on, "by HAProxy's runtime API", port, peer)


async def losses(on: Stage, number: int) -> None:
    """Print requests lost over many steps."""
    table = Table(
        title=f"{number} weight steps by reload, {CONNECTIONS} keepalive connections, a fourth POST"
    )
    for column in ("way", "clients", "requests", "lost"):
        table.add_column(column, justify="right" if column in ("requests", "lost") else "left")

    async def ours(weight: int) -> None:
        await on.edge.apply(on.plan(weight), 1)

    for network in RATE:
        for way, step in (("this edge", ours), ("script: sed, reload", on.script)):
            await ours(WEIGHTS[1])
            heard = await steps(on, number, network, step)
            why = ", ".join(f"{k} {n}" for k, n in heard.lost.items())
            table.add_row(way, network, str(heard.sent), f"{sum(heard.lost.values())} {why}".strip())
    out.print(table)


async def rollbacks(on: Stage) -> None:
    """Print how long after a rollback begins a request may still reach the candidate."""
    began: list[float] = []
    ended: list[float] = []
    confirmed: list[float] = []
    async with on.clients("near") as heard:
        for _ in range(ROLLBACKS):
            await on.edge.apply(on.plan(WEIGHTS[1]), 1)
            await asyncio.sleep(0.3)
            began.append(time.monotonic())
            await on.edge.retreat("api", "bench", "measured")
            ended.append(time.monotonic())
            confirmed.append(ended[-1] - began[-1])
            on.generation += 1
            while on.edge._switches.all("api"):  # noqa: SLF001
                await on.edge.observe("api")
                await asyncio.sleep(0.02)
    late = []
    for start, end in zip(began, ended, strict=True):
        wrong = [at for at, who in heard[0].marks if who == "v2" and start <= at <= end]
        late.append(max(wrong, default=start) - start)
    how = "in nginx' memory" if on.dynamic else "by the switch"
    title = f"{ROLLBACKS} rollbacks of a candidate that has 50 %, {how}"
    print_delays(
        title, {"the last request that reaches the candidate": late, "confirmed": confirmed}, heard[0]
    )


async def speed(on: Stage) -> None:
    """Print a step without its wait beside a bare reload, one after the other."""
    edge, took = on.make_edge(0.0), {"step": [], "reload": []}  # type: ignore[var-annotated]
    async with on.clients("near"):
        for n in range(RELOADS):
            began = time.monotonic()
            await edge.apply(on.plan(WEIGHTS[n % 2]), 1)
            took["step"].append(time.monotonic() - began)
            await asyncio.sleep(0.5)
            before = (await on.process.workers()).accepting
            began = time.monotonic()
            await run(["nginx", "-c", str(on.root / "nginx.conf"), "-t", "-q"], 10)
            await on.process.reload()
            while before & (await on.process.workers()).accepting:
                await asyncio.sleep(0.001)
            took["reload"].append(time.monotonic() - began)
            await asyncio.sleep(0.5)
    await edge.close()
    step, bare = (percentile(took[k], 0.5) * 1000 for k in ("step", "reload"))
    out.print(
        f"a step without its wait: {step:.0f} ms; nginx -t and a bare reload until no old worker accepts:"
    )
    out.print(f"{bare:.0f} ms; ratio {step / bare:.2f}")


async def throughput(on: Stage) -> None:
    """Print requests a second through our server block and through a plain upstream, in turns."""
    if not shutil.which("wrk"):
        out.print("throughput: not measured, wrk is not installed")
        return
    plain = on.port + 2
    servers = "".join(f"server {a};" for a in on.addresses.values())
    (on.root / "edge" / "zz-plain.conf").write_text(
        f"upstream plain {{ zone plain 64k; {servers} keepalive 32; }}\n"
        f"server {{ listen 127.0.0.1:{plain}; location / {{"
        f" include {on.root}/edge/snippets/proxy.conf; proxy_pass http://plain; }} }}\n"
    )
    await on.edge.apply(on.plan(50), 1)
    await on.process.reload()
    await asyncio.sleep(1.0)
    found: dict[int, list[float]] = {on.port: [], plain: []}
    for number in range(ROUNDS):
        for port, rates in sorted(found.items(), reverse=bool(number % 2)):
            said = await run(["wrk", "-t1", "-c32", "-d2s", f"http://127.0.0.1:{port}/ping"], 20)
            rates.append(float(said.partition("Requests/sec:")[2].split()[0]))
    ratios = [ours / bare for ours, bare in zip(*found.values(), strict=True)]
    ours, bare = (statistics.median(rates) for rates in found.values())
    how = "in nginx' memory" if on.dynamic else "with the switch"
    low, middle, high = (percentile(ratios, q) for q in (0.25, 0.5, 0.75))
    out.print(
        f"throughput, weights {how}: {ours:.0f}/s, plain upstream {bare:.0f}/s; ratio of {ROUNDS} pairs of"
        f" rounds: median {middle:.2f}, half of them between {low:.2f} and {high:.2f}"
    )


async def main(number: int) -> None:
    """Print everything."""
    async with stage(dynamic=True) as on:
        await without_reload(on)
        await rollbacks(on)
        await throughput(on)
    async with stage(dynamic=False) as on:
        await speed(on)
        await rollbacks(on)
        await throughput(on)
        await losses(on, number)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS))
