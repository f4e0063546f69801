"""`ports.Traffic` on one nginx: write, test, reload, confirm; else put the last good file back."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import structlog

from orchestrator.ports import EdgeProcess, Fault, RoutePlan, Stale
from orchestrator.rollout.model import Route
from orchestrator.rollout.observation import Edge, LocalRollback, OnDisk
from orchestrator.traffic.files import locked, read, remove, replace, to_the_end, write
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

FALLBACK = ".rollback"
"""Suffix of the file that a rollback on the host puts in place."""

LAST_GOOD = ".good"
"""Suffix of the copy of the file that was confirmed last."""

LOCK_MARGIN = 5.0
"""Seconds beyond a confirmation that another process may hold the folder."""


@dataclass(slots=True)
class _Served:
    """What is known of one service since this daemon started. `changing`: its file is being replaced now."""

    confirmed: int = 0
    text: str = ""
    old_workers: frozenset[int] | None = None
    error: str = ""
    changing: bool = False


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
            Stale: The disk holds a newer token.
            Fault: The disk holds a newer generation; or it is not served, and the last good file is back.
        """
        async with self._changing(plan.service) as state:
            await self._apply(plan, token, state)

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        """See `ports.Traffic`. What is written keeps the token that the disk knows.

        Raises:
            Stale: The disk holds a newer token than the given one.
            Fault: There is no fallback, it is damaged, or nginx does not serve it.
        """
        async with self._changing(service) as state:
            return await self._retreat(service, actor, reason, token, state)

    @contextlib.asynccontextmanager
    async def _changing(self, service: str) -> AsyncIterator[_Served]:
        """One change of the folder at a time, in this process and among all on this host."""
        state = self._served.setdefault(service, _Served())
        async with self._lock:
            try:
                async with locked(self._dir / ".lock", self._deadline + LOCK_MARGIN):
                    for left in self._dir.glob(".*.tmp"):  # by a process that was killed while it wrote
                        remove(left)
                    state.changing = True
                    yield state
            except Fault as error:
                state.error = str(error)
                raise
            finally:
                state.changing = False
            state.error = ""

    async def _apply(self, plan: RoutePlan, token: int, state: _Served) -> None:
        path = self.file(plan.service)
        old = read(path)
        self._fence(plan, token, read_header(old) if old is not None else None)
        generation = plan.route.generation
        text = self._render(plan.service, OnDisk(route=plan.route, stable=plan.stable), token)
        await self._keep_fallback(plan, token)
        if old == text and _generation(await self._ask(plan.service), plan.service) == generation:
            await self._confirm(plan.service, generation)
        else:
            await self._change(path, old, text, plan.service, generation)
        await self._confirmed(path, text, generation, state)

    async def _keep_fallback(self, plan: RoutePlan, token: int) -> None:
        """Let the fallback lie there, or none, before anything changes that makes it wanted."""
        path = self.file(plan.service).with_suffix(FALLBACK)
        if plan.fallback is None:
            await to_the_end(lambda: remove(path))
            return
        by_hand = LocalRollback(
            to=plan.fallback.servers[0].release, actor="host", reason=f"{path.name} was put in place by hand"
        )
        disk = OnDisk(route=plan.fallback, stable=plan.stable, local=by_hand)
        await to_the_end(lambda: write(path, self._render(plan.service, disk, token)))

    async def _retreat(
        self, service: str, actor: str, reason: str, token: int | None, state: _Served
    ) -> LocalRollback:
        path = self.file(service)
        kept = read(path.with_suffix(FALLBACK))
        found = read_header(kept) if kept is not None else None
        disk = found.on_disk if found is not None and found.intact else None
        if found is None or disk is None or disk.local is None:
            raise Fault(f"{service} has nothing to go back to on this host: no {path.with_suffix(FALLBACK)}")
        old = read(path)
        header = read_header(old) if old is not None else None
        floor = max(found.generation, header.generation if header else 0)
        known = max(found.token, header.token if header else 0)
        if token is not None and known > token:
            raise Stale(f"the edge has token {known}; a rollback under token {token} is refused")
        if header is not None and header.on_disk is not None and _same(header.on_disk.route, disk.route):
            raise Fault(f"{service}: {disk.local.to} has all the traffic already")
        local = LocalRollback(to=disk.local.to, actor=actor, reason=reason)
        route = dataclasses.replace(disk.route, generation=floor + 1)
        text = self._render(service, OnDisk(route=route, stable=disk.stable, local=local), known)
        await self._change(path, old, text, service, floor + 1)
        await self._confirmed(path, text, floor + 1, state)
        return local

    async def _confirmed(self, path: Path, text: str, generation: int, state: _Served) -> None:
        """Remember what is served; on the disk too, for a restore after a crash."""
        await to_the_end(lambda: write(path.with_suffix(LAST_GOOD), text))
        state.old_workers = await self._process.retiring_workers()
        state.confirmed, state.text = generation, text

    def _render(self, service: str, disk: OnDisk, token: int) -> str:
        options = self._options(service)
        return render(service, disk, options, token=token, listen=self._listen, snippet=self._snippet)

    @staticmethod
    def _fence(plan: RoutePlan, token: int, header: Header | None) -> None:
        """Refuse what is older than the disk, and a route that does not know of a rollback on the host."""
        if header is None:
            return
        local = header.on_disk is not None and header.on_disk.local is not None
        ahead = header.generation > plan.route.generation - (1 if local else 0)
        if header.token <= token and not ahead:
            return
        log.warning(
            "stale_refused",
            service=plan.service,
            generation=plan.route.generation,
            token=token,
            disk_generation=header.generation,
            disk_token=header.token,
        )
        refused = (
            f"the edge has generation {header.generation} under token {header.token}; "
            f"generation {plan.route.generation} under token {token} is refused"
        )
        raise Stale(refused) if header.token > token else Fault(refused)

    async def _change(self, path: Path, old: str | None, text: str, service: str, generation: int) -> None:
        header = read_header(old) if old is not None else None
        if old is not None and (header is None or not header.intact):
            await to_the_end(lambda: write(path.with_suffix(".edited"), old))
            log.warning("edited_file_kept", service=service, path=str(path.with_suffix(".edited")))
        good = self._last_good(path, old, header, service)
        state = self._served[service]
        known, state.text = state.text, text
        reloaded = False
        try:
            await to_the_end(lambda: write(path, text))
            await self._process.test()
            reloaded = True
            await self._process.reload()
            await self._confirm(service, generation)
        except BaseException as error:
            log.warning("edge_restored", service=service, reason=str(error) or type(error).__name__)
            state.text = known
            if good is None:
                remove(path)
            else:
                write(path, good)
            if reloaded:
                with contextlib.suppress(Fault):
                    await self._process.reload()
            raise

    def _last_good(self, path: Path, old: str | None, header: Header | None, service: str) -> str | None:
        """What to restore: the file as it is, unless a crash left one that was never confirmed."""
        if header is None or not header.intact or old == self._served[service].text:
            return old
        return read(path.with_suffix(LAST_GOOD)) or old

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
        kept = read(self.file(service).with_suffix(FALLBACK))
        fallback = read_header(kept) if kept is not None else None
        served = _generation(await self._ask(service), service) if text is not None else None
        retiring = await self._process.retiring_workers()
        return Edge(
            served=served,
            confirmed=state.confirmed,
            file=_file_state(text, header, state),
            drained=not (retiring if state.old_workers is None else state.old_workers & retiring),
            floor=header.generation if header else 0,
            error=state.error,
            on_disk=header.on_disk if header else None,
            fallback=fallback.on_disk.route.servers if fallback and fallback.on_disk else (),
        )

    def highest_token(self) -> int:
        """The highest fencing token that the folder knows; 0 for a new one."""
        headers = (read_header(read(path) or "") for path in self._dir.glob("*.conf"))
        return max((header.token for header in headers if header is not None), default=0)


def _file_state(
    text: str | None, header: Header | None, state: _Served
) -> Literal["ours", "edited", "missing"]:
    """Compared with what was last written; after a restart, with what the file says of itself."""
    if state.changing:
        return "ours"
    if text is None:
        return "missing" if state.text else "ours"
    if state.text:
        return "ours" if text == state.text else "edited"
    return "ours" if header is not None and header.intact else "edited"


def _same(one: Route, other: Route) -> bool:
    """Whether two routes send the traffic to the same instances, backups aside."""
    first, second = ({s.instance for s in r.servers if not s.backup} for r in (one, other))
    return first == second


def _generation(answer: str, service: str) -> int | None:
    name, _, rest = answer.partition(" ")
    number = rest.partition(" ")[0]
    return int(number) if name == service and number.isascii() and number.isdecimal() else None
