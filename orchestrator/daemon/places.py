"""Where nginx takes a service's requests, compared as nginx compares: who would get those of another."""

import functools
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.daemon.nginx_section import IPV4, ServerSection
from orchestrator.traffic.files import text_of

ANY_NAME = "_"
"""Stands for whatever no other block of the address is asked for; nginx knows it as no name at all."""

_PORT = 80
"""nginx' own, of an address without one, whether it speaks TLS or not."""

_LOCAL = ("127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104
_HTTP = {"ssl", "proxy_protocol"}
"""What a `listen` says of all blocks of its address."""

_LISTEN = re.compile(r"^    listen (.+);\n    server_name (.+);$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """An address at which one `server` block listens.

    Attributes:
        host: An address as it is written canonically, or a word that may be any address.
        ports: The first and the last.
        names: What the block is asked for.
        speaks: Other than plain HTTP; one address speaks one way.
        first: Whether it says that it has the requests for all other names.
        file: Of nginx; the first by name has these where no block says so.
    """

    host: str
    ports: tuple[int, int]
    names: frozenset[str]
    speaks: frozenset[str]
    first: bool
    file: str

    def obstacle(self, other: "Place") -> str:
        """Why it can't be beside another service's, which is `{}`; '' if it can.

        Where it can't, nginx answers users of one by the other, or speaks to them as they do not expect.
        """
        if not (self._shares_port(other) and self._meets(other)):
            return ""
        same = self.host == other.host
        if same and self.speaks != other.speaks:
            return "speaks another protocol (TLS, proxy_protocol) than the address of {}"
        if self.names & other.names or (not same and ANY_NAME in self.names | other.names):
            return "is that of {}"
        if same and self.first and other.first:
            return "is default_server, as that of {}"
        missed = (ANY_NAME in self.names and not self.before(other)) or (
            ANY_NAME in other.names and not other.before(self)
        )
        if same and missed:
            return (
                "shares its address with that of {}, and the one with server_name _ has no other names there:"
                " write `default_server` behind its listen"
            )
        return ""

    def same_address(self, other: "Place") -> bool:
        """Whether it is the very one, so that what is said of it holds for both."""
        return self.host == other.host and self._shares_port(other)

    def _shares_port(self, other: "Place") -> bool:
        return self.ports[0] <= other.ports[1] and other.ports[0] <= self.ports[1]

    def before(self, other: "Place") -> bool:
        """Whether it has the requests for names that no block has."""
        return self.first or (not other.first and self.file < other.file)

    def _meets(self, other: "Place") -> bool:
        """Whether one connection can be to both addresses."""
        if self.host == other.host:
            return True
        versions = _version(self.host), _version(other.host)
        if None in versions:
            return not any(host.startswith("unix:") for host in (self.host, other.host))
        return versions[0] == versions[1] and any(p.host in _EVERYWHERE for p in (self, other))


def _version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def _listens(server: ServerSection | None) -> tuple[tuple[str, str], ...]:
    """What nginx' `listen`s say, each with its key."""
    if server is None or server.join:
        return ()
    if server.tls is None:
        return (("listen", server.listen),)
    plain = (("tls/redirect_from", server.tls.redirect_from),) if server.tls.redirect_from else ()
    return (("listen", f"{server.listen} ssl"), *plain)


def places(service: str, server: ServerSection | None) -> tuple[Place, ...]:
    """Those of a service's generated blocks."""
    names = server.server_name if server else ""
    return tuple(place for _, listen in _listens(server) for place in _of(service, listen, names))


def served(folder: Path, *endings: str) -> dict[str, tuple[Place, ...]]:
    """By service, those of nginx' files, which may have another `listen` than the service's own file.

    `endings`: of the files; by default also of those that are put back when nginx does not take a change.
    """
    found: dict[str, tuple[Place, ...]] = {}
    for path in sorted(p for p in folder.glob("*.*") if p.suffix in (endings or (".conf", ".good"))):
        blocks = _LISTEN.findall(text_of(path))[1:]  # the first is at the private listener
        more = (place for block in blocks for place in _of(path.stem, *block))
        found[path.stem] = (*found.get(path.stem, ()), *more)
    return found


def waiting(folder: Path, files: Mapping[str, ServerSection | None]) -> dict[str, str]:
    """Services that nginx has elsewhere than their file says, and what applies that."""
    return {
        name: f"nginx listens for {name} as {folder / name}.conf says, not as the service's file does; that"
        f" counts with the next change of its route: orchestrator restart {name}"
        for name, found in served(folder, ".conf").items()
        if name in files and set(found) != set(places(name, files[name]))
    }


@functools.lru_cache(maxsize=4096)  # each is compared with all others
def _of(service: str, listen: str, names: str) -> tuple[Place, ...]:
    words = listen.lower().split() or [str(_PORT)]
    wanted = frozenset(part for name in names.lower().split() for part in _name(name)) or {ANY_NAME}
    speaks, first = frozenset(_HTTP & set(words[1:])), not {"default_server", "default"}.isdisjoint(words[1:])
    hosts, ports = address(words[0])
    return tuple(Place(host, ports, frozenset(wanted), speaks, first, f"{service}.conf") for host in hosts)


def _name(name: str) -> tuple[str, ...]:
    """`.example.com` is two names."""
    return (name[1:], f"*{name}") if name.startswith(".") and len(name) > 1 else (name,)


def address(word: str) -> tuple[tuple[str, ...], tuple[int, int]]:
    """The hosts and the range of ports of nginx' `listen`."""
    if word.startswith("unix:"):
        return (word,), (0, 0)
    if re.fullmatch(r"[0-9]+(-[0-9]+)?", word):
        return _EVERYWHERE[:1], _range(word)
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::([0-9]+(?:-[0-9]+)?))?", word)
    host, ports = (match[1], match[2]) if match else (word, None)
    return _hosts(host), _range(ports or str(_PORT))


def _range(ports: str) -> tuple[int, int]:
    low, _, high = ports.partition("-")
    return int(low), int(high or low)


def _hosts(host: str) -> tuple[str, ...]:
    if host in ("", "*"):
        return _EVERYWHERE[:1]
    if host == "localhost":
        return _LOCAL
    if IPV4.fullmatch(host):
        return (".".join(str(int(part)) for part in host.split(".")),)
    try:
        return (str(ipaddress.IPv6Address(host.strip("[]"))),)
    except ValueError:
        return (host,)


def obstacle(
    name: str,
    server: ServerSection | None,
    other: str,
    its: ServerSection | None,
    nginx: Mapping[str, tuple[Place, ...]],
) -> str:
    """Why a block can't be beside another service's, in words for the person; '' when it can.

    `nginx`: see `served`.
    """
    if server is None:
        return ""
    for key, listen in _listens(server):
        for theirs, still in ((places(other, its), False), (nginx.get(other, ()), True)):
            mine = _of(name, listen, server.server_name)
            why = next(filter(None, (one.obstacle(two) for one in mine for two in theirs)), "")
            if why:
                until = ", until the next change of its route" if still else ""
                return f"{key} {listen}, server_name {server.server_name} {why.format(other)}{until}"
    if its is not None and (server.join or name) == (its.join or other):
        common = _paths(server) & _paths(its)
        if common:
            return f"path {min(common)} is that of {other}"
    return ""


def _paths(server: ServerSection) -> set[str]:
    return {server.path} | ({server.static.path} if server.static else set())
