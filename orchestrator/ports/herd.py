"""What wakes at the same moment goes on one after the other."""

import asyncio


class Herd:
    """Lets those that waited for one thing go on singly, with whatever else has come meanwhile in between.

    Else the event loop has all of them to do before it looks for anything that is urgent.
    """

    def __init__(self) -> None:
        self._gate = asyncio.Lock()

    async def go_on(self) -> None:
        """Wait for one's turn."""
        async with self._gate:
            await asyncio.sleep(0)
