"""nginx: whether it runs, reads our folder, and takes what the daemon would write."""

import stat
import tempfile
from pathlib import Path

from orchestrator.daemon.adapters import make_process
from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor.check import Check, status
from orchestrator.daemon.doctor.nginx_text import (
    Directive,
    directives,
    mistakes,
    taken_upstreams,
    unasked,
    uses,
)
from orchestrator.daemon.places import waiting
from orchestrator.daemon.settings import NginxSection
from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import RoutePlan, mentions_lua
from orchestrator.rollout.model import Route
from orchestrator.runtime.client import DockerClient
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.files import text_of
from orchestrator.traffic.process import HostNginx, end, orphans, run, without_master
from orchestrator.traffic.render import closing_path
from orchestrator.traffic.shared import LUA_MARK, Shared
from orchestrator.traffic.snippets import Snippets

ALONE = """\
{main}error_log stderr;
pid {folder}/nginx.pid;
events {{}}
http {{
    client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
    include {folder}/edge/*.conf;
}}
"""
"""A configuration of the daemon's files and nothing else; `main`: who nginx' workers are, and its modules."""


PUTS_BACK = "the daemon puts it back: within a second while it runs, else at its start"


async def nginx(config: Config) -> list[Check]:
    """Everything about this host's nginx."""
    section = config.settings.nginx
    client = DockerClient(config.settings.docker.url, timeout=5.0)
    process = make_process(config.settings, client)
    checks = folder(config)
    try:
        await process.test()
        checks.append(Check("nginx -t", True, "passes"))
    except Fault as error:
        ours = any(c.detail.split(" ")[0] in str(error) for c in checks if not c.ok)
        checks.append(Check("nginx -t", False, str(error), PUTS_BACK if ours else "correct what it names"))
    finally:
        client.close()
    servers = {name: service.nginx.server for name, service in config.services.items()}
    for name, text in waiting(section.directory, servers).items():
        checks.append(Check("nginx listen", False, text, f"orchestrator restart {name}"))
    if section.container:
        return checks
    running = bool((await process.workers()).accepting)
    shown = "runs" if running else f"does not run: no worker of the process in {section.pid_file} accepts"
    mend = "systemctl start nginx, or correct nginx/pid_file"
    if not running and (left := orphans()):
        mend = f"{end(left)}, then systemctl start nginx"
        shown = f"{shown}; {without_master(left)}"
    checks.append(Check("nginx", running, shown, mend))
    try:
        whole = await _whole(section)
    except Fault as error:
        told = not all(c.ok for c in checks if c.name == "nginx -t")  # of the same file
        return checks if told else [*checks, Check("nginx -T", False, str(error), "correct what it names")]
    included = f"{section.directory}/*.conf" in whole
    mend = f"add to http {{}}: include {section.directory}/*.conf;"
    shown = "reads" if included else "does not read"
    checks.append(Check("nginx include", included, f"{shown} {section.directory}/*.conf", mend))
    checks.append(weights(section.mode, whole))
    blocked = closed_to_others(section.directory)
    mend = f"chmod o+x {blocked}" if blocked else ""
    shown = f"nginx' workers can't reach {blocked}" if blocked else "nginx' workers see it"
    checks.append(Check("nginx switch", not blocked, shown, mend))
    bounded = "worker_shutdown_timeout" in whole
    mend = "add to the main context: worker_shutdown_timeout 60s;"
    checks.append(Check("nginx old workers", bounded, "bounded" if bounded else "may pile up", mend))
    found = directives(whole)
    return [*checks, *_beside_ours(config, found), *await _alone(config, found)]


async def _whole(section: NginxSection) -> str:
    """The configuration with all that it includes.

    Raises:
        Fault: nginx does not take it.
    """
    conf = ["-c", section.conf] if section.conf else []
    return await run([section.binary, "-T", "-q", *conf], 10.0)


async def named_elsewhere(config: Config, service: str) -> list[str]:
    """Where nginx' configuration outside our folder names a service, as far as it can be read."""
    section = config.settings.nginx
    if section.container:
        return []
    try:
        whole = await _whole(section)
    except Fault:
        return []
    return [f"{d.place}: {' '.join(d.words)};" for d in uses(directives(whole), section.directory, service)]


