"""The store on Redis: one script commits state, events and acknowledgements under the lease's token."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from orchestrator.ports.faults import Away, Conflict, Fault, Repeated, Stale
from orchestrator.ports.requests import Once
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from orchestrator.store.keys import Keys
from orchestrator.store.scripts import ACCEPT, ANSWER, COMMIT, REFUSE

log = structlog.get_logger()


CONNECTIONS = 64
"""Connections that share the work; some of them wait for news of a stream. More make Redis no faster."""

TIMEOUT = 5.0
"""Seconds for a call, unless somebody says otherwise."""


async def _in_time(seconds: float, call: Awaitable[Any]) -> Any:
    """The answer of redis-py, which drops the connection when it does not come in time or is not waited for.

    Its own timeouts are not used: it sends through `asyncio.wait_for`, which in Python 3.11 drops a
    cancellation that comes as its work ends, and which takes two more turns of the event loop.

    Raises:
        redis.exceptions.TimeoutError: It has not come in time.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            return await call
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise exceptions.TimeoutError(f"no answer within {seconds:g} s") from error


class _Pipeline(Pipeline):
    seconds = TIMEOUT

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        found: list[Any] = await _in_time(self.seconds, super().execute(raise_on_error))
        return found


class Client(Redis):
    """A client whose calls, pipelines too, can be cancelled at any moment, and wait for a connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._apart: list[Client] = []
        self._seconds = TIMEOUT
        self._again: Callable[[int], Client] | None = None

    def apart(self) -> "Client":
        """A client with connections of its own, for what must not wait behind others; it ends with this."""
        assert self._again is not None
        client = self._again(2)
        self._apart.append(client)
        return client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """See redis-py; raises `CancelledError` if the task was cancelled meanwhile."""
        call = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return await _in_time(self._seconds, call)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """See redis-py; its `execute` raises `CancelledError` if the task was cancelled meanwhile."""
        pipeline = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.seconds = self._seconds
        return pipeline

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """See redis-py."""
        for client in self._apart:
            await client.aclose()
        await super().aclose(close_connection_pool)


def connect(url: str, timeout: float = TIMEOUT, connections: int = CONNECTIONS) -> Client:
    """A client whose every call gives up after `timeout` seconds.

    It repeats nothing by itself: a commit whose reply was lost would be refused as stale the second time.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        timeout: Seconds for each call, of which half may pass until a connection is free.
        connections: The most that are open; who comes when all are in use waits.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout / 2,
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,  # see `_in_time`
        health_check_interval=30,
    )
    client = Client.from_pool(pool)
    assert isinstance(client, Client)
    client._seconds = timeout  # noqa: SLF001  our own
    client._again = partial(connect, url, timeout)  # noqa: SLF001  our own
    return client


RECEIPT_TTL = 7 * 86400.0
"""Seconds for which an idempotency key is remembered at the door."""

AROUND = 3600.0
"""Seconds before the beginning of a journey, and after its end, whose events are told with it."""

ASKED = ("verb", "service", "image", "strategy", "release", "to", "checks")
"""The fields that say what is asked for; who asks and why may differ when it is asked again."""


def fingerprint(fields: Mapping[str, str]) -> str:
    """A digest of what a request asks for."""
    asked = [fields.get(name, "release" if name == "verb" else "") for name in ASKED]
    return hashlib.sha256("\0".join(asked).encode()).hexdigest()


def fault(error: RedisError) -> Fault:
    """`Away` where Redis did not answer; a plain fault where it did, and refused."""
    kind = Fault if isinstance(error, ResponseError) else Away
    return kind(f"Redis: {error}")


async def run_script(script: Any, keys: Sequence[str], args: Sequence[object]) -> int:
    """The answer of one of our scripts.

    Raises:
        Stale: Another daemon has taken over.
        Away: Redis did not answer; what was asked may be done or not.
        Fault: It refused.
    """
    try:
        return int(await script(keys=keys, args=args))
    except ResponseError as error:
        if "STALE" in str(error):
            raise Stale(f"another daemon has taken over: {error}") from error
        raise fault(error) from error
    except RedisError as error:
        raise fault(error) from error


