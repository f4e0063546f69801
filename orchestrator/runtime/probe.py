"""Readiness: N probes in a row on one process, because a start that worked proves nothing."""

import asyncio
import contextlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

import aiohttp

from orchestrator.ports.addresses import unreached
from orchestrator.rollout.policy import Probe

PATIENCE = 1.2
"""Seconds for which a look waits for a probe; its default timeout is shorter."""

CLOSE_DEADLINE = 1.0
"""Seconds for closing connections; aiohttp waits for each of them, for ever if need be."""


@dataclass(slots=True)
class _Streak:
    good: int = 0
    bad: int = 0
    ready: bool = False
    detail: str = ""
    asking: asyncio.Task[str] | None = None
    next: float = 0.0


class Prober:
    """Asks instances and counts answers in a row, per container id and StartedAt.

    Args:
        every: Seconds between two probes of an instance, however often somebody looks.
    """

    def __init__(self, every: float = 0.0) -> None:
        self._every = every
        self._streaks: dict[tuple[str, str], _Streak] = {}
        self._session: aiohttp.ClientSession | None = None

    async def probe(
        self, container: str, started_at: str, address: str, probe: Probe
    ) -> tuple[Literal["ready", "unknown", "unhealthy"], str]:
        """Ask, if it is time; returns the health after that, and the last failure in words.

        A probe that may take longer than `PATIENCE` goes on meanwhile, and counts when it has ended.
        """
        streak = self._streaks.setdefault((container, started_at), _Streak())
        now, asking = asyncio.get_running_loop().time(), streak.asking
        if asking is None and now >= streak.next:
            asking = streak.asking = asyncio.create_task(self._ask(address, probe), name=f"probe-{address}")
            streak.next = now + self._every
        if asking is not None:
            await asyncio.wait({asking}, timeout=PATIENCE)
        if asking is not None and asking.done():
            streak.asking = None
            if not asking.cancelled():  # its process is gone
                self._count(streak, probe, asking.result())
        if streak.bad >= probe.failures:
            return "unhealthy", streak.detail
        return ("ready" if streak.ready else "unknown"), streak.detail

    def _count(self, streak: _Streak, probe: Probe, failure: str) -> None:
        if failure:
            streak.good, streak.bad, streak.detail = 0, streak.bad + 1, failure
        else:
            streak.good, streak.bad, streak.detail = streak.good + 1, 0, ""
        if streak.good >= probe.successes:
            streak.ready = True
        if streak.bad >= probe.failures:
            streak.ready = False

    def forget(self, gone: AbstractSet[tuple[str, str]]) -> None:
        """Drop the counts of processes."""
        for key in self._streaks.keys() & gone:
            asking = self._streaks.pop(key).asking
            if asking is not None:
                asking.cancel()

    async def close(self) -> None:
        """Give up what is asked and close the connections; one that does not close in time is left."""
        asking = [streak.asking for streak in self._streaks.values() if streak.asking is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_DEADLINE):
                    await self._session.close()

    async def _ask(self, address: str, probe: Probe) -> str:
        try:
            async with asyncio.timeout(probe.timeout):
                if probe.kind == "tcp":
                    host, _, port = address.rpartition(":")
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                    return ""
                if self._session is None:
                    self._session = aiohttp.ClientSession(
                        connector=aiohttp.TCPConnector(force_close=True),
                        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                    )
                url = f"http://{address}{probe.path}"
                async with self._session.get(url, allow_redirects=False) as answer:
                    return "" if 200 <= answer.status < 300 else f"{probe.path} answers {answer.status}"  # noqa: PLR2004
        except TimeoutError:
            return f"no answer from {address} within {probe.timeout:g} s"
        except (OSError, aiohttp.ClientError) as error:
            return unreached(error, f"{address} (container/port)")
