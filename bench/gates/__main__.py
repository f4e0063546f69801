"""`python -m bench.gates [GOOD] [BAD]`: this rule and three rivals on the same streams, in one run.

GOOD and BAD are how many releases a cell has (default 1000 and 400). A cell's figures come with the seeds
0, 1, 2 …, so that every way sees the same streams.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.gates import ours
from bench.gates.bound import information_bound
from bench.gates.cost import look
from bench.gates.rivals import RIVALS
from bench.gates.stream import End, Scenario

out = Console(highlight=False, width=150)

RATES, BASELINES = (5, 50, 500, 5000), (0.001, 0.01)
HARMS = {
    "+0.5 pp": {"extra": 0.005},
    "+1 pp": {"extra": 0.01},
    "+5 pp": {"extra": 0.05},
    "+50 pp": {"extra": 0.5},
    "latency x 1.5": {"slower": 1.5},
    "latency x 3": {"slower": 3.0},
}
WAYS: dict[str, Callable[[Scenario, int], End]] = {"ours": ours.run, **RIVALS}


def _run(job: tuple[str, Scenario, int]) -> list[End]:
    way, scenario, number = job
    return [WAYS[way](scenario, seed) for seed in range(number)]


def good_cells() -> dict[str, Scenario]:
    """Releases with nothing wrong, in worlds with something wrong."""
    plain = {f"{r}/s, {b:.1%}": Scenario(r, b) for r, b in itertools.product(RATES, BASELINES)}
    odd = Scenario(500)
    return plain | {
        "500/s, shared outage": replace(odd, outage=True),
        "500/s, outage, scraped 5 s apart": replace(odd, outage=True, skew=5.0),
        "500/s, slow for its first 20 s": replace(odd, cold=20.0),
        "50/s, 1.0%, errors in bursts of 5": replace(odd, rate=50, baseline=0.01, burst=5.0),
        "the same, phi 8": replace(odd, rate=50, baseline=0.01, burst=5.0, phi=8.0),
    }


def false_rollbacks(pool: ProcessPoolExecutor, number: int) -> bool:
    """Print what becomes of good releases; whether ours keeps its bound where errors come one by one."""
    cells = good_cells()
    jobs = [(way, scenario, number) for scenario in cells.values() for way in WAYS]
    found = dict(zip(jobs, pool.map(_run, jobs), strict=True))
    table = Table(title=f"good releases, {number} a cell: rolled back %, seconds to promote (median)")
    table.add_column("traffic")
    for way in WAYS:
        table.add_column(way, justify="right")
    kept = True
    for name, scenario in cells.items():
        row = []
        for way in WAYS:
            ends = found[way, scenario, number]
            back = sum(e.outcome == "rolled_back" for e in ends) / number
            promoted = [e.seconds for e in ends if e.outcome == "promoted"]
            row.append(f"{back:.2%}, {np.median(promoted):.0f} s" if promoted else f"{back:.2%}, -")
            if way == "ours" and scenario.burst == 1.0:
                kept &= back <= ours.CERTAINTY.alpha
        table.add_row(name, *row)
    out.print(table)
    return kept


def _speed(ends: Iterable[End]) -> tuple[float, float, float, float, str]:
    found = list(ends)
    times = [e.seconds for e in found if e.outcome == "rolled_back"]
    missed = sum(e.outcome == "promoted" for e in found) / len(found)
    held = sum(e.outcome == "held" for e in found) / len(found)
    harmed = float(np.median([e.harmed for e in found]))
    median, late = (np.median(times), np.quantile(times, 0.95)) if times else (np.inf, np.inf)
    text = f"{median:.0f} / {late:.0f} s" if times else "-"
    notes = [f"{missed:.0%} missed"] * (missed > 0) + [f"{held:.0%} held"] * (held > 0)
    return float(median), missed, held, harmed, ", ".join([text, *notes])


def detection(pool: ProcessPoolExecutor, number: int) -> None:
    """Print how soon harm is seen, and how many users it reached."""
    cells = [
        (rate, base, name, Scenario(rate, base, **harm))  # type: ignore[arg-type]
        for rate, base in itertools.product(RATES, BASELINES)
        for name, harm in HARMS.items()
    ]
    jobs = [(way, scenario, number) for *_, scenario in cells for way in WAYS]
    found = dict(zip(jobs, pool.map(_run, jobs), strict=True))
    table = Table(
        title=f"harmful releases, {number} a cell: seconds until the rollback, median / p95;"
        " requests harmed, median"
    )
    for column in ("req/s", "stable", "harm", "bound s", "ours / bound"):
        table.add_column(column, justify="right")
    for way in WAYS:
        table.add_column(way, justify="right")
        table.add_column("harmed", justify="right")
    ratios = []
    for rate, base, name, scenario in cells:
        bound = float(
            np.median([information_bound(scenario, e.shares) for e in found["ours", scenario, number]])
        )
        speeds = {way: _speed(found[way, scenario, number]) for way in WAYS}
        median = speeds["ours"][0]
        ratio = median / bound
        if bound > 10.0 and np.isfinite(median) and not speeds["ours"][1] and not speeds["ours"][2]:
            ratios.append((ratio, f"{name} at {rate}/s over {base:.1%}"))
        cols = itertools.chain.from_iterable((s[4], f"{s[3]:.0f}") for s in speeds.values())
        table.add_row(str(rate), f"{base:.1%}", name, f"{bound:.0f}", f"{ratio:.2f}", *cols)
    out.print(table)
    worst = max(ratios)
    out.print(
        f"where the bound is several scrapes: median ratio {np.median([r for r, _ in ratios]):.2f},"
        f" worst {worst[0]:.2f} ({worst[1]})"
    )


def cost() -> None:
    """Print what a look costs."""
    spent = look(rollouts=200)
    out.print(f"one look at 200 rollouts x 3 metrics: {spent * 1000:.1f} ms of CPU")


def main(good: int, bad: int) -> int:
    """Print everything; 1 when the bound on false rollbacks does not hold."""
    began = time.monotonic()
    cost()
    with ProcessPoolExecutor() as pool:
        kept = false_rollbacks(pool, good)
        detection(pool, bad)
    out.print(f"{time.monotonic() - began:.0f} s in all", style="dim")
    return 0 if kept else 1


if __name__ == "__main__":
    numbers = [int(arg) for arg in sys.argv[1:]]
    sys.exit(main(*numbers, *(1000, 400)[len(numbers) :]))
