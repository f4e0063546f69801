"""The last log lines of what ended or is not ready: read beside the look, in a lane of their own."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import docker

from orchestrator.ports.faults import Fault
from orchestrator.rollout.observation import Instance
from orchestrator.runtime.client import DockerClient

LINES = 20

DEADLINE = 5.0
"""Seconds for one answer of the Engine."""

TRIES, PAUSE = 5, 0.3
"""How often the log of a process that has ended is asked for, and the seconds between: Docker may tell an
exit before its log has been written."""

PATIENCE = 0.5
"""Seconds for which a look waits for all of them together, once when a process is not ready, once when it is
unhealthy and once when it has ended: its end is told by what the look that sees it first has."""

Condition = Literal["starting", "unhealthy", "ended"]

Process = tuple[str, str, Condition]
"""Container id, StartedAt, and how it is."""


@dataclass(slots=True)
class _Log:
    service: str
    reading: asyncio.Task[None]
    text: str = ""


class LastWords:
    """Reads logs in tasks of its own and keeps what they said."""

    def __init__(self, client: DockerClient) -> None:
        self._docker = client
        self._logs: dict[Process, _Log] = {}

    async def of(self, service: str, instance: Instance) -> str:
        """What is known of a process' last log lines; whatever comes later is there at a later look.

        What runs is asked again at each look, one question at a time; what has ended at most `TRIES` times.
        """
        process = _process(instance)
        if process is None:
            return ""
        log = self._logs.get(process)
        if log is None:
            before = self._logs.get((*process[:2], "starting")) if process[2] == "unhealthy" else None
            log = _Log(service, self._read(service, process), before.text if before else "")
            self._logs[process] = log
            await asyncio.wait({log.reading}, timeout=PATIENCE)
        elif log.reading.done() and instance.running:
            log.reading = self._read(service, process)
        return log.text

    def keep(self, service: str, unwell: Iterable[Instance]) -> None:
        """Forget the processes of a service but these: what is well again is read anew if need be."""
        kept = {_process(instance) for instance in unwell}
        for process, log in list(self._logs.items()):
            if log.service == service and process not in kept:
                log.reading.cancel()
                del self._logs[process]

    async def close(self) -> None:
        """Give up what is being read."""
        readings = [log.reading for log in self._logs.values()]
        for reading in readings:
            reading.cancel()
        await asyncio.gather(*readings, return_exceptions=True)

    def _read(self, service: str, process: Process) -> asyncio.Task[None]:
        return asyncio.create_task(self._ask(service, process), name=f"logs-{process[0][:12]}")

    async def _ask(self, service: str, process: Process) -> None:
        container, _, condition = process

        def tail(client: docker.DockerClient) -> str:
            raw = client.api.logs(container, tail=LINES, stdout=True, stderr=True)
            return bytes(raw).decode("utf-8", "replace")

        for attempt in range(TRIES if condition == "ended" else 1):
            if attempt:
                await asyncio.sleep(PAUSE)
            try:
                text = await self._docker.call(tail, DEADLINE, "logs", service)
            except Fault:
                continue
            if text:
                self._logs[process].text = text
                return


def _process(instance: Instance) -> Process | None:
    """None for what has never run, or is being removed: it has nothing to say."""
    if instance.exit_code is not None:
        return instance.container, instance.started_at, "ended"
    condition: Condition = "unhealthy" if instance.health == "unhealthy" else "starting"
    return (instance.container, instance.started_at, condition) if instance.running else None
