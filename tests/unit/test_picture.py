"""What is kept of containers, against a world that changes at any moment of a look."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rollout.policy import Probe
from orchestrator.runtime.labels import SERVICE, Identity
from orchestrator.runtime.picture import FRESH, KEPT, Picture

SERVICES = ("api", "web")


def attrs(service: str, version: int) -> dict[str, Any]:
    networks = {"NetworkSettings": {"Networks": {"n": {"IPAddress": f"10.0.0.{version % 250}"}}}}
    return {"Id": service, "State": {"Status": "running"}, "Name": f"/{service}", **networks}


def listed(service: str, version: int) -> dict[str, Any]:
    found = attrs(service, version)
    return {**found, "State": "running", "Names": [f"/{service}"], "Labels": {SERVICE: service}}


def identity(service: str) -> Identity:
    return Identity(
        service=service, release="r", instance="i", port=1, grace=1.0, probe=Probe(), described=None
    )


class World:
    """Services whose containers have versions, and what is told of them."""

    def __init__(self) -> None:
        self.now, self.compared = 0.0, -FRESH
        self.picture = Picture(now=lambda: self.now)
        self.version = dict.fromkeys(SERVICES, 0)
        self.looks: dict[str, tuple[object, int]] = {}

    def do(self, act: str, service: str) -> None:
        match act:
            case "changes":
                self.version[service] += 1
                self.picture.changed(service)
            case "changes without a word":
                self.version[service] += 1
            case "look begins":
                self.looks[service] = (self.picture.mark(service), self.version[service])
            case "look ends" if service in self.looks:
                mark, version = self.looks.pop(service)
                self.picture.keep(service, [(identity(service), attrs(service, version))], mark)
            case "list":
                self.picture.compare([listed(s, v) for s, v in self.version.items()])
                self.compared = self.now
            case "lost":
                self.picture.lost()
                self.compared = -FRESH
            case "silent":
                self.picture.stale()
                self.compared = -FRESH
            case "time":
                self.now += 3.0

    def is_true(self, service: str) -> bool:
        """Whether what is kept of a service, if anything is, is as it is."""
        kept = self.picture.of(service)
        return kept is None or kept[0][1] == attrs(service, self.version[service])


MOSTLY = st.sampled_from(("api", "api", "api", "web"))

ACTS = ["changes", "look begins", "look ends", "list", "lost", "silent", "time"]
QUIET = ["changes without a word", "look begins", "look ends", "list", "time"]


@given(st.lists(st.tuples(st.sampled_from(ACTS), MOSTLY), min_size=30, max_size=60))
def test_what_is_kept_is_as_it_is_whenever_changes_are_told(acts: list[tuple[str, str]]) -> None:
    world = World()
    for act, service in acts:
        world.do(act, service)
        for one in SERVICES:
            assert world.is_true(one)
            if world.now - world.compared >= FRESH:
                assert world.picture.of(one) is None


@given(st.lists(st.tuples(st.sampled_from(QUIET), MOSTLY), min_size=30, max_size=60))
def test_a_list_of_all_finds_what_nobody_has_told(acts: list[tuple[str, str]]) -> None:
    world = World()
    for act, service in acts:
        world.do(act, service)
        if act == "list":
            assert all(map(world.is_true, SERVICES))


def test_what_nothing_speaks_against_is_kept_for_a_while() -> None:
    world = World()
    for act in ("list", "look begins", "look ends"):
        world.do(act, "api")
    assert world.picture.of("api") is not None
    assert world.picture.of("web") is None
    while world.now < KEPT:
        assert world.picture.of("api") is not None
        world.do("time", "api")
        world.do("list", "api")
    assert world.picture.of("api") is None
