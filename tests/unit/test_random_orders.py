"""Whatever people, CI and the world do in whatever order: the invariants hold and everything ends."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.rollout.command import (
    Abort,
    Approve,
    Command,
    Freeze,
    Pause,
    Promote,
    Resume,
    Rollback,
    Unfreeze,
)
from orchestrator.rollout.policy import Preview
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from tests.builders import policy, submit
from tests.unit.sim import Behaviour, Sim

VERBS = st.sampled_from([Pause, Resume, Approve, Promote, Abort, Freeze, Unfreeze, Rollback])


class Orders(RuleBasedStateMachine):
    """`Sim` checks I3, I5, I6, I8, I9 and I14 after every decision."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Sim()
        self.sent: list[Command] = []
        self.number = 0

    def send(self, command: Command) -> None:
        self.sent.append(command)
        self.sim.send(command)

    def request(self) -> str:
        self.number += 1
        return f"{self.number}-0"

    @rule(
        action=st.sampled_from(["supersede", "queue", "reject"]),
        preview=st.sampled_from([None, Preview(hold=3.0), Preview(approve=True)]),
        errors=st.sampled_from([0.0, 0.0, 0.1]),
        exits=st.sampled_from([False, False, True]),
        key=st.sampled_from(["", "k1", "k2"]),
    )
    def release(self, action: str, preview: Preview | None, errors: float, exits: bool, key: str) -> None:
        new = f"api-{self.sim.state.released + 1}"
        self.sim.behaviours[new] = Behaviour(errors=errors, exits=exits)
        request = self.request()
        self.send(submit(1, request=request, key=key, policy=policy(on_new_release=action, preview=preview)))

    @rule(verb=VERBS)
    def command(self, verb: type[Command]) -> None:
        self.send(verb(request=self.request(), actor="ann", reason="r"))  # type: ignore[call-arg]

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        command = data.draw(st.sampled_from(self.sent))
        before = self.sim.state
        assert self.sim.send(command) == []
        assert self.sim.state == before

    @rule(seconds=st.integers(1, 30))
    def time(self, seconds: int) -> None:
        self.sim.run(seconds)

    @precondition(lambda self: self.sim.instances)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.sim.kill(data.draw(st.sampled_from(sorted(self.sim.instances))))

    @rule(up=st.booleans())
    def edge(self, up: bool) -> None:
        self.sim.edge_up = up

    @rule(up=st.booleans())
    def prometheus(self, up: bool) -> None:
        self.sim.prometheus_up = up

    @rule(up=st.booleans())
    def docker(self, up: bool) -> None:
        self.sim.runtime_ok = up

    @rule()
    def restart(self) -> None:
        """A restart forgets everything but what is committed."""
        self.sim.state = load_state(dump_state(self.sim.state))
        self.sim.readings.clear()

    @invariant()
    def state_and_events_survive_the_codec(self) -> None:
        assert load_state(dump_state(self.sim.state)) == self.sim.state
        for event in self.sim.events[-3:]:
            assert load_event(dump_event(event)) == event

    def teardown(self) -> None:
        """With the world mended and nobody interfering, everything comes to its end."""
        self.sim.edge_up = self.sim.prometheus_up = self.sim.runtime_ok = True
        for behaviour in self.sim.behaviours.values():
            behaviour.exits = False
        self.sim.send(Unfreeze(request=self.request(), actor="ann"))
        for _ in range(12):
            if self.sim.state.rollout is None and not self.sim.state.queue:
                break
            self.sim.run(100)
        assert self.sim.state.rollout is None
        assert not self.sim.state.queue
        self.sim.run(120)
        stable = self.sim.state.stable
        names = {i.name for i in self.sim.instances.values()}
        assert names == ({f"{stable.id}-0", f"{stable.id}-1"} if stable else set())


TestOrders = Orders.TestCase
TestOrders.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