class RedisStore:
    """`ports.Store` on Redis, with what readers need beside it."""

    def __init__(self, redis: Redis, keys: Keys, token: int = 0) -> None:
        self._redis = redis
        self._keys = keys
        self.token = token
        self._unreadable: set[str] = set()
        self._commit = redis.register_script(COMMIT)
        self._refuse = redis.register_script(REFUSE)
        self._answer = redis.register_script(ANSWER)
        self._accept = redis.register_script(ACCEPT)

    async def load(self, service: str) -> tuple[ServiceState, int]:
        """See `ports.Store`."""
        try:
            data, version = await self._redis.hmget(self._keys.state(service), ["data", "version"])
        except RedisError as error:
            raise fault(error) from error
        if data is None:
            return ServiceState(service=service), int(version or 0)
        return load_state(data), int(version or 0)

    async def commit(
        self, state: ServiceState, version: int, events: Sequence[Event], acks: Sequence[str] = ()
    ) -> int:
        """See `ports.Store`."""
        keys = self._keys
        told: list[str | bytes] = []
        for event in events:
            told += [event.kind, event.release, dump_event(event)]
        return int(
            await run_script(
                self._commit,
                [
                    keys.lease,
                    keys.state(state.service),
                    keys.events,
                    keys.requests,
                    keys.services,
                    keys.acknowledged,
                ],
                [
                    self.token,
                    version,
                    dump_state(state),
                    state.service,
                    keys.group,
                    len(events),
                    *told,
                    *acks,
                ],
            )
        )

    async def refuse(self, entry: str, fields: Mapping[str, str], event: Event) -> None:
        """See `ports.Store`."""
        keys = self._keys
        letter = [part for pair in fields.items() for part in pair]
        await run_script(
            self._refuse,
            [keys.lease, keys.dead, keys.events, keys.requests, keys.acknowledged],
            [
                self.token,
                keys.group,
                entry,
                event.kind,
                event.service,
                dump_event(event),
                "entry",
                entry,
                *letter,
            ],
        )

    async def answer(self, entry: str, event: Event) -> None:
        """See `ports.Store`."""
        keys = self._keys
        await run_script(
            self._answer,
            [keys.lease, keys.events, keys.requests, keys.acknowledged],
            [self.token, keys.group, entry, event.kind, event.service, dump_event(event)],
        )

    async def services(self) -> list[str]:
        """The services that have a state, sorted."""
        try:
            return sorted(str(s) for s in await self._redis.smembers(self._keys.services))
        except RedisError as error:
            raise fault(error) from error

    async def acknowledged(self) -> str:
        """The highest id of the requests that were acknowledged, `0-0` when there is none."""
        return await self._last(self._keys.acknowledged)

    async def last_event_id(self) -> str:
        """The id of the newest event, `0-0` when there is none."""
        return await self._last(self._keys.events)

    async def _last(self, stream: str) -> str:
        try:
            newest: Any = await self._redis.xrevrange(stream, count=1)
        except RedisError as error:
            raise fault(error) from error
        return str(newest[0][0]) if newest else "0-0"

    async def events(self, after: str, block: float = 1.0) -> AsyncIterator[tuple[str, Event | None]]:
        """Events after an id, for ever. Yields (id, None) when nothing came for `block` seconds.

        Raises:
            Fault: Redis did not answer.
        """
        while True:
            try:
                found: Any = await self._redis.xread(
                    {self._keys.events: after}, count=100, block=int(block * 1000)
                )
            except RedisError as error:
                raise fault(error) from error
            if not found:
                yield after, None
                continue
            for entry, fields in found[0][1]:
                after = str(entry)
                event = self._event(after, fields)
                if event is not None:
                    yield after, event

    async def events_after(self, after: str, limit: int = 100) -> list[tuple[str, Event]]:
        """See `ports.Journal`."""
        while True:
            try:
                page: Any = await self._redis.xrange(self._keys.events, min=f"({after}", count=limit)
            except RedisError as error:
                raise fault(error) from error
            read = [(str(entry), self._event(str(entry), fields)) for entry, fields in page]
            found = [(entry, event) for entry, event in read if event is not None]
            if found or not page:
                return found
            after = str(page[-1][0])

    def _event(self, entry: str, fields: Mapping[str, str]) -> Event | None:
        """The event of an entry; None, told once, where there is none that this version can read.

        What is committed is in the state, so a reader loses no more than the line.
        """
        try:
            return load_event(fields.get("data", ""))
        except Fault as error:
            if entry not in self._unreadable:
                self._unreadable.add(entry)
                log.error("event_unreadable", entry=entry, reason=str(error))
            return None

    async def bookmark(self, reader: str) -> str:
        """See `ports.Bookmarks`."""
        try:
            return str(await self._redis.get(self._keys.bookmark(reader)) or "")
        except RedisError as error:
            raise fault(error) from error

    async def set_bookmark(self, reader: str, entry: str) -> None:
        """See `ports.Bookmarks`."""
        try:
            await self._redis.set(self._keys.bookmark(reader), entry)
        except RedisError as error:
            raise fault(error) from error

    async def told(self, release: str, since: float, until: float = math.inf) -> list[Event]:
        """See `ports.Journal`; oldest first.

        Args:
            release: Its id.
            since: When its rollout began, by the daemon's clock, which Redis' own may be far from.
            until: The last moment that is of interest, by the same clock.

        Raises:
            Fault: Redis did not answer.
        """
        after = str((await self._places(since - AROUND))[0])
        last = "+" if until == math.inf else str((await self._places(until + AROUND))[1])
        found: list[Event] = []
        while True:
            try:
                page: Any = await self._redis.xrange(self._keys.events, min=after, max=last, count=1000)
            except RedisError as error:
                raise fault(error) from error
            for entry, fields in page:
                after = f"({entry}"
                event = self._event(entry, fields) if fields.get("release") == release else None
                if event is not None:
                    found.append(event)
            if not page:
                return found

    async def _places(self, at: float) -> tuple[int, int]:
        """Where in the event stream a time of the daemon's clock lies: between two times of Redis' clock.

        Events are told in the order of either clock, so this halves until what is left is short.

        Returns:
            Milliseconds of Redis' clock, `AROUND` apart at the most; the first is never too late.
        """
        oldest = await self.events_after("0-0", 1)
        low = int(oldest[0][0].partition("-")[0]) if oldest else 0
        high = int((await self.last_event_id()).partition("-")[0]) + 1
        guess = int((at + AROUND / 2) * 1000)  # the clocks agree nearly always
        while high - low > AROUND * 1000:
            middle = guess if low < guess < high else (low + high) // 2
            guess -= int(AROUND * 1000)
            found = await self.events_after(f"{middle}-0", 1)
            if found and found[0][1].at < at:
                low = middle
            else:
                high = middle
        return low, high

    async def push(self, fields: Mapping[str, str], once: Once | None = None) -> str:
        """Append a request; returns the id of its entry once it is durable.

        A request with a `key` may be appended again; the daemon makes one release of all.

        Raises:
            Conflict: The key has been used for something else; nothing was appended.
            Repeated: It was to come once, and has come before; nothing was appended.
            Away: Redis did not answer; the request may have been appended or not.
            Fault: It refused; nothing was appended.
        """
        key, nonce = fields.get("key", ""), once.nonce if once else ""
        digest = hashlib.sha256(nonce.encode("utf-8", "surrogateescape")).hexdigest()
        try:
            found, entry = await self._accept(
                keys=[
                    self._keys.requests,
                    self._keys.receipt(fields.get("service", ""), key),
                    self._keys.nonce(digest),
                ],
                args=[
                    fingerprint(fields) if key else "",
                    int(RECEIPT_TTL * 1000),
                    int(once.seconds * 1000) if once else 0,
                    *(part for pair in fields.items() for part in pair),
                ],
            )
        except RedisError as error:
            raise fault(error) from error
        if found == "repeated":
            raise Repeated(str(entry))
        if found == "conflict":
            raise Conflict(f"key {key!r} was used for another request ({entry}); use a new key")
        return str(entry)

    async def pushed(self, request: str) -> dict[str, str] | None:
        """See `ports.Inbox`."""
        try:
            found: Any = await self._redis.xrange(self._keys.requests, min=request, max=request)
        except RedisError as error:
            raise fault(error) from error
        return dict(found[0][1]) if found else None

    async def driven(self) -> bool:
        """Whether a daemon holds the lease; for `redis/lease_ttl` seconds after its death one seems to."""
        try:
            return bool(await self._redis.exists(self._keys.lease))
        except RedisError as error:
            raise fault(error) from error

    async def waiting(self) -> int:
        """Requests that nobody has carried out yet: not delivered, or delivered and not acknowledged."""
        try:
            groups: Any = await self._redis.xinfo_groups(self._keys.requests)
        except ResponseError:
            return 0
        except RedisError as error:
            raise fault(error) from error
        return sum(int(g["pending"]) + int(g["lag"] or 0) for g in groups)


class ReadingStore(RedisStore):
    """For readers that look at the same states again and again: each is parsed once a version."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        super().__init__(redis, keys)
        self._known: dict[str, tuple[ServiceState, int]] = {}

    async def load(self, service: str) -> tuple[ServiceState, int]:
        """See `ports.Store`."""
        try:
            version = int(await self._redis.hget(self._keys.state(service), "version") or 0)
        except RedisError as error:
            raise fault(error) from error
        known = self._known.get(service)
        if known is None or known[1] != version:
            known = self._known[service] = await super().load(service)
        return known
