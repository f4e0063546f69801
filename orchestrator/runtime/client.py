"""Docker's blocking SDK behind a small executor, so that a hung call never holds the loop."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar, get_args

import docker
from docker.errors import APIError, DockerException
from requests.exceptions import RequestException

from orchestrator.ports.faults import Away, Fault

T = TypeVar("T")

SHARE = 4
"""Threads of a lane that one service may have. Calls that were given up count until they end."""

Lane = Literal["look", "logs", "start", "remove", "pull", "usage"]
"""Kinds of work, each with threads of its own: a slow registry must keep no instance from starting."""


def words(error: Exception) -> str:
    """What Docker or the registry said, without the wrapping of the SDK."""
    explanation = getattr(error, "explanation", None)
    return str(explanation or error).strip()


class DockerClient:
    """One client, an executor for each lane.

    A call that outlasts its deadline is left behind in its thread; so that those about one service leave the
    others theirs, each has a share.
    """

    def __init__(self, url: str = "", timeout: float = 15.0, threads: int = 32) -> None:
        self._url = url
        self._timeout = timeout
        self._client: docker.DockerClient | None = None
        self._connecting = threading.Lock()
        self._shares: dict[tuple[Lane, str], asyncio.Semaphore] = {}
        self._lanes = {
            lane: ThreadPoolExecutor(threads, thread_name_prefix=f"docker-{lane}") for lane in get_args(Lane)
        }

    @property
    def sdk(self) -> docker.DockerClient:
        """The SDK's client, connected at first use. Only for code that runs in the executor."""
        with self._connecting:
            if self._client is None:
                self._client = self.connect()
            return self._client

    def connect(self) -> docker.DockerClient:
        """A new client of the Engine, with the credentials that Docker's own config file has at this moment.

        The address is the URL, else DOCKER_HOST, else the local socket; for each DOCKER_TLS_VERIFY and
        DOCKER_CERT_PATH count. Only for code that runs in the executor, which closes it.

        Raises:
            DockerException: Nobody answers there, or a certificate is missing.
        """
        named = {**os.environ, "DOCKER_HOST": self._url} if self._url else None
        return docker.from_env(environment=named, timeout=int(self._timeout), max_pool_size=64)

    async def call(
        self,
        work: Callable[[docker.DockerClient], T],
        deadline: float | None = None,
        lane: Lane = "look",
        about: str = "",
    ) -> T:
        """Run blocking work with the SDK, about a service; waits for a thread of its share.

        Raises:
            Fault: Docker refused.
            Away: Docker did not answer, or not within `deadline` seconds.
        """
        limit = deadline or self._timeout * 2
        share = self._shares.setdefault((lane, about), asyncio.Semaphore(SHARE))
        loop = asyncio.get_running_loop()

        def give_back(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(share.release)

        try:
            async with asyncio.timeout(limit):
                await share.acquire()
                running = self._lanes[lane].submit(lambda: work(self.sdk))
                running.add_done_callback(give_back)
                return await asyncio.wrap_future(running)
        except TimeoutError as error:
            raise Away(f"Docker did not answer within {limit:.0f} s") from error
        except APIError as error:
            raise Fault(f"Docker: {words(error)}") from error
        except (DockerException, RequestException) as error:
            raise Away(f"Docker: {words(error)}") from error

    def close(self) -> None:
        """Stop taking work; calls that hang are not waited for."""
        for pool in self._lanes.values():
            pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()
