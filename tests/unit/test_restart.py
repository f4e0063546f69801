"""Running stable's own image again as the service's file has it today."""

import pytest

from orchestrator.rollout.command import Freeze, Restart, Rollback
from orchestrator.rollout.desired import desired
from orchestrator.rollout.events import PhaseEntered, ReleaseAccepted, RequestRefused
from orchestrator.rollout.model import Outcome, Phase, ServiceState
from orchestrator.rollout.policy import Probe, Template, differences
from orchestrator.rollout.told import outdated
from tests.builders import policy, submit, template
from tests.unit.sim import Sim


def restart(**changes: object) -> Restart:
    given = {"request": "7-0", "actor": "ann", "template": template(), "policy": policy(), **changes}
    return Restart(**given)  # type: ignore[arg-type]


def test_a_restart_is_a_release_of_stables_digest_that_climbs_the_whole_ladder(sim: Sim) -> None:
    accepted, begun = sim.send(restart(reason="memory leak"))
    assert isinstance(accepted, ReleaseAccepted)
    assert (accepted.release, accepted.image, accepted.actor) == ("api-2", "repo/api:1", "ann")
    assert isinstance(begun, PhaseEntered)
    assert begun.phase is Phase.PREFLIGHT
    assert desired(sim.state, sim.now).image == "sha256:1", "its tag may name another image by now"
    rollout = sim.until_phase(Phase.SHIFTING)
    assert rollout.release.digest == "sha256:1"
    assert sim.share("api-2") == 5
    assert sim.until_ended("api-2").outcome is Outcome.PROMOTED
    assert sim.state.stable is not None
    assert (sim.state.stable.id, sim.state.stable.digest) == ("api-2", "sha256:1")


def test_a_restart_takes_the_template_and_the_policy_that_it_is_given(sim: Sim) -> None:
    sim.send(restart(template=template(instances=3), policy=policy(keep_previous=7.0)))
    sim.until_ended("api-2")
    assert {i.name for i in sim.instances.values()} >= {"api-2-0", "api-2-1", "api-2-2"}
    assert sim.state.stable is not None
    assert sim.state.stable.policy.keep_previous == 7.0


@pytest.mark.parametrize(
    ("asked", "changed", "reason"),
    [
        ("memory leak", {"instances": 3}, "memory leak"),
        ("", {"instances": 3, "env": (("A", "1"),)}, "configuration changed: instances, env"),
        ("", {}, "restart"),
    ],
)
def test_a_restart_says_why(sim: Sim, asked: str, changed: dict[str, object], reason: str) -> None:
    sim.send(restart(reason=asked, template=template(**changed)))
    assert sim.state.rollout is not None
    assert sim.state.rollout.release.reason == reason


def test_there_is_nothing_to_restart_where_nothing_is_stable() -> None:
    sim = Sim()
    (refused,) = sim.send(restart())
    assert isinstance(refused, RequestRefused)
    assert refused.verb == "restart"
    assert refused.reason == "api has no stable release to restart; release an image"
    assert sim.state == ServiceState(service="api", handled=("7-0",))


def test_a_restart_does_not_take_back_what_is_on_its_way(sim: Sim) -> None:
    sim.send(submit(2))
    (refused,) = sim.send(restart())
    assert isinstance(refused, RequestRefused)
    assert refused.reason == "api-2 is on its way; restart when it has ended"
    sim.until_phase(Phase.SHIFTING)
    (refused,) = sim.send(restart(request="8-0"))
    assert isinstance(refused, RequestRefused)
    assert refused.reason.startswith("api-2 is on its way")


def test_a_frozen_service_is_not_restarted(sim: Sim) -> None:
    sim.send(Freeze(request="6-0", actor="bob", reason="holidays"))
    (refused,) = sim.send(restart())
    assert isinstance(refused, RequestRefused)
    assert refused.reason == "api is frozen by bob: holidays; unfreeze it first"


def test_a_rollback_that_follows_at_once_ends_the_restart(sim: Sim) -> None:
    sim.send(restart())
    sim.send(Rollback(request="8-0", actor="bob"))
    assert sim.until_ended("api-2").outcome is Outcome.ABORTED
    assert sim.state.stable is not None
    assert sim.state.stable.id == "api-1"


def test_templates_differ_in_the_fields_that_differ() -> None:
    one = Template(port=8080)
    assert differences(one, one) == ()
    other = Template(port=8080, memory=1, instances=2, probe=Probe(path="/ready"))
    assert differences(one, other) == ("instances", "memory", "probe")


def test_stable_is_outdated_when_its_file_says_something_else(sim: Sim) -> None:
    assert outdated(sim.state, template()) == ""
    assert outdated(sim.state, None) == ""
    assert outdated(ServiceState(service="api"), template()) == ""
    changed = template(instances=3, env=(("A", "1"),))
    assert outdated(sim.state, changed) == "stable differs from its file: instances, env"
