"""What the doctor finds."""

import os
from dataclasses import dataclass
from pathlib import Path

import aiohttp


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `mend`: what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def writable_by_us(folder: Path) -> str:
    """What lets this process write to a folder."""
    return f"mkdir -p {folder} && chown {os.getuid()} {folder}"


def status(path: Path) -> os.stat_result | OSError:
    """What is known of a file, or why nothing is."""
    try:
        return path.stat()
    except OSError as error:
        return error


async def get(url: str, headers: dict[str, str] | None = None) -> str:
    """What an address answers; '' when nothing."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0), headers=headers) as session,
            session.get(url) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return ""
