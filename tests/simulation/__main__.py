"""Tell a story again under given faults: `python -m tests.simulation bad 20:lost_reply 23:crash_after`."""

import sys

from tests.simulation.journey import STORIES, simulate
from tests.simulation.world import Fault, Mode


def main() -> None:
    """Print the effects in order and what was violated; exit with 1 if anything was."""
    story, *given = sys.argv[1:]
    faults = [Fault(int(n), Mode(mode)) for n, _, mode in (g.partition(":") for g in given)]
    planned = {f.effect: f.mode for f in faults}
    world = simulate(STORIES[story], faults)
    for number, effect in enumerate(world.effects):
        print(number, effect, planned.get(number, ""))
    print(*world.violations or ["nothing was violated"], sep="\n")
    sys.exit(bool(world.violations))


main()
