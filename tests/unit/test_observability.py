"""Logs, metrics, systemd."""

import asyncio
import gc
import io
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer

from orchestrator.observability import systemd
from orchestrator.observability.events import tell
from orchestrator.observability.http import Views, application
from orchestrator.observability.logs import LineWriter, configure
from orchestrator.observability.metrics import DaemonMetrics, seen_by_nginx
from orchestrator.observability.stall import watch
from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import AnsweredCounts
from orchestrator.rollout.events import GateJudged, ReleaseEnded
from orchestrator.rollout.model import Outcome, Result, ServiceState, Verdict
from orchestrator.rollout.observation import Observation
from tests.conftest import LogLines

VERDICT = Verdict(gate="errors", result=Result.FAIL, value=0.05, limit=0.02, samples=100, text="5 %")


def test_an_event_is_one_json_line_with_flat_fields() -> None:
    out = io.StringIO()
    writer = configure("json", "info", out)
    metrics = DaemonMetrics()
    tell(GateJudged(service="api", at=1.0, release="api-2", step=0, weight=5, verdict=VERDICT), metrics)
    structlog.get_logger().debug("not_written")
    writer.flush()
    (line,) = [json.loads(text) for text in out.getvalue().splitlines()]
    assert line["event"] == "gate_judged"
    assert (line["service"], line["release"], line["gate"], line["result"]) == (
        "api",
        "api-2",
        "errors",
        "fail",
    )
    assert (line["value"], line["limit"], line["samples"], line["level"]) == (0.05, 0.02, 100, "warning")
    structlog.reset_defaults()


def test_what_a_library_logs_keeps_its_traceback(log_lines: LogLines) -> None:
    try:
        int("nought")
    except ValueError as error:
        logging.getLogger("lib").exception("it failed: %s", "here")
        logging.getLogger("lib").warning("so it did", exc_info=error)
    failed, so = log_lines()
    assert (failed["event"], failed["logger_name"]) == ("library", "lib")
    assert (failed["message"], failed["level"]) == ("it failed: here", "error")
    for line in (failed, so):
        assert "Traceback" in line["exception"]
        assert "test_what_a_library_logs_keeps_its_traceback" in line["exception"]
        assert "ValueError: invalid literal" in line["exception"]


async def test_a_task_whose_failure_nobody_fetched_is_logged_with_its_traceback(
    log_lines: LogLines,
) -> None:
    async def breaks() -> None:
        raise ZeroDivisionError("by nought")

    task = asyncio.create_task(breaks(), name="lost")
    await asyncio.sleep(0.01)
    del task
    gc.collect()
    (line,) = log_lines()
    assert "never retrieved" in line["message"]
    assert "in breaks" in line["exception"]


@pytest.mark.parametrize(("level", "name"), [(35, "warning"), (45, "error"), (60, "critical")])
def test_a_level_of_a_librarys_own_is_the_one_below(log_lines: LogLines, level: int, name: str) -> None:
    logging.getLogger("lib").log(level, "x")
    (line,) = log_lines()
    assert line["level"] == name


def test_a_line_that_a_library_writes_wrongly_costs_that_line_alone(
    log_lines: LogLines, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = next(h for h in logging.getLogger().handlers if "orchestrator" in type(h).__module__)
    ours.handle(logging.LogRecord("lib", logging.ERROR, "lib.py", 1, "%d", ("one",), None))
    ours.handle(logging.LogRecord("lib", logging.ERROR, "lib.py", 1, "two", (), None))
    assert [line["message"] for line in log_lines()] == ["two"]
    assert "Logging error" in capsys.readouterr().err


def test_a_reader_that_stops_never_blocks_the_writer() -> None:
    """A pipe that nobody reads: the oldest lines are dropped and counted, and nothing waits."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream, capacity=100)
        began = time.monotonic()
        for number in range(20_000):
            writer.write(f"{number} " + "x" * 100)
        assert time.monotonic() - began < 5
        assert writer.dropped > 1000
        os.close(reading)
        writer.flush(0.5)


def test_a_stream_that_is_closed_is_counted_not_raised() -> None:
    stream = io.StringIO()
    stream.close()
    writer = LineWriter(stream)
    writer.write("x")
    writer.flush()
    assert writer.dropped == 1


def test_metrics_count_and_forget_releases_that_are_gone() -> None:
    metrics = DaemonMetrics()
    ended = ReleaseEnded(
        service="api",
        at=1.0,
        release="api-1",
        journey="release",
        outcome=Outcome.ROLLED_BACK,
        actor="a",
        reason="r",
        request="1-0",
        image="i",
        seconds=12.0,
    )
    metrics.count(ended)
    metrics.show(ServiceState(service="api"), Observation())
    text = metrics.render().decode()
    assert 'orchestrator_release_seconds_sum{outcome="rolled_back",service="api"} 12.0' in text
    assert 'orchestrator_phase{phase="idle",service="api"} 1.0' in text


def test_systemd_is_told_if_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.notify("READY=1")
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        systemd.notify("READY=1")
        assert receiver.recv(100) == b"READY=1"
    path.unlink()
    systemd.notify("STOPPING=1")
    assert systemd.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_interval() is None


def test_a_word_to_systemd_that_cannot_be_sent_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setattr(socket, "socket", none_left)
    systemd.notify("WATCHDOG=1")


async def test_a_held_loop_is_seen() -> None:
    stalls: list[float] = []
    task = asyncio.create_task(watch(stalls.append), name="stall")
    await asyncio.sleep(0.12)
    time.sleep(0.2)
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert stalls[-1] > 0.1


async def test_targets_are_withheld_until_every_service_was_looked_at() -> None:
    """Prometheus keeps its targets on an error; an empty list would end every series in mid-rollout."""
    found: list[list[dict[str, Any]] | None] = [None]
    views = Views(DaemonMetrics(), lambda _: found[0], _nothing, lambda: "starting")
    async with TestClient(TestServer(application(views))) as client:
        assert (await client.get("/targets")).status == 503
        assert (await client.get("/readyz")).status == 503
        assert (await client.get("/healthz")).status == 200
        found[0] = [{"targets": ["10.0.0.1:8080"], "labels": {"service": "api"}}]
        answer = await client.get("/targets")
        assert await answer.json() == found[0]


def _nothing(name: str) -> bytes:
    if name == "api-1-0":
        counts = AnsweredCounts((0.01, 0.1))
        counts.add("200", 0.02, 3)
        counts.add("503", 0.5, 1)
        return seen_by_nginx(counts)
    raise Fault("requests.log: No such file") if name == "api-2-0" else KeyError(name)


async def test_what_nginx_has_seen_of_an_instance_is_told_as_prometheus_reads_it() -> None:
    views = Views(DaemonMetrics(), lambda here: [{"targets": [here]}], _nothing, lambda: "")
    async with TestClient(TestServer(application(views))) as client:
        text = await (await client.get("/instances/api-1-0")).text()
        assert 'nginx_requests_total{code="200"} 3.0' in text
        assert 'nginx_requests_total{code="503"} 1.0' in text
        for le, number in (("0.01", 0), ("0.1", 3), ("+Inf", 4)):
            assert f'nginx_request_duration_seconds_bucket{{le="{le}"}} {number}.0' in text
        assert "nginx_request_duration_seconds_sum 0.56" in text
        assert (await client.get("/instances/api-2-0")).status == 503
        assert (await client.get("/instances/api-3-0")).status == 404
        targets = await (await client.get("/targets", headers={"Host": "release-host:9180"})).json()
        assert targets == [{"targets": ["release-host:9180"]}]
