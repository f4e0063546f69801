"""`ports.Metrics` on Prometheus' HTTP API."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import requests
import structlog
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests.exceptions import ReadTimeout, RequestException
from urllib3.util.retry import Retry

from orchestrator.analysis.query import Part, batch, counters, own, parts, readings
from orchestrator.ports.addresses import masked
from orchestrator.ports.clock import Clock
from orchestrator.ports.faults import Fault
from orchestrator.ports.metrics import MetricQuery
from orchestrator.rollout.observation import Reading

log = structlog.get_logger()

T = TypeVar("T")
Rows = list[dict[str, Any]]

AGAIN = 30.0
"""Seconds after which what Prometheus has refused is asked again. Until then it costs the others nothing."""

PATIENCE = 4
"""Timeouts that one look may take in all, when it has to find out whose query is refused or slow."""

TARGETS_EVERY = 5.0
TARGETS_MOST = 16 * 1024 * 1024
"""Seconds between looks at Prometheus' list of targets, and the most bytes of it that are read."""

REFUSED = frozenset({400, 413, 414, 422, 431})
"""Answers that say something of the query: it is wrong, too long, or can't be carried out."""


ODD = (LookupError, TypeError, ValueError, AttributeError)
"""What an answer that is not as documented raises."""


class QueryRefused(Fault):
    """Prometheus says that the query is wrong."""


class QuerySlow(Fault):
    """Prometheus did not answer this query in time."""


