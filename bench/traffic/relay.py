"""`python -m bench.traffic.relay PORT HOST:PORT MILLISECONDS`: a network so long, each way."""

import asyncio
import contextlib
import sys

LIMIT = 3600.0
CHUNK = 65536


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Hand on what comes, and the end, each so much later."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            loop.call_later(delay, writer.write, data)
    await asyncio.sleep(delay * 1.01)
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


async def main(port: int, to: str, delay: float) -> None:
    """Relay until killed, at most an hour."""
    host, _, target = to.rpartition(":")
    running: set[asyncio.Task[None] | None] = set()  # the loop holds no task that waits

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        try:
            await join(reader, writer)
        finally:
            running.discard(asyncio.current_task())

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(target))
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, far_writer, delay), _pump(far_reader, writer, delay))
        for end in (writer, far_writer):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        await asyncio.sleep(LIMIT)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) / 1000))
