"""The store on Redis: one script commits state, events and acknowledgements under the lease's token."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from orchestrator.ports.faults import Conflict, Fault, Stale
from orchestrator.rollout.events import Event
from orchestrator.rollout.model import ServiceState
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from orchestrator.store.keys import Keys
from orchestrator.store.scripts import ACCEPT, ANSWER, COMMIT, REFUSE

log = structlog.get_logger()


class Client(Redis):
    """A client whose calls can be cancelled at any moment.

    redis-py sends through `asyncio.wait_for`, which in Python 3.11 drops a cancellation that comes as its
    work ends; a loop of calls would then go on for ever.
    """

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """See redis-py; raises `CancelledError` if the task was cancelled meanwhile."""
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return answer


def connect(url: str, timeout: float = 5.0) -> Client:
    """A client whose every call gives up after `timeout` seconds.

    It repeats nothing by itself: a commit whose reply was lost would be refused as stale the second time.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        timeout: Seconds for connecting and for each answer.
    """
    client = Client.from_url(
        url,
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        health_check_interval=30,
    )
    assert isinstance(client, Client)
    return client


RECEIPT_TTL = 7 * 86400.0
"""Seconds for which an idempotency key is remembered at the door."""

SKEW = 3600.0
"""Seconds by which the daemon's clock and that of Redis may differ."""

ASKED = ("verb", "service", "image", "strategy", "release", "to", "checks")
"""The fields that say what is asked for; who asks and why may differ when it is asked again."""


def fingerprint(fields: Mapping[str, str]) -> str:
    """A digest of what a request asks for."""
    asked = [fields.get(name, "release" if name == "verb" else "") for name in ASKED]
    return hashlib.sha256("\0".join(asked).encode()).hexdigest()


async def run_script(script: Any, keys: Sequence[str], args: Sequence[object]) -> int:
    """The answer of one of our scripts.

    Raises:
        Stale: Another daemon has taken over.
        Fault: Redis refused or did not answer.
    """
    try:
        return int(await script(keys=keys, args=args))
    except ResponseError as error:
        if "STALE" in str(error):
            raise Stale(f"another daemon has taken over: {error}") from error
        raise Fault(f"Redis: {error}") from error
    except RedisError as error:
        raise Fault(f"Redis: {error}") from error


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
            raise Fault(f"Redis: {error}") from error
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
                [keys.lease, keys.state(state.service), keys.events, keys.requests, keys.services],
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
            [keys.lease, keys.dead, keys.events, keys.requests],
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
            [keys.lease, keys.events, keys.requests],
            [self.token, keys.group, entry, event.kind, event.service, dump_event(event)],
        )

    async def services(self) -> list[str]:
        """The services that have a state, sorted."""
        try:
            return sorted(str(s) for s in await self._redis.smembers(self._keys.services))
        except RedisError as error:
            raise Fault(f"Redis: {error}") from error

    async def last_event_id(self) -> str:
        """The id of the newest event, `0-0` when there is none."""
        try:
            newest: Any = await self._redis.xrevrange(self._keys.events, count=1)
        except RedisError as error:
            raise Fault(f"Redis: {error}") from error
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
                raise Fault(f"Redis: {error}") from error
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
                raise Fault(f"Redis: {error}") from error
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
            raise Fault(f"Redis: {error}") from error

    async def set_bookmark(self, reader: str, entry: str) -> None:
        """See `ports.Bookmarks`."""
        try:
            await self._redis.set(self._keys.bookmark(reader), entry)
        except RedisError as error:
            raise Fault(f"Redis: {error}") from error

    async def told(self, release: str, since: float, until: float = math.inf) -> list[Event]:
        """See `ports.Journal`; oldest first.

        Args:
            release: Its id.
            since: When its rollout began, by the daemon's clock; Redis' own may differ by up to an hour.
            until: The last moment that is of interest, by the same clock.

        Raises:
            Fault: Redis did not answer.
        """
        after = f"({int(max(since - SKEW, 0.0) * 1000)}-0"
        last = "+" if until == math.inf else str(int((until + SKEW) * 1000))
        found: list[Event] = []
        while True:
            try:
                page: Any = await self._redis.xrange(self._keys.events, min=after, max=last, count=1000)
            except RedisError as error:
                raise Fault(f"Redis: {error}") from error
            for entry, fields in page:
                after = f"({entry}"
                event = self._event(entry, fields) if fields.get("release") == release else None
                if event is not None:
                    found.append(event)
            if not page:
                return found

    async def push(self, fields: Mapping[str, str]) -> str:
        """Append a request; returns the id of its entry once it is durable.

        A request with a `key` may be appended again; the daemon makes one release of all.

        Raises:
            Conflict: The key has been used for something else; nothing was appended.
            Fault: Redis did not answer; the request may have been appended or not.
        """
        key = fields.get("key", "")
        try:
            if not key:
                return str(await self._redis.xadd(self._keys.requests, dict[Any, Any](fields)))
            flat = [part for pair in fields.items() for part in pair]
            found, entry = await self._accept(
                keys=[self._keys.receipt(fields.get("service", ""), key), self._keys.requests],
                args=[fingerprint(fields), int(RECEIPT_TTL * 1000), *flat],
            )
        except RedisError as error:
            raise Fault(f"Redis: {error}") from error
        if not found:
            raise Conflict(f"key {key!r} was used for another request ({entry}); use a new key")
        return str(entry)

    async def pushed(self, request: str) -> dict[str, str] | None:
        """See `ports.Inbox`."""
        try:
            found: Any = await self._redis.xrange(self._keys.requests, min=request, max=request)
        except RedisError as error:
            raise Fault(f"Redis: {error}") from error
        return dict(found[0][1]) if found else None

    async def waiting(self) -> int:
        """Requests that nobody has carried out yet: not delivered, or delivered and not acknowledged."""
        try:
            groups: Any = await self._redis.xinfo_groups(self._keys.requests)
        except ResponseError:
            return 0
        except RedisError as error:
            raise Fault(f"Redis: {error}") from error
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
            raise Fault(f"Redis: {error}") from error
        known = self._known.get(service)
        if known is None or known[1] != version:
            known = self._known[service] = await super().load(service)
        return known
