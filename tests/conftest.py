"""Real parts for the tests. Every stack is private; the images are built once and shared."""

import asyncio
import contextlib
import fcntl
import io
import itertools
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each worker of xdist begin with its share of the long tests.

    xdist gives each worker an equal part of the items in their order.
    """
    long = [item for folder in ("crash", "acceptance") for item in items if f"tests/{folder}/" in item.nodeid]
    others = [item for item in items if item not in set(long)]
    workers, order = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), list[pytest.Item]()
    for worker in range(workers):
        part = long[worker::workers]
        more = max((len(items) - len(order)) // (workers - worker) - len(part), 0)
        order += [*part, *others[:more]]
        del others[:more]
    items[:] = [*order, *others]


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
