"""Which instance gets which share: the route that a state and an observation lead to."""

import math
from dataclasses import dataclass, replace

from orchestrator.rollout.model import (
    BEFORE_TRAFFIC,
    FULL,
    Phase,
    Release,
    Rollout,
    Route,
    Server,
    ServiceState,
)
from orchestrator.rollout.observation import Edge, Instance, LocalRollback, Observation
from orchestrator.rollout.plan import current_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Percent of traffic by release, and the release that stands by as backup."""

    weights: tuple[tuple[Release, int], ...]
    backup: Release | None = None
    preview: Release | None = None


def shares(state: ServiceState) -> Shares:
    """The shares that a state asks for. At most two releases are named (I3)."""
    stable, rollout = state.stable, state.rollout
    if rollout is not None and rollout.phase in (Phase.SHIFTING, Phase.BAKING):
        weight = current_step(state, rollout).weight
        if stable is None or weight == FULL:
            return Shares(weights=((rollout.release, FULL),), backup=stable)
        return Shares(weights=((stable, FULL - weight), (rollout.release, weight)))
    if stable is None:
        return Shares(weights=())
    if rollout is None:
        return Shares(weights=((stable, FULL),), backup=state.previous)
    preview = rollout.release if rollout.phase is Phase.PREVIEW else None
    return Shares(weights=((stable, FULL),), backup=state.previous, preview=preview)


def down(name: str, instance: Instance | None) -> str:
    """Why an instance serves nobody, by itself alone; '' when it may."""
    if instance is None:
        return f"{name} is gone"
    if not instance.running:
        code = "" if instance.exit_code is None else f"exit code {instance.exit_code}"
        why = "out of memory" if instance.oom_killed else code
        return f"{name} died: {why}" if why else f"{name} does not run"
    return f"{name} fails its health probe" if instance.health == "unhealthy" else ""


def lost(server: Server, instance: Instance | None) -> str:
    """Why a server that is in the route must not get traffic any more; '' when it may."""
    why = down(server.instance, instance)
    if why or instance is None:
        return why
    if instance.container != server.container or instance.started_at != server.started_at:
        return f"{server.instance} was restarted"
    if instance.address != server.address:
        return f"{server.instance} has moved to {instance.address or 'no address'}"
    return ""


def usable(release: Release, route: Route, seen: Observation) -> list[Instance]:
    """A release's instances that may get traffic: new ones once ready, served ones until known to be bad.

    The difference matters after a restart of the daemon, which has not probed anything yet.
    """
    served = {s.instance: s for s in (*route.servers, *route.preview)}
    found = []
    for instance in sorted(seen.of(release.id), key=lambda i: i.name):
        server = served.get(instance.name)
        ready = instance.running and bool(instance.address) and instance.health == "ready"
        if ready or (server is not None and not lost(server, instance)):
            found.append(instance)
    return found


def _server(instance: Instance, weight: int, *, backup: bool = False) -> Server:
    return Server(
        address=instance.address,
        weight=weight,
        release=instance.release,
        instance=instance.name,
        container=instance.container,
        started_at=instance.started_at,
        backup=backup,
    )


def gone_back(edge: Edge) -> LocalRollback | None:
    """The rollback that the edge tells of: by its file, else by its switch.

    A switch that a daemon turned on says nothing once the route that it was for is served.
    """
    if edge.local is not None or edge.on_disk is None or not edge.switched_to:
        return edge.local
    if 0 < edge.switched_for <= edge.on_disk.route.generation:
        return None
    return LocalRollback(to=edge.switched_to, actor="host", reason="the rollback switch was on")


def unanswered(state: ServiceState, seen: Observation) -> LocalRollback | None:
    """The rollback on the host that the state has not followed yet; None when there is none."""
    disk = seen.edge.on_disk
    if disk is None or disk.local is None or disk.route.generation <= state.answered or state.removal:
        return None
    return disk.local if led_to(state, seen, disk.local.to) else None


def cut_off(state: ServiceState, seen: Observation) -> LocalRollback | None:
    """The rollback on the host that nginx tells of and its file does not; None where it tells of none.

    That nginx serves a newer route says nothing of where that leads.
    """
    edge, to = seen.edge, seen.edge.switched_to
    if (edge.served or 0) <= edge.floor or state.removal is not None or led_to(state, seen, to) is None:
        return None
    why = (
        f"nginx serves route {edge.served} and its file is of route {edge.floor}: on the host all users have"
        f" been taken back to {to}"
    )
    return LocalRollback(to=to, actor="host", reason=why)


def highest(state: ServiceState, edge: Edge) -> int:
    """The highest generation that is known; also one that nginx serves and does not tell of at this look."""
    return max(state.route.generation, edge.highest, state.overruled)


def led_to(state: ServiceState, seen: Observation, release: str) -> Release | None:
    """A release that somebody has gone back to; a store that has lost commits may not know what runs."""
    return state.known(release) or seen.described(state.service).get(release)


def _host_went_elsewhere(state: ServiceState, seen: Observation, wanted: Shares) -> bool:
    """Whether a rollback on the host stands that the state does not agree with yet: it is not undone."""
    local, rollout = seen.edge.local or cut_off(state, seen), state.rollout
    going = rollout is not None and rollout.phase is not Phase.ROLLING_BACK
    following = local is not None and going and rollout is not None and rollout.release.id == local.to
    if local is None or not (following or unanswered(state, seen)):
        return False
    return {release.id for release, _ in wanted.weights} != {local.to}


def may_be_served(rollout: Rollout, edge: Edge) -> bool:
    """Whether a candidate has traffic, by the state or, where the store has lost that, by the edge's file."""
    servers = edge.on_disk.route.servers if edge.on_disk else ()
    named = any(s.release == rollout.release.id for s in servers)
    return named or rollout.phase not in BEFORE_TRAFFIC


