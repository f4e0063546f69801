"""`ports.Traffic` on one nginx: write, test, reload, confirm; else put the last good file back."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from orchestrator.ports.faults import Fault, Refused, Stale
from orchestrator.ports.traffic import EdgeProcess, RoutePlan, Workers
from orchestrator.rollout.model import Route, Server
from orchestrator.rollout.observation import Edge, LocalRollback, OnDisk
from orchestrator.traffic.files import is_private, matching, read, remove, text_of, to_the_end, write
from orchestrator.traffic.listener import Answer, Listener
from orchestrator.traffic.memory import Memory, Mode
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.reload import Reloader, Shown, takes_connections
from orchestrator.traffic.render import (
    Header,
    check_service,
    mark_of,
    read_header,
    render,
    route_text,
    shape_of,
    switch_path,
    tombstone,
)
from orchestrator.traffic.rounds import Change, Rounds
from orchestrator.traffic.shared import ASIDE, LUA_MARK, Shared
from orchestrator.traffic.sight import Sight
from orchestrator.traffic.snippets import Snippets
from orchestrator.traffic.switch import Switches, changed_at

log = structlog.get_logger()

FALLBACK = ".rollback"
"""Suffix of the file that a rollback on the host puts in place."""

LAST_GOOD = ".good"
"""Suffix of the copy of the file that was confirmed last."""

GONE = ".gone"
"""Suffix of what is left of a removed service: who removed it, against a daemon that does not know."""

EDITED = ".edited"
"""Suffix of a text that is not ours and was found in place of the file."""

LOOK_EVERY = 1.0
"""Seconds between looks at what all services share."""

AT_ONCE = 1.0
"""Seconds in which nginx takes a route back into its memory, or the switch is turned on instead."""

LOCK_MARGIN = 5.0
"""Seconds beyond `Reloader.longest` that another process may hold the folder."""


def files_of(directory: Path, service: str) -> list[Path]:
    """All files that a service may have in our folder."""
    check_service(service)
    own = directory / f"{service}.conf"
    beside = [own.with_suffix(FALLBACK), own.with_suffix(LAST_GOOD), directory / "snippets" / own.name]
    switch = Path(switch_path(str(directory), service))
    switches = [p for p in matching(switch.parent, f"{switch.name}.to.*") if not p.suffix.startswith(ASIDE)]
    return [own, *beside, *matching(directory, f"locations/*/{own.name}"), switch, *switches]


class _NotTaken(Fault):
    """nginx has not taken a route into its memory, or has not said so."""


@dataclass(slots=True)
class _Served:
    """What is known of one service since this daemon started.

    Attributes:
        shape: What nginx' file was like apart from its route, when it was known last.
        wanted: The generation that was asked for last.
        waited: Seconds for which that one has waited for other services' changes.
        waits_since: Since when it waits for them now.
        stands: When a person has turned a switch on, and the releases in whose way that stands.
    """

    confirmed: int = 0
    text: str = ""
    shape: str = ""
    old_workers: frozenset[int] | None = None
    error: str = ""
    silence: str = ""
    wanted: int = 0
    waited: float = 0.0
    waits_since: float | None = None
    stands: tuple[float, frozenset[str]] = (0.0, frozenset())

    def waited_until(self, now: float) -> float:
        """Seconds that the wanted generation has waited, by the loop's clock."""
        return self.waited + (now - self.waits_since if self.waits_since is not None else 0.0)


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a service's file, from the text that is there.

    Attributes:
        disk: What is to be served, and what the file tells of it.
        token: The fencing token that the file will have.
        secret: See `Memory.secret`.
    """

    path: Path
    old: str | None
    disk: OnDisk
    token: int
    secret: str

    @property
    def service(self) -> str:
        """Whose it is."""
        return self.path.stem


@dataclass(frozen=True, slots=True)
class _Way:
    """Where a rollback on this host leads, from the text that is there.

    Attributes:
        token: The fencing token that the disk knows.
        there: nginx serves the file, and that leads nowhere else: somebody has gone back, or nobody was
            anywhere else.
    """

    old: str | None
    header: Header | None
    route: Route
    stable: str
    token: int
    released: int
    there: bool

    @property
    def to(self) -> str:
        """The release that gets all traffic."""
        return self.route.servers[0].release


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
        mode: `dynamic` changes weights in nginx' memory, without a reload, and needs its Lua module; `auto`
            does so where the module is.
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
        mode: Mode = "auto",
        seen_as: str = "",
    ) -> None:
        self._process = process
        self._dir = directory
        self._options = options
        self._listen = listen
        self._listener = Listener(probe or f"http://{listen}")
        self._sight = Sight(process, self._listener)
        self._shared = Shared(directory)
        self._memory = Memory(process, directory, mode, self._shared)
        self._switches = Switches(directory)
        self._folder = seen_as or str(directory)
        self._snippets = Snippets(directory, self._folder)
        self._reloader = Reloader(
            process, self._listener, self._switches, deadline=confirm_deadline, closing_wait=closing_wait
        )
        patience = self._reloader.longest + LOCK_MARGIN
        self._rounds = Rounds(process, self._reloader, directory, patience, self._repair)
        self._served: dict[str, _Served] = {}
        self._next_look = 0.0

    def prepare(self) -> None:
        """Lay down what all services share.

        Raises:
            Fault: The folder can't be written.
        """
        self._shared.repair()
        if self._shared.broken:
            raise Fault(f"nginx/directory {self._dir}: {'; '.join(self._shared.broken)}")
        self._switches.keep_connections()  # a process may have been killed while it reloaded

    def file(self, service: str) -> Path:
        """The file of a service."""
        check_service(service)
        return self._dir / f"{service}.conf"

    async def apply(self, plan: RoutePlan, token: int) -> None:
        """See `ports.Traffic`. Services that change at the same time share a reload.

        Users go back at once where a rollback leads there, however long others are waited for.

        Raises:
            Stale: The disk holds a newer token.
            Fault: The disk holds a newer generation; or it is not served, and the last good file is back.
        """
        state, now = self._state(plan.service), asyncio.get_running_loop().time
        back = await self.take_back_at_once(plan, token)
        await self._repair(plan.service)

        async def prepare() -> Change | None:
            return await (self._clear if plan.route.gone else self._apply)(plan, token, state)

        def waits(on: bool) -> None:
            if state.wanted == plan.route.generation:  # else a newer one waits
                state.waited, state.waits_since = state.waited_until(now()), now() if on else None

        if state.wanted != plan.route.generation:
            state.wanted, state.waited, state.waits_since = plan.route.generation, 0.0, None
        with self._telling(plan.service):
            urgent = back or bool(self._switches.all(plan.service))
            await self._rounds.serve(plan.service, prepare, waits=waits, urgent=urgent)

    async def put_down(self, plan: RoutePlan, token: int) -> None:
        """Write what an nginx that does not run yet has to start with; one that runs does not read it.

        Raises:
            Stale: The disk holds a newer token.
            Fault: The disk holds a newer generation, or can't be written.
        """
        await self._repair(plan.service)
        with self._telling(plan.service):
            async with self._rounds.alone():
                await self._put_down(plan, token)

    async def _put_down(self, plan: RoutePlan, token: int) -> None:
        path = self.file(plan.service)
        old = read(path)
        self._fence(plan, token, old)
        if plan.route.gone:
            await self._bury(plan, token)
            await to_the_end(lambda: _remove_all(files_of(self._dir, plan.service)))
            return
        header = read_header(old) if old is not None else None
        if self._switches.by_hand(plan.service) or self._told_by_a_person(plan.service, header):
            return  # somebody has rolled back here
        secret = await self._secret(plan.service)
        text = self._render(_Change(path, old, _on_disk(plan), token, secret))

        def work() -> None:
            self._lay_beside(plan, token, secret)
            write(path, text, private=bool(secret))

        await to_the_end(work)

    async def retreat(self, service: str, actor: str, reason: str, token: int | None = None) -> LocalRollback:
        """See `ports.Traffic`. What is written keeps the token that the disk knows.

        Users go back at once, however long others are waited for.

        Raises:
            Stale: The disk holds a newer token than the given one.
            Fault: There is no fallback, it is damaged, or nginx does not serve it.
        """
        state, local = self._state(service), list[LocalRollback]()

        def served(way: _Way, told: LocalRollback) -> OnDisk:
            return OnDisk(route=way.route, stable=way.stable, local=told, released=way.released)

        async def prepare() -> Change | None:
            way, secret = await self._way_back(service, token), await self._secret(service)
            local.append(LocalRollback(to=way.to, actor=actor, reason=reason))
            if (before := _gone_back(way, None)) is not None:
                local.append(before)
                return None  # else it is written: what was being tried meanwhile is tried again
            change = _Change(self.file(service), way.old, served(way, local[-1]), way.token, secret)
            direct = await self._takes_routes(service, way.header, secret, state)
            keep = partial(self._snippets.keep, service, self._options(service), dynamic=bool(secret))
            return await self._change(change, state, keep, direct=direct)

        with self._telling(service):
            way = await self._way_back(service, token)
            told = LocalRollback(to=way.to, actor=actor, reason=reason)
            if (before := _gone_back(way, told)) is not None:
                return before
            change = _Change(self.file(service), way.old, served(way, told), way.token, self._memory.known())
            await self._go_back_at_once(change, way.to)
            await self._repair(service)
            try:
                await self._rounds.serve(service, prepare, urgent=True)
            except Stale:
                raise
            except BaseException as error:
                by = await self._is_back_by(service, way.to)
                if not by or not isinstance(error, Fault):
                    raise
                raise Fault(f"{error}; users are back on {way.to} already, by {by}") from error
        return local[-1]

    async def turn_back(self, service: str) -> str:
        """Turn the switch on, as a person does, where nobody knows how a service is served.

        Returns:
            The release that has all users.

        Raises:
            Fault: It leads nowhere, or can't be turned on.
        """
        header = read_header(text_of(self.file(service)))
        to = _to(header.on_disk.back) if header is not None and header.on_disk else ""
        if not to:
            raise Fault(f"{service} has nothing to go back to on this host")
        if not await to_the_end(lambda: self._switches.turn_on(service, ""), urgent=True):
            raise Fault(f"{self._switches.path(service)} can't be written")
        return to

    async def _is_back_by(self, service: str, to: str) -> str:
        """What has all users at a release, by what nginx says that it serves; '' where that is not so.

        What its memory alone knows the switch says too, for an nginx that starts again.
        """
        answer, header = await self._listener.ask(service), read_header(text_of(self.file(service)))
        if answer.back == to:
            if _unwritten(answer, header):
                await to_the_end(lambda: self._switches.turn_on(service, to))
            return "nginx' memory"
        served = header is not None and answer.generation == header.generation
        return str(self._switches.path(service, to)) if served and self._leads(service, header) == to else ""

    def _leads(self, service: str, header: Header | None) -> str:
        """The release to which a switch takes all users where nginx has read a file; '' where none does."""
        to = _to(header.on_disk.back) if header is not None and header.on_disk else ""
        return to if self._switches.is_on(service, to) else ""

    async def reload(self) -> None:
        """Let nginx read its files again, certificates for example; clients and weights do not notice.

        Raises:
            Fault: `nginx -t` refuses, or workers from before still accept at the deadline.
        """

        async def prepare() -> Change:
            return Change(write=_nothing, put_back=_nothing, keep=_kept)

        await self._rounds.serve("", prepare)

    async def _repair(self, service: str = "") -> None:
        """Make whole what all services share, and let nothing else be where a file of this one has to be.

        Without a service it looks at all files that nginx would include.
        What can't be mended keeps nobody from trying: whether nginx needs it, nginx says.
        """
        beside = [self.file(service).with_suffix(end) for end in (GONE, EDITED)] if service else []
        files = [*beside, *files_of(self._dir, service)] if service else list(self._shared.odd())
        if self._shared.lacking(files) or self._shared.broken:
            await to_the_end(lambda: self._shared.repair(files))

    async def _look_at_shared(self, text: str) -> None:
        """Repair it while nothing changes, for an nginx that starts; once in a while, whoever asks.

        `text`: a service's file, which tells whether nginx needs what Lua needs.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._shared.lua = self._shared.lua or LUA_MARK in text
            await self._repair()

    def _state(self, service: str) -> _Served:
        return self._served.setdefault(service, _Served())

    @contextlib.contextmanager
    def _telling(self, service: str) -> Iterator[None]:
        """A failure stays to be told until a change succeeds."""
        state = self._state(service)
        try:
            yield
        except Fault as error:
            state.error = "; ".join((str(error), *self._shared.broken))
            raise
        state.error = ""

    async def _apply(self, plan: RoutePlan, token: int, state: _Served) -> Change | None:
        path = self.file(plan.service)
        old = read(path)
        header = read_header(old) if old is not None else None
        self._fence(plan, token, old)
        secret = await self._secret(plan.service)
        direct = await self._takes_routes(plan.service, header, secret, state)
        disk = _on_disk(plan)
        if not direct:  # what was given up has been served meanwhile, if nginx had been asked
            await self.take_back_at_once(plan, token)
        if await self._keeps_switch(plan, header):
            disk = dataclasses.replace(disk, back=())
        change = _Change(path, old, disk, token, secret)
        lay_beside = partial(self._lay_beside, plan, token, secret)
        return await self._change(change, state, lay_beside, direct=direct)

    async def _clear(self, plan: RoutePlan, token: int, state: _Served) -> Change | None:
        """Take away a service's files, write its tombstone, and wait until nginx does not know it any more.

        Raises:
            Fault: nginx needs them yet, and the names that it needs are there; or it does not let go.
        """
        service, path, generation = plan.service, self.file(plan.service), plan.route.generation
        self._fence(plan, token, read(path))
        guests = sorted(p.stem for p in matching(self._dir / "locations" / service, "*.conf"))
        if guests:
            raise Fault(f"{', '.join(guests)} at a path of the server block of {service}: remove that first")
        left = [p for p in files_of(self._dir, service) if p.exists()]
        await self._bury(plan, token)
        secret = await self._secret(service)
        empty = dataclasses.replace(plan, route=Route(generation=generation - 1))
        text = self._render(_Change(path, None, _on_disk(empty), token, secret))

        def put_back() -> None:
            self._lay_beside(empty, token, secret)
            write(path, text, private=bool(secret))
            state.text = text

        async def keep() -> None:
            state.confirmed, state.text, state.shape, state.old_workers = generation, "", "", None

        shown = Shown(service, None)
        if not left and shown.by(await self._listener.ask(service)):
            await keep()
            return None
        return Change(write=lambda: _remove_all(left), put_back=put_back, keep=keep, shown=shown)

    async def _bury(self, plan: RoutePlan, token: int) -> None:
        """Write a service's tombstone, before its files go."""
        path, text = self.file(plan.service).with_suffix(GONE), tombstone(plan.service, _on_disk(plan), token)
        await to_the_end(lambda: write(path, text))

    def _lay_beside(self, plan: RoutePlan, token: int, secret: str) -> None:
        """Write all of a service's files but its own, which a reload must not find without them. Blocks."""
        self._snippets.keep(plan.service, self._options(plan.service), dynamic=bool(secret))
        self._keep_fallback(plan, token, secret)

    async def _keep(self, change: _Change, text: str, state: _Served) -> None:
        """Remember that nginx serves it."""
        await to_the_end(lambda: write(change.path.with_suffix(LAST_GOOD), text, private=bool(change.secret)))
        await to_the_end(lambda: remove(change.path.with_suffix(GONE)))
        state.old_workers = (await self._sight.look()).retiring
        state.confirmed, state.text = change.disk.route.generation, text
        state.shape = self._shape(change.service, change.secret) if change.secret else ""
        if self._is_replaced(change.service, change.disk):
            try:
                self._switches.put_away(change.service)
            except Fault as error:  # what nginx serves is as it is; each look tries again
                log.warning("switch_not_put_away", service=change.service, reason=str(error))

    def _told_by_a_person(self, service: str, header: Header | None) -> bool:
        """Whether a person's rollback on this host takes all users where the route does not."""
        to = self._leads(service, header)
        return bool(to) and not self._switches.turned_for(service, to)

    def _is_replaced(self, service: str, served: OnDisk) -> bool:
        """Whether a switch keeps users off the route that is served, for one that is older."""
        to = _to(served.back)
        on = self._switches.is_on(service, to) and _active(served.route.servers) != {to}
        return on and 0 < self._switches.turned_for(service, to) < served.route.generation

    async def _secret(self, service: str) -> str:
        """See `Memory.secret`; the balancer does round robin alone, and a mirror is configuration."""
        options = self._options(service)
        direct = options.method == "round_robin" and not options.mirror
        return await self._memory.secret() if direct else ""

    def _shape(self, service: str, secret: str) -> str:
        options = self._options(service)
        return shape_of(service, options, listen=self._listen, folder=self._folder, secret=secret)

    async def _takes_routes(self, service: str, header: Header | None, secret: str, state: _Served) -> bool:
        """Whether nginx runs a file that differs from the wanted one in nothing but its route.

        What was seen before is believed: nginx itself refuses a route for another file than it runs. A master
        from before an upgrade has a memory of its own.
        """
        if not secret or header is None or not header.intact or (await self._process.workers()).outdated:
            return False
        shape = self._shape(service, secret)
        return state.shape == shape or (await self._listener.ask(service)).shape == shape

    async def _put(self, change: _Change, state: _Served, served: Change) -> bool:
        """Write the files, then hand the route to nginx, which serves it from the next request on.

        In that order nginx serves nothing that a rollback on this host does not know of; the files stay when
        the wait for nginx' word is cancelled, for it may have taken the route.
        Returns whether nginx has taken it; where it has not, or has not said so, a reload is left.

        Raises:
            Refused: nginx serves a newer one; what was there before is back.
            Fault: The files could not be written; likewise.
        """
        state.shape = ""
        try:
            await to_the_end(served.write)
            await self._hand_over(change)
        except _NotTaken as error:
            log.warning("route_not_taken", service=change.service, reason=str(error))
            return False
        except Fault:
            await to_the_end(served.put_back)
            raise
        await served.keep()
        return True

    async def _hand_over(self, change: _Change) -> None:
        """Let nginx take a route into its memory.

        Raises:
            Refused: nginx serves a newer one.
            _NotTaken: It has not taken it, or has not said so.
        """
        service = change.service
        route = route_text(change.disk, self._options(service), token=change.token)
        shape = self._shape(service, change.secret)
        try:
            await self._listener.put(service, route, secret=change.secret, shape=shape)
        except Refused:
            raise
        except Fault as error:
            raise _NotTaken(str(error)) from error

    async def take_back_at_once(self, plan: RoutePlan, token: int) -> bool:
        """Send users back at once where a rollback leads to the route that is wanted, and that is not served.

        It waits for nobody. What goes wrong with it is told of the way that is sure. Returns whether that is
        the route.
        """
        try:
            if not (to := await self._way_of(plan, token)):
                return False
            path, disk, secret = self.file(plan.service), _on_disk(plan), self._memory.known()
            await self._go_back_at_once(_Change(path, None, disk, token, secret), to, plan.route.generation)
        except Exception as error:  # noqa: BLE001  as above
            log.warning("not_back_at_once", service=plan.service, reason=str(error))
        return True

    async def _way_of(self, plan: RoutePlan, token: int) -> str:
        """The release that all users are to go back to, and are not on; '' where it is not for us to do.

        They go where the file has them too, if nginx serves something else than that.
        """
        text = read(self.file(plan.service))
        header = read_header(text) if text is not None else None
        if header is None or header.on_disk is None:
            return ""
        on = self._leads(plan.service, header)
        if on and self._switches.turned_for(plan.service, on) in (0, plan.route.generation):
            return ""
        if _refused(plan, token, header) is not None:
            return ""  # told where it is refused
        wanted, served = _active(plan.route.servers), _active(header.on_disk.route.servers)
        if wanted == served and len(wanted) == 1:
            answer = await self._listener.ask(plan.service)
            return "" if answer.generation in (None, header.generation) else "".join(wanted)
        return "".join(wanted) if wanted != served and wanted == _active(header.on_disk.back) else ""

    async def _go_back_at_once(self, change: _Change, to: str, generation: int = 0) -> None:
        """Send users back by nginx' memory, which needs neither the disk nor a turn; else by the switch."""
        if await self._is_taken_at_once(change):
            return
        turn_on = partial(self._switches.turn_on, change.service, to, generation)
        if not await to_the_end(turn_on, urgent=True):
            await self._repair(change.service)
            await to_the_end(turn_on, urgent=True)

    async def _is_taken_at_once(self, change: _Change) -> bool:
        """Whether nginx has taken a route into its memory; whatever keeps it from that is logged."""
        service, secret = change.service, change.secret
        try:
            async with asyncio.timeout(AT_ONCE):
                if not secret or (await self._listener.ask(service)).shape != self._shape(service, secret):
                    return False
                if (await self._process.workers()).outdated:
                    return False
                await self._hand_over(change)
        except Exception as error:  # noqa: BLE001  as above
            log.warning("route_not_taken", service=service, reason=str(error) or type(error).__name__)
            return False
        return True

    async def _keeps_switch(self, plan: RoutePlan, header: Header | None) -> bool:
        """Whether a person's `touch` stays until old workers are gone, because it leads where the route does.

        A switch that the daemon has turned on goes when a newer route is served. One that leads nowhere by
        what is served goes before that, for by the next file it may lead somewhere. But a step onward, away
        from where a rollback leads, is what somebody means who has turned it on since that was decided.

        Raises:
            Fault: A switch is on and the route leads elsewhere: somebody has rolled back here.
        """
        service, wanted = plan.service, _active(plan.route.servers)
        disk = header.on_disk if header is not None and header.on_disk else OnDisk(route=Route())
        served, on = _active(disk.route.servers), self._switches.path(service)
        meant = self._stands_in_the_way(plan, served)
        if self._switches.by_hand(service):
            leads = _active(disk.back) or served
            if leads == wanted:
                return True
            if leads == served and not meant:
                self._switches.put_away(service)
                return False
        elif to := self._leads(service, header):
            if {to} == wanted or not self._told_by_a_person(service, header):
                return False
            on = self._switches.path(service, to)
        elif meant:
            on = next(iter(self._switches.all(service)), on)
        else:
            if header is not None and self._switches.all(service):
                answer = await self._listener.ask(service)
                if answer.generation == header.generation:
                    self._switches.put_away(service)
            return False
        raise Fault(f"{on} is there: no step is taken until that is followed or it is removed")

    def _stands_in_the_way(self, plan: RoutePlan, served: frozenset[str]) -> bool:
        """Whether a person has turned a switch on since a step was decided that goes on, not back."""
        wanted, state = _active(plan.route.servers), self._state(plan.service)
        back = _active(plan.fallback.servers) if plan.fallback is not None else wanted
        told = told_at, new = self._switches.told_at(plan.service), wanted - served
        onward = bool(served) and bool(new) and back != wanted and plan.stable not in new
        since = told_at > plan.route.changed_at or told == state.stands
        meant = onward and since and told_at > changed_at(self.file(plan.service).with_suffix(LAST_GOOD))
        state.stands = told if meant else (0.0, frozenset())
        return meant

    def _keep_fallback(self, plan: RoutePlan, token: int, secret: str) -> None:
        """Let the fallback lie there, or none, before anything changes that makes it wanted."""
        path = self.file(plan.service).with_suffix(FALLBACK)
        if plan.fallback is None:
            remove(path)
            return
        by_hand = LocalRollback(
            to=plan.fallback.servers[0].release, actor="host", reason=f"{path.name} was put in place by hand"
        )
        disk = OnDisk(route=plan.fallback, stable=plan.stable, local=by_hand, released=plan.released)
        text = self._render(_Change(self.file(plan.service), None, disk, token, secret))
        write(path, text, private=bool(secret))

    async def _way_back(self, service: str, token: int | None) -> _Way:
        """Where a rollback on this host leads.

        Raises:
            Stale: The disk or nginx holds a newer token than the given one.
            Fault: Nowhere.
        """
        path = self.file(service)
        old, kept = read(path), read(path.with_suffix(FALLBACK))
        header = read_header(old) if old is not None else None
        found = read_header(kept) if kept is not None else None
        disk = header.on_disk if header is not None else None
        back = _servers_back(disk, found)
        if not back:
            raise Fault(f"{service} has nothing to go back to on this host: no {path.with_suffix(FALLBACK)}")
        answer = await self._listener.ask(service)
        known = max([answer.token, *(h.token for h in (header, found) if h is not None)])
        if token is not None and known > token:
            raise Stale(f"the edge has token {known}; a rollback under token {token} is refused")
        floor = max(h.generation for h in (header, found) if h is not None)
        stable = disk.stable if disk is not None else found.on_disk.stable if found and found.on_disk else ""
        released = max(h.on_disk.released for h in (header, found) if h is not None and h.on_disk)
        written = disk is not None and _same(disk.route.servers, back) and old != kept  # no copy by hand
        route = Route(generation=floor + 1, servers=back)
        if (answer.generation, answer.back) != (floor + 1, _to(back)):  # else it is in nginx' memory
            route = dataclasses.replace(route, generation=max(floor, answer.generation or 0) + 1)
        shown = header is not None and answer.generation == header.generation
        return _Way(old, header, route, stable, known, released, written and shown)

    def _render(self, change: _Change) -> str:
        return render(
            change.service,
            change.disk,
            self._options(change.service),
            token=change.token,
            listen=self._listen,
            folder=self._folder,
            secret=change.secret,
        )

    def _fence(self, plan: RoutePlan, token: int, text: str | None) -> None:
        """Refuse what is older than the disk, and a route that does not know of a rollback on the host.

        `text`: the service's file; where there is none its tombstone speaks.
        """
        header = self._known(plan.service, text)
        refused = _refused(plan, token, header)
        if refused is None or header is None:
            return
        log.warning(
            "stale_refused",
            service=plan.service,
            generation=plan.route.generation,
            token=token,
            disk_generation=header.generation,
            disk_token=header.token,
        )
        raise refused

    def _known(self, service: str, text: str | None) -> Header | None:
        """What the disk tells of a service, by its file's text or, where there is none, by its tombstone."""
        known = read(self.file(service).with_suffix(GONE)) if text is None else text
        return read_header(known) if known is not None else None

    async def _change(
        self, change: _Change, state: _Served, lay_beside: Callable[[], None], *, direct: bool
    ) -> Change | None:
        """What a reload is needed for; None where nginx serves it already, or by its memory.

        `direct`: whether nginx takes routes there, see `_takes_routes`.
        """
        path, service = change.path, change.service
        private = is_private(path) if change.old is not None else bool(change.secret)
        text, secret = self._render(change), bool(change.secret)
        header = await self._keep_edited(path, change.old)
        good = await self._last_good(path, change.old, header, service)
        beside, known = read(path.with_suffix(FALLBACK)), state.text
        snippets = self._snippets.texts(service, self._options(service))

        def put_back(text: str | None) -> None:
            """Where a rollback on the host leads is said by both files or by neither."""
            state.text = known  # a text that nginx does not take is not the last good one, wherever it lies
            _put_back(path, text, private)
            _put_back(path.with_suffix(FALLBACK), beside, secret)
            for snippet, was in snippets.items():
                if was is not None or text is None:  # one that was lost is needed
                    _put_back(snippet, was, private=False)

        def write_all() -> None:
            lay_beside()
            write(path, text, private=secret)
            state.text = text

        shown = Shown(service, change.disk.route.generation, self._mark(change))
        wanted = Change(
            write=write_all,
            put_back=lambda: put_back(good),
            keep=lambda: self._keep(change, text, state),
            shown=shown,
        )
        if direct and await self._put(change, state, wanted):
            return None
        if change.old == text and shown.by(await self._listener.ask(service)):
            await to_the_end(lay_beside)
            late = await self._reloader.confirm([shown])
            if late:
                await to_the_end(lambda: put_back(text))
                raise late[shown]
            await self._keep(change, text, state)
            return None
        return dataclasses.replace(wanted, calm=await self._calm(service, header, change.disk.route))

    def _mark(self, change: _Change) -> str:
        return mark_of(
            change.service,
            change.disk,
            self._options(change.service),
            token=change.token,
            listen=self._listen,
            folder=self._folder,
            secret=change.secret,
        )

    async def _keep_edited(self, path: Path, old: str | None) -> Header | None:
        """Put a text that is not ours aside. Returns the header of what is there."""
        header = read_header(old) if old is not None else None
        if old is not None and (header is None or not header.intact):
            aside = path.with_suffix(EDITED)
            await to_the_end(lambda: write(aside, old, private=True))
            log.warning("edited_file_kept", service=path.stem, path=str(aside))
        return header

    async def _calm(self, service: str, header: Header | None, route: Route) -> bool:
        """Whether the reload may wait: no server hangs that has traffic and loses it, or the switch is on.

        One that takes no connections is passed over by nginx, as long as there is another.
        """
        on = self._switches.by_hand(service) or self._leads(service, header)
        if header is None or header.on_disk is None or not route.servers or on:
            return True
        stay, served = {s.instance for s in route.servers}, header.on_disk.route.servers
        leaving = [s.address for s in served if s.instance not in stay and not s.backup]
        if not leaving:
            return True
        others = any(s.instance in stay for s in served)
        return others and not any(await asyncio.gather(*map(takes_connections, leaving)))

    async def _last_good(
        self, path: Path, old: str | None, header: Header | None, service: str
    ) -> str | None:
        """What to restore: the file as it is, unless a crash left one that was never confirmed.

        One that was lost is restored too: nginx must find it when it starts.
        """
        if old is None:
            return self._served[service].text or None
        if header is None or not header.intact or old == self._served[service].text:
            return old
        good = read(path.with_suffix(LAST_GOOD))
        if good is None and (await self._listener.ask(service)).generation == header.generation:
            return old
        return good

    async def close(self) -> None:
        """Give up what is under way, and close the connections to the private listener."""
        await self._rounds.close()
        await self._sight.close()
        await self._listener.close()

    async def observe(self, service: str) -> Edge:
        """See `ports.Traffic`. What all services share is made whole, should something of it be lost."""
        state, changing = self._state(service), self._rounds.changing(service)
        text = read(self.file(service))
        await self._look_at_shared(text or "")
        header = self._known(service, text)
        disk = header.on_disk if header is not None and header.on_disk else OnDisk(route=Route())
        answer, workers = await self._sight.of(service, known=text is not None)
        retiring = workers.retiring
        drained = not (retiring if state.old_workers is None else state.old_workers & retiring)
        drained = drained and not answer.draining
        to = self._leads(service, header)
        turned_for = self._switches.turned_for(service, to) if to else 0
        unwritten = _unwritten(answer, header)
        served = header is not None and answer.generation == header.generation
        needless = not to or {to} == _active(disk.route.servers)  # then it is for workers from before
        changing = changing or self._rounds.changing(service)
        over = drained if needless else self._is_replaced(service, disk)
        tried = state.error or state.wanted > state.confirmed
        meant = tried and self._switches.told_at(service)  # perhaps for what is being tried
        if self._switches.all(service) and served and over and not changing and not meant:
            with contextlib.suppress(Fault):
                self._switches.put_away(service)
        return Edge(
            served=answer.generation,
            confirmed=state.confirmed,
            file="ours" if changing else self._file_state(service, text, header, state),
            drained=drained,
            floor=header.generation if header else 0,
            error=state.error,
            on_disk=header.on_disk if header else None,
            fallback=self._fallback(service, disk),
            switched_to=unwritten or to,
            switched_for=0 if unwritten else turned_for,
            waited=state.waited_until(asyncio.get_running_loop().time()),
            silence="" if text is None else self._silence(service, answer, workers, changing=changing),
        )

    def _file_state(
        self, service: str, text: str | None, header: Header | None, state: _Served
    ) -> Literal["ours", "edited", "missing"]:
        """Of all that a service needs in our folder, for an nginx that starts."""
        found = _file_state(text, header, state)
        if text is not None and self._snippets.missing(service, self._options(service)):
            return "missing"
        return found

    def _fallback(self, service: str, disk: OnDisk) -> tuple[Server, ...]:
        """Where a rollback on this host leads: said by a file of its own, and to nginx for the switch.

        While a person's switch is on that leads there, the served file says nothing more of it.
        """
        kept = read(self.file(service).with_suffix(FALLBACK))
        found = read_header(kept) if kept is not None else None
        servers = found.on_disk.route.servers if found is not None and found.on_disk else ()
        by_hand = self._switches.by_hand(service)
        return servers if servers == disk.back or (by_hand and not disk.back) else ()

    def _silence(self, service: str, answer: Answer, workers: Workers, *, changing: bool) -> str:
        """Why nginx does not say what it serves of a service that has a file; empty when it does.

        While something changes that may be why; what was seen before that holds until it is over.
        """
        state = self._state(service)
        if answer.generation is not None:
            state.silence = ""
        elif not changing and (answer.answered or (answer.refused and workers.accepting)):
            include = f"include {self._folder}/*.conf;"
            state.silence = f"nginx runs and does not serve {service}: is `{include}` in its http {{}}?"
        elif not changing:
            state.silence = f"nginx does not answer: {answer.text}"
        return state.silence

    def highest_token(self) -> int:
        """The highest fencing token that the folder knows; 0 for a new one."""
        paths = (*matching(self._dir, "*.conf"), *matching(self._dir, f"*{GONE}"))
        headers = map(read_header, map(text_of, paths))
        return max((header.token for header in headers if header is not None), default=0)


