"""`ports.RuntimeEvents` on the Docker Engine."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.labels import OWNER, SERVICE

log = structlog.get_logger()

WAITING = 1000
"""Events that may wait to be looked at; one that is dropped costs only the wait for the next tick."""

ACTIONS = frozenset({"die", "start", "oom", "destroy", "pause", "unpause"})


class DockerEvents:
    """The Engine's event stream, read in a thread of its own and opened again whenever it ends."""

    def __init__(self, client: DockerClient, owner: str) -> None:
        self._docker = client
        self._filters = {"label": f"{OWNER}={owner}", "type": "container"}
        self._stopped = threading.Event()
        self._stream: Any = None

    async def changes(self) -> AsyncIterator[str]:
        """See `ports.RuntimeEvents`."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str] = asyncio.Queue(WAITING)

        def tell(service: str) -> None:
            if not queue.full():
                queue.put_nowait(service)

        self._stopped.clear()
        listen = threading.Thread(
            target=self._listen,
            args=(lambda service: loop.call_soon_threadsafe(tell, service),),
            name="docker-events",
            daemon=True,
        )
        listen.start()
        try:
            while True:
                yield await queue.get()
        finally:
            self._stopped.set()
            if self._stream is not None:
                with contextlib.suppress(Exception):  # whatever it says, it is left behind
                    self._stream.close()

    def _listen(self, tell: Callable[[str], object]) -> None:
        told = False
        while not self._stopped.is_set():
            try:
                self._stream = self._docker.sdk.events(decode=True, filters=self._filters)
                told = False
                for event in self._stream:
                    if event.get("Action") in ACTIONS:
                        tell(event["Actor"]["Attributes"].get(SERVICE, ""))
            except Exception as error:  # noqa: BLE001  whatever it was, the stream is opened again
                if not self._stopped.is_set() and not told:
                    log.warning("docker_events_lost", reason=str(error))
                    told = True
            self._stopped.wait(1.0)
