"""What can be done on nginx' host with everything else down."""

from orchestrator.daemon.adapters import make_edge
from orchestrator.daemon.config import Config
from orchestrator.rollout.observation import LocalRollback
from orchestrator.runtime.client import DockerClient


async def reload_here(config: Config) -> None:
    """Let this host's nginx read its files again, so that no client and no rollout notices.

    Raises:
        Fault: nginx refuses, or does not take it.
    """
    docker = DockerClient(config.settings.docker.url)
    edge = make_edge(config.settings, docker, lambda name: config.services[name].edge())
    try:
        await edge.reload()
    finally:
        await edge.close()
        docker.close()


async def roll_back_here(config: Config, service: str, actor: str, reason: str) -> LocalRollback:
    """Go back at this host's nginx alone; neither Redis nor a running daemon is needed.

    Raises:
        Fault: There is nothing to go back to, or nginx does not serve it.
    """
    docker = DockerClient(config.settings.docker.url)
    edge = make_edge(config.settings, docker, lambda name: config.services[name].edge())
    try:
        return await edge.retreat(service, actor, reason)
    finally:
        await edge.close()
        docker.close()
