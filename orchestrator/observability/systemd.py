"""systemd's notification protocol (sd_notify(3)): ready, alive, stopping."""

import asyncio
import contextlib
import os
import socket


def notify(message: str) -> None:
    """Tell systemd; nothing happens outside of it. Never fails: it is a courtesy."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection,
    ):
        connection.sendto(message.encode(), address)


def watchdog_interval() -> float | None:
    """Seconds between signs of life, half of what systemd allows; None when it does not watch."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(allowed) / 2_000_000 if allowed.isdecimal() and mine else None


async def heartbeat() -> None:
    """Tell systemd that the loop still turns, for ever."""
    interval = watchdog_interval()
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval or 3600.0)
