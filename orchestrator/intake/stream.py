"""The request stream: read by a consumer group from its beginning, acknowledged only inside a commit."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from orchestrator.intake.parse import MAX_BYTES, parse
from orchestrator.ports.clock import Clock
from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.requests import Request
from orchestrator.rollout.events import Event, RequestRefused

log = structlog.get_logger()

CONSUMER = "driver"
"""One name for whoever holds the lease, so that the entries of a daemon that died are the next one's own."""

BATCH = 50
"""Entries that are read at once; fewer, down to one, where they do not come in time."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds until entries that could not be taken are tried again, the first time and in the end."""


class RequestStream:
    """Entries to requests, in order; what is not a request goes to the dead letters with the reason.

    An entry that can't be taken is left pending and keeps no other waiting: all that are pending are read
    again after a while. `dispatch` may get one twice. `acknowledged` tells the highest id of what was carried
    out or refused. `lost` is called for each entry that somebody trimmed away before it was carried out.
    """

    def __init__(
        self,
        redis: Redis,
        stream: str,
        group: str,
        refuse: Callable[[str, Mapping[str, str], Event], Awaitable[None]],
        clock: Clock,
        dispatch: Callable[[Request, Mapping[str, str]], Awaitable[None]],
        acknowledged: Callable[[], Awaitable[str]],
        lost: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._stream = stream
        self._group = group
        self._write_refusal = refuse
        self._clock = clock
        self._dispatch = dispatch
        self._acknowledged = acknowledged
        self._lost = lost
        self._batch = BATCH

    async def run(self) -> None:
        """First what was delivered and never acknowledged, then what is new; for ever.

        Raises:
            Fault: Redis did not answer. Run it again: nothing is lost.
        """
        try:
            try:
                await self._claim()
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                await self._make_group()
            after, left, again, pause = "0", False, 0.0, FIRST_PAUSE
            now = asyncio.get_running_loop().time
            while True:
                entries = await self._read(after)
                for entry, fields in entries:
                    if not await self._taken(entry, fields) and not left:
                        left, again = True, now() + pause
                if after != ">":
                    after = entries[-1][0] if entries else ">"
                    pause = pause if after != ">" or left else FIRST_PAUSE
                elif left and now() >= again:
                    after, left, pause = "0", False, min(pause * 2, LONGEST_PAUSE)
        except RedisError as error:
            self._batch = max(self._batch // 4, 1)
            raise Fault(f"Redis: {error}") from error

    async def _make_group(self) -> None:
        """Make the group behind the last request that was acknowledged: nothing is carried out again."""
        last = "0-0"
        try:
            stream: Any = await self._redis.xinfo_stream(self._stream)
            last = str(stream["last-generated-id"])
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
        after = await self._acknowledged()
        if _number(after) > _number(last):  # of another stream of the name
            after = "0-0"
        try:
            await self._redis.xgroup_create(self._stream, self._group, id=after, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
            return  # somebody was faster
        if after != "0-0":
            why = (
                "the consumer group was destroyed; what it had not acknowledged until then is not carried out"
            )
            log.error("requests_skipped", stream=self._stream, until=after, reason=why)

    async def _claim(self) -> None:
        """Take over what was delivered to any other consumer: whoever drives is the only one alive.

        Entries that were trimmed away before they were carried out are lost for good, and that is told.
        """
        cursor = "0-0"
        while True:
            found: Any = await self._redis.xautoclaim(
                self._stream, self._group, CONSUMER, min_idle_time=0, start_id=cursor, count=self._batch
            )
            cursor, _, trimmed = found
            for entry in trimmed:
                log.error("request_trimmed", request=entry, reason="it was removed before it was carried out")
                self._lost()
            if cursor == "0-0":
                return

    async def _read(self, after: str) -> list[tuple[str, dict[str, str]]]:
        streams: dict[Any, Any] = {self._stream: after}
        block = 1000 if after == ">" else None
        found: Any = await self._redis.xreadgroup(
            self._group, CONSUMER, streams, count=self._batch, block=block
        )
        if after == ">":
            self._batch = min(2 * self._batch, BATCH)
        return found[0][1] if found else []

    async def _taken(self, entry: str, fields: dict[str, str] | None) -> bool:
        """Take an entry. False where it stays pending, whatever it was."""
        try:
            await self._take(entry, fields)
        except Stale:
            raise
        except Fault as error:
            log.warning("request_left", request=entry, reason=str(error))
        except Exception:
            log.exception("request_left", request=entry)
        else:
            return True
        return False

    async def _take(self, entry: str, fields: dict[str, str] | None) -> None:
        if fields is None:
            log.error("request_trimmed", request=entry, reason="it was removed before it was carried out")
            self._lost()
            await self._redis.xack(self._stream, self._group, entry)
            return
        try:
            request = parse(entry, fields)
        except Fault as error:
            await self._refuse(entry, fields, str(error))
            return
        await self._dispatch(request, fields)

    async def _refuse(self, entry: str, fields: Mapping[str, str], reason: str) -> None:
        kept = {k[:80]: v[:1000] for k, v in list(fields.items())[:20]}
        if sum(map(len, kept.values())) > MAX_BYTES:
            kept = {}
        service = fields.get("service", "")[:40]
        log.warning("request_refused", service=service, request=entry, reason=reason)
        event = RequestRefused(
            service=service,
            at=self._clock.now(),
            verb=fields.get("verb", "release")[:20],
            actor=fields.get("who", "unknown")[:80],
            request=entry,
            reason=reason,
        )
        await self._write_refusal(entry, {**kept, "error": reason}, event)


def _number(entry: str) -> tuple[int, int]:
    """An id of a stream, in its order."""
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence)
