"""Hooks that are told how a release ended; a reader of the event stream, so that none is forgotten."""

from collections.abc import Callable, Sequence

from orchestrator.hooks.runner import HookRunner
from orchestrator.ports.store import Journal
from orchestrator.rollout.events import Event, ReleaseEnded
from orchestrator.rollout.hooks import HookCall
from orchestrator.rollout.model import Outcome
from orchestrator.rollout.policy import Hook, HookPhase

PHASES: dict[Outcome, HookPhase] = {
    Outcome.PROMOTED: "after_promotion",
    Outcome.ROLLED_BACK: "after_rollback",
}


class Afterwards:
    """Tells every hook once, with its retries; one that fails is logged, and the next one is told.

    Args:
        hooks: Those of a service, as they are configured now.
    """

    name = "hooks"

    def __init__(self, runner: HookRunner, journal: Journal, hooks: Callable[[str], Sequence[Hook]]) -> None:
        self._runner = runner
        self._journal = journal
        self._hooks = hooks

    def wants(self, event: Event) -> bool:
        """Whether somebody has to be told."""
        return isinstance(event, ReleaseEnded) and bool(self._for(event))

    async def take(self, event: Event) -> None:
        """Tell them."""
        assert isinstance(event, ReleaseEnded)
        state, _ = await self._journal.load(event.service)
        ended = next(iter(state.journeys(event.release)), None)
        if ended is None:
            return
        more = {"outcome": event.outcome.value, "actor": event.actor, "because": event.reason}
        for hook in self._for(event):
            key = f"{event.release}:{hook.at}:{int(event.at * 1000)}:{hook.name}"
            await self._runner.ask(HookCall(key=key, hook=hook, release=ended.release), more)

    def _for(self, event: ReleaseEnded) -> list[Hook]:
        phase = PHASES.get(event.outcome)
        return [hook for hook in self._hooks(event.service) if hook.at == phase]
