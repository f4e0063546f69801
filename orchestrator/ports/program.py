"""Programs that end with whoever waits for them."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process, SubprocessStreamProtocol
from collections.abc import AsyncIterator, Mapping, Sequence

LIMIT = 2**16
"""Bytes of its output that are held until they are read; then it has to wait."""

KILLED = 1.0
"""Seconds in which a program that was killed is gone, unless the kernel holds it or it is another user's."""


@contextlib.asynccontextmanager
async def program(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, told: bytes | None = None
) -> AsyncIterator[Process]:
    """Run a program in a process group of its own; its standard error goes where its output goes.

    It goes before nobody, even if this process does (`Nice=` of its unit).

    When the block is left, by its end, a deadline or a cancellation, the group is killed. What has left the
    group and still has the output open is not waited for.

    Args:
        words: The program and its arguments; there is no shell.
        env: Its environment; None is this process' own.
        told: What it reads from its standard input, which is empty otherwise.

    Raises:
        OSError: It could not be started.
    """
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        lambda: SubprocessStreamProtocol(LIMIT, loop),
        *words,
        stdin=DEVNULL if told is None else PIPE,
        stdout=PIPE,
        stderr=STDOUT,
        env=env,
        start_new_session=True,
    )
    process = Process(transport, protocol, loop)
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        os.setpriority(os.PRIO_PGRP, process.pid, max(os.getpriority(os.PRIO_PROCESS, 0), 0))
    try:
        if process.stdin is not None and told is not None:
            with contextlib.suppress(ConnectionError):  # it need not listen
                process.stdin.write(told)
                process.stdin.close()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(PermissionError, TimeoutError):  # another user's, as by sudo, ends by itself
            transport.close()
            async with asyncio.timeout(KILLED):
                await process.wait()
