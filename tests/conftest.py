"""Real parts for the tests. Every stack is private; the images are built once and shared."""

import asyncio
import contextlib
import fcntl
import gc
import io
import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import structlog
from hypothesis import HealthCheck, settings

from examples.playground import engine, gin
from examples.playground.service import service_file
from examples.playground.stack import Stack
from orchestrator.observability.logs import configure
from tests.acceptance.observer import Observer
from tests.forks import ForkedStack

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # a machine that does other things is slow, and no test is wrong for that


def let_all_pass(path: Path) -> None:
    """Let every account of this host go there, as nginx' workers do; pytest makes it its user's alone."""
    for part in itertools.takewhile(lambda p: p != Path(tempfile.gettempdir()), (path, *path.parents)):
        part.chmod(0o755)


Images = Callable[..., str]
Stacks = Callable[..., Awaitable[Stack]]
LogLines = Callable[[], list[dict[str, Any]]]

structlog.configure(  # by default it prints the values of all variables with a traceback, which takes seconds
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S"),
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of xdist a session of its own, so that users' load and observers are on time.

    Linux shares the CPUs out by sessions (sched_autogroup), and each daemon of a test has one of its own.
    """
    if hasattr(config, "workerinput"):
        os.setsid()


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what lives to the end: it would look at all tests again and again."""
    gc.collect()
    gc.freeze()


WITH_USERS = ("tests/crash/", "tests/acceptance/")
"""Tests with a whole stack and users on it, each of which needs most of a CPU. The longest are first."""

CPUS = os.cpu_count() or 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let as many workers of xdist as there are CPUs begin with the tests that have users.

    xdist gives each worker an equal part of the items in their order, and whoever is done takes from others.
    """
    long = [item for folder in WITH_USERS for item in items if item.nodeid.startswith(folder)]
    others = [item for item in items if not item.nodeid.startswith(WITH_USERS)]
    workers, order = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), list[pytest.Item]()
    first = min(workers, CPUS)
    for worker in range(workers):
        part = long[worker::first] if worker < first else []
        more = max((len(items) - len(order)) // (workers - worker) - len(part), 0)
        order += [*part, *others[:more]]
        del others[:more]
    items[:] = [*order, *others]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold a test with users until fewer run than there are CPUs: on a full machine users are late."""
    with _one_of_few() if item.nodeid.startswith(WITH_USERS) else contextlib.nullcontext():
        return (yield)


@contextlib.contextmanager
def _one_of_few() -> Iterator[None]:
    while True:
        for number in range(CPUS):
            with Path(tempfile.gettempdir(), f"orchestrator-tests-{os.getuid()}-{number}").open("w") as place:
                try:
                    fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield
                return
        time.sleep(0.2)


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """A task that outlives its test is a leak."""
    yield
    left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and not t.done()]
    assert not left, f"tasks left behind: {[t.get_name() for t in left]}"


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """The lines that the daemon would log, from its own code and from libraries."""
    out, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers, root.level
    writer = configure("json", "info", out)

    def lines() -> list[dict[str, Any]]:
        writer.flush()
        return [json.loads(text) for text in out.getvalue().splitlines()]

    yield lines
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def docker_client() -> Iterator[docker.DockerClient]:
    assert engine.answers(), "Docker does not answer: run the tests with `make test`, which starts it"
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(docker_client: docker.DockerClient) -> Images:
    """Builds an image of examples/gin-api; workers that want the same one wait for each other."""

    def build(version: str = "v1", **misbehave: str) -> str:
        with Path("/tmp/orchestrator-images.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return gin.build(docker_client, version, misbehave)

    return build


@pytest.fixture
async def stack(docker_client: docker.DockerClient) -> AsyncIterator[Stacks]:
    """Starts a stack with one service `api`, watched by the observer of the invariants to its end."""
    async with contextlib.AsyncExitStack() as exits:
        observers: list[Observer] = []

        async def start(
            settings: dict[str, Any] | None = None,
            observe: bool = True,
            scrape: str = "1s",
            parts: type[Stack] = ForkedStack,
            **service: Any,
        ) -> Stack:
            found = parts(
                lambda port: {"api": service_file("api", port("api"), **{**QUICK, **service})},
                settings,
                scrape,
            )
            await exits.enter_async_context(found)
            if observe:
                observers.append(await exits.enter_async_context(Observer(found)))
            return found

        yield start
        for observer in observers:
            await observer.finish()


QUICK: dict[str, Any] = {
    "strategy": {
        "steps": [20, 100],
        "first_hold": "3s",
        "bake": "2s",
        "min_requests": 5,
        "step_deadline": "25s",
    },
    "gates": [
        {"metric": "error_rate", "max": "2%", "for": "1s", "window": "8s", "min_requests": 10},
        {
            "metric": "latency",
            "quantile": 0.99,
            "max": "2500ms",  # beyond what a busy machine does to a good release
            "for": "1s",
            "window": "8s",
            "min_requests": 10,
        },
    ],
}
