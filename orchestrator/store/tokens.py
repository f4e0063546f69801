"""`ports.Tokens` on Redis: tokens and sessions by the digest of their secrets."""

import hashlib
import hmac
import math
import secrets
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from redis.asyncio import Redis
from redis.exceptions import RedisError

from orchestrator.ports.access import Principal, Token
from orchestrator.ports.faults import Conflict, Fault
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import fault, run_script
from orchestrator.store.scripts import GIVE_OUT

log = structlog.get_logger()

PREFIX = "rot"
"""Secrets begin with it, so that scanners for leaked ones can tell them: `rot_ID_SECRET`."""


LATELY, MOST = 1.0, 1000
"""Seconds for which a token that was good is not looked up again, and how many are remembered."""


@dataclass(frozen=True)
class _Kept:
    """A token as it lies in Redis. `digest`: SHA-256; the secret is random, so it needs no salt."""

    token: Token
    digest: str


_KEPT = TypeAdapter(_Kept)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class RedisTokens:
    """See `ports.Tokens`; every method raises `Fault` when Redis does not answer."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._create = redis.register_script(GIVE_OUT)
        self._lately: dict[str, tuple[float, Token]] = {}

    async def create(
        self, principal: Principal, by: str, now: float, expires_at: float | None
    ) -> tuple[Token, str]:
        """See `ports.Tokens`."""
        token = Token(
            id=secrets.token_hex(4), principal=principal, created_at=now, created_by=by, expires_at=expires_at
        )
        secret = f"{PREFIX}_{token.id}_{secrets.token_urlsafe(32)}"
        kept = _KEPT.dump_json(_Kept(token, _digest(secret)))
        if not await run_script(self._create, [self._keys.tokens], [token.id, principal.name, kept]):
            why = f"there is a token {principal.name!r} already; revoke it first, or choose another name"
            raise Conflict(why)
        return token, secret

    async def tokens(self) -> list[Token]:
        """See `ports.Tokens`."""
        entries = await self._ask("HGETALL", self._keys.tokens)
        found = []
        for name, text in entries.items():
            try:
                found.append(_load(text).token)
            except Fault as error:
                log.error("token_unreadable", token=name, reason=str(error))
        return sorted(found, key=lambda t: (t.principal.name, t.created_at))

    async def reach(self, token: str) -> tuple[str, ...] | None:
        """See `ports.Tokens`."""
        text = await self._ask("HGET", self._keys.tokens, token)
        try:
            return _load(text).token.principal.services if text else None
        except Fault:
            return ()

    async def revoke(self, token: str) -> bool:
        """See `ports.Tokens`."""
        self._lately.clear()
        return bool(await self._ask("HDEL", self._keys.tokens, token))

    async def recognise(self, secret: str, now: float) -> Token | None:
        """See `ports.Tokens`."""
        digest = _digest(secret)
        at, known = self._lately.get(digest, (-math.inf, None))
        if known is not None and at <= now < at + LATELY:
            return known
        prefix, _, rest = secret.partition("_")
        kept = await self._kept(rest.partition("_")[0], now) if prefix == PREFIX else None
        if kept is None or not hmac.compare_digest(kept.digest, digest):
            return None
        if len(self._lately) >= MOST:
            self._lately.clear()
        self._lately[digest] = (now, kept.token)
        return kept.token

    async def open_session(self, token: Token, seconds: float) -> str:
        """See `ports.Tokens`."""
        secret = secrets.token_urlsafe(32)
        await self._ask("SET", self._keys.session(_digest(secret)), token.id, "PX", int(seconds * 1000))
        return secret

    async def session(self, secret: str, now: float) -> Token | None:
        """See `ports.Tokens`."""
        name = await self._ask("GET", self._keys.session(_digest(secret)))
        kept = await self._kept(str(name), now) if name else None
        return kept.token if kept else None

    async def close_session(self, secret: str) -> None:
        """See `ports.Tokens`."""
        await self._ask("DEL", self._keys.session(_digest(secret)))

    async def _kept(self, name: str, now: float) -> _Kept | None:
        text = await self._ask("HGET", self._keys.tokens, name)
        kept = _load(text) if text else None
        if kept is None or (kept.token.expires_at is not None and kept.token.expires_at <= now):
            return None
        return kept

    async def _ask(self, *words: Any) -> Any:
        try:
            return await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except RedisError as error:
            raise fault(error) from error


def _load(text: str) -> _Kept:
    try:
        return _KEPT.validate_json(text)
    except ValidationError as error:
        raise Fault(f"stored token is damaged: {error.error_count()} problems") from None
