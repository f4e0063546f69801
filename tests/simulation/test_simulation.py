"""Every effect of a story goes wrong in every way, alone and in pairs; and anything at all, in any order."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import get_args

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.simulation.chaos import Act, Kind, play, script
from tests.simulation.journey import STORIES, simulate, tell
from tests.simulation.pairs import every, some_pairs
from tests.simulation.world import Fault, Mode, World

PAIRS = 25
"""Of each story; `make pairs` tells them all."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without a log."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def shown(world: World, story: str, faults: Iterable[Fault]) -> str:
    replay = f"python -m tests.simulation {story} {' '.join(map(str, faults))}"
    return "\n".join([f"replay: {replay}", *world.violations])


@pytest.mark.parametrize("story", sorted(STORIES))
def test_a_story_without_faults_ends_well(story: str) -> None:
    world = simulate(story)
    assert not world.violations


def test_a_story_is_told_in_the_same_words_by_every_process() -> None:
    told = [
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "revert"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert told[0] == told[1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("story", sorted(STORIES))
def test_any_one_effect_may_go_wrong(story: str) -> None:
    """In a process of its own: this one is large, and each fault would copy it."""
    command = [sys.executable, "-m", "tests.simulation", "singles", story]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    number = len(simulate(story).effects) * len(Mode)
    assert f"{story}: {number} faults, 0 violations" in told.stdout, f"{told.stdout}{told.stderr}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("story", sorted(STORIES))
def test_any_two_effects_may_go_wrong(story: str) -> None:
    for faults in some_pairs(story, PAIRS, seed=1):
        world = simulate(story, faults)
        assert not world.violations, shown(world, story, faults)


def test_a_pair_among_all_ends_as_it_does_when_it_is_told_alone() -> None:
    def whole(world: World) -> list[str]:
        return [*world.effects, *(repr(event) for event in world.store.stream), *world.violations]

    found = dict(every("newcomer", 2, 26, 100, whole))
    alone = [
        (first, Fault(second, how))
        for first in (Fault(26, mode) for mode in Mode)
        for second in range(27, len(simulate("newcomer", [first]).effects))
        for how in Mode
    ]
    assert list(found) == alone
    for pair in alone[:: len(alone) // 20]:
        assert found[pair] == whole(simulate("newcomer", pair))


@pytest.mark.parametrize("seed", [562, 626, 645, 967, 77216, 990559, 1000094, 6000945, 9700649, *range(40)])
def test_scripts_that_showed_something_and_forty_others(seed: int) -> None:
    world = script(seed)
    assert not world.violations, "\n".join([f"python -m tests.simulation script {seed}", *world.violations])


scripts = st.lists(
    st.builds(Act, st.sampled_from(get_args(Kind)), st.floats(0.0, 8.0).map(lambda x: round(x, 2))),
    max_size=14,
)
faults_in_scripts = st.dictionaries(st.integers(0, 120), st.sampled_from(Mode), max_size=4)


@given(script=scripts, faults=faults_in_scripts, seed=st.integers(0, 2**32))
@settings(
    max_examples=150,
    derandomize=True,  # `make simulate` tells what nobody has told yet
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_anything_may_happen_in_any_order(script: list[Act], faults: dict[int, Mode], seed: int) -> None:
    world = tell(lambda run: play(run, script), faults, seed)
    assert not world.violations, "\n".join(world.violations)
