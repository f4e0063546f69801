"""Ports and subnets of stacks that run at the same time."""

import contextlib
import socket
import subprocess
import sys

import docker
import pytest

from examples.playground.lease import PORTS, SUBNETS, free_port, free_subnet
from examples.playground.stack import ROOT

CHILD = """
from examples.playground.lease import PORTS, SUBNETS
print(PORTS.take(), SUBNETS.take(), flush=True)
input()
"""


def test_nothing_is_given_to_two_processes_that_live(
    monkeypatch: pytest.MonkeyPatch, docker_client: docker.DockerClient
) -> None:
    listened = 32_500
    with (
        socket.socket() as listening,
        subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        with contextlib.suppress(OSError):  # then somebody else listens there
            listening.bind(("127.0.0.1", listened))
        assert child.stdout is not None
        port, subnet = map(int, child.stdout.readline().split())
        monkeypatch.setattr(PORTS, "_left", [*(n for n in PORTS._left if n != port), listened, port])
        monkeypatch.setattr(SUBNETS, "_left", [*(n for n in SUBNETS._left if n != subnet), subnet])
        assert free_port() not in (port, listened)
        assert free_subnet(docker_client) != "10.{}.{}.0/24".format(*divmod(subnet, 256))
        child.communicate(b"\n", timeout=20)
