"""Send a request, read its answer, follow a release to its end, through outages of Redis and the daemon."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from typing import TypeVar

from orchestrator.cli.exits import OK, OUTCOMES, REFUSED, TIMED_OUT, USAGE
from orchestrator.cli.session import Output, err, escape, out
from orchestrator.cli.show import event_text
from orchestrator.ports.faults import Away, Conflict, Fault, Repeated
from orchestrator.ports.requests import Once
from orchestrator.rollout.events import (
    CommandAccepted,
    ConfigReloaded,
    Event,
    GatesLooked,
    ReleaseAccepted,
    ReleaseEnded,
    RequestRefused,
    RouteConfirmed,
    ServiceRemoved,
)
from orchestrator.rollout.model import Outcome
from orchestrator.rollout.told import standing, way_back
from orchestrator.store.codec import dump_event
from orchestrator.store.redis_store import RedisStore

T = TypeVar("T")
Answer = ReleaseAccepted | CommandAccepted | RequestRefused | ConfigReloaded

ANSWER = 10.0
"""Seconds that a running daemon gets to answer a request."""

AGAIN = 1.0
"""Seconds after which Redis is asked again where it did not answer."""

LAST_LOOK = 2.0
"""Seconds for a last look at how it stands, once the time is up."""

REMEMBER = 86400.0
"""Seconds for which Redis knows a request again that is sent a second time, as the first reply was lost."""


class Lost(Exception):  # noqa: N818  what happened to the request
    """Redis came back without the request."""


async def carry_out(
    store: RedisStore,
    fields: Mapping[str, str],
    *,
    wait: bool,
    timeout: float,
    output: Output,
    configured: Collection[str],
) -> int:
    """Ask for something and print the answer; with `wait`, follow it to its end.

    Args:
        store: Where requests are put down.
        fields: Those of the request; empty ones are left out.
        wait: Go on until what was asked for is over.
        timeout: Seconds for all of that; 0 is no limit. Without `wait` a daemon has `ANSWER` seconds.
        output: How to print.
        configured: The services that the configuration here has.

    Returns:
        The exit code: that of the outcome, or `TIMED_OUT` where it is not known; the words then say why.

    Raises:
        Fault: Nothing was asked: Redis did not answer from the beginning, or refused the request.
    """
    errand = _Errand(store, {name: value for name, value in fields.items() if value}, output)
    limit = timeout if wait else ANSWER
    try:
        async with asyncio.timeout(limit or None):
            await errand.send()
            answer = await errand.answer(patient=wait)
            code = errand.report(answer, configured)
            if wait and isinstance(answer, ReleaseAccepted | CommandAccepted) and not _is_over(answer):
                return await errand.follow(answer)
            return code
    except TimeoutError:
        err.print(f"[yellow]timed out[/] after {limit:g} s: {await errand.standing()}")
    except Fault as error:
        if isinstance(error, Conflict) or not errand.may_be_taken:
            raise
        err.print(f"[red]error[/]: {escape(str(error))}: {await errand.standing()}")
    except Lost:
        what = errand.release or "it"
        err.print(
            "[yellow]lost[/]: Redis came back without the request: its data was lost, or is that of an older"
            f" time. What becomes of {what} can't be followed: see `{errand.status}`"
        )
    return TIMED_OUT


class _Errand:
    """One request, and how far it has come.

    Attributes:
        request: Its id; '' until Redis has said that it has it.
        release: The release that it is about; '' until that is known.
        status: Where it can be looked at.
        may_be_taken: Whether Redis may have it.
    """

    def __init__(self, store: RedisStore, fields: Mapping[str, str], output: Output) -> None:
        self._store = store
        self._fields = fields
        self._output = output
        self._after = "0-0"
        self._away = False
        self._sent = self.may_be_taken = False
        self.service = fields.get("service", "")
        self.status = f"orchestrator status {self.service}".rstrip()
        self.request = self.release = ""
        self._answered = False

    async def send(self) -> None:
        """Put the request down, once: what may have been taken is known again by its nonce."""
        self._after = await self._store.last_event_id()
        self._sent = True
        once = Once(f"command line {secrets.token_hex(16)}", REMEMBER)
        try:
            self.request = await self._steadily(lambda: self._store.push(self._fields, once))
        except Repeated as error:
            self.request = error.request
        self.may_be_taken = True

    async def answer(self, *, patient: bool) -> Answer:
        """The answer of a daemon; where the patience is for longer than usual that is told."""
        began, told = asyncio.get_running_loop().time(), not patient
        async with contextlib.aclosing(self._events()) as events:
            async for event in events:
                if isinstance(event, Answer) and event.request == self.request:
                    self._answered, self.release = True, event.release
                    return event
                if not told and asyncio.get_running_loop().time() - began > ANSWER:
                    told = True
                    err.print(
                        "[yellow]waiting[/]: no daemon has answered yet; the request is kept until one does"
                    )
        raise AssertionError("events do not end")

    def report(self, answer: Answer, configured: Collection[str]) -> int:
        """Print the answer; returns the exit code so far."""
        refusal = answer.reason if isinstance(answer, RequestRefused) else None
        if self._output is Output.JSON:
            out.print(dump_event(answer).decode(), markup=False)
        elif isinstance(answer, ConfigReloaded):
            for line in answer.changes or ("nothing changes",):
                out.print(line, markup=False)
            for problem in answer.problems:
                err.print(f"[red]wrong[/]: {escape(problem)}")
        else:
            (out if refusal is None else err).print(f"{answer.release:<12} {event_text(answer)}")
        unknown = (refusal or "").startswith(f"service: {self.service!r} is not known")
        if unknown and self.service in configured:
            err.print(
                f"[yellow]hint[/]: {self.service} is in the configuration here, and the daemon has not read"
                " that yet: `orchestrator reload`, or `systemctl reload orchestrator`, then ask again"
            )
        if isinstance(answer, ConfigReloaded) and answer.problems:
            return USAGE
        return OK if refusal is None else REFUSED

    async def follow(self, answer: ReleaseAccepted | CommandAccepted) -> int:
        """Print what happens until it is over; returns the exit code of the outcome."""
        if isinstance(answer, ReleaseAccepted):
            if answer.frozen:
                err.print(f"[yellow]waiting[/] for `orchestrator unfreeze {self.service}`")
            if answer.duplicate and (code := await self._over()) is not None:
                return code
        async with contextlib.aclosing(self._events()) as events:
            async for event in events:
                if event is None or event.service != self.service:
                    continue
                if self.release and event.release != self.release:
                    continue
                self._show(event)
                if isinstance(event, ReleaseEnded) and (self.release or event.journey == "revert"):
                    return _code(answer, event)
                if isinstance(event, ServiceRemoved) or self._leads_back(event):
                    return OK
                if self._fields.get("verb") == "remove" and _calls_off(event):
                    return OUTCOMES[Outcome.ABORTED]
        raise AssertionError("events do not end")

    async def _over(self) -> int | None:
        """The exit code of a release that was asked for before; None where it goes on."""
        state, _ = await self._steadily(lambda: self._store.load(self.service))
        ended = state.journeys(self.release)
        if ended:
            return OUTCOMES[ended[-1].outcome]
        if state.known(self.release) is not None:
            return None
        err.print(
            f"[yellow]unknown[/]: {self.release} ended too long ago to be in the history of {self.service}"
        )
        return TIMED_OUT

    def _leads_back(self, event: Event) -> bool:
        """Whether a rollback is over without a rollout: from a route that nobody knows it leads to stable."""
        confirmed = isinstance(event, RouteConfirmed) and not event.release
        return confirmed and self._fields.get("verb") == "rollback"

    def _show(self, event: Event) -> None:
        if self._output is Output.JSON:
            out.print(dump_event(event).decode(), markup=False)
        elif not isinstance(event, GatesLooked):
            out.print(f"{event.release:<12} {event_text(event)}")

    async def standing(self) -> str:
        """What is known of it now."""
        if self._answered:
            return f"{await self._goes_on()}; see `{self.status}`"
        if not self._sent:
            return "nothing was asked for"
        if self.request:
            return "no daemon has answered; the request is kept until one does"
        return (
            "it is not known whether Redis has taken the request; if it has, a daemon carries it out:"
            f" see `{self.status}`"
        )

    async def _goes_on(self) -> str:
        """What the daemon goes on with."""
        what = f" of {self.release}" if self.release else ""
        match self._fields.get("verb"):
            case "rollback":
                going = f"the rollback{what} goes on until nginx has confirmed it"
            case "abort":
                going = f"the way back{what} goes on until nginx has confirmed it"
            case "remove":
                return (
                    f"the removal of {self.service} goes on; while nothing of it is gone"
                    f" `orchestrator abort {self.service}` calls it off"
                )
            case verb:
                going = f"the {verb}{what} goes on without this command"
        try:
            async with asyncio.timeout(LAST_LOOK):
                state, _ = await self._store.load(self.service)
        except (Fault, TimeoutError):
            return f"{going}; how it stands is not known, for Redis does not answer"
        if self._fields.get("verb") == "rollback":
            return escape(way_back(state) or going)
        return escape(standing(state, self.release))

    async def _events(self) -> AsyncGenerator[Event | None, None]:
        """What happens after the last event that was seen, through outages; None where nothing does.

        Raises:
            Lost: See there.
        """
        while True:
            try:
                if self._away and await self._store.pushed(self.request) is None:
                    raise Lost
                self._back()
                async for seen, event in self._store.events(self._after):
                    self._after = seen
                    yield event
            except Away as error:
                await self._gone(error)

    async def _steadily(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call again until Redis answers."""
        while True:
            try:
                found = await call()
            except Away as error:
                await self._gone(error)
            else:
                self._back()
                return found

    async def _gone(self, error: Away) -> None:
        if not self._away:
            err.print(f"[yellow]waiting[/]: {escape(str(error))}")
        self._away = self.may_be_taken = True
        await asyncio.sleep(AGAIN)

    def _back(self) -> None:
        if self._away:
            err.print("Redis answers again")
        self._away = False


def _calls_off(event: Event) -> bool:
    """Whether a removal ends with an event. A key that is sent again is accepted too, and changes nothing."""
    return isinstance(event, CommandAccepted) or (isinstance(event, ReleaseAccepted) and not event.duplicate)


def _is_over(answer: ReleaseAccepted | CommandAccepted) -> bool:
    """Whether nothing is left to wait for: a removal is called off at once, and leaves no release to end."""
    return isinstance(answer, CommandAccepted) and answer.verb == "abort" and not answer.release


def _code(answer: ReleaseAccepted | CommandAccepted, ended: ReleaseEnded) -> int:
    """The exit code of an end. A rollout that was to be taken back, and was, is what was asked for."""
    taken_back = isinstance(answer, CommandAccepted) and answer.release == ended.release
    return OK if taken_back and ended.outcome is not Outcome.PROMOTED else OUTCOMES[ended.outcome]
