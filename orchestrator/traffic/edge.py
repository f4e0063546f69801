"""`ports.Traffic` on one nginx: write, test, reload, confirm; else put the last good file back."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import structlog

from orchestrator.ports import EdgeProcess, Fault, RoutePlan, Stale
from orchestrator.rollout.observation import Edge
from orchestrator.traffic.render import (
    PROXY_SNIPPET,
    EdgeOptions,
    Header,
    check_service,
    probe_host,
    read_header,
    render,
)

log = structlog.get_logger()

SPACING = 0.025
"""Seconds between confirming requests. Old and new workers both accept for about 100 ms after a reload, so
the confirming run must be longer than that."""

ASK_DEADLINE = 1.0
"""Seconds for one request to the private listener."""

RUN = 8
"""Fresh requests in a row that must show the generation."""


@dataclass(slots=True)
class _Served:
    """What is known of one service since this daemon started."""

    confirmed: int = 0
    text: str = ""
    old_workers: frozenset[int] | None = None
    error: str = ""


class NginxEdge:
    """One directory of files that one nginx includes.

    Args:
        process: The nginx.
        directory: The folder that is ours; `http { include <directory>/*.conf; }` reads it.
        options: How each service is served.
        listen: `address:port` for nginx' private listener.
        probe: URL at which the daemon reaches that listener.
        confirm_deadline: Seconds from the reload to the confirmation.
        seen_as: The directory as nginx sees it, when that differs (nginx in a container).
    """

    def __init__(
        self,
        process: EdgeProcess,
        directory: Path,
        options: Callable[[str], EdgeOptions],
        *,
        listen: str = "127.0.0.1:18100",
        probe: str = "",
        confirm_deadline: float = 10.0,
        seen_as: str = "",
    ) -> None:
        self._process = process
        self._dir = directory
        self._options = options
        self._listen = listen
        self._probe = probe or f"http://{listen}"
        self._deadline = confirm_deadline
        self._snippet = f"{seen_as or directory}/snippets/proxy.conf"
        self._session: aiohttp.ClientSession | None = None
        self._lock = asyncio.Lock()
        self._served: dict[str, _Served] = {}

    def prepare(self) -> None:
        """Create the folder and the proxy snippet.

        Raises:
            Fault: The folder can't be written.
        """
        try:
            (self._dir / "snippets").mkdir(parents=True, exist_ok=True)
            snippet = self._dir / "snippets" / "proxy.conf"
            if not snippet.exists() or snippet.read_text(encoding="utf-8") != PROXY_SNIPPET:
                replace(snippet, PROXY_SNIPPET)
        except OSError as error:
            raise Fault(f"traffic.directory {self._dir}: {error.strerror}") from error

    def file(self, service: str) -> Path:
        """The file of a service."""
        check_service(service)
        return self._dir / f"{service}.conf"

    async def apply(self, plan: RoutePlan, token: int) -> None:
        """See `ports.Traffic`. One apply at a time, so that there is one reload at a time.

        Raises:
            Stale: The disk holds a newer generation or token.
            Fault: Not served; the last good file is back in its place.
        """
        state = self._served.setdefault(plan.service, _Served())
        async with self._lock:
            try:
                await self._apply(plan, token, state)
            except Fault as error:
                state.error = str(error)
                raise
            state.error = ""

    async def _apply(self, plan: RoutePlan, token: int, state: _Served) -> None:
        path = self.file(plan.service)
        old = read(path)
        header = read_header(old) if old is not None else None
        self._fence(plan, token, header)
        text = self._render(plan, token)
        if plan.fallback is not None:
            fallback = RoutePlan(service=plan.service, route=plan.fallback)
            await asyncio.to_thread(
                write, self._dir / f"{plan.service}.stable", self._render(fallback, token)
            )
        if old == text and await self._shows(plan.service, plan.route.generation):
            await self._confirm(plan.service, plan.route.generation)
        else:
            await self._change(path, old, text, plan, state)
        state.old_workers = await self._process.retiring_workers()
        state.confirmed, state.text = plan.route.generation, text

    def _render(self, plan: RoutePlan, token: int) -> str:
        options = self._options(plan.service)
        return render(
            plan.service, plan.route, options, token=token, listen=self._listen, snippet=self._snippet
        )

    @staticmethod
    def _fence(plan: RoutePlan, token: int, header: Header | None) -> None:
        if header is None:
            return
        if header.token > token or header.generation > plan.route.generation:
            log.warning(
                "stale_refused",
                service=plan.service,
                generation=plan.route.generation,
                token=token,
                disk_generation=header.generation,
                disk_token=header.token,
            )
            raise Stale(
                f"the edge has generation {header.generation} under token {header.token}; "
                f"generation {plan.route.generation} under token {token} is refused"
            )

    async def _change(self, path: Path, old: str | None, text: str, plan: RoutePlan, state: _Served) -> None:
        header = read_header(old) if old is not None else None
        if old is not None and (header is None or not header.intact):
            await asyncio.to_thread(write, path.with_suffix(".edited"), old)
            log.warning("edited_file_kept", service=plan.service, path=str(path.with_suffix(".edited")))
        known, state.text = state.text, text
        reloaded = False
        try:
            await asyncio.to_thread(write, path, text)
            await self._process.test()
            reloaded = True
            await self._process.reload()
            await self._confirm(plan.service, plan.route.generation)
        except BaseException as error:
            log.warning("edge_restored", service=plan.service, reason=str(error) or type(error).__name__)
            state.text = known
            if old is None:
                path.unlink(missing_ok=True)
            else:
                write(path, old)
            if reloaded:
                with contextlib.suppress(Fault):
                    await self._process.reload()
            raise

    async def _confirm(self, service: str, generation: int) -> None:
        """Wait until fresh requests in a row all show the generation."""
        row = 0
        last: str = "no answer"
        try:
            async with asyncio.timeout(self._deadline):
                while row < RUN:
                    last = await self._ask(service)
                    row = row + 1 if _generation(last, service) == generation else 0
                    await asyncio.sleep(SPACING)
        except TimeoutError:
            raise Fault(
                f"nginx does not show generation {generation} within {self._deadline:.0f} s: {last}"
            ) from None

    async def _shows(self, service: str, generation: int) -> bool:
        return _generation(await self._ask(service), service) == generation

    async def _ask(self, service: str) -> str:
        """What nginx answers on a fresh connection; the failure in words when it does not."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        url = f"{self._probe}/generation"
        try:
            async with (
                asyncio.timeout(ASK_DEADLINE),
                self._session.get(url, headers={"Host": probe_host(service)}) as answer,
            ):
                return (await answer.text())[:200]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{self._probe}: {error or type(error).__name__}"

    async def close(self) -> None:
        """Close the connections to the private listener; one that does not close in time is left."""
        if self._session is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_DEADLINE):
                    await self._session.close()

    async def observe(self, service: str) -> Edge:
        """See `ports.Traffic`."""
        state = self._served.setdefault(service, _Served())
        text = read(self.file(service))
        header = read_header(text) if text is not None else None
        served = _generation(await self._ask(service), service) if text is not None else None
        retiring = await self._process.retiring_workers()
        return Edge(
            served=served,
            confirmed=state.confirmed,
            file=_file_state(text, header, state),
            drained=not (retiring if state.old_workers is None else state.old_workers & retiring),
            floor=header.generation if header else 0,
            error=state.error,
        )


def _file_state(
    text: str | None, header: Header | None, state: _Served
) -> Literal["ours", "edited", "missing"]:
    """Compared with what was last written; after a restart, with what the file says of itself."""
    if text is None:
        return "missing" if state.text else "ours"
    if state.text:
        return "ours" if text == state.text else "edited"
    return "ours" if header is not None and header.intact else "edited"


def _generation(answer: str, service: str) -> int | None:
    name, _, rest = answer.partition(" ")
    number = rest.partition(" ")[0]
    return int(number) if name == service and number.isascii() and number.isdecimal() else None


def read(path: Path) -> str | None:
    """A file's text; None when there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error


def write(path: Path, text: str) -> None:
    """Replace a file so that a reader, a crash or a full disk finds the old one or the new one, whole.

    Raises:
        Fault: It could not be written; the old file is untouched.
    """
    try:
        replace(path, text)
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error


def replace(path: Path, text: str) -> None:
    """Temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
