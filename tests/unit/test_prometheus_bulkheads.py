"""One service's trouble with Prometheus is its own: a double that refuses what a test calls bad."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from examples.playground.lease import free_port
from orchestrator.analysis.presets import PRESETS
from orchestrator.analysis.prometheus import AGAIN, Prometheus, QueryRefused, QuerySlow
from orchestrator.analysis.query import STAT
from orchestrator.daemon import watch
from orchestrator.daemon.clock import SystemClock
from orchestrator.daemon.config import load
from orchestrator.daemon.serve import Daemon
from orchestrator.observability.logs import LineWriter
from orchestrator.ports.faults import Fault
from orchestrator.ports.metrics import MetricQuery, Target
from orchestrator.rollout.observation import Reading

SOURCE = PRESETS["client_golang"]


class Double(Prometheus):
    """Answers for every service that is asked for, unless a word that it does not take is in it."""

    def __init__(self, **words: Exception | dict[str, Any]) -> None:
        super().__init__("http://127.0.0.1:1", SystemClock(), timeout=1.0)
        self.words = words
        self.asked: list[str] = []

    async def ask(self, expression: str) -> list[dict[str, Any]]:
        self.asked.append(expression)
        odd = []
        for word, answer in self.words.items():
            if word in expression and isinstance(answer, Exception):
                raise answer
            odd += [answer] if word in expression and isinstance(answer, dict) else []
        services = {s for found in re.findall(r'up{service=~"([^"]*)"', expression) for s in found.split("|")}
        rows = [
            {"metric": {STAT: stat, "service": s, "instance": f"{s}-1-0"}, "value": [100.0, value]}
            for s in sorted(services)
            for stat, value in (("up", "1"), ("at", "99"), ("requests", str(len(s))))
        ]
        own = re.findall(r'"service", "([^"]*)", "", ""\), "orchestrator_stat", "(query:[^"]*)"', expression)
        return odd + rows + [{"metric": {STAT: q, "service": s}, "value": [100.0, "3"]} for s, q in own]

    async def target_errors(self) -> dict[tuple[str, str], str]:
        return {}


def query(service: str, gate: str = "", **source: Any) -> MetricQuery:
    queries = (("pay", gate),) if gate else ()
    return MetricQuery(
        service=service,
        source=replace(SOURCE, **source),
        queries=queries,
    )


def same(one: Reading, other: Reading) -> bool:
    """Equal but for the time, by which a sample's own is told too."""
    return (one.error, one.values, one.refused, one.history) == (
        other.error,
        other.values,
        other.refused,
        other.history,
    ) and {n: s.requests for n, s in one.samples.items()} == {n: s.requests for n, s in other.samples.items()}


BAD = {
    "pattern": lambda s: query(s, ignore=(("path", "BAD"),)),
    "metric": lambda s: query(s, requests="BAD"),
    "query": lambda s: query(s, "BAD"),
    "slow query": lambda s: query(s, "SLOW"),
    "odd answer": lambda s: query(s, "ODD"),
    "odd counters": lambda s: query(s, requests="NONE"),
}


def double() -> Double:
    return Double(
        BAD=QueryRefused("parse error"),
        SLOW=QuerySlow("no answer within 1 s"),
        ODD={"metric": {STAT: "query:pay", "service": "guilty"}, "histogram": [1.0, {}]},
        NONE={"metric": {STAT: "requests", "service": "guilty", "instance": []}, "value": None},
    )


@pytest.mark.parametrize("kind", BAD)
@given(before=st.integers(0, 6), after=st.integers(0, 6), own=st.booleans())
async def test_with_one_that_is_bad_the_others_are_read_as_without_it(
    kind: str, before: int, after: int, own: bool
) -> None:
    gate = "vector(3)" if own else ""
    good = [query(f"s{n}", gate) for n in range(before + after)]
    alone = await double().read(good)
    prometheus = double()
    everybody = [*good[:before], BAD[kind]("guilty"), *good[before:]]
    for _ in range(2):
        found = await prometheus.read(everybody)
        assert all(same(found[q.service], alone[q.service]) for q in good)
        guilty = found["guilty"]
        assert guilty.error or guilty.refused
        assert bool(guilty.error) == (kind not in ("query", "slow query", "odd answer"))


async def test_the_reason_names_what_the_service_asks_for() -> None:
    prometheus = double()
    found = await prometheus.read([query("a"), query("guilty", ignore=(("path", "BAD"),))])
    assert found["guilty"].error.startswith('http_requests_total{service=~"guilty", path!~"BAD"')
    assert found["guilty"].error.endswith(": parse error")
    found = await prometheus.read([query("a"), query("guilty", "up{BAD}")])
    assert found["guilty"].refused == {"pay": "up{BAD}: parse error"}


async def test_when_all_is_well_a_look_is_one_query_and_with_a_guilty_one_two() -> None:
    prometheus = double()
    good = [query(f"s{n}", "vector(3)") for n in range(64)]
    await prometheus.read(good)
    assert len(prometheus.asked) == 1
    prometheus.asked.clear()
    await prometheus.read([*good, query("guilty", "BAD")])
    assert len(prometheus.asked) <= 1 + 2 * 7 + 4
    prometheus.asked.clear()
    await prometheus.read([*good, query("guilty", "BAD")])
    assert len(prometheus.asked) == 2
    prometheus.asked.clear()
    await prometheus.read([*good, query("guilty", "mended")])
    assert len(prometheus.asked) == 1


