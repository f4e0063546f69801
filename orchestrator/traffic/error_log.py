"""nginx's error log: what its master writes of a reload."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.ports.given import open_given
from orchestrator.ports.traffic import Complaint

LINE = re.compile(r"\S+ \S+ \[(?P<level>emerg|alert)\] (?P<pid>[0-9]+)#[0-9]+: (?P<words>.*)", re.ASCII)

AT_ONCE = 64 * 1024
"""Bytes that one look takes from each log."""

KEPT = 5
"""Different lines that are kept."""

TRIES_AGAIN = "(98: Address already in use)"
"""Ends a line after which nginx tries to bind again: five times in all, half a second apart."""

FILE = "\n# configuration file "
"""Begins each file in what `nginx -T` prints."""

NAME = "error_log"

TOKEN = re.compile(r"""\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]|[^\s{};]+""")


def error_logs(dump: str) -> tuple[str, ...]:
    """What `error_log` names outside all blocks, in a configuration as `nginx -T` prints it."""
    files = f"\n{dump}".split(FILE)[1:]
    return tuple(name for text in files if NAME in text for name in _named(f"# {text}"))


def _named(text: str) -> Iterator[str]:
    """The same of one file."""
    words: list[str] = []
    depth = 0
    for token in TOKEN.findall(text):
        if token.startswith("#"):
            continue
        if token in ("{", "}", ";"):
            if depth == 0 and words[:1] == [NAME]:
                yield words[1].strip("\"'")
            depth += {"{": 1, "}": -1}.get(token, 0)
            words.clear()
        else:
            words.append(token)


class ErrorLog:
    """What a master writes to its logs from now on. A log that can't be read says nothing.

    Args:
        paths: The logs.
        master: Its process id: others write there too.
    """

    def __init__(self, paths: Sequence[Path], master: int) -> None:
        self._master = master
        self._tails = [_Tail(path) for path in paths]
        self._words: list[str] = []
        self._final = False

    def look(self) -> Complaint:
        """What is known after one more look, at `AT_ONCE` bytes of each log at the most."""
        for tail in self._tails:
            for line in tail.lines():
                self._note(line)
        return Complaint("; ".join(self._words[-KEPT:]), final=self._final)

    def _note(self, line: str) -> None:
        found = LINE.fullmatch(line)
        if found is None or int(found["pid"]) != self._master:
            return
        words = found["words"]
        if words not in self._words:
            self._words.append(words)
        if found["level"] == "emerg" and not words.endswith(TRIES_AGAIN):
            self._final = True


class _Tail:
    """What is appended to a file from now on; a file that takes its place is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        try:
            status = path.stat()
            self._inode, self._at = status.st_ino, status.st_size
        except OSError:
            self._inode, self._at = 0, 0

    def lines(self) -> list[str]:
        """The next whole lines."""
        try:
            status = self._path.stat()
            if status.st_ino != self._inode or status.st_size < self._at:
                self._inode, self._at, self._rest = status.st_ino, 0, b""
            if status.st_size == self._at:
                return []
            with open_given(self._path) as file:
                file.seek(self._at)
                data = file.read(AT_ONCE)
        except OSError:
            return []
        self._at += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]
