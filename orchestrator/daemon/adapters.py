"""The adapters that the settings describe, for the daemon and for verbs that need one of them."""

from collections.abc import Callable
from pathlib import Path

from orchestrator.analysis.prometheus import Prometheus
from orchestrator.daemon.clock import SystemClock
from orchestrator.daemon.section import secret_of
from orchestrator.daemon.settings import Settings
from orchestrator.ports.traffic import EdgeProcess
from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.nginx_container import ContainerNginx
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.process import HostNginx

REDIS_TIMEOUT = 2.5
"""Seconds for one answer of Redis; as long as a bad candidate may have to wait for its local rollback."""


def make_prometheus(settings: Settings, clock: SystemClock | None = None) -> Prometheus:
    """The Prometheus that the settings describe.

    Raises:
        Fault: The file with its token can't be read.
    """
    return Prometheus(
        settings.prometheus.url or "http://127.0.0.1:9090",
        clock or SystemClock(),
        timeout=settings.prometheus.timeout,
        headers=authorization(settings),
        discovery=settings.http.targets,
    )


def make_process(settings: Settings, docker: DockerClient) -> EdgeProcess:
    """The nginx that the settings describe."""
    nginx = settings.nginx
    if nginx.container:
        return ContainerNginx(docker, nginx.container)
    return HostNginx(
        binary=nginx.binary,
        conf=nginx.conf,
        pid_file=nginx.pid_file,
        reload_command=nginx.reload_command,
        test_command=nginx.test_command,
    )


def make_edge(settings: Settings, docker: DockerClient, options: Callable[[str], EdgeOptions]) -> NginxEdge:
    """The edge that the settings describe."""
    nginx = settings.nginx
    return NginxEdge(
        make_process(settings, docker),
        nginx.directory,
        options,
        listen=nginx.listen,
        probe=nginx.probe,
        confirm_deadline=nginx.confirm_deadline,
        closing_wait=nginx.closing_wait,
        mode=nginx.mode,
        seen_as=nginx.directory_in_container,
    )


def authorization(settings: Settings) -> dict[str, str]:
    """The headers of a question to Prometheus.

    Raises:
        Fault: The file with its token can't be read.
    """
    path: Path | None = settings.prometheus.bearer_file
    if path is None:
        return {}
    return {"Authorization": f"Bearer {secret_of(path, 'prometheus/bearer_file')}"}
