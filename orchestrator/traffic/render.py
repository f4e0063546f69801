"""A route as an nginx file. Pure: everything that goes in is checked, nothing is free text."""

import functools
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from pydantic import TypeAdapter, ValidationError

from orchestrator.ports import Fault
from orchestrator.rollout.model import Route, Server
from orchestrator.rollout.observation import OnDisk

SERVICE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
HEADER = re.compile(
    r"# release-orchestrator service=(?P<service>\S+) generation=(?P<generation>[0-9]+)"
    r" token=(?P<token>[0-9]+) sha256=(?P<sha256>[0-9a-f]{64})",
    re.ASCII,
)

ABOUT = "# "
"""Begins the line of a file that tells in JSON what it serves: an `OnDisk`."""

_ON_DISK: TypeAdapter[OnDisk] = TypeAdapter(OnDisk)

PROXY_SNIPPET = """\
# Include this in the location that proxies to a service of release-orchestrator.
# Only connection errors and timeouts are retried, and only for idempotent requests. An application's own
# 5xx is never retried: that would hide a bad release from its gates. Three tries, because a candidate may
# die with both its instances; no more, so that a request which kills whoever answers can't reach them all.
proxy_http_version 1.1;
proxy_set_header Connection "";
proxy_set_header Host $host;
proxy_set_header X-Real-IP $remote_addr;
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
proxy_set_header X-Forwarded-Proto $scheme;
proxy_connect_timeout 1s;
proxy_next_upstream error timeout;
proxy_next_upstream_tries 3;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """A whole `server` block, for those who have none yet. `path` is the location that is proxied."""

    listen: str = "80"
    server_name: str = "_"
    path: str = "/"
    read_timeout: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOptions:
    """How one service is served.

    Attributes:
        method: How nginx chooses among servers.
        max_fails: Failed attempts that take a server out for `fail_timeout` seconds.
        keepalive: Idle connections to the servers that a worker keeps.
        server: The generated `server` block; None leaves it to the operator's own configuration.
    """

    method: str = "round_robin"
    max_fails: int = 1
    fail_timeout: int = 2
    keepalive: int = 32
    server: ServerBlock | None = None


SWITCH = """\
# Include this beside proxy.conf, then `proxy_pass http://$release_pool;`. While the file {switch} is there,
# every new request goes where a rollback leads, before any reload. `-f` must look at the disk each time.
open_file_cache off;
set $release_pool {service};
if (-f {switch}) {{
    set $release_pool {service}_back;
}}
"""

COUNTED = """\
# Include this beside proxy.conf, then `proxy_pass http://$release_pool;`. It tells when a request is over, so
# that an instance which is let go is stopped as soon as it has none.
set_by_lua_block $release_pool {{ ngx.ctx.release_counted = true return "{service}" }}
log_by_lua_block {{ {lua}.over("{service}") }}
"""

BALANCER = Path(__file__).with_name("balancer.lua").read_text(encoding="utf-8")
"""What chooses servers where nginx has the Lua module."""

TEMPLATE = """\
{% macro proxy() -%}
        include {{ folder }}/snippets/proxy.conf;
        include {{ folder }}/snippets/{{ service }}.conf;
        proxy_read_timeout {{ (options.server.read_timeout * 1000) | int }}ms;
        proxy_pass http://$release_pool;
{%- endmacro -%}
{% macro pool(name, servers, which) -%}
upstream {{ name }} {
{%- if secret %}
    server 0.0.0.1;  # never asked: the balancer chooses
    balancer_by_lua_block {
        {{ lua }}.balance("{{ service }}", "{{ which }}", {{ text }}, "{{ switch }}")
    }
{%- else %}
    zone {{ name }} 128k;
{%- if options.method == "least_conn" %}
    least_conn;
{%- endif %}
{%- for s in servers %}
    server {{ s.address }} weight={{ s.weight }} max_fails={{ options.max_fails }} \
fail_timeout={{ options.fail_timeout }}s{{ " backup" if s.backup }};  # {{ s.release }} {{ s.instance }}
{%- else %}
    server 127.0.0.1:1 down;  # no release yet
{%- endfor %}
{%- endif %}
    keepalive {{ options.keepalive }};
}
{%- endmacro -%}
{{ pool(service, route.servers, "main") }}
{{ pool(service ~ "_back", back, "back") }}
{% if route.preview or secret %}
{{ pool(service ~ "_preview", route.preview, "preview") }}
{% endif %}
server {
    listen {{ listen }};
    server_name {{ service }}.release-orchestrator.internal;
    access_log off;
    location = /generation {
        default_type text/plain;
{%- if secret %}
        content_by_lua_block {
            {{ lua }}.tell("{{ service }}", {{ text }}, "{{ shape }}", "{{ switch }}")
        }
    }
    location = /route {
        client_max_body_size 1m;
        client_body_buffer_size 1m;  # in memory: the balancer does not read files
        content_by_lua_block {
            {{ lua }}.take("{{ service }}", {{ text }}, "{{ secret }}")
        }
    }
{%- else %}
        open_file_cache off;
        if (-f {{ switch }}) {
            return 200 "{{ service }} {{ route.generation }} {{ token }} back";
        }
        return 200 "{{ service }} {{ route.generation }} {{ token }}";
    }
{%- endif %}
}
{% if options.server %}
server {
    listen {{ options.server.listen }};
    server_name {{ options.server.server_name }};
    location {{ options.server.path }} {
        # before a reload clients are asked to close their connections, so that none is closed on them
        error_page 418 = @{{ service }}_closing;
        if (-f {{ closing }}) {
            return 418;
        }
        {{ proxy() }}
    }
    location @{{ service }}_closing {
        keepalive_timeout 0;
        {{ proxy() }}
    }
}
{% endif %}
"""

_environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701
_template = _environment.from_string(TEMPLATE)


def probe_host(service: str) -> str:
    """The Host header that a service's generation is asked for with."""
    return f"{service}.release-orchestrator.internal"


