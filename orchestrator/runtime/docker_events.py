"""`ports.RuntimeEvents` on the Docker Engine."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.labels import OWNER, SERVICE
from orchestrator.runtime.picture import Picture

log = structlog.get_logger()

EVERY = 4.0
"""Seconds between two lists of all containers, which tell what no event has told."""

LIST_DEADLINE = 5.0
"""Seconds for such a list."""

WAITING = 1000
"""Events that may wait to be looked at; one that is dropped costs only the wait for the next tick."""

ACTIONS = frozenset({"die", "start", "oom", "destroy", "pause", "unpause"})


class DockerEvents:
    """The Engine's event stream, read in a thread of its own and opened again whenever it ends.

    Args:
        picture: Is told what has changed.
    """

    def __init__(self, client: DockerClient, owner: str, picture: Picture) -> None:
        self._docker = client
        self._picture = picture
        self._filters = {"label": f"{OWNER}={owner}", "type": "container"}
        self._stopped = threading.Event()
        self._stream: Any = None
        self._open = False

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
            compare_at = loop.time()
            while True:
                services: Iterable[str]
                try:
                    async with asyncio.timeout_at(compare_at):
                        services = [await queue.get()]
                except TimeoutError:
                    services = await self._compare()
                    compare_at = loop.time() + EVERY
                for service in services:
                    yield service
        finally:
            self._stopped.set()
            self._close()

    def _close(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(Exception):  # whatever it says, it is left behind
                self._stream.close()

    async def _compare(self) -> Iterable[str]:
        """The services of which containers have changed without an event."""
        filters = {"label": self._filters["label"]}
        try:
            listed = await self._docker.call(
                lambda client: client.api.containers(all=True, filters=filters), LIST_DEADLINE
            )
        except Fault:
            self._picture.stale()
            return ()
        return self._picture.compare(listed) if self._open else ()

    def _listen(self, tell: Callable[[str], object]) -> None:
        told = False
        while not self._stopped.is_set():
            try:
                self._stream = self._docker.sdk.events(decode=True, filters=self._filters)
                if self._stopped.is_set():
                    self._close()
                told = False
                self._picture.lost()
                self._open = True
                for event in self._stream:
                    service, action = event["Actor"]["Attributes"].get(SERVICE, ""), event.get("Action", "")
                    if not action.startswith("exec_"):
                        self._picture.changed(service)
                    if action in ACTIONS:
                        tell(service)
            except Exception as error:  # noqa: BLE001  whatever it was, the stream is opened again
                if not self._stopped.is_set() and not told:
                    log.warning("docker_events_lost", reason=str(error))
                    told = True
            self._open = False
            self._picture.lost()
            self._stopped.wait(1.0)
