"""Requests and their times by instance, counted from a log that nginx writes."""

import asyncio
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.ports.given import open_given
from orchestrator.ports.traffic import AnsweredCounts, EdgeProcess
from orchestrator.traffic.render import requests_path

log = structlog.get_logger()

EVERY = 0.2
"""Seconds between looks; nginx holds lines back as long."""

AT_ONCE = 256 * 1024
"""Bytes of a file that are counted before others may run: some 7,000 requests, and about 10 ms."""

LARGEST = 64 * 1024 * 1024
"""Bytes after which nginx begins a new file."""

LINGER = 5.0
"""Seconds without a new line after which a file that has been replaced has no writers left."""

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram in seconds, as most Go services have them. nginx tells milliseconds: with
finer bounds one millisecond more would look like harm."""

SEPARATOR = re.compile(r" : |, ")
"""Between attempts of one request; a colon where another location took over."""

ATTEMPT_FIELDS = 4


@dataclass(slots=True)
class _File:
    file: BinaryIO
    inode: int
    rest: bytes = b""
    quiet_since: float | None = None


@dataclass(slots=True)
class _Owned:
    """What an address has answered since it belongs to an instance."""

    instance: str = ""
    counts: AnsweredCounts = field(default_factory=lambda: AnsweredCounts(BOUNDS))


class RequestLog:
    """The log `log/requests.log` in our folder.

    Every attempt counts, for the instance that was asked: what nginx made good by asking another one is seen.
    The time of an attempt is that to the head of its answer, so that streams and slow readers do not count
    as slow; of one without an answer, the time until it was given up.
    """

    def __init__(self, process: EdgeProcess, directory: Path, *, largest: int = LARGEST) -> None:
        self._process = process
        self._path = Path(requests_path(str(directory)))
        self._largest = largest
        self._files: list[_File] = []
        self._counts: dict[str, _Owned] = {}
        self._error = "not read yet"

    def prepare(self) -> None:
        """Let there be a log, so that no requests are told from no log.

        Raises:
            Fault: The folder can't be written.
        """
        try:
            self._path.parent.mkdir(mode=0o755, exist_ok=True)
            self._path.parent.chmod(0o755)  # workers open it again when it is rotated
            self._begin()
        except OSError as error:
            raise Fault(f"{self._path}: {error.strerror}") from error

    def _begin(self) -> bool:
        """Let there be a log. Whether there was none."""
        if self._path.exists():
            return False
        self._path.touch()
        self._path.chmod(0o644)
        return True

    async def run(self) -> None:
        """Read for ever; what can't be read is told to whoever asks for counts.

        Raises:
            Fault: It can't be read or rotated now.
        """
        try:
            if self._begin():
                await self._process.reopen()
            if not self._files:
                self._open(at_end=True)  # what was counted before is lost, as with any process that restarts
            while True:
                if self.look():
                    await asyncio.sleep(0)
                    continue
                await self._rotate()
                await asyncio.sleep(EVERY)
        except OSError as error:
            self._error = f"{self._path}: {error.strerror}"
            raise Fault(self._error) from error
        except Fault:
            raise
        except Exception as error:
            self._error = f"{self._path}: {type(error).__name__}"
            raise

    def look(self) -> bool:
        """Count what is new. Returns whether there is more already; raises OSError."""
        self._open(at_end=False)
        more = sum(self._read(file) for file in self._files) > 0
        self._forget_old()
        self._error = ""
        return more

    def counts(self, instance: str, address: str) -> AnsweredCounts:
        """What an instance has answered since it was first asked for at its address.

        Raises:
            Fault: The log can't be read: what is known may be old.
        """
        if self._error:
            raise Fault(self._error)
        owned = self._counts.setdefault(address, _Owned())
        if owned.instance != instance:
            owned = self._counts[address] = _Owned(instance)
        return owned.counts

    def forget(self, addresses: set[str]) -> None:
        """Keep counts of these addresses only."""
        for address in self._counts.keys() - addresses:
            del self._counts[address]

    def close(self) -> None:
        """Read no more."""
        while self._files:
            self._files.pop().file.close()

    def _open(self, *, at_end: bool) -> None:
        """Open the log if it is another file than before."""
        status = self._path.stat()
        if self._files and self._files[-1].inode == status.st_ino:
            return
        file = open_given(self._path, buffering=0)
        if at_end:
            file.seek(0, os.SEEK_END)
        self._files.append(_File(file, os.fstat(file.fileno()).st_ino))

    def _read(self, file: _File) -> bool:
        if os.fstat(file.file.fileno()).st_size < file.file.tell():
            file.file.seek(0)  # somebody has emptied it
        data = file.file.read(AT_ONCE)
        whole, newline, rest = (file.rest + data).rpartition(b"\n")
        file.rest = rest
        if newline:
            for line, number in Counter(whole.split(b"\n")).items():
                self._count(line.decode("ascii", "replace"), number)
        if data:
            file.quiet_since = None
        return len(data) == AT_ONCE

    def _count(self, line: str, number: int) -> None:
        """Count equal lines: `STATUS|ADDRESSES|STATUSES|SECONDS TO THE HEAD|SECONDS`, an item an attempt."""
        outcome, bar, attempts = line.partition("|")
        columns = [SEPARATOR.split(column) for column in attempts.split("|")]
        if not bar or len(columns) != ATTEMPT_FIELDS:
            return
        for address, status, head, whole in zip(*columns, strict=False):
            owned = self._counts.get(address)
            if owned is None:
                continue
            code = status if status.isdigit() else outcome
            owned.counts.add(code, _seconds(head, _seconds(whole, 0.0)), number)

    def _forget_old(self) -> None:
        """Close files that were replaced and have no writers any more."""
        now = asyncio.get_running_loop().time()
        for file in self._files[:-1]:
            if file.quiet_since is None:
                file.quiet_since = now
            elif now - file.quiet_since > LINGER:
                file.file.close()
                self._files.remove(file)

    async def _rotate(self) -> None:
        """Let nginx begin a new file. The old one has no name from then on, and is gone once it is read."""
        if self._path.stat().st_size < self._largest:
            return
        old = self._path.with_suffix(".old")
        try:
            self._path.rename(old)
            self._begin()
            await self._process.reopen()
        except (OSError, Fault):
            if old.exists():
                old.replace(self._path)
            raise
        old.unlink()


def _seconds(text: str, default: float) -> float:
    try:
        return float(text)
    except ValueError:
        return default
