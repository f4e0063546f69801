"""Tell a story again with given faults, with all of them or all pairs, or random scripts for some minutes.

`python -m tests.simulation bad 20:lost_reply 23:crash_after` prints the effects and what was violated.
`python -m tests.simulation singles [STORY]` and `pairs [STORY]` tell it, or each, with every fault or every
pair of them, on all cores; `pairs STORY NUMBER [SEED]` with so many pairs, evenly spread.
`python -m tests.simulation random MINUTES [SEED]` tells scripts with three to six faults, each from a seed of
its own, and `python -m tests.simulation script SEED` tells one of them again.
Exits with 1 when anything was violated.
"""

import logging
import os
import random
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import structlog

from tests.simulation.chaos import script
from tests.simulation.journey import STORIES, simulate
from tests.simulation.pairs import Faults, every, some_pairs
from tests.simulation.world import Fault, Mode, World

PARTS = {1: 8, 2: 64}
"""By depth: enough for the cores to end at about the same time. Each part tells the story once."""


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


def some(name: str, number: int, seed: int) -> bool:
    """So many pairs of a story, in this process; whether any violated anything."""
    began = time.monotonic()
    found = [(pair, simulate(name, pair).violations) for pair in some_pairs(name, number, seed)]
    return _tell(name, found, began)


def whole(depth: int, names: Iterable[str]) -> bool:
    """All faults of stories, or all pairs of them, on all cores; whether any violated anything."""
    wrong = False
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in names:
            began = time.monotonic()
            number = PARTS[depth]
            parts = pool.map(_part, [name] * number, [depth] * number, range(number))
            wrong |= _tell(name, [told for part in parts for told in part], began)
    return wrong


def _tell(name: str, found: list[tuple[Faults, list[str]]], began: float) -> bool:
    wrong = [
        f"python -m tests.simulation {name} {' '.join(map(str, p))}: {v}" for p, lines in found for v in lines
    ]
    for line in wrong[:100]:
        print(line)
    what = "pairs of faults" if found and len(found[0][0]) > 1 else "faults"
    seconds = time.monotonic() - began
    print(f"{name}: {len(found)} {what}, {len(wrong)} violations, {seconds:.0f} s", flush=True)
    return bool(wrong)


def _part(name: str, depth: int, part: int) -> list[tuple[Faults, list[str]]]:
    _quiet()
    return list(every(name, depth, part, PARTS[depth]))


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
    if what == "pairs" and len(given) > 1:
        return some(given[0], int(given[1]), int(given[2]) if given[2:] else 1)
    if what in ("singles", "pairs"):
        return whole(1 if what == "singles" else 2, given or STORIES)
    if what == "script":
        return show(script(int(given[0])), [])
    faults = [Fault(int(n), Mode(mode)) for n, _, mode in (g.partition(":") for g in given)]
    return show(simulate(what, faults), faults)


if __name__ == "__main__":
    sys.exit(main())
