"""Structured logs that never block the loop: lines go through a bounded queue to a thread of their own."""

import json
import logging
import sys
import threading
from collections import deque
from collections.abc import MutableMapping
from enum import Enum
from typing import IO, Any

import structlog
from stamina.instrumentation import set_on_retry_hooks

from orchestrator.ports.addresses import masked

CAPACITY = 10_000
"""Lines that may wait for a slow reader; then the oldest are dropped and counted."""


class LineWriter:
    """Writes lines in a thread; drops the oldest when the reader does not keep up."""

    def __init__(self, stream: IO[str], capacity: int = CAPACITY) -> None:
        self._stream = stream
        self._lines: deque[str] = deque()
        self._capacity = capacity
        self._ready = threading.Condition()
        self._writing = False
        self.dropped = 0
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    def write(self, line: str) -> None:
        """Take a line; returns at once."""
        with self._ready:
            if len(self._lines) >= self._capacity:
                self._lines.popleft()
                self.dropped += 1
            self._lines.append(line)
            self._ready.notify()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._lines:
                    self._writing = False
                    self._ready.notify_all()
                    self._ready.wait()
                batch = list(self._lines)
                self._lines.clear()
                self._writing = True
            try:
                self._stream.write("\n".join(batch) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                with self._ready:
                    self.dropped += len(batch)

    def flush(self, deadline: float = 1.0) -> None:
        """Wait until all lines are written, or the deadline in seconds has passed."""
        with self._ready:
            self._ready.wait_for(lambda: not self._lines and not self._writing, deadline)


class _Logger:
    """The last link of structlog's chain."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, message: str) -> None:
        self._writer.write(message)

    debug = info = warning = error = critical = exception = log = msg


class _StdlibBridge(logging.Handler):
    """Libraries that use `logging` speak through the same writer; what they do wrong there costs one line."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL)  # structlog knows no levels between
        try:
            structlog.get_logger().log(
                level,
                "library",
                logger_name=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info,
            )
        except Exception:  # noqa: BLE001  as every handler of the standard library does
            self.handleError(record)


def configure(form: str = "auto", level: str = "info", stream: IO[str] | None = None) -> LineWriter:
    """Set structlog up.

    Args:
        form: `json` for journald and log shippers, `console` for people, `auto` by whether it is a terminal.
        level: The least severe level that is written.
        stream: Where to; standard output by default.
    """
    out = stream or sys.stdout
    writer = LineWriter(out)
    pretty = form == "console" or (form == "auto" and out.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if pretty
        else structlog.processors.JSONRenderer(serializer=json.dumps, default=_plain)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _mask,
            _drop_empty,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Logger(writer),
        cache_logger_on_first_use=False,
    )
    set_on_retry_hooks([])  # who tries again says so itself, with what it was about
    root = logging.getLogger()
    root.handlers = [_StdlibBridge()]
    root.setLevel(logging.WARNING)
    return writer


def _mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Show no secret of an address, whoever put it into the line; `link` is given to be opened."""
    for name, value in event.items():
        if isinstance(value, str) and name != "link":
            event[name] = masked(value)
    return event


def _drop_empty(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in [n for n, value in event.items() if value is None or value in ("", ())]:
        del event[name]
    return event


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value)
