"""`ports.Board` on Redis."""

import asyncio
import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import fault, run_script
from orchestrator.store.scripts import WANT

log = structlog.get_logger()

VERSION = ""
"""The field of a hash that is of no service: it changes with the others."""


def host_name() -> str:
    """What an edge is called that was given no name."""
    return socket.gethostname().partition(".")[0]


class RedisBoard:
    """What edges are to serve, and what they say that they do.

    Args:
        redis: A client.
        keys: Names.
        ttl: Seconds after which an edge that says nothing is away.
        token: The fencing token of the daemon that drives; 0 for an edge, which wants nothing.
    """

    def __init__(self, redis: Redis, keys: Keys, ttl: float, token: int = 0) -> None:
        self._redis = redis
        self._keys = keys
        self._ttl = ttl
        self._token = token
        self._lost = True
        self._until: dict[str, float] = {}
        """By edge: before when, by this host's clock, its silence says nothing."""
        self._said: tuple[Mapping[str, str] | None, str] = None, ""
        self._heard: dict[str, tuple[str, dict[str, str]]] = {}
        """What an edge has said last here, and what was heard of each, with the mark of that report."""
        self._want = redis.register_script(WANT)
        self._wanted: tuple[str, dict[str, str]] = "", {}
        """What is wanted as it was read last, with its version."""
        self._told = "0-0"

    async def want(self, service: str, text: str) -> None:
        """See `ports.Board`."""
        keys = [self._keys.lease, self._keys.wanted, self._keys.wanted_news]
        await run_script(self._want, keys, [self._token, service, text])

    async def news(self, known: str, wait: float = 0.0) -> tuple[str, dict[str, str]] | None:
        """See `ports.Board`. Where it is told what has changed, only that is read."""
        try:
            if wait and known and known == self._wanted[0] and await self._are_told(wait):
                return self._wanted
            version = await self._redis.hget(self._keys.wanted, VERSION) or "0"
            if str(version) == known:
                return None
            found: dict[Any, Any] = await self._redis.hgetall(self._keys.wanted)
        except RedisError as error:
            raise fault(error) from error
        texts = {str(service): str(text) for service, text in found.items()}
        self._wanted = texts.pop(VERSION, "0"), texts
        return self._wanted

    async def _are_told(self, wait: float) -> bool:
        """Wait for news and read what they are of. False where there are none, or some were missed."""
        streams: dict[Any, Any] = {self._keys.wanted_news: self._told}
        try:
            found: Any = await self._redis.xread(streams, block=int(wait * 1000))
        except ResponseError as error:  # of another type, or not for this account
            log.debug("news_not_heard", reason=str(error))
            await asyncio.sleep(wait)
            return False
        entries = found[0][1] if found else []
        version, texts = self._wanted
        for entry, told in entries:
            self._told = entry
            follows = told.get("before") == version and "service" in told
            version = told.get("after", "") if follows else ""
        if not entries or not version:
            return False
        services = sorted({told["service"] for _, told in entries})
        read = await self._redis.hmget(self._keys.wanted, services)
        if None in read:
            return False
        self._wanted = version, texts | dict(zip(services, map(str, read), strict=True))
        return True

    async def report(self, edge: str, texts: Mapping[str, str]) -> None:
        """See `ports.Board`. What has been said is said again only where Redis does not have it."""
        key, life, mark = self._keys.edge(edge), int(self._ttl * 1000), secrets.token_hex(8)
        mapping: dict[Any, Any] = {**texts, VERSION: mark}  # an edge without services is there too
        try:
            if texts == self._said[0] and await self._is_still_said(edge, key, life):
                return
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(key)
                pipe.hset(key, mapping=mapping)
                pipe.pexpire(key, life)
                pipe.sadd(self._keys.edges, edge)
                await pipe.execute()
        except RedisError as error:
            raise fault(error) from error
        self._said = dict(texts), mark

    async def _is_still_said(self, edge: str, key: str, life: int) -> bool:
        """Whether Redis has the last report, which then lives on."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(key, VERSION)
            pipe.pexpire(key, life)
            pipe.sadd(self._keys.edges, edge)
            mark, *_ = await pipe.execute()
        return bool(mark == self._said[1])

    async def reports(self) -> dict[str, dict[str, str] | None]:
        """See `ports.Board`.

        A key that has run out says that an edge is silent only where it could have spoken: not while Redis
        was away, and not where Redis has lost the key, or let it run out by a clock that was set.
        """
        now = asyncio.get_running_loop().time()
        try:
            names = sorted(str(n) for n in await self._redis.smembers(self._keys.edges))
            heard, left = await self._listen(names)
        except RedisError as error:
            self._lost = True
            raise fault(error) from error
        if self._lost:
            self._until = dict.fromkeys((*self._until, *names), now + self._ttl)
            self._lost = False
        for name, ms in left.items():
            self._until[name] = max(self._until.get(name, 0.0), now + ms / 1000)
        self._until = {name: until for name, until in self._until.items() if now < until}
        return dict.fromkeys(self._until) | heard

    async def _listen(self, names: Sequence[str]) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
        """What those say that are not silent, and how many ms each may be silent from now on.

        What is marked as it was when it was heard last is not read again.
        """
        before = self._heard
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(self._keys.edge(name), VERSION)
                pipe.pttl(self._keys.edge(name))
            found: list[Any] = await pipe.execute()
        marks, left = dict(zip(names, found[::2], strict=True)), dict(zip(names, found[1::2], strict=True))
        heard = {name: before[name] for name in names if name in before and before[name][0] == marks[name]}
        news = [name for name, mark in marks.items() if mark is not None and name not in heard]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in news:
                pipe.hgetall(self._keys.edge(name))
            told: list[dict[Any, Any]] = await pipe.execute()
        for name, fields in zip(news, told, strict=True):
            texts = {str(service): str(text) for service, text in fields.items()}
            if VERSION in texts:  # else it has run out since
                heard[name] = texts.pop(VERSION), texts
        self._heard = {name: (mark, texts) for name, (mark, texts) in heard.items() if mark}
        return {name: texts for name, (_, texts) in heard.items()}, {name: left[name] for name in heard}

    async def known(self) -> list[str]:
        """The edges that have ever said anything and were not forgotten, those that are away too."""
        try:
            return sorted(str(n) for n in await self._redis.smembers(self._keys.edges))
        except RedisError as error:
            raise fault(error) from error

    async def forget(self, edge: str) -> bool:
        """Forget an edge that is no more. Whether it was known."""
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(self._keys.edge(edge))
                pipe.srem(self._keys.edges, edge)
                return bool((await pipe.execute())[1])
        except RedisError as error:
            raise fault(error) from error
