"""`ports.EdgeProcess` for an nginx that runs in a container."""

import docker
from docker.errors import NotFound

from orchestrator.ports.faults import Fault
from orchestrator.ports.traffic import Complaint, Workers, mentions_lua, reason_first
from orchestrator.runtime.client import DockerClient


class ContainerNginx:
    """nginx in a container, by the container's name. The files' folder must be mounted into it."""

    def __init__(self, client: DockerClient, name: str) -> None:
        self._docker = client
        self._name = name

    async def test(self) -> None:
        """See `ports.EdgeProcess`."""

        def work(client: docker.DockerClient) -> None:
            self._exec(client, ["nginx", "-t", "-q"])

        await self._docker.call(work)

    async def reload(self) -> None:
        """See `ports.EdgeProcess`."""

        def work(client: docker.DockerClient) -> None:
            self._exec(client, ["nginx", "-s", "reload"])

        await self._docker.call(work)

    async def complaint(self) -> Complaint:
        """See `ports.EdgeProcess`. Its error log may be anywhere: what it writes there is not read."""
        return Complaint()

    async def reopen(self) -> None:
        """See `ports.EdgeProcess`."""

        def work(client: docker.DockerClient) -> None:
            self._exec(client, ["nginx", "-s", "reopen"])

        await self._docker.call(work)

    async def has_lua(self) -> bool:
        """See `ports.EdgeProcess`."""

        def work(client: docker.DockerClient) -> str:
            return "".join(self._exec(client, ["nginx", how]) for how in ("-V", "-T"))

        return mentions_lua(await self._docker.call(work))

    async def workers(self) -> Workers:
        """See `ports.EdgeProcess`."""

        def work(client: docker.DockerClient) -> Workers:
            try:
                processes = client.api.top(self._name, "-eo pid,ppid,args")["Processes"] or []
            except NotFound:
                return Workers()
            return Workers.among({int(row[0]): (int(row[1]), " ".join(row[2:])) for row in processes})

        try:
            return await self._docker.call(work)
        except Fault:
            return Workers()

    def _exec(self, client: docker.DockerClient, command: list[str]) -> str:
        try:
            code, output = client.containers.get(self._name).exec_run(command)
        except NotFound as error:
            raise Fault(f"nginx container {self._name} is not there") from error
        shown = output.decode("utf-8", "replace").strip() if isinstance(output, bytes) else ""
        if code:
            raise Fault(f"{reason_first(shown)} ({self._name}: {' '.join(command)}: exit code {code})")
        return shown