def folder(config: Config) -> list[Check]:
    """What our folder lacks, or has that the daemon does not write; one with nothing of ours is not begun."""
    place = config.settings.nginx.directory
    shared = Shared(place)
    shared.lua = any(LUA_MARK in text_of(path) for path in place.glob("*.conf"))
    snippets = Snippets(place, str(place))
    broken = [f"{path} {why}" for path, why in shared.lacking(shared.odd()).items()]
    for name, service in config.services.items():
        if (place / f"{name}.conf").is_file():
            broken += [f"{path} is missing" for path in snippets.missing(name, service.edge)]
    begun = any(path.exists() for path in (*shared.folders, *shared.texts) if path != place)
    if not broken or not begun:
        return [Check("nginx folder", True, f"{place} is {'whole' if begun else 'for the daemon to fill'}")]
    return [Check("nginx folder", False, text, PUTS_BACK) for text in broken]


def _beside_ours(config: Config, found: list[Directive]) -> list[Check]:
    """What the rest of nginx' configuration does to our files."""
    folder = config.settings.nginx.directory
    checks = [
        Check(
            "nginx upstream",
            False,
            f"{place}: upstream {name} is there already, and the daemon writes one of that name",
            "rename it there, or give the service another name",
        )
        for name, place in taken_upstreams(found, folder, config.names)
    ]
    checks += [Check("nginx locations", False, text, mend) for text, mend in mistakes(found, folder)]
    if not config.settings.nginx.closing_wait:  # nginx' own keepalive_min_timeout does it
        return checks
    mend = (
        f"let it `return 418` to a location with `keepalive_timeout 0` while {closing_path(str(folder))} is"
        " there: docs/how-to/nginx.md, the first example"
    )
    return [
        *checks,
        *(
            Check("nginx connections", False, f"{place}: a reload cuts the connections that are kept", mend)
            for place in unasked(found, folder, config.names)
        ),
    ]


async def _alone(config: Config, found: list[Directive]) -> list[Check]:
    """Whether nginx takes what the daemon would write, tested on a copy that nobody serves."""
    section = config.settings.nginx
    if not config.services or section.test_command:
        return []
    with tempfile.TemporaryDirectory(prefix="orchestrator-doctor-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        conf = folder / "nginx.conf"
        kept = [" ".join(d.words) for d in found if d.words[:1] in (("user",), ("load_module",))]
        main = "".join(f"{text};\n" for text in kept)
        conf.write_text(ALONE.format(folder=folder, main=main), encoding="utf-8")
        process = HostNginx(binary=section.binary, conf=str(conf))
        edge = NginxEdge(
            process,
            folder / "edge",
            lambda service: config.services[service].edge,
            listen=section.listen,
            mode="reload",
        )
        edge.prepare()
        try:
            for service in config.services:
                await edge.put_down(RoutePlan(service=service, route=Route()), 0)
            await process.test()
        except Fault as error:
            text = str(error).replace(f"{folder}/edge", str(section.directory))
            return [Check("nginx files", False, text, "correct it in the service's file")]
        finally:
            await edge.close()
    return [Check("nginx files", True, "what the daemon would write passes nginx -t")]


def weights(mode: str, whole: str) -> Check:
    """How weights change, by nginx' whole configuration."""
    lua = mentions_lua(whole)
    if mode == "dynamic" and not lua:
        mend = "apt-get install libnginx-mod-http-lua, or set nginx/mode: auto"
        return Check("nginx weights", False, "nginx/mode is dynamic and nginx has no Lua module", mend)
    if mode == "reload" or not lua:
        hint = "" if lua else "; with libnginx-mod-http-lua without one"
        return Check("nginx weights", True, f"change by a reload{hint}")
    return Check("nginx weights", True, "change in nginx' memory, without a reload")


def closed_to_others(folder: Path) -> Path | None:
    """The first folder on the way that an unprivileged worker can't pass through."""
    way = {p: status(p) for p in (*reversed(folder.parents), folder, folder / "switch")}
    modes = {p: found.st_mode for p, found in way.items() if not isinstance(found, OSError)}
    return next((p for p, mode in modes.items() if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH), None)
