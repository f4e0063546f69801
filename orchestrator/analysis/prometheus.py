"""`ports.Metrics` on Prometheus' HTTP API."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests.exceptions import RequestException
from urllib3.util.retry import Retry

from orchestrator.analysis.query import batch, own, readings
from orchestrator.ports.clock import Clock
from orchestrator.ports.faults import Fault
from orchestrator.ports.metrics import MetricQuery
from orchestrator.rollout.observation import Reading

log = structlog.get_logger()


class Prometheus:
    """Instant queries in an executor of their own; every one has a timeout and none is retried by itself.

    Args:
        url: Where Prometheus answers.
        clock: The time of a reading.
        timeout: Seconds for one query.
        headers: Sent with every query, for example an authorization.
    """

    def __init__(
        self, url: str, clock: Clock, *, timeout: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        self._connection = PrometheusConnect(
            url=url.rstrip("/"),
            headers=dict(headers or {}),
            retry=Retry(total=0),
            timeout=timeout,
            method="POST",
        )
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="prometheus")

    async def ask(self, expression: str) -> list[dict[str, Any]]:
        """One instant query.

        Raises:
            Fault: Prometheus refused, is away, or took longer than the timeout.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout * 2):
                return await loop.run_in_executor(self._pool, self._query, expression)
        except TimeoutError as error:
            raise Fault(f"no answer within {self._timeout:g} s") from error
        except (RequestException, PrometheusApiClientException, KeyError, ValueError) as error:
            raise Fault(_words(error)) from error

    def _query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._connection.custom_query(expression, timeout=self._timeout)
        return found

    async def range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """A query over a time, in seconds since the epoch; Prometheus answers 11,000 points a series at most.

        Raises:
            Fault: Prometheus refused, is away, or took longer than four timeouts.
        """
        loop = asyncio.get_running_loop()
        limit = self._timeout * 4

        def work() -> list[dict[str, Any]]:
            ends = (datetime.fromtimestamp(at, UTC) for at in (start, end))
            found: list[dict[str, Any]] = self._connection.custom_query_range(
                expression, *ends, f"{step:g}", timeout=limit
            )
            return found

        try:
            async with asyncio.timeout(limit * 1.5):
                return await loop.run_in_executor(self._pool, work)
        except TimeoutError as error:
            raise Fault(f"no answer within {limit:g} s") from error
        except (RequestException, PrometheusApiClientException, KeyError, ValueError) as error:
            raise Fault(_words(error)) from error

    async def read(self, queries: Sequence[MetricQuery]) -> Mapping[str, Reading]:
        """See `ports.Metrics`: one query for all; the operators' own are asked alone if they break it."""
        if not queries:
            return {}
        shared = batch(queries)
        theirs = [part for query in queries for part in own(query)]
        try:
            try:
                result = await self.ask(" or ".join([*shared, *theirs]))
            except Fault:
                if not theirs:
                    raise
                result = await self.ask(" or ".join(shared)) + await self._each(theirs)
        except Fault as error:
            now = self._clock.now()
            return {q.service: Reading(at=now, error=str(error)) for q in queries}
        return readings(queries, result, self._clock.now())

    async def _each(self, expressions: Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for expression in expressions:
            try:
                found += await self.ask(expression)
            except Fault as error:
                log.warning("query_failed", query=expression, reason=str(error))
        return found

    def close(self) -> None:
        """Stop asking; a query that hangs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _words(error: Exception) -> str:
    """What went wrong, without the layers that it came through."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return (str(error) if cause is None else str(cause).rpartition(": ")[2])[:500]
