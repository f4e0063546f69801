"""The last log lines of what ended or is not ready: read beside the look, in a lane of their own."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

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
"""Seconds for which a look waits for all of them together, once when a process is not ready and once when it
has ended: a death is told, and its container replaced, by what the look that sees it first has."""

Process = tuple[str, str, bool]
"""Container id, StartedAt, and whether it has ended."""


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
            log = self._logs[process] = _Log(service, self._read(service, process))
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
        container, _, ended = process

        def tail(client: docker.DockerClient) -> str:
            raw = client.api.logs(container, tail=LINES, stdout=True, stderr=True)
            return bytes(raw).decode("utf-8", "replace")

        for attempt in range(TRIES if ended else 1):
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
    ended = instance.exit_code is not None
    return (instance.container, instance.started_at, ended) if instance.running or ended else None
