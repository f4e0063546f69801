"""A way to the Engine of one's own, and what was asked there."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

ENGINE = "/var/run/docker.sock"
REQUEST = re.compile(rb"[A-Z]+ (/\S*) HTTP/1\.1\r\n")


class Front:
    """A listener before the real Engine, which notes the path of each request."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._served: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}

    @contextlib.asynccontextmanager
    async def at(self, socket: Path) -> AsyncIterator[str]:
        """Listen at a Unix socket; gives the URL."""
        server = await asyncio.start_unix_server(self._serve, socket)
        async with self._serving(server):
            yield f"unix://{socket}"

    @contextlib.asynccontextmanager
    async def with_tls(self, context: ssl.SSLContext) -> AsyncIterator[str]:
        """Listen at a port of `localhost` with TLS; gives the URL."""
        server = await asyncio.start_server(self._serve, "localhost", 0, family=2, ssl=context)
        async with self._serving(server):
            yield f"tcp://localhost:{server.sockets[0].getsockname()[1]}"

    @contextlib.asynccontextmanager
    async def _serving(self, server: asyncio.Server) -> AsyncIterator[None]:
        try:
            yield
        finally:
            server.close()
            for ends in self._served.values():
                for end in ends:
                    end.transport.abort()
            await asyncio.gather(*self._served)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        behind, before = await asyncio.open_unix_connection(ENGINE)
        self._served[task] = before, writer
        await asyncio.gather(self._pipe(reader, before, note=True), self._pipe(behind, writer))
        for end in self._served.pop(task):
            end.transport.abort()

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, note: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                if note:
                    self.asked += [path.decode() for path in REQUEST.findall(chunk)]
                sink.write(chunk)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()
            else:
                sink.close()
