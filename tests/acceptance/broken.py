"""The daemon with a bug in all that no release waits for."""

from collections.abc import AsyncIterator
from typing import Any

from orchestrator import __main__
from orchestrator.daemon.serve import Daemon
from orchestrator.daemon.watch import Watch
from orchestrator.hooks.afterwards import Afterwards
from orchestrator.notify.jira import Jira
from orchestrator.observability import stall, systemd
from orchestrator.observability.metrics import DaemonMetrics
from orchestrator.runtime.docker_events import DockerEvents
from orchestrator.traffic.request_log import RequestLog

TASKS = ("heartbeat", "request log", "docker events", "stall", "counts", "certificates", "hooks", "publish")


async def breaks(*_: Any) -> None:
    """A bug."""
    raise ZeroDivisionError("a bug")


def breaks_at_once(*_: Any) -> None:
    """The same, where nothing is awaited."""
    raise ZeroDivisionError("a bug")


async def returns(*_: Any) -> None:
    """Another one."""


async def changes(_: DockerEvents) -> AsyncIterator[str]:
    """A bug in the midst of a loop."""
    yield "api"
    raise ZeroDivisionError("a bug")


def main() -> None:
    """The command line."""
    for owner, name, bug in (
        (systemd, "heartbeat", breaks),
        (RequestLog, "run", breaks),
        (DockerEvents, "changes", changes),
        (stall, "watch", returns),
        (Daemon, "_count", breaks),
        (Watch, "certificates", breaks),
        (Afterwards, "run", breaks),
        (Jira, "send", breaks),
        (DaemonMetrics, "show", breaks_at_once),
    ):
        setattr(owner, name, bug)
    __main__.main()
