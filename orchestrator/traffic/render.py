"""A route as an nginx file. Pure: everything that goes in is checked, nothing is free text."""

import functools
import hashlib
import ipaddress
import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import TypeAdapter, ValidationError

from orchestrator.ports.faults import Fault
from orchestrator.rollout.model import SERVICE_NAME, Route, Server
from orchestrator.rollout.observation import OnDisk
from orchestrator.traffic.audience import Sides, choice, sides
from orchestrator.traffic.options import Audience, EdgeOptions

HEADER = re.compile(
    r"# release-orchestrator service=(?P<service>\S+) generation=(?P<generation>[0-9]+)"
    r" token=(?P<token>[0-9]+) sha256=(?P<sha256>[0-9a-f]{64})",
    re.ASCII,
)

ABOUT = "# "
"""Begins the lines of a file that tell in JSON what it serves: an `OnDisk`."""

ABOUT_WIDTH = 2000
"""Characters in one of these lines; nginx refuses one that does not pass its buffer of 4096 bytes."""

HTTPS = 443
"""The port that an https URL need not name."""

_ON_DISK: TypeAdapter[OnDisk] = TypeAdapter(OnDisk)

_HERE = Path(__file__).parent
_environment = Environment(  # what goes in is checked: nothing is escaped
    loader=FileSystemLoader(_HERE / "templates"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701
    keep_trailing_newline=True,
)

PROXY_SNIPPET = (_HERE / "templates" / "proxy.conf").read_text(encoding="utf-8")
"""What a `location` that proxies to a service includes, whichever service it is."""

HTTP = (_HERE / "templates" / "http.conf").read_text(encoding="utf-8")
"""What the snippets need beside the services' files."""

BALANCER = (_HERE / "balancer.lua").read_text(encoding="utf-8")
"""What chooses servers where nginx has the Lua module."""


def probe_host(service: str) -> str:
    """The Host header that a service's generation is asked for with.

    The longest has 45 characters: nginx refuses names of more than 46 while its hash has its usual size.
    """
    return f"{service}.edge"


def switch_path(folder: str, service: str, to: str = "") -> str:
    """The file that takes a service's traffic back while it is there.

    `to`: a release; where a rollback leads elsewhere by what nginx serves, that file is not looked for.
    """
    return f"{folder}/switch/{service}.to.{to}" if to else f"{folder}/switch/{service}"


def maintenance_path(folder: str, service: str) -> str:
    """The file that answers for a service while it is there."""
    return f"{folder}/switch/{service}.maintenance"


def requests_path(folder: str) -> str:
    """The log of requests that are counted."""
    return f"{folder}/log/requests.log"


def closing_path(folder: str) -> str:
    """The file that makes answers close their connection while it is there."""
    return f"{folder}/switch/.closing"


def location_snippet(service: str, folder: str, options: EdgeOptions, *, dynamic: bool) -> str:
    """What goes into a `location` beside the proxy snippet."""
    check_service(service)
    words = _words(service, options, listen="", folder=folder, secret="lua" if dynamic else "")
    return _environment.get_template("snippet.conf").render(**words)


def joined_location(service: str, folder: str, options: EdgeOptions, *, dynamic: bool) -> str:
    """The location of a service that another one's `server` block includes."""
    check_service(service)
    words = _words(service, options, listen="", folder=folder, secret="lua" if dynamic else "")
    return _environment.get_template("location.conf").render(**words)


def balancer_path(folder: str) -> str:
    """The file that nginx' workers run; another version is another file, so that no worker mixes two."""
    version = hashlib.sha256(BALANCER.encode()).hexdigest()[:12]
    return f"{folder}/lua/balancer-{version}.lua"


def _lua(folder: str) -> str:
    return f'(package.loaded.release_orchestrator or dofile("{balancer_path(folder)}"))'


def route_text(disk: OnDisk, options: EdgeOptions, *, token: int) -> str:
    """A route as the balancer reads it."""
    route, who = disk.route, sides(disk) if options.audience else Sides()
    lines = [
        f"generation {route.generation}",
        f"token {token}",
        *([f"share {who.share}"] if who.share else []),
    ]
    local = route.servers if disk.local else ()
    pools = {"main": route.servers, "back": disk.back, "local": local, "preview": route.preview}
    for pool, servers in {**pools, "stable": who.stable, "candidate": who.candidate}.items():
        for s in servers:
            check_server(s)
            host, _, port = s.address.rpartition(":")
            name, fails = f"{s.release} {s.instance}", f"{options.max_fails} {options.fail_timeout}"
            lines.append(f"{pool} {host} {port} {s.weight} {name} {int(s.backup)} {fails}")
        lines += [
            f"{pool} {address.replace(':', ' ')} 1 - - 1 {options.max_fails} {options.fail_timeout}"
            for address in (options.backup if servers and pool in ("main", "back") else ())
        ]
    return "\n".join(lines)


def render(
    service: str,
    disk: OnDisk,
    options: EdgeOptions,
    *,
    token: int,
    listen: str,
    folder: str,
    secret: str = "",
) -> str:
    """The file for one service.

    Args:
        service: The service, which is the name of its upstream too.
        disk: What is to be served, and what the file tells of it.
        options: How.
        token: The fencing token of the daemon that asks.
        listen: The private address that answers with the generation.
        folder: Our folder as nginx sees it.
        secret: Lets weights be changed in nginx' memory by whoever knows it; empty where a reload does it.

    Raises:
        Fault: A name or an address is not what it must be; nothing was rendered.
    """
    check_service(service)
    route = disk.route
    for server in (*route.servers, *route.preview, *disk.back):
        check_server(server)
    about = _ON_DISK.dump_json(disk).decode()
    words = _words(service, options, listen=listen, folder=folder, secret=secret)
    route = _served(route, options)
    mark = mark_of(service, disk, options, token=token, listen=listen, folder=folder, secret=secret)
    to = next((server.release for server in disk.back if not server.backup), "")
    words |= {"route": route, "back": disk.back or route.servers, "to": to, "token": int(token), "mark": mark}
    if secret:
        lines = route_text(disk, options, token=token).split("\n")  # one literal must pass nginx' buffer
        words["text"] = f'table.concat({{{", ".join(f"[==[{line}]==]" for line in lines)}}}, "\\n")'
        words["shape"] = shape_of(service, options, listen=listen, folder=folder, secret=secret)
    else:
        chosen = choice(service, words["variable"], options.audience, sides(disk))
        pools = [(side, _served(Route(servers=found), options).servers) for side, found in chosen.sides]
        words |= {"maps": chosen.maps, "split": chosen.split, "sides": pools}
    abouts = [about[i : i + ABOUT_WIDTH] for i in range(0, len(about), ABOUT_WIDTH)]
    body = "".join(f"{ABOUT}{line}\n" for line in abouts) + _template.render(**words)
    return _signed(service, route.generation, token, body)


def tombstone(service: str, disk: OnDisk, token: int) -> str:
    """What is left of a removed service: what `read_header` reads of a file, and nothing for nginx."""
    return _signed(service, disk.route.generation, token, f"{ABOUT}{_ON_DISK.dump_json(disk).decode()}\n")


def _signed(service: str, generation: int, token: int, body: str) -> str:
    digest = hashlib.sha256(body.encode()).hexdigest()
    about = f"service={service} generation={generation} token={token} sha256={digest}"
    notice = "# Written by the daemon: a change by hand is noticed and told."
    return f"# release-orchestrator {about}\n{notice}\n{body}"


def _served(route: Route, options: EdgeOptions) -> Route:
    """`ip_hash` knows no backups."""
    if options.method != "ip_hash":
        return route
    return replace(route, servers=tuple(s for s in route.servers if not s.backup))


def _words(service: str, options: EdgeOptions, *, listen: str, folder: str, secret: str) -> dict[str, Any]:
    """What the templates need, with an empty route."""
    port = options.server.address[1] if options.server else HTTPS
    return {
        "service": service,
        "variable": _variable(service),
        "options": options,
        "server": options.server,
        "listen": listen,
        "probe_host": probe_host(service),
        "https_port": "" if port == HTTPS else f":{port}",
        "folder": folder,
        "secret": secret,
        "switch": switch_path(folder, service),
        "closing": closing_path(folder),
        "requests_log": requests_path(folder),
        "maintenance": maintenance_path(folder, service),
        "lua": _lua(folder),
        "audience": _audience(options.audience),
        "route": Route(),
        "back": (),
        "to": "",
        "sides": (),
        "maps": (),
        "split": None,
        "token": 0,
        "mark": "",
        "text": "",
        "shape": "",
    }


def _variable(service: str) -> str:
    """A service's name as the end of nginx variables, which may have 46 characters in all as hosts may."""
    name = service.replace("-", "_")
    if len(name) <= 24:  # noqa: PLR2004
        return name
    return f"{name[:15]}_{hashlib.sha256(service.encode()).hexdigest()[:8]}"


def _audience(audience: Audience | None) -> str:
    """As the balancer reads it."""
    if audience is None:
        return "nil"
    forced, sticky = (
        ", ".join(f'"{name}"' for name in names) for names in (audience.forced_by.values(), audience.sticky)
    )
    return f"{{ forced = {{ {forced} }}, sticky = {{ {sticky} }} }}"


_template = _environment.get_template("service.conf")


@functools.cache
def shape_of(service: str, options: EdgeOptions, *, listen: str, folder: str, secret: str) -> str:
    """What stays the same in a file while only the route changes: a file of this shape needs no reload."""
    words = _words(service, options, listen=listen, folder=folder, secret=secret)
    whole = f"{_template.render(**words)}{options}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def mark_of(
    service: str, disk: OnDisk, options: EdgeOptions, *, token: int, listen: str, folder: str, secret: str
) -> str:
    """What nginx shows of a file: of all that is in it, or of its shape where the route changes in memory."""
    shape = shape_of(service, options, listen=listen, folder=folder, secret=secret)
    if secret:
        return shape
    return hashlib.sha256(f"{shape} {token} {_ON_DISK.dump_json(disk)!r}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, and whether its body is the one that was written."""

    service: str
    generation: int
    token: int
    intact: bool
    on_disk: OnDisk | None


@functools.lru_cache(maxsize=4096)  # the same files are looked at again and again, three of a service
def read_header(text: str) -> Header | None:
    """The header of a file; None when it has none."""
    lines = text.split("\n", 2)
    match = HEADER.fullmatch(lines[0])
    if match is None:
        return None
    body = lines[2] if len(lines) == 3 else ""  # noqa: PLR2004  header, notice, body
    return Header(
        service=match["service"],
        generation=int(match["generation"]),
        token=int(match["token"]),
        intact=hashlib.sha256(body.encode()).hexdigest() == match["sha256"],
        on_disk=_on_disk(body),
    )


def _on_disk(body: str) -> OnDisk | None:
    lines = itertools.takewhile(lambda line: line.startswith(ABOUT), body.split("\n"))
    try:
        return _ON_DISK.validate_json("".join(line.removeprefix(ABOUT) for line in lines))
    except ValidationError:
        return None


def check_service(service: str) -> None:
    """Refuse a name that is not a lower-case DNS label.

    Raises:
        Fault: It is not.
    """
    if not SERVICE_NAME.fullmatch(service):
        raise Fault(f"service name {service!r} is not a lower-case DNS label of at most 40 characters")


def check_server(server: Server) -> None:
    """Refuse an address or a name that could say anything else to nginx.

    Raises:
        Fault: It could.
    """
    host, _, port = server.address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        right = port.isascii() and port.isdecimal() and 0 < int(port) < 65536  # noqa: PLR2004
    except ValueError:
        right = False
    if not right:
        raise Fault(f"{server.address!r} is not an address and port")
    if not isinstance(server.weight, int) or server.weight < 1:
        raise Fault(f"{server.weight!r} is not a weight")
    for name in (server.release, server.instance):
        if not re.fullmatch(r"[a-z0-9-]{1,80}", name, re.ASCII):
            raise Fault(f"{name!r} is not a name")
