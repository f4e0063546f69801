"""How long the event loop was held: the sign of blocking work in the wrong place."""

import asyncio
from collections import deque
from collections.abc import Callable

INTERVAL = 0.05
WINDOW = 1200
"""Looks that are remembered: a minute."""


async def watch(report: Callable[[float], None]) -> None:
    """Report the longest stall of the last minute in seconds, for ever."""
    loop = asyncio.get_running_loop()
    recent: deque[float] = deque(maxlen=WINDOW)
    while True:
        before = loop.time()
        await asyncio.sleep(INTERVAL)
        recent.append(max(loop.time() - before - INTERVAL, 0.0))
        report(max(recent))
