"""What is kept of the readings of a long step, and that nothing that is judged changes by it."""

import random
from dataclasses import replace

from orchestrator.rollout.counts import SPARSE, Known, count, requests_since, settle, thinned
from orchestrator.rollout.observation import Reading, Sample

NAMES = ("api-2-0", "api-2-1", "api-2-2")
EVERY = 5.0


def history(seed: int, number: int) -> list[Reading]:
    """Readings of instances that are restarted, are not scraped, and lose counters."""
    chance = random.Random(seed)
    counters = dict.fromkeys(NAMES, 0.0)
    known: dict[str, Known] = {}
    readings = []
    for n in range(number):
        samples = {}
        for name in NAMES:
            if chance.random() < 0.02:
                counters[name] = 0.0
            counters[name] += chance.randrange(50)
            shown = 0.0 if chance.random() < 0.03 else counters[name]
            if chance.random() < 0.95:
                samples[name] = Sample(at=n * EVERY - chance.random(), requests=shown, errors=0.0)
        known, reading = settle(known, Reading(at=n * EVERY, samples=samples))
        readings.append(reading)
    return readings


def test_the_running_totals_are_what_the_samples_show() -> None:
    for seed in range(50):
        readings = history(seed, 200)
        for since in (-10.0, 0.0, 333.0, 700.0, 995.0, 2000.0):
            for names in (NAMES, NAMES[:1], ("unknown",)):
                assert requests_since(readings, names, since) == count(readings, names, since).requests


def test_of_a_step_of_hours_little_is_kept_and_the_same_is_counted() -> None:
    readings, kept = history(7, 4_320), list[Reading]()
    recent, held = 600.0, 100.0
    for reading in readings:
        kept = thinned([*kept, reading], held, reading.at - recent, ())
    now = readings[-1].at
    assert len(kept) < len(NAMES) * 21_600 / SPARSE + (recent + 4 * SPARSE) / EVERY
    assert requests_since(kept, NAMES, held) == requests_since(readings, NAMES, held)
    for since in (now - recent, now - 60.0):
        assert count(kept, NAMES, since) == count(readings, NAMES, since)
    for later in (5_000.0, 14_000.0):  # the step has been paused
        exact = requests_since(readings, NAMES, later)
        earlier = requests_since(readings, NAMES, later - SPARSE - EVERY)
        assert exact <= requests_since(kept, NAMES, later) <= earlier


def test_an_instance_that_is_scraped_late_or_seldom_is_counted_as_it_was() -> None:
    for seed in range(6):
        readings = history(seed, 800)
        late = [
            replace(r, samples={n: s for n, s in r.samples.items() if n != NAMES[0] or r.at > 400.0})
            for r in readings
        ]
        seldom = [replace(r, samples=r.samples if i % 7 else {}) for i, r in enumerate(readings)]
        for shown in (late, seldom):
            known, whole, kept = dict[str, Known](), list[Reading](), list[Reading]()
            for raw in shown:
                known, reading = settle(known, raw)
                whole.append(reading)
                kept = thinned([*kept, reading], 100.0, reading.at - 300.0, ())
            assert requests_since(kept, NAMES, 100.0) == requests_since(whole, NAMES, 100.0)
            exact, earlier = (requests_since(whole, NAMES, t) for t in (2_000.0, 1_850.0))
            assert exact <= requests_since(kept, NAMES, 2_000.0) <= earlier


def test_what_the_next_block_begins_at_is_kept_however_old_it_is() -> None:
    readings = history(1, 100)
    base = readings[31].at
    kept = thinned(readings, 0.0, readings[-1].at, (base, None))
    assert [r.at for r in kept if r.at == base] == [base]
    assert len(kept) < 40
    assert thinned(readings, 250.0, 250.0, ()) == [r for r in readings if r.at >= 250.0 - SPARSE - EVERY]
    assert thinned([], 0.0, 0.0, ()) == []
    lone = replace(readings[0], samples={})
    assert requests_since([lone], NAMES, 0.0) == 0.0
