"""Every effect of a story goes wrong in every way, alone and in pairs; and anything at all, in any order."""

import logging
import sys
from collections.abc import Iterator
from typing import get_args

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.simulation.chaos import Act, Kind, play, script
from tests.simulation.journey import STORIES, simulate, tell
from tests.simulation.pairs import all_pairs
from tests.simulation.world import Fault, Mode, World

PARTS = 16


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without a log, and without coverage, which takes as long as the stories; tests/unit has it."""
    before, trace = structlog.get_config(), sys.gettrace()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sys.settrace(None)
    yield
    sys.settrace(trace)
    structlog.configure(**before)


def shown(world: World, story: str, faults: list[Fault]) -> str:
    replay = f"python -m tests.simulation {story} {' '.join(map(str, faults))}"
    return "\n".join([f"replay: {replay}", *world.violations])


@pytest.mark.parametrize("story", sorted(STORIES))
def test_a_story_without_faults_ends_well(story: str) -> None:
    world = simulate(story)
    assert not world.violations


@pytest.mark.parametrize("mode", sorted(Mode))
@pytest.mark.parametrize("story", sorted(STORIES))
def test_any_one_effect_may_go_wrong(story: str, mode: Mode) -> None:
    effects = simulate(story).effects
    for number in range(len(effects)):
        faults = [Fault(number, mode)]
        world = simulate(story, faults)
        assert not world.violations, shown(world, story, faults)


@pytest.mark.parametrize("part", range(PARTS))
def test_any_two_effects_may_go_wrong(part: int) -> None:
    told, wrong = all_pairs("bad", part, PARTS)
    assert told > 300
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("seed", [562, 626, 645, 967, 77216, *range(40)])
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
    max_examples=400,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_anything_may_happen_in_any_order(script: list[Act], faults: dict[int, Mode], seed: int) -> None:
    planned = [Fault(effect, mode) for effect, mode in faults.items()]
    world = tell(lambda run: play(run, script), planned, seed)
    assert not world.violations, "\n".join(world.violations)
