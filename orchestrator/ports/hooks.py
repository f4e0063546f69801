"""Who is asked before a release goes on."""

from typing import Protocol

from orchestrator.rollout.hooks import HookCall, HookResult


class Hooks(Protocol):
    """Who is asked before a release goes on."""

    async def ask(self, call: HookCall) -> HookResult:
        """What one hook says, after its retries; never raises."""
        ...
