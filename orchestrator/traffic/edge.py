"""`ports.Traffic` on one nginx: write, test, reload, confirm; else put the last good file back."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import structlog

from orchestrator.ports import EdgeProcess, Fault, RoutePlan, Stale
from orchestrator.rollout.model import Route, Server
from orchestrator.rollout.observation import Edge, LocalRollback, OnDisk
from orchestrator.traffic.files import locked, read, remove, replace, to_the_end, write
from orchestrator.traffic.render import (
    PROXY_SNIPPET,
    EdgeOptions,
    Header,
    check_service,
    closing_path,
    probe_host,
    read_header,
    render,
    switch_path,
    switch_snippet,
)

log = structlog.get_logger()

SPACING = 0.025
"""Seconds between confirming requests where workers can't be seen. Old and new ones both accept for about
100 ms after a reload, so that the confirming run must be longer than that."""

WATCHING = 0.005
"""Seconds between looks at the workers."""

ASK_DEADLINE = 1.0
"""Seconds for one request to the private listener."""

RUN, RUN_WATCHED = 8, 2
"""Fresh requests in a row that must show the generation; the second is for when no old worker accepts."""

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
        closing_wait: Seconds before a reload in which answers close their connections; longer than most
            clients pause between requests. 0 with nginx' own `keepalive_min_timeout` (from 1.27.4 on).
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
        closing_wait: float = 1.0,
        seen_as: str = "",
    ) -> None:
        self._process = process
        self._dir = directory
        self._options = options
        self._listen = listen
        self._probe = probe or f"http://{listen}"
        self._deadline = confirm_deadline
        self._folder = seen_as or str(directory)
        self._closing_wait = closing_wait
        self._session: aiohttp.ClientSession | None = None
        self._lock = asyncio.Lock()
        self._served: dict[str, _Served] = {}

    def prepare(self) -> None:
        """Create the folder and the proxy snippet.

        Raises:
            Fault: The folder can't be written.
        """
        try:
            for part in (self._dir / "snippets", self._dir / "switch"):
                part.mkdir(parents=True, exist_ok=True)
                for folder in (self._dir, part):  # nginx' workers look for files in it
                    mode = folder.stat().st_mode
                    if mode & 0o011 != 0o011:  # noqa: PLR2004
                        folder.chmod(mode | 0o011)
            self._closing.unlink(missing_ok=True)  # of a process that was killed while it reloaded
            snippet = self._dir / "snippets" / "proxy.conf"
            if not snippet.exists() or snippet.read_text(encoding="utf-8") != PROXY_SNIPPET:
                replace(snippet, PROXY_SNIPPET)
        except OSError as error:
            raise Fault(f"traffic.directory {self._dir}: {error.strerror}") from error

    @property
    def _closing(self) -> Path:
        return Path(closing_path(str(self._dir)))

    def switch(self, service: str) -> Path:
        """The file that takes a service's traffic back while it is there."""
        check_service(service)
        return Path(switch_path(str(self._dir), service))

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
        header = read_header(old) if old is not None else None
        self._fence(plan, token, header)
        switched = self._take_back_at_once(plan, header)
        generation = plan.route.generation
        back = plan.fallback.servers if plan.fallback and not switched else ()
        text = self._render(plan.service, OnDisk(route=plan.route, stable=plan.stable), token, back)
        snippet = self._dir / "snippets" / f"{plan.service}.conf"
        wanted = switch_snippet(plan.service, self._folder)
        if read(snippet) != wanted:
            await to_the_end(lambda: write(snippet, wanted))
        await self._keep_fallback(plan, token)
        if old == text and _generation(await self._ask(plan.service), plan.service) == generation:
            await self._confirm(plan.service, generation)
        else:
            await self._change(path, old, text, plan.service, generation)
        await self._confirmed(path, text, generation, state)

    def _take_back_at_once(self, plan: RoutePlan, header: Header | None) -> bool:
        """Turn the rollback switch on if the route is where it leads. Returns whether it is on.

        Raises:
            Fault: It is on and the route leads elsewhere: somebody has rolled back here.
        """
        switch, wanted = self.switch(plan.service), _active(plan.route)
        served = _active(header.on_disk.route) if header is not None and header.on_disk else frozenset()
        if switch.exists():
            to = self._switched_to(plan.service)
            if to == wanted:
                return True
            if to != served:
                raise Fault(f"{switch} is there: traffic goes back until that is followed or it is removed")
            remove(switch)
        elif served not in (wanted, frozenset()) and wanted == self._leads_to(plan.service):
            write(switch, "".join(wanted))
            return True
        return False

    def _leads_to(self, service: str) -> frozenset[str]:
        """The release that a rollback on this host leads to; empty when there is none."""
        kept = read(self.file(service).with_suffix(FALLBACK))
        found = read_header(kept) if kept is not None else None
        return _active(found.on_disk.route) if found is not None and found.on_disk else frozenset()

    def _switched_to(self, service: str) -> frozenset[str]:
        """The release that the switch sends all traffic to; a person leaves the file empty."""
        written = (read(self.switch(service)) or "").strip()
        return frozenset({written}) if written else self._leads_to(service)

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
        write(self.switch(service), disk.local.to)
        await self._change(path, old, text, service, floor + 1)
        await self._confirmed(path, text, floor + 1, state)
        return local

    async def _confirmed(self, path: Path, text: str, generation: int, state: _Served) -> None:
        """Remember what is served; on the disk too, for a restore after a crash."""
        await to_the_end(lambda: write(path.with_suffix(LAST_GOOD), text))
        state.old_workers = (await self._process.workers()).retiring
        state.confirmed, state.text = generation, text

    def _render(self, service: str, disk: OnDisk, token: int, back: Sequence[Server] = ()) -> str:
        options = self._options(service)
        return render(
            service, disk, options, token=token, listen=self._listen, folder=self._folder, back=back
        )

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
            before = (await self._process.workers()).accepting
            if self._calm(service, header, text):
                write(self._closing, "")
                await asyncio.sleep(self._closing_wait)
            reloaded = True
            await self._process.reload()
            await self._confirm(service, generation, before)
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
        finally:
            with contextlib.suppress(Fault):
                remove(self._closing)

    def _calm(self, service: str, header: Header | None, text: str) -> bool:
        """Whether the reload may wait: nobody who is served is gone, or the switch has acted already."""
        if not self._closing_wait or header is None or header.on_disk is None:
            return False
        if self.switch(service).exists():
            return True
        new = read_header(text)
        stay = {s.instance for s in new.on_disk.route.servers} if new and new.on_disk else set()
        return all(s.instance in stay for s in header.on_disk.route.servers)

    def _last_good(self, path: Path, old: str | None, header: Header | None, service: str) -> str | None:
        """What to restore: the file as it is, unless a crash left one that was never confirmed."""
        if header is None or not header.intact or old == self._served[service].text:
            return old
        return read(path.with_suffix(LAST_GOOD)) or old

    async def _confirm(self, service: str, generation: int, before: frozenset[int] = frozenset()) -> None:
        """Wait until fresh requests in a row all show it, and none of the workers `before` accepts."""
        row = 0
        last: str = "no answer"
        try:
            async with asyncio.timeout(self._deadline):
                while before & (await self._process.workers()).accepting:
                    last = "workers from before the reload still accept"
                    await asyncio.sleep(WATCHING)
                while True:
                    last = await self._ask(service)
                    row = row + 1 if _generation(last, service) == generation else 0
                    if row == (RUN_WATCHED if before else RUN):
                        return
                    await asyncio.sleep(WATCHING if before else SPACING)
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
        retiring = (await self._process.workers()).retiring
        drained = not (retiring if state.old_workers is None else state.old_workers & retiring)
        route = header.on_disk.route if header and header.on_disk else Route()
        switched = frozenset[str]()
        if not state.changing and self.switch(service).exists():
            switched = self._switched_to(service)
            if drained and switched == _active(route):  # no worker is left that it says anything to
                remove(self.switch(service))
        return Edge(
            served=served,
            confirmed=state.confirmed,
            file=_file_state(text, header, state),
            drained=drained,
            floor=header.generation if header else 0,
            error=state.error,
            on_disk=header.on_disk if header else None,
            fallback=fallback.on_disk.route.servers if fallback and fallback.on_disk else (),
            switched_to="".join(switched),
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


def _active(route: Route) -> frozenset[str]:
    """The releases that have traffic."""
    return frozenset(s.release for s in route.servers if not s.backup)


def _same(one: Route, other: Route) -> bool:
    """Whether two routes send the traffic to the same instances, backups aside."""
    first, second = ({s.instance for s in r.servers if not s.backup} for r in (one, other))
    return first == second


def _generation(answer: str, service: str) -> int | None:
    name, _, rest = answer.partition(" ")
    number = rest.partition(" ")[0]
    return int(number) if name == service and number.isascii() and number.isdecimal() else None