def alone(route: Route, release: str) -> tuple[Server, ...]:
    """The servers of one release in a route, as if it had all the traffic."""
    return tuple(replace(s, weight=1, backup=False) for s in route.servers if s.release == release)


def _back_unseen(state: ServiceState, seen: Observation, now: float) -> Route:
    route, rollout = state.route, state.rollout
    if rollout is not None and rollout.one_way:
        target: Release | None = rollout.release
    else:
        target = state.stable if rollout is not None and rollout.phase is Phase.ROLLING_BACK else None
    servers = alone(route, target.id) if target else ()
    if not servers or all(s.release == servers[0].release for s in route.servers):
        return route
    return Route(generation=highest(state, seen.edge) + 1, servers=servers, changed_at=now)


def _as_served(state: ServiceState, seen: Observation, wanted: set[str], now: float) -> Route:
    """The route as it is; what is served, where it names a release that is not wanted and never was."""
    route, disk = state.route, seen.edge.on_disk
    if state.confirmed == route.generation or disk is None or seen.edge.served != disk.route.generation:
        return route
    named, served = ({s.release for s in r.servers if not s.backup} for r in (route, disk.route))
    if not served or named <= wanted or not served <= wanted:
        return route
    return Route(generation=highest(state, seen.edge) + 1, servers=disk.route.servers, changed_at=now)


def next_route(state: ServiceState, seen: Observation, now: float) -> Route:
    """The route for this state, with the next generation if it differs from the committed one.

    A release that should have traffic and has no usable instance keeps the route as it is: sending all
    traffic to nobody is never better than sending it where it went (I1, I15). While Docker does not
    answer nothing is known of the instances, and the only change is back to those that nginx knows already.
    """
    route, wanted = state.route, shares(state)
    if state.unknown is not None or _host_went_elsewhere(state, seen, wanted):
        return route
    if not seen.runtime_ok:
        return _back_unseen(state, seen, now)
    pools = [(release, weight, usable(release, route, seen)) for release, weight in wanted.weights]
    if any(not pool for _, _, pool in pools):
        return _as_served(state, seen, {release.id for release, _, _ in pools}, now)
    counts = math.prod(len(pool) for _, _, pool in pools)
    raw = [weight * counts // len(pool) for _, weight, pool in pools]
    divisor = math.gcd(*raw) if raw else 1
    servers = [
        _server(instance, weight // divisor)
        for weight, (_, _, pool) in zip(raw, pools, strict=True)
        for instance in pool
    ]
    if wanted.backup is not None and servers:
        servers += [_server(i, 1, backup=True) for i in usable(wanted.backup, route, seen)]
    preview = tuple(_server(i, 1) for i in usable(wanted.preview, route, seen)) if wanted.preview else ()
    ours = bool(servers) or (state.removal is not None and not route.gone)
    local = seen.edge.local is not None and seen.edge.highest == route.generation
    ahead = ours and (local or highest(state, seen.edge) > route.generation)
    if tuple(servers) == route.servers and preview == route.preview and not ahead:
        return route
    generation = highest(state, seen.edge) + 1
    return Route(generation=generation, servers=tuple(servers), preview=preview, changed_at=now)
