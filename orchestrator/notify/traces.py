"""OpenTelemetry: one trace a release, with a span a phase or step, sent when it has ended."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from orchestrator.ports.faults import Away
from orchestrator.ports.store import Journal
from orchestrator.rollout.events import Event, GateJudged, PhaseEntered, ReleaseEnded
from orchestrator.rollout.model import Outcome
from orchestrator.rollout.told import told

SCOPE = InstrumentationScope("release-orchestrator")
TIMEOUT = 10.0


class Traces:
    """A reader (see `postman.Reader`) that exports by OTLP over HTTP.

    Args:
        endpoint: For example `http://127.0.0.1:4318/v1/traces`.
    """

    name = "traces"

    def __init__(self, endpoint: str, journal: Journal) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT)
        self._journal = journal

    def wants(self, event: Event) -> bool:
        """See `Reader`."""
        return isinstance(event, ReleaseEnded)

    async def take(self, event: Event) -> None:
        """See `Reader`."""
        assert isinstance(event, ReleaseEnded)
        events = await self._journal.told(event.release, event.at - event.seconds, event.at)
        spans = trace(event, events)
        result = await asyncio.to_thread(self._exporter.export, spans)
        if result is not SpanExportResult.SUCCESS:
            raise Away("the collector did not take the trace")  # the exporter does not tell why


def trace(ended: ReleaseEnded, events: Sequence[Event]) -> list[ReadableSpan]:
    """The spans of a release: the root, and one from each phase or step to the next.

    Ids come from the release and its time, so that a trace that is sent twice is the same trace.
    """
    began = ended.at - ended.seconds
    mine = [e for e in events if began - 1e-3 <= e.at <= ended.at]
    trace_id = _number(f"{ended.release} {ended.at}", 16)
    context = _context(trace_id, "root")
    bad = ended.outcome in (Outcome.ROLLED_BACK, Outcome.FAILED)
    about = {
        "release.id": ended.release,
        "release.service": ended.service,
        "release.image": ended.image,
        "release.outcome": ended.outcome.value,
        "release.reason": ended.reason,
        "enduser.id": ended.actor,
    }
    status = Status(StatusCode.ERROR, ended.reason) if bad else Status(StatusCode.OK)
    found = [_span(f"release {ended.service}", context, None, (began, ended.at), status, about)]
    phases = [e for e in mine if isinstance(e, PhaseEntered)]
    for number, phase in enumerate(phases):
        until = phases[number + 1].at if number + 1 < len(phases) else ended.at
        verdicts = [e for e in mine if isinstance(e, GateJudged) and phase.at <= e.at <= until]
        name = f"{phase.phase.value} {phase.weight} %" if phase.weight else phase.phase.value
        own = _context(trace_id, f"{number}")
        unset, told_of = Status(StatusCode.UNSET), _of_phase(phase, verdicts)
        found.append(_span(name, own, context, (phase.at, until), unset, told_of))
    return found


def _of_phase(phase: PhaseEntered, verdicts: Sequence[GateJudged]) -> dict[str, AttributeValue]:
    return {
        "release.phase": phase.phase.value,
        "release.step": phase.step + 1,
        "release.weight": phase.weight,
        "enduser.id": phase.actor,
        "release.verdicts": [told(v) for v in verdicts],
    }


def _span(
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    times: tuple[float, float],
    status: Status,
    attributes: Mapping[str, AttributeValue],
) -> ReadableSpan:
    begin, end = (int(at * 1e9) for at in times)
    return ReadableSpan(
        name=name,
        context=context,
        parent=parent,
        resource=Resource.create({"service.name": "release-orchestrator"}),
        instrumentation_scope=SCOPE,
        kind=SpanKind.INTERNAL,
        start_time=begin,
        end_time=end,
        status=status,
        attributes=attributes,
    )


def _context(trace_id: int, what: str) -> SpanContext:
    span = _number(f"{trace_id} {what}", 8)
    return SpanContext(trace_id, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _number(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size]) or 1
