"""Whether the nginx of other hosts serve what is wanted, by what their agents say."""

from collections.abc import Mapping

from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor.check import Check
from orchestrator.ports.faults import Fault
from orchestrator.store.board import RedisBoard
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import connect
from orchestrator.traffic.words import told


async def edges(config: Config) -> list[Check]:
    """What is found of each edge that is known; that Redis does not answer is found elsewhere."""
    settings = config.settings
    if not (settings.edges.enabled and settings.redis.url):
        return []
    redis = connect(settings.redis.url, timeout=3.0)
    try:
        board = RedisBoard(redis, Keys(settings.redis.prefix), settings.edges.ttl)
        known, reports = await board.known(), await board.reports()
    except Fault:
        return []
    finally:
        await redis.aclose()
    return [check for name in known for check in heard(name, reports.get(name))]


def heard(name: str, said: Mapping[str, str] | None) -> list[Check]:
    """What an edge has said of its services; None where it has been silent for too long."""
    edge = f"edge {name}"
    if said is None:
        mend = f"systemctl start orchestrator there; or, if it is no more: orchestrator edges --forget {name}"
        return [Check(edge, False, "is away: its agent says nothing", mend)]
    wrong = {
        service: why
        for service, report in told(said).items()
        if (why := report.edge.error or report.edge.silence)
    }
    mend = "correct it on that host; its agent tries again by itself"
    checks = [Check(edge, False, f"{service}: {why}", mend) for service, why in wrong.items()]
    return checks or [Check(edge, True, f"serves {len(said)} services")]
