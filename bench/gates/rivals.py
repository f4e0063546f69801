"""Three rivals, each with the settings of its own documentation, written from its documented behaviour.

Flagger 1.44: every 60 s a success rate of at least 99 % and a p99 of at most 500 ms, over the last minute; a
check that passes raises the weight, five that failed in all roll back at the next one; no data is a failure.

Argo Rollouts 1.10: a success rate of at least 95 % and a p99 of at most 500 ms, over the last five minutes,
every five minutes beside pauses of ten minutes a step; more than three failed measurements of a metric abort.

Kayenta: points of one minute, judged every ten minutes for half an hour: Mann-Whitney at 98 % on each
metric's points of both sides, with a tolerance of a quarter of the control's mean; the share of the metrics
that are not worse is the score, below 75 % rolls back.
"""

from collections.abc import Callable

import numpy as np

from bench.gates.stream import BOUNDS, LATENCIES, SCRAPE, Counts, End, Scenario, Stream

SHARES = (0.05, 0.15, 0.40, 0.95)
LIMIT = 7200.0
"""Seconds after which a release that has not ended counts as held."""


def p_latency(side: Counts, q: float) -> float:
    """The quantile as `histogram_quantile` gives it; NaN without requests."""
    found = side[LATENCIES:]
    total = found.sum()
    if total <= 0:
        return float("nan")
    cumulative = np.cumsum(found)
    at = int(np.argmax(cumulative >= q * total))
    if np.isinf(BOUNDS[at]):
        return float(BOUNDS[-2])
    lower = BOUNDS[at - 1] if at else 0.0
    before = cumulative[at - 1] if at else 0.0
    return float(lower + (BOUNDS[at] - lower) * (q * total - before) / found[at])


def success(side: Counts) -> float:
    """Share of requests that did not fail; NaN without requests."""
    return float(1.0 - side[1] / side[0]) if side[0] else float("nan")


def _read(stream: Stream, share: float, seconds: float) -> tuple[Counts, Counts]:
    scrapes = [stream.scrape(share) for _ in range(round(seconds / SCRAPE))]
    return sum(s.candidate for s in scrapes), sum(s.stable for s in scrapes)  # type: ignore[return-value]


def flagger(scenario: Scenario, seed: int) -> End:
    """See the module."""
    stream = Stream(scenario, seed)
    step, failed = 0, 0
    while stream.now < LIMIT:
        candidate, _ = _read(stream, SHARES[step], 60.0)
        if failed >= 5:
            return End("rolled_back", stream.now, stream.harmed)
        if success(candidate) >= 0.99 and p_latency(candidate, 0.99) <= 0.5:
            step += 1
            if step == len(SHARES):
                return End("promoted", stream.now, stream.harmed)
        else:
            failed += 1
    return End("held", stream.now, stream.harmed)


def argo(scenario: Scenario, seed: int) -> End:
    """See the module."""
    stream = Stream(scenario, seed)
    failures = [0, 0]
    for share in SHARES:
        for _ in range(2):
            candidate, _ = _read(stream, share, 300.0)
            failures[0] += not success(candidate) >= 0.95
            failures[1] += not p_latency(candidate, 0.99) <= 0.5
            if max(failures) > 3:
                return End("rolled_back", stream.now, stream.harmed)
    return End("promoted", stream.now, stream.harmed)


def kayenta(scenario: Scenario, seed: int) -> End:
    """See the module."""
    stream = Stream(scenario, seed)
    points: list[tuple[list[float], list[float]]] = [([], []), ([], []), ([], [])]
    metrics: tuple[Callable[[Counts], float], ...] = (
        lambda side: 1.0 - success(side),
        lambda side: p_latency(side, 0.95),
        lambda side: p_latency(side, 0.99),
    )
    for share in (0.05, 0.15, 0.40):
        for _ in range(10):
            candidate, stable = _read(stream, share, 60.0)
            for (experiment, control), metric in zip(points, metrics, strict=True):
                experiment.append(metric(candidate))
                control.append(metric(stable))
        worse = [_worse(np.array(e), np.array(c)) for e, c in points]
        judged = [w for w in worse if w is not None]
        if judged and 1.0 - sum(judged) / len(judged) < 0.75:
            return End("rolled_back", stream.now, stream.harmed)
    return End("promoted", stream.now, stream.harmed)


def _worse(experiment: Counts, control: Counts) -> bool | None:
    """Mann-Whitney with the normal approximation: both bounds of the 98 % interval of the shift lie above."""
    experiment, control = experiment[~np.isnan(experiment)], control[~np.isnan(control)]
    if not len(experiment) or not len(control):
        return None
    shifts = np.sort((experiment[:, None] - control[None, :]).ravel())
    n, m = len(experiment), len(control)
    middle, spread = n * m / 2.0, 2.326 * np.sqrt(n * m * (n + m + 1) / 12.0)
    low = max(int(middle - spread), 0)
    return bool(shifts[low] > 0.25 * abs(control.mean()))


RIVALS = {"Flagger": flagger, "Argo": argo, "Kayenta": kayenta}
