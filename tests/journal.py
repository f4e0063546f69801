"""Which phase may follow which, as the journal must tell it (I11)."""

from orchestrator.rollout.model import Phase

NEXT: dict[Phase | None, set[Phase]] = {
    None: {Phase.PREFLIGHT},
    Phase.PREFLIGHT: {Phase.STARTING, Phase.BAKING},  # a rollback to a warm release starts nothing
    Phase.STARTING: {Phase.PREVIEW, Phase.SHIFTING, Phase.BAKING},
    Phase.PREVIEW: {Phase.SHIFTING, Phase.BAKING},
    Phase.SHIFTING: {Phase.SHIFTING, Phase.BAKING, Phase.ROLLING_BACK},
    Phase.BAKING: {Phase.ROLLING_BACK},
    Phase.ROLLING_BACK: set(),
}
