"""Tell a story again under given faults, all pairs of faults of a story, or random scripts for some minutes.

`python -m tests.simulation bad 20:lost_reply 23:crash_after` prints the effects and what was violated.
`python -m tests.simulation pairs STORY [NUMBER [SEED]]` tells it with every pair of faults, on all cores, or
with so many of them, evenly spread.
`python -m tests.simulation random MINUTES [SEED]` tells scripts with three to six faults, each from a seed of
its own, and `python -m tests.simulation script SEED` tells one of them again.
Exits with 1 when anything was violated.
"""

import logging
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import structlog

from tests.simulation.chaos import script
from tests.simulation.journey import simulate
from tests.simulation.pairs import Faults, every, some_pairs
from tests.simulation.world import Fault, Mode, World

PARTS = 64
"""Enough for the cores to end at about the same time."""


def many(minutes: float, seed: int) -> bool:
    """Scripts one after the other; whether any violated anything."""
    deadline, number, effects, wrong = time.monotonic() + minutes * 60, 0, 0, 0
    while time.monotonic() < deadline:
        world = script(seed + number)
        effects += len(world.effects)
        if world.violations:
            wrong += 1
            print(f"replay: python -m tests.simulation script {seed + number}", *world.violations, sep="\n  ")
        number += 1
    print(f"{number} scripts from seed {seed}, {effects} effects, {wrong} with violations")
    return bool(wrong)


def pairs(name: str, number: int, seed: int) -> bool:
    """All pairs of a story, on all cores, or so many in this process; whether any violated anything."""
    began = time.monotonic()
    if number:
        found = [(pair, simulate(name, pair).violations) for pair in some_pairs(name, number, seed)]
    else:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            found = [told for part in pool.map(_pairs, [name] * PARTS, range(PARTS)) for told in part]
    wrong = [
        f"python -m tests.simulation {name} {' '.join(map(str, p))}: {v}" for p, lines in found for v in lines
    ]
    print(*wrong[:100], sep="\n")
    told = len(found)
    print(f"{name}: {told} pairs of faults, {len(wrong)} violations, {time.monotonic() - began:.0f} s")
    return bool(wrong)


def _pairs(name: str, part: int) -> list[tuple[Faults, list[str]]]:
    _quiet()
    return list(every(name, 2, part, PARTS))


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def show(world: World, faults: list[Fault]) -> bool:
    """Print what was done and what was violated."""
    planned = {f.effect: f.mode for f in faults}
    for number, effect in enumerate(world.effects):
        print(number, effect, planned.get(number, ""))
    print(*world.violations or ["nothing was violated"], sep="\n")
    return bool(world.violations)


def main() -> bool:
    """Whether anything was violated."""
    _quiet()
    what, *given = sys.argv[1:]
    if what == "random":
        return many(float(given[0]), int(given[1]) if len(given) > 1 else random.randrange(2**32))
    if what == "pairs":
        name, number, seed = (*given, *("0", "1")[len(given) - 1 :])
        return pairs(name, int(number), int(seed))
    if what == "script":
        return show(script(int(given[0])), [])
    faults = [Fault(int(n), Mode(mode)) for n, _, mode in (g.partition(":") for g in given)]
    return show(simulate(what, faults), faults)


if __name__ == "__main__":
    sys.exit(main())