class Prometheus:
    """Instant queries in an executor of their own; every one has a timeout and none is retried by itself.

    Args:
        url: Where Prometheus answers.
        clock: The time of a reading.
        timeout: Seconds for one query.
        headers: Sent with every query, for example an authorization.
        discovery: Where it finds its targets: the document that this daemon serves.

    Attributes:
        absent: What is said of an instance that is not among its targets.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        timeout: float = 5.0,
        headers: Mapping[str, str] | None = None,
        discovery: str = "",
    ) -> None:
        self.absent = f"it is not among Prometheus' targets: add {discovery} to its http_sd_configs"
        self._clock = clock
        self._timeout = timeout
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.hooks["response"] = [_refuse]
        self._headers = dict(headers or {})
        self._connection = PrometheusConnect(
            url=self._url,
            headers=self._headers,
            retry=Retry(total=0),
            session=self._session,
            timeout=timeout,
            method="POST",
        )
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="prometheus")
        self._refused: dict[str, tuple[float, str]] = {}
        self._apart = ThreadPoolExecutor(1, thread_name_prefix="targets")  # a huge list delays no query
        self._targets: Mapping[tuple[str, str], str] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_again = 0.0

    async def ask(self, expression: str) -> Rows:
        """One instant query.

        Raises:
            QueryRefused: Prometheus says that it is wrong.
            QuerySlow: Prometheus took longer than the timeout.
            Fault: Prometheus is away.
        """

        def work() -> Rows:
            found = self._connection.custom_query(expression, timeout=self._timeout)
            if not isinstance(found, list):
                raise TypeError(f"unexpected answer: {str(found)[:200]}")
            return found

        return await self._run(work, self._timeout)

    async def range(self, expression: str, start: float, end: float, step: float) -> Rows:
        """A query over a time, in seconds since the epoch; Prometheus answers 11,000 points a series at most.

        Raises:
            Fault: Prometheus refused, is away, or took longer than four timeouts.
        """
        ends = (datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC), f"{step:g}")
        limit = self._timeout * 4
        return await self._run(
            lambda: self._connection.custom_query_range(expression, *ends, timeout=limit), limit
        )

    async def _run(self, work: Callable[[], T], limit: float, pool: ThreadPoolExecutor | None = None) -> T:
        """Blocking work in an executor, that of the queries by default; what it raises as a `Fault`."""
        try:
            async with asyncio.timeout(limit * 2):
                return await asyncio.get_running_loop().run_in_executor(pool or self._pool, work)
        except (TimeoutError, ReadTimeout) as error:
            raise QuerySlow(f"no answer within {limit:g} s") from error
        except (RequestException, PrometheusApiClientException, *ODD) as error:
            raise Fault(_words(error)) from error

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        """See `ports.Metrics`: one query for all, and one more for each service that is refused something."""
        apart = [q for q in queries if self._refused and any(p.text in self._refused for p in parts(q))]
        found: Rows = []
        faults: dict[str, str] = {}
        await self._together([q for q in queries if q not in apart], found, faults)
        await self._alone(apart, found, faults)
        refused: dict[tuple[str, str], str] = {}
        if self._refused:
            texts = {part.text: (q.service, part.gate) for q in queries for part in parts(q)}
            self._refused = {t: kept for t, kept in self._refused.items() if t in texts}
            for text, (_, why) in self._refused.items():
                refused.setdefault(texts[text], why)
        refused |= {(service, ""): why for service, why in faults.items()}
        return self._told_why(queries, readings(queries, found, self._clock.now(), refused))

    async def _together(self, queries: Sequence[MetricQuery], found: Rows, faults: dict[str, str]) -> None:
        """Ask for all at once; where that is refused, for each half, until whoever is refused is alone."""
        if not queries:
            return
        theirs = [part for query in queries for part in own(query)]
        try:
            found += await self.ask(_joined([*batch(queries), *theirs]))
        except QueryRefused:
            if len(queries) == 1:
                await self._alone(queries, found, faults)
            else:
                middle = len(queries) // 2
                await self._together(queries[:middle], found, faults)
                await self._together(queries[middle:], found, faults)
        except QuerySlow as error:
            if theirs:
                await self._alone(queries, found, faults)
            else:
                faults |= {q.service: str(error) for q in queries}
        except Fault as error:
            faults |= {q.service: str(error) for q in queries}

    async def _alone(self, queries: Sequence[MetricQuery], found: Rows, faults: dict[str, str]) -> None:
        """Ask for each service alone; the time for all of them is bounded."""
        waiting = {q.service: q for q in queries}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout * PATIENCE):
                for service, query in tuple(waiting.items()):
                    try:
                        rows = await self._sift(counters(query.source, [service], cpu=query.cpu), service)
                        found += rows + await self._sift(own(query), service)
                    except Fault as error:
                        faults[service] = str(error)
                    del waiting[service]
        faults |= dict.fromkeys(waiting, "no answer in time: the queries of other services are too slow")

    async def _sift(self, wanted: Sequence[Part], service: str) -> Rows:
        """The rows of some parts of a service; those that are refused are remembered with the reason.

        Raises:
            Fault: Prometheus is away, or too slow for the counters.
        """
        now = asyncio.get_running_loop().time()
        asked = [p for p in wanted if self._refused.get(p.text, (0.0, ""))[0] <= now]
        if not asked:
            return []
        try:
            rows = await self.ask(_joined(asked))
        except (QueryRefused, QuerySlow) as error:
            if isinstance(error, QuerySlow) and not asked[0].gate:
                raise
            if len(asked) > 1:
                return [row for part in asked for row in await self._sift([part], service)]
            (part,) = asked
            if part.text not in self._refused:
                log.warning(
                    "query_refused", service=service, gate=part.gate, query=part.asked, reason=str(error)
                )
            self._refused[part.text] = (now + AGAIN, f"{part.asked[:300]}: {error}")
            return []
        for part in asked:
            self._refused.pop(part.text, None)
        return rows

    def _told_why(
        self, queries: Sequence[MetricQuery], found: Mapping[str, Reading]
    ) -> Mapping[str, Reading]:
        """With Prometheus' own reason, as it was last known, for each wanted instance that has no sample."""
        missing = {
            q.service: {name for name in q.instances if name not in found[q.service].samples}
            | found[q.service].unread.keys()
            for q in queries
            if not found[q.service].error
        }
        if not any(missing.values()):
            return found
        self._look()
        errors, absent = (self._targets, self.absent) if self._targets is not None else ({}, "")
        return {
            service: replace(
                reading,
                unread={name: errors.get((service, name), absent) for name in missing.get(service, ())},
            )
            for service, reading in found.items()
        }

    async def target_errors(self) -> Mapping[tuple[str, str], str] | None:
        """(service, instance) of the targets that Prometheus has, to why it can't scrape it; '' where it can.

        The list may be some seconds old; None where Prometheus does not give one, or a huge one.
        """
        await asyncio.shield(self._look())
        return self._targets

    def _look(self) -> asyncio.Task[None]:
        """The look at the targets that goes on, or the last one; a new one where that is old."""
        if self._looking is None or (
            self._looking.done() and asyncio.get_running_loop().time() >= self._look_again
        ):
            self._looking = asyncio.create_task(self._look_once(), name="targets")
        return self._looking

    async def _look_once(self) -> None:
        try:
            self._targets = await self._run(self._look_at_targets, self._timeout, self._apart)
        except Fault:
            self._targets = None
        finally:
            self._look_again = asyncio.get_running_loop().time() + TARGETS_EVERY

    def _look_at_targets(self) -> Mapping[tuple[str, str], str] | None:
        with self._session.get(
            f"{self._url}/api/v1/targets",
            params={"state": "active"},
            headers=self._headers,
            timeout=self._timeout,
            stream=True,
        ) as answer:
            text = b""
            for chunk in answer.iter_content(64 * 1024):
                text += chunk
                if len(text) > TARGETS_MOST:
                    return None
        found: dict[tuple[str, str], str] = {}
        for target in json.loads(text)["data"]["activeTargets"]:
            labels, why = target["labels"], target["lastError"]
            name = (labels.get("service", ""), labels.get("instance", ""))
            url = target["scrapeUrl"]
            found[name] = masked(f"{why} ({url})") if why else found.get(name, "")
        return found

    def close(self) -> None:
        """Stop asking; a query that hangs is not waited for."""
        if self._looking is not None:
            self._looking.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._apart.shutdown(wait=False, cancel_futures=True)


def _joined(asked: Sequence[Part]) -> str:
    return " or ".join(part.text for part in asked)


def _refuse(answer: requests.Response, *_: object, **__: object) -> None:
    """Raise what an answer that is none says, in Prometheus' own words where there are any."""
    if answer.ok:
        return
    try:
        body = answer.json()
        kind, words = str(body["errorType"]), str(body["error"])
    except ODD:
        kind, words = "", f"HTTP status {answer.status_code}: {answer.text[:200]}"
    words = re.sub(r'^(invalid parameter "query": )?(\d+:\d+: )?', "", words)[:500]
    if answer.status_code in REFUSED:
        raise QueryRefused(words)
    if kind in ("timeout", "canceled"):
        raise QuerySlow(words)
    raise Fault(words)


def _words(error: Exception) -> str:
    """What went wrong, without the layers that it came through."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return (str(error) if cause is None else str(cause).rpartition(": ")[2])[:500]
