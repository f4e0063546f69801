"""The project's own bridge network and the static addresses on it.

Static addresses lie outside the range that Docker gives out by itself, so that no other container can ever
answer at an address that the nginx configuration names.
"""

import ipaddress
from collections.abc import Iterable

import docker
from docker.errors import NotFound
from docker.types import IPAMConfig, IPAMPool

from orchestrator.ports.faults import Fault


class Network:
    """A bridge whose lower half is ours and whose upper half is Docker's."""

    def __init__(self, name: str, subnet: str) -> None:
        self.name = name
        self._net = ipaddress.ip_network(subnet)
        self._last = ""

    def ensure(self, client: docker.DockerClient) -> None:
        """Create the network if it is not there; refuse one with another subnet."""
        try:
            found = client.networks.get(self.name)
        except NotFound:
            halves = list(self._net.subnets(prefixlen_diff=1))
            pool = IPAMPool(subnet=str(self._net), iprange=str(halves[1]), gateway=str(self._net[1]))
            client.networks.create(self.name, driver="bridge", ipam=IPAMConfig(pool_configs=[pool]))
            return
        pools = (found.attrs or {}).get("IPAM", {}).get("Config") or []
        if not any(pool.get("Subnet") == str(self._net) for pool in pools):
            have = ", ".join(str(pool.get("Subnet")) for pool in pools)
            raise Fault(f"network {self.name} has subnet {have}, not {self._net}: set docker.subnet to it")
        ours, theirs = self._net.subnets(prefixlen_diff=1)
        for pool in pools:
            given = ipaddress.ip_network(str(pool.get("IPRange") or pool.get("Subnet")), strict=False)
            if given.version == ours.version and given.overlaps(ours):
                raise Fault(
                    f"network {self.name} gives any container that joins it an address of {given}, and those"
                    f" of {ours} are for instances alone: remove it and the daemon makes it, or make it with"
                    f" --ip-range {theirs}, or set docker.network to another name"
                )

    def free(self, taken: Iterable[str], preferred: str = "") -> str:
        """An address of the static half that is not taken; `preferred` if it is free.

        Goes round the half, so that an address is used again as late as possible: somebody may still have
        a connection to whoever had it.
        """
        used = set(taken)
        if preferred and preferred not in used:
            return preferred
        half = ipaddress.ip_network(str(next(iter(self._net.subnets(prefixlen_diff=1)))))
        hosts = [str(a) for a in half.hosts() if a != self._net[1]]
        start = hosts.index(self._last) + 1 if self._last in hosts else 0
        for address in (*hosts[start:], *hosts[:start]):
            if address not in used:
                self._last = address
                return address
        raise Fault(f"no free address is left in {half}: choose a larger docker.subnet")
