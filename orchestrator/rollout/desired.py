"""`desired`: which world a state wants. The engine makes the world so, and nothing else does."""

import math
from dataclasses import dataclass
from itertools import islice

from orchestrator.rollout.hooks import HookCall, due
from orchestrator.rollout.model import (
    BEFORE_TRAFFIC,
    Outcome,
    Phase,
    Release,
    Route,
    ServiceState,
    instance_name,
)
from orchestrator.rollout.route import alone

REPAIR_AFTER = 30.0
"""Seconds that a hand-edited file is left alone, so that a person in an emergency is not fought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One container that must or may exist.

    Attributes:
        create: Whether it is created when it is missing.
        restart: Whether it is started again when it has died, by the engine and by Docker.
    """

    name: str
    release: Release
    index: int
    create: bool
    restart: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that must be true outside for one service.

    Attributes:
        image: The reference that must be resolved, if any.
        instances: The containers; any other labelled one of the service is to be stopped.
        recreate: The instances that are to be stopped although they are wanted, to be made anew; nginx may
            still name one where no instance of its release is well.
        route: What nginx must serve.
        stable: The id of the stable release; empty when there is none.
        fallback: The route that a rollback on the host puts in place; it lies on the disk before the
            candidate gets traffic. None when there is nowhere to go back to.
        repair: Whether an edited file may be written over although nothing has changed.
        images: Digests that must stay on the host.
        stale_images: Digests that may be removed.
        hooks: Who has to be asked.
    """

    service: str
    route: Route
    image: str = ""
    instances: tuple[Wanted, ...] = ()
    recreate: frozenset[str] = frozenset()
    stable: str = ""
    fallback: Route | None = None
    repair: bool = False
    images: frozenset[str] = frozenset()
    stale_images: frozenset[str] = frozenset()
    hooks: tuple[HookCall, ...] = ()


def desired(state: ServiceState, now: float) -> World:
    """The world that a state wants at a time."""
    rollout = state.rollout
    image = ""
    if rollout is not None and rollout.phase is Phase.PREFLIGHT:
        image = rollout.release.digest or rollout.release.image
    drifted = state.drifted_since
    idle = rollout is None and state.confirmed == state.route.generation
    keep, stale = _images(state)
    return World(
        service=state.service,
        image=image,
        instances=_instances(state),
        recreate=_to_recreate(state),
        route=state.route,
        stable=state.stable.id if state.stable else "",
        fallback=_fallback(state),
        repair=idle and not state.dead and drifted is not None and now - drifted >= REPAIR_AFTER,
        images=keep,
        stale_images=stale,
        hooks=due(state),
    )


def _instances(state: ServiceState) -> tuple[Wanted, ...]:
    wanted: dict[str, Wanted] = {}

    def want(release: Release, *, create: bool, restart: bool) -> None:
        for index in range(release.template.instances):
            name = instance_name(release, index)
            wanted.setdefault(
                name, Wanted(name=name, release=release, index=index, create=create, restart=restart)
            )

    for kept in (state.stable, state.previous):
        if kept is not None:
            want(kept, create=True, restart=True)
    rollout = state.rollout
    if rollout is not None and rollout.phase is not Phase.PREFLIGHT:
        back = rollout.kind == "revert"  # a release that was good before is kept up like stable
        want(rollout.release, create=back or rollout.phase is Phase.STARTING, restart=back)
    for entry in state.retiring:
        want(entry.release, create=False, restart=False)
    return tuple(wanted.values())


def _to_recreate(state: ServiceState) -> frozenset[str]:
    """What is made anew and still hangs; nginx lets it go first, unless there is nobody else for users."""
    hung, servers = dict(state.hung), state.route.servers
    bad = {*state.dead, *hung}
    found = set()
    for one in state.anew:
        served = [s.instance for s in servers if s.release == one.release]
        free = one.instance not in served or bad.issuperset(served)
        if free and hung.get(one.instance, math.inf) <= one.at:
            found.add(one.instance)
    return frozenset(found)


def _fallback(state: ServiceState) -> Route | None:
    """Where a rollback on the host leads.

    To stable while a candidate has traffic, along with a revert that takes it, else to where a rollback of
    stable leads.
    """
    rollout = state.rollout
    if rollout is None or rollout.phase in BEFORE_TRAFFIC:
        target = state.earlier
    else:
        target = rollout.release if rollout.one_way else state.stable
    if target is None:
        return None
    servers = alone(state.route, target.id)
    if not servers:
        return None
    return Route(generation=state.route.generation, servers=servers)


def _images(state: ServiceState) -> tuple[frozenset[str], frozenset[str]]:
    live = [r for r in (state.stable, state.previous) if r is not None]
    live += [state.rollout.release] if state.rollout else []
    live += [r.release for r in state.retiring] + list(state.queue)
    policy = live[0].policy if live else None
    ended = [e for e in reversed(state.history) if e.outcome is not Outcome.REJECTED and e.release.digest]
    depth = policy.keep_images if policy else len(ended)
    known = dict.fromkeys(e.release.digest for e in ended)
    promoted = dict.fromkeys(e.release.digest for e in ended if e.outcome is Outcome.PROMOTED)
    recent = (*islice(known, depth), *islice(promoted, depth))  # failed ones push out none to go back to
    keep = frozenset((*(r.digest for r in live if r.digest), *recent))
    return keep, frozenset(known) - keep
