"""`ports.EdgeProcess` for an nginx on this host."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import Workers, mentions_lua


class HostNginx:
    """nginx on this host, by its program and its pid file.

    Args:
        binary: The program.
        conf: The main configuration file; empty is the program's own default.
        pid_file: Where the master's process id is written.
        reload_command: Replaces the signal to the master, where the daemon may not send one
            (for example `["sudo", "systemctl", "reload", "nginx"]`).
        test_command: Replaces `nginx -t`, likewise.
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
        self._test = list(test_command) or [binary, "-t", "-q", *(["-c", conf] if conf else [])]
        self._program = [binary, *(["-c", conf] if conf else [])]
        self._reload = list(reload_command)
        self._pid_file = pid_file
        self._deadline = deadline

    async def test(self) -> None:
        """See `ports.EdgeProcess`."""
        await run(self._test, self._deadline)

    async def reload(self) -> None:
        """See `ports.EdgeProcess`."""
        await self._signal(signal.SIGHUP)

    async def reopen(self) -> None:
        """See `ports.EdgeProcess`. A reload does it too, where the daemon may not send signals."""
        await self._signal(signal.SIGUSR1)

    async def _signal(self, number: signal.Signals) -> None:
        if self._reload:
            await run(self._reload, self._deadline)
            return
        try:
            os.kill(self.master(), number)
        except OSError as error:
            raise Fault(f"nginx does not run or may not be signalled: {error}") from error

    async def has_lua(self) -> bool:
        """See `ports.EdgeProcess`."""
        built, loaded = [await run([*self._program, how], self._deadline) for how in ("-V", "-T")]
        return mentions_lua(built + loaded)

    async def workers(self) -> Workers:
        """See `ports.EdgeProcess`."""
        try:
            master = self.master()
        except Fault:
            return Workers()
        return Workers.by_title({pid: title(pid) for pid in children(master)})

    def master(self) -> int:
        """The master's process id.

        Raises:
            Fault: The pid file is not there or holds no number.
        """
        try:
            return int(self._pid_file.read_text(encoding="ascii").strip())
        except (OSError, ValueError) as error:
            raise Fault(f"nginx does not run: {self._pid_file}: {error}") from error


def children(pid: int) -> list[int]:
    """Child processes; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(part) for part in text.split()]


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
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise Fault(f"{shown}: {error}") from error
    try:
        async with asyncio.timeout(deadline):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Fault(f"{shown}: no end after {deadline:.0f} s") from None
    text = output.decode("utf-8", "replace").strip()
    if process.returncode:
        raise Fault(f"{shown}: exit code {process.returncode}: {text}")
    return text
