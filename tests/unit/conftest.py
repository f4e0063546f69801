"""The simulated world that most tests of the core begin with, and which tests coverage is measured by."""

import sys
from collections.abc import Generator

import pytest

from tests.builders import submit
from tests.unit.sim import Sim

UNTRACED = {
    "test_an_instance_that_is_scraped_late_or_seldom_is_counted_as_it_was",
    "test_errors_that_cluster_on_an_instance_need_some",
    "test_fuzz",
    "test_independent_errors_need_no_dispersion",
    "test_nobody_looked",
    "test_of_a_step_of_hours_little_is_kept_and_the_same_is_counted",
    "test_of_more_promotions_than_history_holds_the_oldest_are_forgotten",
    "test_parse",
    "test_prometheus_bulkheads",
    "test_query",
    "test_random_orders",
    "test_the_running_totals_are_what_the_samples_show",
    "test_total",
    "test_whatever_one_service_meets_the_others_release_on_time_and_it_recovers",
    "test_whatever_the_store_goes_back_to_nobody_goes_back_to_a_release_that_somebody_left",
}
"""Files and tests: what these run is run by others too; traced, they would take three times as long."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Function) -> Generator[None, object, object]:
    """Measure no coverage by those. The mark `no_cover` leaves a worker's other tracer at work."""
    trace = sys.gettrace()
    if UNTRACED & {item.path.stem, item.originalname}:
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)


@pytest.fixture
def sim() -> Sim:
    """A service whose first release is stable."""
    sim = Sim()
    sim.send(submit(1))
    sim.until_ended("api-1")
    return sim
