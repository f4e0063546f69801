"""`ports.EdgeProcess` for an nginx on this host."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from orchestrator.ports.faults import Fault
from orchestrator.ports.given import read_given
from orchestrator.ports.program import program
from orchestrator.ports.traffic import MASTER, Complaint, Workers, mentions_lua, reason_first
from orchestrator.traffic.error_log import ErrorLog, error_logs

T = TypeVar("T")

BUILT_IN = re.compile(r"--(prefix|error-log-path)=(\S+)")
"""In what `nginx -V` tells: where paths begin that are not whole, and its log where none is configured."""

WORKER = re.compile(r"\S+: worker process(?! is shutting down)")
"""What nginx writes over the command line of a worker that accepts."""


_lookers = ThreadPoolExecutor(2, thread_name_prefix="processes")
"""The kernel tells a process' command line only when that process lets it, which takes long in a reload."""


class HostNginx:
    """nginx on this host, by its program and its pid file.

    Args:
        binary: The program.
        conf: The main configuration file; empty is the program's own default.
        pid_file: Where the master's process id is written.
        reload_command: Replaces the signal to the master, where the daemon may not send one
            (for example `["sudo", "systemctl", "reload", "nginx"]`).
        test_command: Replaces the test, likewise; it may be `nginx -T`, whose output names the error log.
        deadline: Seconds for the test and for the reload command.
    """

    def __init__(
        self,
        *,
        binary: str = "nginx",
        conf: str = "",
        pid_file: Path = Path("/run/nginx.pid"),
        reload_command: Sequence[str] = (),
        test_command: Sequence[str] = (),
        deadline: float = 15.0,
    ) -> None:
        self._program = [binary, *(["-c", conf] if conf else [])]
        self._test = list(test_command) or [*self._program, "-T", "-q"]
        self._reload = list(reload_command)
        self._pid_file = pid_file
        self._deadline = deadline
        self._error_logs: tuple[str, ...] = ()
        self._built_in: dict[str, str] | None = None
        self._log: ErrorLog | None = None

    async def test(self) -> None:
        """See `ports.EdgeProcess`. `-T` tests as `-t` does, and prints where nginx writes its errors."""
        self._error_logs = error_logs(await run(self._test, self._deadline))

    async def reload(self) -> None:
        """See `ports.EdgeProcess`."""
        self._log = None
        with contextlib.suppress(Fault):  # what follows says so itself
            self._log = ErrorLog(await self._log_paths(), await _beside(self.master))
        await self._signal(signal.SIGHUP)

    async def complaint(self) -> Complaint:
        """See `ports.EdgeProcess`."""
        return self._log.look() if self._log else Complaint()

    async def _log_paths(self) -> list[Path]:
        if self._built_in is None:
            self._built_in = dict(BUILT_IN.findall(await run([*self._program, "-V"], self._deadline)))
        prefix = Path(self._built_in.get("prefix", "/usr/local/nginx"))
        names = self._error_logs or (self._built_in.get("error-log-path", "logs/error.log"),)
        return [prefix / name for name in names if name != "stderr" and ":" not in name]

    async def reopen(self) -> None:
        """See `ports.EdgeProcess`. A reload does it too, where the daemon may not send signals."""
        await self._signal(signal.SIGUSR1)

    async def _signal(self, number: signal.Signals) -> None:
        if self._reload:
            await run(self._reload, self._deadline)
            return
        await _beside(partial(self._send, number))

    def _send(self, number: signal.Signals) -> None:
        try:
            with _held(pid := self._running()) as process:
                self._check(pid)
                signal.pidfd_send_signal(process, number)
        except OSError as error:
            raise Fault(f"nginx may not be signalled: {error}") from error

    async def has_lua(self) -> bool:
        """See `ports.EdgeProcess`."""
        built, loaded = [await run([*self._program, how], self._deadline) for how in ("-V", "-T")]
        return mentions_lua(built + loaded)

    async def workers(self) -> Workers:
        """See `ports.EdgeProcess`."""
        return await _beside(self._workers)

    def _workers(self) -> Workers:
        try:
            first = self.master()
        except Fault:
            return Workers()
        while MASTER.match(title(older := parent(first))):
            first = older
        processes, masters = dict[int, tuple[int, str]](), [first]
        while masters:
            master = masters.pop()
            found = {pid: (master, title(pid)) for pid in children(master)}
            processes |= found
            masters += [pid for pid, (_, text) in found.items() if MASTER.match(text)]
        return Workers.among(processes)

    def master(self) -> int:
        """The master's process id.

        Raises:
            Fault: The pid file is not there, holds no number, or names a process that is not a master.
        """
        pid = self._named()
        self._check(pid)
        return pid

    def _running(self) -> int:
        """As `master`; of one that was killed the fault names the workers, which hold its ports."""
        try:
            return self.master()
        except Fault as error:
            left = orphans()
            if not left:
                raise
            raise Fault(f"{error}; {without_master(left)}; {end(left)}, then start it") from error

    def _check(self, pid: int) -> None:
        """Raises `Fault` unless this is a master, or an nginx that has not written its title yet."""
        text, name = title(pid), _name(pid)
        starting = name == Path(self._program[0]).name[:15] and not text.startswith("nginx: ")
        if MASTER.match(text) or starting:
            return
        if not name:
            raise Fault(f"nginx does not run: {self._pid_file} names process {pid}, and there is none")
        raise Fault(
            f"{self._pid_file} names process {pid}, which is {name} and not nginx's master:"
            " start nginx, or let nginx/pid_file be the file that it writes"
        )

    def _named(self) -> int:
        try:
            text = read_given(self._pid_file).decode("utf-8", "replace").strip()
        except OSError as error:
            raise Fault(f"nginx does not run: {self._pid_file}: {error.strerror}") from error
        if not (text.isascii() and text.isdecimal()):
            wrong = f"{text[:40]!r} is no process id" if text else "is empty"
            raise Fault(f"nginx does not run: {self._pid_file}: {wrong}")
        return int(text)


