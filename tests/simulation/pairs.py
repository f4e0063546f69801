"""Every pair of faults of a story, or an even sample of them."""

import random
from collections.abc import Iterable, Iterator
from itertools import combinations, product

from tests.simulation.journey import simulate
from tests.simulation.world import Fault, Mode

Pair = tuple[Fault, Fault]


def all_pairs(name: str, part: int, parts: int) -> Iterator[Pair]:
    """Every pair of faults whose first is at every parts-th effect, from the part-th on.

    The second is at any effect that is still done after the first.
    """
    for number in range(part, len(simulate(name).effects), parts):
        for mode in Mode:
            first = Fault(number, mode)
            for other in range(number + 1, len(simulate(name, [first]).effects)):
                yield from ((first, Fault(other, second)) for second in Mode)


def some_pairs(name: str, number: int, seed: int) -> Iterator[Pair]:
    """One pair out of each of so many equal parts of all at effects that the story has without faults."""
    effects = range(len(simulate(name).effects))
    whole = list(product(combinations(effects, 2), Mode, Mode))
    chance = random.Random(seed)
    for part in range(number):
        (one, other), first, second = whole[int((part + chance.random()) * len(whole) / number)]
        yield Fault(one, first), Fault(other, second)


def tell_all(name: str, pairs: Iterable[Pair]) -> tuple[int, list[str]]:
    """Tell a story with each pair. How many that were, and what was violated, each with what replays it."""
    told, wrong = 0, []
    for told, faults in enumerate(pairs, 1):  # noqa: B007  it is how many
        replay = f"python -m tests.simulation {name} {' '.join(map(str, faults))}"
        wrong += [f"{replay}: {v}" for v in simulate(name, faults).violations]
    return told, wrong
