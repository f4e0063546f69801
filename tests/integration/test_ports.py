"""Ports of stacks that run at the same time."""

import contextlib
import itertools
import random
import socket
import subprocess
import sys

import pytest

from examples.playground.stack import ROOT, free_port

CHILD = "from examples.playground.stack import free_port; print(free_port(), flush=True); input()"


def test_no_port_is_given_twice_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    own, listened = free_port(), 32_500
    with (
        socket.socket() as listening,
        subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        with contextlib.suppress(OSError):  # then somebody else listens there
            listening.bind(("127.0.0.1", listened))
        assert child.stdout is not None
        theirs = int(child.stdout.readline())
        offers = itertools.chain((own, theirs, listened), range(15_000, 32_000))
        monkeypatch.setattr(random, "randrange", lambda *_: next(offers))
        assert free_port() not in (own, theirs, listened)
        child.communicate(b"\n", timeout=20)