def _refused(plan: RoutePlan, token: int, header: Header | None) -> Fault | None:
    """Why a plan is not to be served over what the disk has."""
    if header is None:
        return None
    local = header.on_disk is not None and header.on_disk.local is not None
    ahead = header.generation > plan.route.generation - (1 if local else 0)
    if header.token <= token and not ahead:
        return None
    why = (
        f"the edge has generation {header.generation} under token {header.token}; "
        f"generation {plan.route.generation} under token {token} is refused"
    )
    return Stale(why) if header.token > token else Fault(why)


def _file_state(
    text: str | None, header: Header | None, state: _Served
) -> Literal["ours", "edited", "missing"]:
    """Compared with what was last written; after a restart, with what the file says of itself."""
    if text is None:
        return "missing" if state.text else "ours"
    if state.text:
        return "ours" if text == state.text else "edited"
    return "ours" if header is not None and header.intact else "edited"


def _on_disk(plan: RoutePlan) -> OnDisk:
    """What a plan's file says of itself."""
    back = plan.fallback.servers if plan.fallback else ()
    return OnDisk(route=plan.route, stable=plan.stable, back=back, released=plan.released)


def _active(servers: Sequence[Server]) -> frozenset[str]:
    """The releases that have traffic."""
    return frozenset(s.release for s in servers if not s.backup)


