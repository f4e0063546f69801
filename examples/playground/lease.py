"""Ports and subnets that a process has for itself as long as it lives."""

import contextlib
import fcntl
import functools
import os
import random
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import docker


class Leases:
    """Numbers of one kind: none is given twice by a process, nor by another one meanwhile.

    Each is a byte of a file, locked by the process that was given it.
    """

    def __init__(self, kind: str, numbers: Sequence[int]) -> None:
        self._path = Path(tempfile.gettempdir()) / f"orchestrator-{kind}-{os.getuid()}"
        self._left = random.sample(numbers, len(numbers))

    @functools.cached_property
    def _file(self) -> int:
        """Open for as long as the process lives: its locks end with the first descriptor that is closed."""
        return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self) -> int:
        """The next one. Raises `IndexError` when all were given."""
        while True:
            number = self._left.pop()
            with contextlib.suppress(BlockingIOError):
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                return number


PORTS = Leases("ports", range(15_000, 32_000))
"""Below those that outgoing connections get by themselves."""

SUBNETS = Leases("subnets", range(200 * 256, 250 * 256))
"""The second and third part of 10.x.y.0/24."""


def free_port() -> int:
    """A loopback port where nobody listens."""
    while True:
        port = PORTS.take()
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def free_subnet(client: docker.DockerClient) -> str:
    """A subnet that no network of the Docker Engine has."""
    taken = {
        pool.get("Subnet")
        for network in client.networks.list()
        for pool in ((network.attrs or {}).get("IPAM", {}).get("Config") or [])
    }
    while True:
        second, third = divmod(SUBNETS.take(), 256)
        if (subnet := f"10.{second}.{third}.0/24") not in taken:
            return subnet
