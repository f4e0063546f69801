"""The door as a server: what is served, where, and to whom it closes."""

import asyncio
import functools
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError

from orchestrator.intake import openapi
from orchestrator.intake.door import Guard, Operation, problems
from orchestrator.ports.faults import Fault

log = structlog.get_logger()

IDLE = 30.0
"""Seconds for which a connection may say nothing, or not get to the end of a request's head."""

CONNECTIONS = 1000
"""Connections that may be open; those that idle longest are closed beyond it."""


def _ours(record: logging.LogRecord) -> bool:
    """Whether a failure is this side's. What is no HTTP is the client's matter, and so is leaving early."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError)


PROTOCOL = logging.getLogger("orchestrator.door")
PROTOCOL.addFilter(_ours)

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self';"
        " img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


@dataclass(frozen=True, slots=True)
class Tls:
    """Files that are read again on `Server.reload`."""

    certificate: Path
    key: Path


class Idle:
    """Which connections say nothing."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Note that a request is under way."""
        self._since[request.protocol] = float("inf")
        try:
            return await handler(request)
        finally:
            self._since[request.protocol] = time.monotonic()

    def close(self, connections: Iterable[Any]) -> None:
        """Close those that are silent for too long, and the most silent ones where there are too many."""
        now = time.monotonic()
        self._since = {c: self._since.get(c, now) for c in connections}
        found = sorted(self._since, key=self._since.__getitem__)
        for place, connection in enumerate(found):
            since = self._since[connection]
            if now - since > IDLE or (since < now and place < len(found) - CONNECTIONS):
                connection.force_close()
                if connection.transport is not None:
                    connection.transport.abort()

    async def watch(self, runner: Callable[[], web.AppRunner | None]) -> None:
        """Close those of a server, for ever; None where it does not serve yet."""
        while True:
            await asyncio.sleep(IDLE / 10)
            if (serving := runner()) is not None and serving.server is not None:
                self.close(serving.server.connections)


class Server:
    """Everything that is served, on one address.

    Args:
        operations: What is in the OpenAPI document; each asks for a token.
        routes: What else is served; each sees to it who calls.
        listen: `address:port`, or `unix:/path`.
        tls: Serve HTTPS with these files.
    """

    def __init__(
        self,
        guard: Guard,
        operations: list[Operation],
        routes: Iterable[web.RouteDef],
        listen: str,
        tls: Tls | None = None,
    ) -> None:
        self._idle = Idle()
        around = [_secured, problems, guard.middleware, self._idle.middleware]
        self.app = web.Application(middlewares=around, client_max_size=64 * 1024)

        @functools.cache  # a daemon that starts again has no time for it
        def document() -> dict[str, Any]:
            return openapi.document(operations)

        async def described(_: web.Request) -> web.Response:
            return web.json_response(document())

        async def read(_: web.Request) -> web.Response:
            return web.Response(text=openapi.page(document()), content_type="text/html")

        self.app.add_routes([web.get("/openapi.json", described), web.get("/docs", read)])
        for operation in operations:
            self.app.router.add_route(operation.method, operation.path, guard.guarded(operation))
        self.app.add_routes(routes)
        self._listen = listen
        self._tls = tls
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if tls else None
        self._runner: web.AppRunner | None = None

    def reload(self) -> None:
        """Read certificate and key again; new connections get them.

        Raises:
            Fault: They can't be read or do not fit; the old ones stay.
        """
        if self._tls is None or self._context is None:
            return
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self._tls.certificate, self._tls.key
            )
            self._context.load_cert_chain(self._tls.certificate, self._tls.key)
        except (OSError, ssl.SSLError) as error:
            raise Fault(f"api/tls: {self._tls.certificate}: {error}") from error

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            Fault: The address is taken or may not be used, or TLS can't be set up.
        """
        self.reload()
        self._runner = web.AppRunner(
            self.app,
            access_log=None,
            shutdown_timeout=2.0,
            keepalive_timeout=IDLE,
            lingering_time=1.0,
            logger=PROTOCOL,
        )
        await self._runner.setup()
        site: web.BaseSite
        if self._listen.startswith("unix:"):
            site = web.UnixSite(self._runner, self._listen.removeprefix("unix:"))
        else:
            host, _, port = self._listen.rpartition(":")
            site = web.TCPSite(self._runner, host, int(port), ssl_context=self._context)
        try:
            await site.start()
        except OSError as error:
            await self.close()
            raise Fault(f"api/listen {self._listen}: {error.strerror or error}") from error
        if self._listen.startswith("unix:"):
            Path(self._listen.removeprefix("unix:")).chmod(0o660)

    async def watch(self) -> None:
        """Close idle connections, for ever."""
        await self._idle.watch(lambda: self._runner)

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()


@web.middleware
async def _secured(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    response = await handler(request)
    if not response.prepared:
        if (
            request.writer.output_size
        ):  # an answer that had begun has failed; a second one would be part of it
            log.warning("answer_cut_off", path=request.path, status=response.status)
            raise ConnectionError("the answer is cut off")
        for name, value in SECURITY.items():
            response.headers.setdefault(name, value)
    return response
