"""An HTTP/2 client that takes a GOAWAY as RFC 9113 has it: what was begun ends, the rest is sent again."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

import h2.connection
import h2.events

HEAD = 9
"""Bytes of a frame before its payload."""

GOAWAY = 7
"""A kind of frame; h2 takes no more answers after it, so it is read here."""


class LostError(Exception):
    """A request of which nobody can say whether it was carried out."""


@dataclass
class _Answer:
    """What has come of one request. `last`: the last stream that the other side will answer, once it goes."""

    stream: int
    status: int = 0
    body: bytes = b""
    ended: bool = False
    last: int | None = None

    @property
    def ignored(self) -> bool:
        return self.last is not None and self.last < self.stream and not self.ended

    def take(self, event: h2.events.Event) -> None:
        if getattr(event, "stream_id", None) != self.stream:
            return
        if isinstance(event, h2.events.ResponseReceived):
            self.status = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.body += event.data
        elif isinstance(event, h2.events.StreamEnded):
            self.ended = True


@dataclass
class Http2Client:
    """One connection at a time, one request at a time on it."""

    port: int
    name: str
    context: ssl.SSLContext
    connections: int = 0
    again: int = 0
    _rest: bytes = field(default=b"", init=False)
    _http: h2.connection.H2Connection | None = field(default=None, init=False)

    async def _open(self) -> h2.connection.H2Connection:
        if self._http is None:
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.context, server_hostname=self.name
            )
            self._http, self._rest = h2.connection.H2Connection(), b""
            self._http.initiate_connection()
            self.connections += 1
        return self._http

    async def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        """Status and body.

        Raises:
            LostError: The connection ended before the answer did.
        """
        while True:
            answer = await self._try(path, method)
            if answer is not None:
                return answer
            self.again += 1

    async def _try(self, path: str, method: str) -> tuple[int, bytes] | None:
        """The answer; None where the other side has said that it has not looked at the request."""
        http = await self._open()
        answer = _Answer(http.get_next_available_stream_id())
        words = [(":method", method), (":path", path), (":scheme", "https"), (":authority", self.name)]
        http.send_headers(answer.stream, words, end_stream=True)
        try:
            while not answer.ended and not answer.ignored:
                self._writer.write(http.data_to_send())
                data = await self._reader.read(65536)
                if not data:
                    raise ConnectionError("closed")
                for frame in self._frames(data):
                    if frame[3] == GOAWAY:
                        answer.last = int.from_bytes(frame[9:13], "big")
                    else:
                        for event in http.receive_data(frame):
                            answer.take(event)
        except OSError as error:
            await self.close()
            raise LostError(f"{answer}: {error}") from error
        if answer.last is not None:
            await self.close()
        return None if answer.ignored else (answer.status, answer.body)

    def _frames(self, data: bytes) -> Iterator[bytes]:
        """The frames that have come whole."""
        self._rest += data
        while len(self._rest) >= HEAD and len(self._rest) >= (
            size := HEAD + int.from_bytes(self._rest[:3], "big")
        ):
            frame, self._rest = self._rest[:size], self._rest[size:]
            yield frame

    async def close(self) -> None:
        """Drop the connection."""
        if self._http is not None:
            self._http = None
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
