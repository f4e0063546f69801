"""The daemon with named effects: `CRASH_AT=NAME:before|after` kills it there, `CRASH_LOG` lists what it did.

NAME is an effect, or `any N` for the N-th effect whatever it is.
"""

import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from docker.api.client import APIClient

from orchestrator import __main__
from orchestrator.rollout.events import Event, PhaseEntered, ReleaseEnded
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.store.lease import Lease
from orchestrator.store.redis_store import RedisStore
from orchestrator.traffic import files
from orchestrator.traffic.listener import Listener
from orchestrator.traffic.process import HostNginx
from orchestrator.traffic.reload import Reloader

main = __main__.main
_lock = threading.Lock()
_count = 0


def _reached(name: str) -> str:
    """The moment to die at, if this is the effect."""
    global _count  # noqa: PLW0603  one process, one count
    with _lock:
        _count += 1
        if log := os.environ.get("CRASH_LOG"):
            with Path(log).open("a") as file:
                file.write(f"{name}\n")
        at, _, moment = os.environ.get("CRASH_AT", "").rpartition(":")
        return moment if at in (name, f"any {_count}") else ""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # the signal may hit another thread a moment later


def effect(owner: Any, attribute: str, name: Callable[..., str]) -> None:
    """Make a function an effect; `name` gets its arguments."""
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def blocking(*args: Any, **kwargs: Any) -> Any:
        moment = _reached(name(*args, **kwargs))
        if moment == "before":
            _die()
        found = original(*args, **kwargs)
        if moment == "after":
            _die()
        return found

    @functools.wraps(original)
    async def awaiting(*args: Any, **kwargs: Any) -> Any:
        moment = _reached(name(*args, **kwargs))
        if moment == "before":
            _die()
        found = await original(*args, **kwargs)
        if moment == "after":
            _die()
        return found

    setattr(owner, attribute, awaiting if inspect.iscoroutinefunction(original) else blocking)


def commit_name(_: Any, __: Any, ___: int, events: Sequence[Event], ____: Any = ()) -> str:
    """A persisted transition, by what it tells."""
    return " ".join(["commit", *(transition(e) for e in events)])


def transition(event: Event) -> str:
    if isinstance(event, PhaseEntered):
        return f"phase={event.phase}"
    if isinstance(event, ReleaseEnded):
        return f"outcome={event.outcome}"
    return event.kind


def fixed(name: str) -> Callable[..., str]:
    return lambda *_, **__: name


effect(RedisStore, "commit", commit_name)
effect(RedisStore, "refuse", fixed("refuse"))
effect(Lease, "acquire", fixed("lease acquire"))
effect(Lease, "release", fixed("lease release"))
effect(files, "replace", lambda path, _, **__: f"write {path.suffix or path.parent.name}")
effect(files, "remove", lambda path: f"remove {path.suffix}")
effect(HostNginx, "test", fixed("nginx test"))
effect(HostNginx, "reload", fixed("nginx reload"))
effect(Reloader, "confirm", fixed("nginx confirm"))
effect(Listener, "put", fixed("nginx memory"))
effect(DockerRuntime, "resolve", fixed("resolve"))
effect(APIClient, "create_volume", fixed("docker fence"))
effect(APIClient, "create_container", fixed("docker create"))
effect(APIClient, "start", fixed("docker start"))
effect(APIClient, "update_container", fixed("docker supervise"))
effect(APIClient, "stop", fixed("docker stop"))
effect(APIClient, "remove_container", fixed("docker remove"))