def switch_path(folder: str, service: str) -> str:
    """The file that takes a service's traffic back while it is there."""
    return f"{folder}/switch/{service}"


def closing_path(folder: str) -> str:
    """The file that makes answers close their connection while it is there."""
    return f"{folder}/switch/.closing"


def location_snippet(service: str, folder: str, *, dynamic: bool) -> str:
    """What goes into a `location` beside the proxy snippet."""
    check_service(service)
    if dynamic:
        return COUNTED.format(service=service, lua=_lua(folder))
    return SWITCH.format(service=service, switch=switch_path(folder, service))


def balancer_path(folder: str) -> str:
    """The file that nginx' workers run; another version is another file, so that no worker mixes two."""
    version = hashlib.sha256(BALANCER.encode()).hexdigest()[:12]
    return f"{folder}/lua/balancer-{version}.lua"


def _lua(folder: str) -> str:
    return f'(package.loaded.release_orchestrator or dofile("{balancer_path(folder)}"))'


def route_text(route: Route, options: EdgeOptions, *, token: int, back: Sequence[Server] = ()) -> str:
    """A route as the balancer reads it."""
    lines = [f"generation {route.generation}", f"token {token}"]
    for pool, servers in (("main", route.servers), ("back", back), ("preview", route.preview)):
        for s in servers:
            check_server(s)
            host, _, port = s.address.rpartition(":")
            name, fails = f"{s.release} {s.instance}", f"{options.max_fails} {options.fail_timeout}"
            lines.append(f"{pool} {host} {port} {s.weight} {name} {int(s.backup)} {fails}")
    return "\n".join(lines)


def render(
    service: str,
    disk: OnDisk,
    options: EdgeOptions,
    *,
    token: int,
    listen: str,
    folder: str,
    back: Sequence[Server] = (),
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
        back: Where the traffic goes while the rollback switch is on; empty is no different from off.
        secret: Lets weights be changed in nginx' memory by whoever knows it; empty where a reload does it.

    Raises:
        Fault: A name or an address is not what it must be; nothing was rendered.
    """
    check_service(service)
    route = disk.route
    for server in (*route.servers, *route.preview, *back):
        check_server(server)
    about = _ON_DISK.dump_json(disk).decode()
    words = _words(service, options, listen=listen, folder=folder, secret=secret)
    words |= {"route": route, "back": back or route.servers, "token": int(token)}
    if secret:
        words["text"] = f"[==[{route_text(route, options, token=token, back=back)}]==]"
        words["shape"] = shape_of(service, options, listen=listen, folder=folder, secret=secret)
    body = f"{ABOUT}{about}\n" + _template.render(**words)
    digest = hashlib.sha256(body.encode()).hexdigest()
    about = f"service={service} generation={route.generation} token={token} sha256={digest}"
    notice = "# Written by the daemon: a change by hand is noticed and told."
    return f"# release-orchestrator {about}\n{notice}\n{body}"


def _words(service: str, options: EdgeOptions, *, listen: str, folder: str, secret: str) -> dict[str, Any]:
    """What the template needs, with an empty route."""
    return {
        "service": service,
        "options": options,
        "listen": listen,
        "folder": folder,
        "secret": secret,
        "switch": switch_path(folder, service),
        "closing": closing_path(folder),
        "lua": _lua(folder),
        "route": Route(),
        "back": (),
        "token": 0,
        "text": "",
        "shape": "",
    }


@functools.cache
def shape_of(service: str, options: EdgeOptions, *, listen: str, folder: str, secret: str) -> str:
    """What stays the same in a file while only the route changes: a file of this shape needs no reload."""
    words = _words(service, options, listen=listen, folder=folder, secret=secret)
    whole = f"{_template.render(**words)}{options.max_fails} {options.fail_timeout}"
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, and whether its body is the one that was written."""

    service: str
    generation: int
    token: int
    intact: bool
    on_disk: OnDisk | None


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
    line = body.partition("\n")[0]
    if not line.startswith(ABOUT):
        return None
    try:
        return _ON_DISK.validate_json(line.removeprefix(ABOUT))
    except ValidationError:
        return None


def check_service(service: str) -> None:
    """Refuse a name that is not a lower-case DNS label.

    Raises:
        Fault: It is not.
    """
    if not SERVICE.fullmatch(service):
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
