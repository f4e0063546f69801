"""A trace of each release, at a collector that reads OTLP."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from examples.playground.lease import free_port
from orchestrator.daemon.channels import readers
from orchestrator.daemon.settings import Settings
from orchestrator.engine.tasks import eternal
from orchestrator.notify.postman import Postman
from orchestrator.rollout.events import GateJudged, PhaseEntered
from orchestrator.rollout.model import Phase, ServiceState
from tests.door.conftest import House
from tests.samples import VERDICT, ended


class Collector:
    """Takes traces; refuses the first one."""

    def __init__(self) -> None:
        self.port = free_port()
        self.refuse = 1
        self.spans: list[Span] = []

    async def take(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        if self.refuse:
            self.refuse -= 1
            return web.Response(status=400)
        told = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += [s for r in told.resource_spans for scope in r.scope_spans for s in scope.spans]
        return web.Response()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", found.port).start()
    yield found
    await runner.cleanup()


def entered(at: float, phase: Phase, weight: int = 0) -> PhaseEntered:
    return PhaseEntered(
        service="api",
        at=at,
        release="api-7",
        phase=phase,
        step=0,
        steps=3,
        weight=weight,
        actor="ann",
        reason="r",
    )


async def test_a_release_is_one_trace_with_a_span_a_phase(house: House, collector: Collector) -> None:
    settings = Settings.model_validate(
        {"state_dir": "/tmp", "traces": {"endpoint": f"http://127.0.0.1:{collector.port}/v1/traces"}}
    )
    (reader,) = readers(settings, house.store, house.store)
    run = Postman(reader, house.store, house.store, house.clock).run
    task = asyncio.create_task(eternal("traces", run), name="traces")
    async with asyncio.timeout(5):
        while not await house.store.bookmark("traces"):
            await asyncio.sleep(0.01)
    now = house.clock.now()
    await house.put(
        ServiceState(service="api"),
        entered(now - 42, Phase.PREFLIGHT),
        entered(now - 30, Phase.SHIFTING, 5),
        GateJudged(service="api", at=now - 5, release="api-7", step=0, weight=5, verdict=VERDICT),
        entered(now - 2, Phase.ROLLING_BACK),
        ended(7, now),
    )
    async with asyncio.timeout(15):
        while not collector.spans:
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    root, *phases = collector.spans
    assert root.name == "release api"
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert {s.trace_id for s in collector.spans} == {root.trace_id}
    assert {s.parent_span_id for s in phases} == {root.span_id}
    assert [s.name for s in phases] == ["preflight", "shifting 5 %", "rolling_back"]
    lengths = [round((s.end_time_unix_nano - s.start_time_unix_nano) / 1e9) for s in collector.spans]
    assert lengths == [42, 12, 28, 2]
    said = {a.key: a.value for a in phases[1].attributes}
    assert "error_rate fail" in said["release.verdicts"].array_value.values[0].string_value
    about = {a.key: a.value.string_value for a in root.attributes}
    assert (about["release.outcome"], about["release.id"]) == ("rolled_back", "api-7")
