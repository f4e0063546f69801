"""Routes in nginx' memory, where it has its Lua module: what must lie on the disk for it."""

import secrets
from pathlib import Path
from typing import Literal

import structlog

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.traffic.files import read, write
from orchestrator.traffic.render import BALANCER, balancer_path

log = structlog.get_logger()

Mode = Literal["auto", "reload", "dynamic"]

SHARED = "_lua.conf"
"""Beside the services' files; no service can have that name."""

SHARED_MEMORY = "lua_shared_dict release_orchestrator 4m;\n"
"""Room for some thousand services' routes."""


class Memory:
    """Whether routes change in nginx' memory, and the secret that lets them."""

    def __init__(self, process: EdgeProcess, directory: Path, mode: Mode) -> None:
        self._process = process
        self._dir = directory
        self._mode = mode
        self._lua: bool | None = None

    async def secret(self) -> str:
        """What lets a route be changed in nginx' memory; empty where it is changed by a reload.

        Raises:
            Fault: A file could not be written.
        """
        if self._lua is None:
            self._lua = await self._has_lua()
        if not self._lua:
            return ""
        balancer = Path(balancer_path(str(self._dir)))
        if read(balancer) != BALANCER:
            balancer.parent.mkdir(exist_ok=True)
            write(balancer, BALANCER)
            balancer.chmod(0o644)  # nginx' workers read it
            balancer.parent.chmod(0o755)
        if read(self._dir / SHARED) != SHARED_MEMORY:
            write(self._dir / SHARED, SHARED_MEMORY)
        kept = self._dir / "secret"
        secret = read(kept)
        if not secret:
            secret = secrets.token_hex(16)
            write(kept, secret, private=True)
        return secret

    async def _has_lua(self) -> bool:
        if self._mode != "auto":
            return self._mode == "dynamic"
        try:
            return await self._process.has_lua()
        except Fault as error:
            log.warning("lua_unknown", reason=str(error))
            return False
