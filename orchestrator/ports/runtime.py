"""Containers and images."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.observation import Image, Instance


class Runtime(Protocol):
    """Containers."""

    async def observe(self, service: str) -> tuple[Instance, ...]:
        """Every labelled container of a service, probed."""
        ...

    async def resolve(self, image: str) -> Image:
        """The digest of a reference, pulled if need be; the registry's words if that fails."""
        ...

    async def start(self, wanted: Wanted) -> None:
        """Make an instance run; a dead one of the same name is replaced. May be called twice."""
        ...

    async def supervise(self, name: str) -> None:
        """Let Docker start the instance again by itself after a crash or a reboot."""
        ...

    async def stop(self, name: str) -> None:
        """The image's stop signal, the grace on its label, then removal. May be called twice."""
        ...


class Usage(Protocol):
    """What containers use of the host."""

    async def cpu_seconds(self, service: str) -> Mapping[str, tuple[float, float]]:
        """When they were counted, and CPU seconds used so far, by instance, of the running ones."""
        ...


class Images(Protocol):
    """The images on the host."""

    async def remove_images(self, digests: Sequence[str]) -> None:
        """Remove images that nothing needs; one that is in use or gone already is left alone."""
        ...


class RuntimeEvents(Protocol):
    """What Docker tells by itself."""

    def changes(self) -> AsyncIterator[str]:
        """The name of a service whenever one of its containers starts or dies; endless."""
        ...