async def test_what_was_refused_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    prometheus = double()
    both = [query("a"), query("guilty", "BAD")]
    assert "pay" in (await prometheus.read(both))["guilty"].refused
    del prometheus.words["BAD"]
    assert "pay" in (await prometheus.read(both))["guilty"].refused
    monkeypatch.setattr(
        prometheus, "_refused", {t: (at - AGAIN, why) for t, (at, why) in prometheus._refused.items()}
    )
    assert (await prometheus.read(both))["guilty"].refused == {}
    prometheus.asked.clear()
    await prometheus.read(both)
    assert len(prometheus.asked) == 1


async def test_a_prometheus_that_is_away_is_nobodys_fault_and_asked_once() -> None:
    prometheus = Double(up=Fault("connection refused"))
    found = await prometheus.read([query("a"), query("b", "vector(3)")])
    assert {r.error for r in found.values()} == {"connection refused"}
    assert len(prometheus.asked) == 1


async def test_slow_counters_are_no_answer_for_their_services() -> None:
    prometheus = Double(up=QuerySlow("no answer within 1 s"))
    found = await prometheus.read([query("a"), query("b", "vector(3)")])
    assert {r.error for r in found.values()} == {"no answer within 1 s"}
    found = await prometheus.read([query("a")])
    assert found["a"].error == "no answer within 1 s"


async def test_instances_that_prometheus_does_not_scrape_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "orchestrator.yaml").write_text("prometheus: {url: http://127.0.0.1:1}")
    for name, gates in (("api", "[{metric: error_rate, max: 1%}]"), ("web", "[]")):
        (tmp_path / "services" / f"{name}.yaml").write_text(
            f"{{service: {name}, images: [repo/{name}], container: {{port: 8080}}, gates: {gates}}}"
        )
    daemon = Daemon(load(tmp_path / "orchestrator.yaml"), LineWriter(io.StringIO()))
    for name in ("api", "web"):
        labels = [{"service": name, "instance": f"{name}-1-{n}"} for n in range(3)]
        daemon._targets[name] = [
            Target(address=f"10.0.0.{n}:1", labels=found) for n, found in enumerate(labels)
        ]
    scraped = {("api", "api-1-0"): "", ("api", "api-1-1"): "HTTP status 404 (http://10.0.0.1:1/metrics)"}
    looks: list[int] = []

    async def target_errors() -> dict[tuple[str, str], str] | None:
        looks.append(1)
        return None if len(looks) % 3 == 0 else scraped  # now and then Prometheus gives no list

    monkeypatch.setattr(daemon._prometheus, "target_errors", target_errors)
    monkeypatch.setattr(watch, "SCRAPES_EVERY", 0.001)
    with capture_logs() as logs:
        watching = asyncio.create_task(daemon._watch.scrapes(), name="scrapes")
        async with asyncio.timeout(5):
            while len(looks) < 8:
                await asyncio.sleep(0.001)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    told = {line["instance"]: line["reason"] for line in logs if line["event"] == "instance_not_scraped"}
    assert told["api-1-1"] == "HTTP status 404 (http://10.0.0.1:1/metrics)"
    url = daemon.config.settings.http.targets
    assert told["api-1-2"] == f"it is not among Prometheus' targets: add {url} to its http_sd_configs"
    assert told.keys() == {"api-1-1", "api-1-2"}
    assert len(logs) == 2


TARGETS = {
    "data": {
        "activeTargets": [
            {
                "labels": {"service": "api", "instance": "api-1-1"},
                "lastError": 'Get "http://10.0.0.1:1/metrics?token=hunter2": connection refused',
                "scrapeUrl": "http://10.0.0.1:1/metrics?token=hunter2",
            }
        ]
    }
}


class Slow:
    """Answers a query at once, and says what its targets are when a test lets it."""

    def __init__(self) -> None:
        self.may, self.looks = asyncio.Event(), 0

    async def query(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": []}})

    async def targets(self, _: web.Request) -> web.Response:
        self.looks += 1
        await self.may.wait()
        return web.json_response(TARGETS)


@pytest.fixture
async def slow() -> AsyncIterator[tuple[Slow, Prometheus]]:
    found, app, port = Slow(), web.Application(), free_port()
    app.router.add_route("*", "/api/v1/query", found.query)
    app.router.add_get("/api/v1/targets", found.targets)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    prometheus = Prometheus(f"http://127.0.0.1:{port}", SystemClock(), timeout=30.0)
    yield found, prometheus
    found.may.set()
    prometheus.close()
    await runner.cleanup()


async def test_no_look_waits_for_prometheus_list_of_targets(slow: tuple[Slow, Prometheus]) -> None:
    double, prometheus = slow
    wanted = replace(query("api"), instances=("api-1-1",))
    async with asyncio.timeout(10):
        for _ in range(5):
            found = await prometheus.read([wanted, query("web")])
            assert found["api"].unread == {"api-1-1": ""}
        watching = asyncio.create_task(prometheus.target_errors(), name="watching")  # it waits for the list
        while not double.looks:
            await asyncio.sleep(0.01)
        assert not (await prometheus.read([wanted]))["api"].error
        assert double.looks == 1
        double.may.set()
        why = 'Get "http://10.0.0.1:1/metrics?***": connection refused (http://10.0.0.1:1/metrics?***)'
        assert await watching == {("api", "api-1-1"): why}
        assert (await prometheus.read([wanted]))["api"].unread == {"api-1-1": why}


async def test_who_waits_for_the_list_and_is_cancelled_does_not_end_the_look_of_others(
    slow: tuple[Slow, Prometheus],
) -> None:
    double, prometheus = slow
    async with asyncio.timeout(10):
        watching = [asyncio.create_task(prometheus.target_errors(), name="watching") for _ in range(2)]
        while not double.looks:
            await asyncio.sleep(0.01)
        watching[0].cancel()
        double.may.set()
        assert await watching[1]
    assert double.looks == 1
