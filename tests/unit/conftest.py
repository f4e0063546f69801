"""The simulated world that most tests of the core begin with."""

import pytest

from tests.builders import submit
from tests.unit.sim import Sim


@pytest.fixture
def sim() -> Sim:
    """A service whose first release is stable."""
    sim = Sim()
    sim.send(submit(1))
    sim.until_ended("api-1")
    return sim
