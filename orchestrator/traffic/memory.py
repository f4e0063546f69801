"""Routes in nginx' memory, where it has its Lua module: what must lie on the disk for it."""

import asyncio
import re
import secrets
from pathlib import Path
from typing import Literal

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.traffic.files import read, to_the_end, write
from orchestrator.traffic.shared import Shared

log = structlog.get_logger()

Mode = Literal["auto", "reload", "dynamic"]

SECRET = re.compile(r"[0-9a-f]{32}")
"""It goes into an HTTP header and into nginx' files: nothing else is taken for one."""

LOOK_EVERY = 60.0
"""Seconds after which an nginx that had no Lua module is asked again: its configuration may be another."""


class Memory:
    """Whether routes change in nginx' memory, and the secret that lets them."""

    def __init__(self, process: EdgeProcess, directory: Path, mode: Mode, shared: Shared) -> None:
        self._process = process
        self._file = directory / "secret"
        self._mode = mode
        self._shared = shared
        self._lua: bool | None = None
        self._next_look = 0.0
        self._making = asyncio.Lock()

    async def secret(self) -> str:
        """What lets a route be changed in nginx' memory; empty where it is changed by a reload.

        It is made where none lies there; one that can't be kept leaves the reload.
        """
        now = asyncio.get_running_loop().time()
        if not self._lua and (self._lua is None or now >= self._next_look):
            self._next_look = now + LOOK_EVERY
            self._lua = await self._has_lua()
            self._shared.lua = self._lua or False
            await to_the_end(self._shared.repair)
        if not self._lua:
            return ""
        async with self._making:
            return self.known() or await self._make()

    async def _make(self) -> str:
        secret = secrets.token_hex(16)
        try:
            await to_the_end(lambda: write(self._file, secret, private=True))
        except Fault as error:
            log.warning("secret_not_kept", reason=str(error))
            return ""
        return secret

    def known(self) -> str:
        """The secret that lies there; empty where what lies there is none."""
        try:
            secret = (read(self._file) or "").strip()
        except Fault as error:
            log.warning("secret_not_read", reason=str(error))
            return ""
        return secret if SECRET.fullmatch(secret) else ""

    async def _has_lua(self) -> bool | None:
        """Whether nginx has the module; None where it does not say, as with a configuration that is wrong."""
        if self._mode != "auto":
            return self._mode == "dynamic"
        try:
            return await self._process.has_lua()
        except Fault as error:
            log.warning("lua_unknown", reason=str(error))
            return None
