"""Every pair of faults of a story."""

from tests.simulation.journey import simulate
from tests.simulation.world import Fault, Mode


def all_pairs(name: str, part: int, parts: int) -> tuple[int, list[str]]:
    """Tell a story with every pair of faults whose first is at every parts-th effect, from the part-th on.

    Returns how many pairs were told, and what was violated, each with what replays it.
    """
    told, wrong = 0, []
    for number in range(part, len(simulate(name).effects), parts):
        for mode in Mode:
            first = Fault(number, mode)
            for other in range(number + 1, len(simulate(name, [first]).effects)):
                for second in Mode:
                    faults = [first, Fault(other, second)]
                    replay = f"python -m tests.simulation {name} {' '.join(map(str, faults))}"
                    wrong += [f"{replay}: {v}" for v in simulate(name, faults).violations]
                    told += 1
    return told, wrong
