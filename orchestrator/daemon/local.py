"""What can be done on nginx' host with everything else down."""

from orchestrator.daemon.adapters import make_edge
from orchestrator.daemon.config import Config
from orchestrator.daemon.kept import KeptFiles
from orchestrator.ports.faults import Fault
from orchestrator.rollout.observation import LocalRollback
from orchestrator.runtime.client import DockerClient
from orchestrator.traffic.files import read
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.render import read_header, switch_path


async def reload_here(config: Config) -> None:
    """Let this host's nginx read its files again, so that no client and no rollout notices.

    Raises:
        Fault: nginx refuses, or does not take it.
    """
    docker = DockerClient(config.settings.docker.url)
    edge = make_edge(config.settings, docker, lambda _: EdgeOptions())  # no service's file is written
    try:
        await edge.reload()
    finally:
        await edge.close()
        docker.close()


async def roll_back_here(config: Config, service: str, actor: str, reason: str) -> tuple[LocalRollback, bool]:
    """Go back at this host's nginx alone; neither Redis nor a running daemon is needed.

    Returns:
        The rollback that holds, and whether it is one that was made before.

    Raises:
        Fault: There is nothing to go back to, or nginx does not serve it; or the service's file is wrong, so
            that nobody knows how it is served.
    """
    services = KeptFiles(config.settings.state_dir).services() | config.services
    folder, elsewhere = config.settings.nginx.directory, service not in services
    wrong = config.wrong(service) if elsewhere else ""
    if wrong or (elsewhere and not (folder / f"{service}.conf").is_file()):
        why = wrong or f"{service!r} is not known; there are: {', '.join(sorted(services))}"
        raise Fault(f"{why}; to go back all the same: touch {switch_path(str(folder), service)}")
    docker = DockerClient(config.settings.docker.url)
    edge = make_edge(config.settings, docker, lambda name: services[name].edge)
    try:
        if elsewhere:  # where the daemon runs, which alone has its file
            return LocalRollback(to=await edge.turn_back(service), actor=actor, reason=reason), False
        header = read_header(read(edge.file(service)) or "")
        done = await edge.retreat(service, actor, reason)
        return done, header is not None and header.on_disk is not None and header.on_disk.local == done
    finally:
        await edge.close()
        docker.close()
