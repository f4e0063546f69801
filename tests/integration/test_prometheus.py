"""`ports.Metrics` on a real Prometheus, with the counters that break others."""

import re
import socket
import time
from dataclasses import replace

import pytest
from aiohttp import web

from examples.playground.lease import free_port
from orchestrator.analysis.presets import PRESETS
from orchestrator.analysis.prometheus import Prometheus
from orchestrator.daemon.clock import SystemClock
from orchestrator.ports.faults import Fault
from orchestrator.ports.metrics import MetricQuery
from orchestrator.rollout.counts import count, missing_data
from tests.integration.conftest import Kit, requests

API = MetricQuery(service="api", source=PRESETS["client_golang"])


async def test_an_error_series_that_is_born_with_500_counts_500(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = requests(1000)
    first = await kit.until(API, lambda r: "api-1-0" in r.samples and r.samples["api-1-0"].requests == 1000)
    assert first.samples["api-1-0"].errors == 0
    kit.exporters["api-1-0"].text = requests(2000, 500)
    await kit.until(API, lambda r: r.samples["api-1-0"].requests == 2000)
    counts = count(kit.readings, ["api-1-0"], since=first.samples["api-1-0"].at)
    assert (counts.requests, counts.errors) == (1000, 500)


async def test_a_restart_in_between_counts_what_the_new_process_counted(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = requests(1000, 10)
    first = await kit.until(API, lambda r: "api-1-0" in r.samples and r.samples["api-1-0"].requests == 1000)
    kit.exporters["api-1-0"].text = requests(30, 3)
    await kit.until(API, lambda r: r.samples["api-1-0"].requests == 30)
    counts = count(kit.readings, ["api-1-0"], since=first.samples["api-1-0"].at)
    assert (counts.requests, counts.errors) == (30, 3)


async def test_a_target_that_goes_down_is_absent_at_once_and_back_later(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = requests(1000)
    await kit.until(API, lambda r: "api-1-0" in r.samples)
    kit.exporters["api-1-0"].up = False
    gone = await kit.until(API, lambda r: "api-1-0" not in r.samples)
    assert "is not scraped or its target is down" in missing_data(gone, ["api-1-0"], 60, gone.at)
    assert "api-2-0" in gone.samples
    kit.exporters["api-1-0"].up = True
    await kit.until(API, lambda r: "api-1-0" in r.samples)


async def test_nan_and_names_that_are_not_ours_are_no_data(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = 'http_requests_total{path="/ping",code="200"} NaN\n'
    kit.exporters["api-2-0"].text = 'other_requests_total{path="/ping",code="200"} 5\n'
    reading = await kit.until(API, lambda r: "api-2-0" in r.samples)
    assert reading.samples["api-2-0"].requests == 0
    assert "api-1-0" not in reading.samples


async def test_health_and_metrics_requests_are_not_users(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = (
        requests(7) + requests(5000, path="/health") + requests(900, path="/metrics")
    )
    reading = await kit.until(API, lambda r: "api-1-0" in r.samples)
    assert reading.samples["api-1-0"].requests == 7


GIN = """\
gin_requests_total{code="200",url="/a"} 90
gin_requests_total{code="500",url="/a"} 10
gin_requests_total{code="200",url="/metrics"} 77
gin_request_duration_seconds_bucket{url="/a",le="0.1"} 60
gin_request_duration_seconds_bucket{url="/a",le="+Inf"} 100
"""

OTEL = """\
http_server_request_duration_seconds_count{http_response_status_code="200",http_route="/a"} 90
http_server_request_duration_seconds_count{http_response_status_code="503",http_route="/a"} 10
http_server_request_duration_seconds_count{http_response_status_code="200",http_route="/health"} 77
http_server_request_duration_seconds_bucket{http_response_status_code="200",http_route="/a",le="0.1"} 55
http_server_request_duration_seconds_bucket{http_response_status_code="503",http_route="/a",le="0.1"} 5
http_server_request_duration_seconds_bucket{http_response_status_code="200",http_route="/a",le="+Inf"} 90
http_server_request_duration_seconds_bucket{http_response_status_code="503",http_route="/a",le="+Inf"} 10
"""


@pytest.mark.parametrize(("preset", "text"), [("go-gin-prometheus", GIN), ("opentelemetry", OTEL)])
async def test_presets_read_what_gin_services_expose(kit: Kit, preset: str, text: str) -> None:
    kit.exporters["api-1-0"].text = text
    query = MetricQuery(service="api", source=PRESETS[preset])
    reading = await kit.until(query, lambda r: "api-1-0" in r.samples and r.samples["api-1-0"].requests > 0)
    sample = reading.samples["api-1-0"]
    assert (sample.requests, sample.errors) == (100, 10)
    assert sample.buckets == {0.1: 60, float("inf"): 100}


async def test_histograms_in_milliseconds(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = requests(10) + 'lat_ms_bucket{path="/a",le="250"} 10\n'
    source = replace(PRESETS["client_golang"], latency="lat_ms", latency_unit=0.001)
    reading = await kit.until(MetricQuery(service="api", source=source), lambda r: "api-1-0" in r.samples)
    assert reading.samples["api-1-0"].buckets == {0.25: 10}


async def test_own_queries_beside_the_counters_and_a_wrong_one_breaks_nothing(kit: Kit) -> None:
    kit.exporters["api-2-0"].text = requests(10) + "payments_total 4\n"
    query = replace(
        API,
        queries=(("pay", 'sum by (release) (payments_total{service="$service"})'), ("one", "vector(7)")),
    )
    reading = await kit.until(query, lambda r: ("pay", "api-2") in r.values)
    assert reading.values["pay", "api-2"] == 4
    assert reading.values["one", ""] == 7
    assert reading.samples["api-2-0"].requests == 10
    broken = replace(API, queries=(("bad", "sum("), ("one", "vector(7)")))
    reading = await kit.read(broken)
    assert reading.error == ""
    assert ("bad", "") not in reading.values
    assert reading.values["one", ""] == 7
    assert reading.samples["api-2-0"].requests == 10


@pytest.mark.parametrize(
    ("guilty", "words"),
    [
        (
            replace(API, source=replace(API.source, ignore=(("path", "(?!x)"),))),
            r"http_requests_total.*\(\?!",
        ),
        (replace(API, source=replace(API.source, requests="http.requests")), r"http\.requests.*parse error"),
        (replace(API, source=replace(API.source, latency="lat.ms")), r"lat\.ms_bucket.*parse error"),
    ],
    ids=["pattern", "counter", "histogram"],
)
async def test_a_service_that_prometheus_refuses_takes_no_others_data_away(
    kit: Kit, guilty: MetricQuery, words: str
) -> None:
    kit.exporters["api-2-0"].text = requests(10)
    await kit.until(API, lambda r: "api-2-0" in r.samples)
    wrong = replace(guilty, service="guilty")
    for _ in range(2):
        found = await kit.prometheus.read([replace(API, service="before"), wrong, API])
        assert (found["api"].error, found["before"].error) == ("", "")
        assert found["api"].samples["api-2-0"].requests == 10
        assert re.search(words, found["guilty"].error)


async def test_a_query_that_fails_as_it_runs_or_answers_a_histogram_is_its_gates_trouble(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = requests(10)
    await kit.until(API, lambda r: "api-1-0" in r.samples)
    two = '(label_replace(vector(1), "a", "1", "", "") or label_replace(vector(1), "a", "2", "", ""))'
    queries = (("many", f"{two} * on () {two}"), ("scalar", "scalar(up)"), ("one", "vector(1)"))
    wrong = replace(API, service="guilty", queries=queries)
    found = await kit.prometheus.read([API, wrong])
    assert found["api"].samples["api-1-0"].requests == 10
    assert found["guilty"].error == ""
    assert found["guilty"].values == {("one", ""): 1}
    assert set(found["guilty"].refused) == {"many", "scalar"}
    assert "many-to-many" in found["guilty"].refused["many"]


async def test_why_an_instance_is_not_scraped_is_told_in_prometheus_words(kit: Kit) -> None:
    wanted = replace(API, instances=("api-2-0", "api-2-1"))
    kit.exporters["api-2-0"].up = False
    reading = await kit.until(wanted, lambda r: "500" in r.unread.get("api-2-0", ""))
    assert re.fullmatch(
        r"server returned HTTP status 500 .* \(http://127.0.0.1:\d+/metrics\)", reading.unread["api-2-0"]
    )
    assert reading.unread["api-2-1"] == (
        "it is not among Prometheus' targets: add http://127.0.0.1:9181/targets to its http_sd_configs"
    )
    targets = await kit.prometheus.target_errors() or {}
    assert (targets["api", "api-1-0"], bool(targets["api", "api-2-0"])) == ("", True)
    assert ("api", "api-2-1") not in targets


async def test_many_services_are_one_query(kit: Kit) -> None:
    kit.exporters["api-1-0"].text = requests(10)
    await kit.until(API, lambda r: "api-1-0" in r.samples)
    asked: list[str] = []
    ask = kit.prometheus.ask

    async def counting(expression: str) -> list[dict[str, object]]:
        asked.append(expression)
        return await ask(expression)

    kit.prometheus.ask = counting  # type: ignore[method-assign]
    others = [MetricQuery(service=f"s{n}", source=PRESETS["client_golang"]) for n in range(50)]
    found = await kit.prometheus.read([API, *others])
    assert len(found) == 51
    assert len(asked) == 1
    assert found["api"].samples["api-1-0"].requests == 10


async def test_prometheus_that_is_away_or_hangs_is_an_error_in_time() -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    port = silent.getsockname()[1]
    for url in (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{port}"):
        prometheus = Prometheus(url, SystemClock(), timeout=0.5)
        began = time.monotonic()
        reading = (await prometheus.read([API]))["api"]
        assert reading.error
        assert time.monotonic() - began < 3
        with pytest.raises(Fault):
            await prometheus.ask("up")
        prometheus.close()
    silent.close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, "<html>sign in</html>", "Expecting value"),
        (200, '{"status": "success"}', "data"),
        (200, '{"data": {"result": null}}', "unexpected answer: None"),
        (200, '{"data": {"result": {"a": 1}}}', "unexpected answer: "),
        (200, "[]", "list indices"),
        (200, '{"data": {"result": [1, "x", null, {"metric": 7}, {"metric": {"service": []}}]}}', ""),
        (
            400,
            '{"status": "error", "errorType": "bad_data", "error": "1:7: parse error: x"}',
            "parse error: x",
        ),
        (400, "{}", "HTTP status 400"),
        (401, "no", "^HTTP status 401: no$"),
        (503, '{"status": "error", "errorType": "timeout", "error": "query timed out"}', "^query timed out$"),
        (502, "<html>bad gateway</html>", "^HTTP status 502"),
    ],
)
async def test_whatever_answers_in_place_of_prometheus_is_a_reading(
    status: int, body: str, words: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body, status=status, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    prometheus = Prometheus(f"http://127.0.0.1:{port}", SystemClock(), timeout=2.0)
    wanted = replace(API, queries=(("one", "vector(1)"),), instances=("api-1-0",))
    found = await prometheus.read([wanted, replace(API, service="web")])
    for reading in found.values():
        assert bool(reading.error) == bool(words)
        assert re.search(words, reading.error)
        assert not reading.samples
    assert await prometheus.target_errors() is None
    prometheus.close()
    await runner.cleanup()


async def test_what_is_wrong_is_told_without_its_layers() -> None:
    nobody = Prometheus(f"http://127.0.0.1:{free_port()}", SystemClock(), timeout=1.0)
    with pytest.raises(Fault, match=r"^\[Errno 111\] Connection refused$"):
        await nobody.ask("1")
    nobody.close()
