"""A ladder of comparisons on its own, without a service: what rehearsals and benches climb."""

from collections.abc import Mapping
from typing import Literal

from orchestrator.rollout.evidence import Block, Evidence, enter_step, harm, harm_of_all, hesitation, take
from orchestrator.rollout.model import FULL
from orchestrator.rollout.plan import compared_steps, tolerance_of
from orchestrator.rollout.policy import Policy, Step

End = Literal["promoted", "rolled_back", "held"]


class Trial:
    """A release that is only its counts. `held`: a person would have been asked."""

    def __init__(self, policy: Policy, begun: Mapping[str, Evidence]) -> None:
        self.policy = policy
        self.seconds = 0.0
        self.held = 0.0
        self.step = 0
        self.evidence = {n: enter_step(e, 0, compared_steps(policy)) for n, e in begun.items()}

    @property
    def rung(self) -> Step:
        """The step that it stands on."""
        return self.policy.steps[self.step]

    @property
    def share(self) -> float:
        """The candidate's share of the traffic, 0 to 1."""
        return self.rung.weight / FULL

    @property
    def worst(self) -> str:
        """The comparison that speaks most against the release."""
        found = [r for r in self.policy.comparisons if r.name in self.evidence]
        return max(found, key=lambda r: r.weight * harm(r, self.evidence[r.name])).name

    def see(self, blocks: Mapping[str, Block], seconds: float) -> End | None:
        """Take one scrape of every comparison; how it ended, or None while it goes on."""
        policy = self.policy
        began = self.seconds
        self.seconds, self.held = self.seconds + seconds, self.held + seconds
        for rule in policy.comparisons:
            if rule.name in blocks and began >= rule.warm_up:
                tolerance = tolerance_of(policy, self.step, rule)
                before = self.evidence[rule.name]
                self.evidence[rule.name] = take(rule, before, blocks[rule.name], policy.certainty, tolerance)
        found = self.evidence.values()
        if harm_of_all(policy.comparisons, found) >= 1.0 / policy.certainty.alpha:
            return "rolled_back"
        why = hesitation(
            policy.comparisons, found, policy.certainty, held=self.held, max_hold=self.rung.max_hold
        )
        if self.held >= self.rung.hold and not why:
            return self._climb()
        return "held" if self.held >= self.rung.deadline else None

    def _climb(self) -> End | None:
        self.step, self.held = self.step + 1, 0.0
        if self.rung.weight == FULL:
            return "promoted"
        steps = compared_steps(self.policy)
        self.evidence = {n: enter_step(e, self.step, steps) for n, e in self.evidence.items()}
        return None
