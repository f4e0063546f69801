"""Who goes where: the pools of each release, and the nginx variables that choose among them. Pure.

A header or a cookie may name a release; users whom something tells apart stay where they are, by a hash that
is salted with the candidate's id, so that other users are first in the next release and one who has seen the
candidate keeps it while its share grows; all others are spread by weight, request by request.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orchestrator.rollout.model import Server
from orchestrator.rollout.observation import OnDisk
from orchestrator.traffic.options import Audience

WHOLE = 10_000
"""Parts that a share is counted in: nginx' `split_clients` knows hundredths of a percent."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The servers of stable and candidate, and the candidate's share in parts of `WHOLE`."""

    stable: tuple[Server, ...] = ()
    candidate: tuple[Server, ...] = ()
    share: int = 0

    def pools(self) -> Iterable[tuple[str, tuple[Server, ...]]]:
        """By name; those of the other release stand by where that may get traffic at all."""
        for name, own, other in (
            ("stable", self.stable, self.candidate if self.share else ()),
            ("candidate", self.candidate, self.stable),
        ):
            if own:
                yield name, (*own, *(replace(s, backup=True) for s in other))


def sides(disk: OnDisk) -> Sides:
    """Who is who in what is to be served."""
    servers = disk.route.servers
    stable = tuple(s for s in servers if s.release == disk.stable)
    shifted = tuple(s for s in servers if s.release != disk.stable and not s.backup)
    total = sum(s.weight for s in servers if not s.backup)
    share = round(WHOLE * sum(s.weight for s in shifted) / total) if total else 0
    even = [
        tuple(replace(s, weight=1, backup=False) for s in group)
        for group in (stable, shifted or disk.route.preview)
    ]
    return Sides(even[0], even[1], share)


@dataclass(frozen=True, slots=True)
class Map:
    """One `map` block: the first case whose pattern matches the source, or the default."""

    variable: str
    source: str
    default: str
    cases: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """One `split_clients` block."""

    salt: str
    key: str
    percent: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The blocks that choose a pool for a request; the last map's variable has its name."""

    maps: tuple[Map, ...]
    split: Split | None = None
    sides: tuple[tuple[str, tuple[Server, ...]], ...] = field(default=())


def choice(service: str, variable: str, audience: Audience | None, who: Sides) -> Choice:
    """What chooses a pool for each request of a service, by nginx alone.

    Args:
        service: Whose requests; the name of the pool of all its servers.
        variable: The service's name as a part of nginx variables.
        audience: What the operator wants; None leaves all to the weights.
        who: The releases.
    """
    maps: list[Map] = []
    split, result = None, service
    pools = tuple(who.pools()) if audience else ()
    if audience and audience.sticky and 0 < who.share < WHOLE and who.stable:
        key = "".join(f"${{{name}}}" for name in audience.sticky)
        split = Split(who.candidate[0].release, key, f"{who.share / 100:.2f}")
        maps.append(Map(f"release_sticky_{variable}", key, f"$release_split_{variable}", (('""', service),)))
        result = f"$release_sticky_{variable}"
    for kind, source in reversed(audience.forced_by.items() if audience else ()):
        cases = tuple(
            (f'"~*^(?:{name}|{servers[0].release})$"', f"{service}_{name}") for name, servers in pools
        )
        maps.append(Map(f"release_by_{kind}_{variable}", f"${{{source}}}", result, cases))
        result = f"$release_by_{kind}_{variable}"
    maps.append(Map(f"release_pool_{variable}", "", result))
    return Choice(tuple(maps), split, pools)