def _to(back: Sequence[Server]) -> str:
    """The release to which a rollback leads; '' where it leads nowhere."""
    return "".join(_active(back))


def _unwritten(answer: Answer, header: Header | None) -> str:
    """Where a rollback on this host has all users, if nginx' memory alone knows of it; else ''."""
    return answer.back if header is not None and (answer.generation or 0) > header.generation else ""


def _gone_back(way: _Way, told: LocalRollback | None) -> LocalRollback | None:
    """The rollback that was before this one, if nginx serves where it leads; `told` where nobody was away."""
    if not way.there or way.header is None or way.header.on_disk is None:
        return None
    return way.header.on_disk.local or told


def _same(one: Sequence[Server], other: Sequence[Server]) -> bool:
    """Whether the same instances have the traffic, backups aside."""
    return {s.instance for s in one if not s.backup} == {s.instance for s in other if not s.backup}


def _servers_back(disk: OnDisk | None, found: Header | None) -> tuple[Server, ...]:
    """Where the switch leads by the served file, else by the file that lies ready; empty is nowhere."""
    if disk is not None and disk.back:
        return disk.back
    if found is None or not found.intact or found.on_disk is None or found.on_disk.local is None:
        return ()
    return found.on_disk.route.servers


def _remove_all(paths: Sequence[Path]) -> None:
    for path in paths:
        remove(path)


def _nothing() -> None:
    """No file of ours changes."""


async def _kept() -> None:
    """Nothing has to be remembered."""


def _put_back(path: Path, text: str | None, private: bool) -> None:
    """Lay down what was there; what is there yet is not written, for which a full disk has no room."""
    if text is None:
        remove(path)
    elif text_of(path) != text:
        write(path, text, private=private)
