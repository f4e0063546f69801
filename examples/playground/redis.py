"""A redis-server of one's own, which may be stopped, killed and started again on the same data."""

import subprocess
from pathlib import Path

from examples.playground.lease import free_port

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


class RedisServer:
    """On a loopback port, with the settings that the daemon demands unless others are given."""

    def __init__(self, folder: Path, settings: tuple[str, ...] = DURABLE) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers a moment later."""
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        command = ["redis-server", *place, *self._settings]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def signal(self, number: int) -> None:
        """Send a signal, unless it is dead."""
        if not self.dead():
            assert self._process is not None
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def dead(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None
