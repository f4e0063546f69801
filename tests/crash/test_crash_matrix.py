"""The daemon is killed before and after each of its effects, and once more while it recovers."""

from typing import get_args

import docker
import pytest

from orchestrator.rollout.events import Event
from orchestrator.rollout.model import Outcome, Phase
from tests.conftest import Images
from tests.crash.matrix import run

ELSEWHERE = {
    "gate_judged": "simulation: `bad`",
    "gates_looked": "simulation: every story",
    "instance_died": "simulation: `kill instance`",
    "instance_recovered": "simulation: `kill instance`",
    "approval_wanted": "a mark like `rollout_paused`, committed the same way",
    "rollout_paused": "the daemon's own pause; a person's is `command_accepted`",
    "edge_drifted": "no effect follows",
    "edge_repaired": "no effect follows",
    "edge_stuck": "no effect follows",
    "service_adopted": "test_lost_redis.py",
    "config_reloaded": "no effect follows",
    "service_removed": "test_life.py",
    "service_troubled": "no effect follows",
    "state_restored": "test_lost_redis.py",
    "phase=preview": "like `starting`",
    "outcome=rejected": "ends in the commit that accepts it",
    "outcome=superseded": "like `rolled_back`",
    "outcome=aborted": "like `rolled_back`",
    "outcome=failed": "simulation: `people`",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_kill_at_any_effect_loses_nothing(
    docker_client: docker.DockerClient, images: Images, moment: str
) -> None:
    report = await run(moment, images)
    assert report.lost == 0, report
    assert report.doubles > 5
    assert len(report.unreached) <= 3, report.unreached
    reached = " ".join(report.points)
    kinds = {e.__dataclass_fields__["kind"].default for e in get_args(Event)}
    kinds -= {"phase_entered", "release_ended", "request_refused"}
    kinds |= {f"phase={p}" for p in Phase} | {f"outcome={o}" for o in Outcome}
    without = {kind for kind in kinds if kind not in reached}
    assert without <= ELSEWHERE.keys(), f"no kill point for {without - ELSEWHERE.keys()}"
