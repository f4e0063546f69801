"""Hooks that are told how a release ended; a reader of the event stream, so that none is forgotten.

Those of a service are told one after the other, and no service waits for another one. How far each has come
is remembered after every hook: a daemon that starts again tells those that are left. What ran when the daemon
died is told again, with the same id.
"""

import asyncio
from collections.abc import Callable, Sequence

import stamina
import structlog

from orchestrator.hooks.runner import HookRunner
from orchestrator.ports.faults import Fault, Refused, Stale
from orchestrator.ports.store import Bookmarks, Journal
from orchestrator.rollout.events import Event, ReleaseEnded
from orchestrator.rollout.hooks import HookCall
from orchestrator.rollout.model import Outcome
from orchestrator.rollout.policy import Hook, HookPhase

log = structlog.get_logger()

PHASES: dict[Outcome, HookPhase] = {
    Outcome.PROMOTED: "after_promotion",
    Outcome.ROLLED_BACK: "after_rollback",
}

READER = "hooks"
"""What its place in the stream is kept under; that of a service under `hooks/SERVICE`."""

LOOK = 1.0
"""Seconds between looks when there is nothing new."""

_until_it_answers = stamina.AsyncRetryingCaller(
    attempts=None, timeout=None, wait_initial=1.0, wait_max=15.0
).on(lambda error: isinstance(error, Fault) and not isinstance(error, Refused | Stale))


class Afterwards:
    """Tells every hook, with its timeout and its retries; one that fails is logged, and the next one is told.

    Args:
        hooks: Those of a service, as they are configured now.
    """

    def __init__(
        self,
        runner: HookRunner,
        journal: Journal,
        bookmarks: Bookmarks,
        hooks: Callable[[str], Sequence[Hook]],
    ) -> None:
        self._runner = runner
        self._journal = journal
        self._bookmarks = bookmarks
        self._hooks = hooks

    async def run(self) -> None:
        """Tell, for ever. Where there is no bookmark it begins with what happens from now on.

        Raises:
            Fault: Redis did not answer at the beginning; later on it is waited for, so that no hook is
                interrupted.
        """
        after = await self._bookmarks.bookmark(READER) or await self._journal.last_event_id()
        noted = ""
        under_way: dict[str, asyncio.Task[None]] = {}  # by the entry before that of its event, oldest first
        last: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                page: list[tuple[str, Event]] = []
                try:
                    page = await self._journal.events_after(after)
                    for entry, event in page:
                        if isinstance(event, ReleaseEnded) and self._for(event):
                            work = self._tell(event, last.get(event.service))
                            task = group.create_task(work, name=f"hooks of {event.release}")
                            under_way[after] = last[event.service] = task
                        after = entry
                    under_way = {before: task for before, task in under_way.items() if not task.done()}
                    begin = next(iter(under_way), after)
                    if begin != noted:
                        await self._bookmarks.set_bookmark(READER, begin)
                        noted = begin
                except Fault as error:
                    log.warning("hooks_wait", reason=str(error))
                if not page:
                    await asyncio.sleep(LOOK)

    async def _tell(self, event: ReleaseEnded, before: asyncio.Task[None] | None) -> None:
        """Tell all hooks of an event, after those of an earlier one; never raises."""
        if before is not None:
            await asyncio.wait([before])
        try:
            await self._tell_rest(event)
        except Exception:
            log.exception("hooks_failed", service=event.service, release=event.release)

    async def _tell_rest(self, event: ReleaseEnded) -> None:
        """Tell those that have not been told yet.

        Raises:
            Refused: The state is damaged.
        """
        state, _ = await _until_it_answers(self._journal.load, event.service)
        ended = next(iter(state.journeys(event.release)), None)
        if ended is None:
            return
        mark = f"{READER}/{event.service}"
        told = await _until_it_answers(self._bookmarks.bookmark, mark)
        more = {"outcome": event.outcome.value, "actor": event.actor, "because": event.reason}
        for hook in _rest(event, self._for(event), told):
            key = f"{event.release}:{hook.at}:{int(event.at * 1000)}:{hook.name}"
            await self._runner.ask(HookCall(key=key, hook=hook, release=ended.release), more)
            await _until_it_answers(self._bookmarks.set_bookmark, mark, f"{_when(event)} {hook.name}")

    def _for(self, event: ReleaseEnded) -> list[Hook]:
        phase = PHASES.get(event.outcome)
        return [hook for hook in self._hooks(event.service) if hook.at == phase]


def _when(event: ReleaseEnded) -> str:
    """The time of an event, so that later ones sort after it, and which it is."""
    return f"{event.at:017.6f} {event.release}"


def _rest(event: ReleaseEnded, hooks: Sequence[Hook], told: str) -> Sequence[Hook]:
    """The hooks of an event that come after the last one of its service that was told."""
    when, _, name = told.rpartition(" ")
    names = [hook.name for hook in hooks]
    if when == _when(event) and name in names:
        return hooks[names.index(name) + 1 :]
    return hooks if when.partition(" ")[0] <= f"{event.at:017.6f}" else []
