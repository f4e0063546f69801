"""Programs that begin as forks of one process, which has done the imports: most of what a start costs.

`python -m tests.forks MODULE SOCKET` forks the `main` of a module for each message on a socket: words and
environment as JSON, and file descriptors for the standard streams. It answers with the pid, and at the end of
the program with its exit code.
"""

import asyncio
import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import orchestrator
from examples.playground.stack import ROOT, Stack

PROGRAM = "orchestrator.__main__"


class Forked:
    """A process of another's, as asyncio shows one of its own."""

    def __init__(self, pid: int, end: "asyncio.Future[int]") -> None:
        self.pid = pid
        self._end = end

    @property
    def returncode(self) -> int | None:
        return self._end.result() if self._end.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._end)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedStack(Stack):
    """The stack whose daemon and command line are forked."""

    async def launch(self, **env: str) -> None:
        module = PROGRAM if self.module == "orchestrator" else self.module
        with self.log.open("ab") as log:
            self.daemon = await fork(module, "serve", "--config", str(self.config), env=env, output=log)

    async def cli(self, *words: str, deadline: float = 120.0) -> tuple[int, str]:
        reading, writing = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        with reading:
            with writing:
                given = (*words, "--config", str(self.config))
                process = await fork(PROGRAM, *given, env={"COLUMNS": "200"}, output=writing)
            output = asyncio.create_task(asyncio.to_thread(reading.read), name="output")
            try:
                async with asyncio.timeout(deadline):
                    code = await process.wait()
            finally:
                process.kill()
                await asyncio.wait({output})
            return code, output.result().decode()


async def fork(module: str, *words: str, env: Mapping[str, str], output: IO[bytes]) -> Forked:
    """Start a program; both its outputs go to one file."""
    loop = asyncio.get_running_loop()
    talk = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    talk.connect(_server(module))
    message = json.dumps([words, {**os.environ, "PYTHONPATH": str(ROOT), **env}]).encode()
    with Path(os.devnull).open("rb") as null:
        socket.send_fds(talk, [message], [null.fileno(), output.fileno(), output.fileno()])
    talk.setblocking(False)
    pid = int(await loop.sock_recv(talk, 100))

    async def ended() -> int:
        with talk:
            return int(await loop.sock_recv(talk, 100))

    return Forked(pid, asyncio.create_task(ended(), name=f"exit code of {pid}"))


@functools.cache
def _server(module: str) -> str:
    """The socket of this process' own server for a module; it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-forks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [sys.executable, "-m", "tests.forks", module, str(folder / "socket")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    return str(folder / "socket")


def serve(module: str, path: str) -> None:
    """Fork until the input ends."""
    main = importlib.import_module(module).main
    for part in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
        importlib.import_module(part.name)
    gc.collect()
    gc.freeze()
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked.bind(path)
    asked.listen(100)
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    callers: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        ready = select.select([0, asked.fileno(), woken.fileno()], [], [])[0]
        if 0 in ready:
            return
        if woken.fileno() in ready:
            woken.recv(4096)
            _reap(callers)
        if asked.fileno() in ready:
            caller = asked.accept()[0]
            message, streams, _, _ = socket.recv_fds(caller, 1 << 18, 3)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (asked, woken, wakes, caller, *callers.values()):
                    end.close()
                words, env = json.loads(message)
                _become(words, env, streams)
                main()
                return
            for stream in streams:
                os.close(stream)
            callers[pid] = caller
            caller.send(str(pid).encode())


def _reap(callers: dict[int, socket.socket]) -> None:
    while callers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with callers.pop(pid) as caller:
            try:
                caller.send(str(os.waitstatus_to_exitcode(status)).encode())
            except OSError:  # who has asked is gone
                continue


def _become(words: list[str], env: dict[str, str], streams: list[int]) -> None:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["orchestrator", *words]


if __name__ == "__main__":
    serve(*sys.argv[1:])