async def _beside(work: Callable[[], T]) -> T:
    """Do what looks at processes beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_lookers, work)


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int]:
    """A process as a file descriptor, which never means the next one of its number. Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def parent(pid: int) -> int:
    """The process that started this one; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _name(pid: int) -> str:
    """What a process is called, without its arguments; empty when there is none, or it has ended."""
    try:
        head, _, rest = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")
    except OSError:
        return ""
    return "" if rest.startswith("Z") else head.partition(" (")[2]


def children(pid: int) -> list[int]:
    """Child processes; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(part) for part in text.split()]


def orphans() -> frozenset[int]:
    """Workers that accept and whose master was killed, of any nginx that can be seen."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    parents = {pid: parent(pid) for pid in pids if WORKER.match(title(pid))}
    return frozenset(pid for pid, of in parents.items() if of and not MASTER.match(title(of)))


def without_master(pids: Iterable[int]) -> str:
    """What they are."""
    return f"workers of an nginx whose master was killed serve on and hold its ports: {_shown(pids)}"


def end(pids: Iterable[int]) -> str:
    """The command that lets them finish what they have and leave."""
    return f"kill -QUIT {_shown(pids)}"


def _shown(pids: Iterable[int]) -> str:
    return " ".join(str(pid) for pid in sorted(pids))


def title(pid: int) -> str:
    """The command line of a process, where nginx tells a worker's state; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


async def run(command: Sequence[str], deadline: float) -> str:
    """Run a command; returns what it wrote.

    Raises:
        Fault: It could not be started, failed, or outlasted the deadline; the message has its words.
    """
    shown = " ".join(command)
    try:
        async with asyncio.timeout(deadline), program(command) as process:
            output, _ = await process.communicate()
    except TimeoutError:
        raise Fault(f"{shown}: no end after {deadline:.0f} s") from None
    except OSError as error:
        raise Fault(f"{shown}: {error}") from error
    text = output.decode("utf-8", "replace").strip()
    if process.returncode:
        raise Fault(f"{reason_first(text)} ({shown}: exit code {process.returncode})")
    return text
