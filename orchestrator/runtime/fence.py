"""The highest fencing token that an Engine has seen, kept by the Engine itself."""

import docker
import structlog
from docker.errors import APIError

from orchestrator.ports.faults import Stale
from orchestrator.runtime.labels import OWNER, TOKEN

log = structlog.get_logger()


class Fence:
    """An empty volume whose name holds the token: two daemons need not share anything but the Engine."""

    def __init__(self, owner: str) -> None:
        self._owner = owner

    def highest(self, client: docker.DockerClient) -> int:
        """The highest token that the Engine knows; 0 for a new one."""
        return max(self._known(client), default=0)

    def check(self, client: docker.DockerClient, token: int) -> None:
        """Refuse an older token than the Engine knows; make it remember a newer one.

        Raises:
            Stale: A newer daemon has driven this Engine.
        """
        known = self._known(client)
        highest = max(known, default=0)
        if highest > token:
            log.warning("stale_refused", token=token, engine_token=highest)
            raise Stale(f"the Docker Engine has seen token {highest}; token {token} is refused")
        if highest == token:
            return
        labels = {OWNER: self._owner, TOKEN: str(token)}
        client.api.create_volume(f"{self._owner}-token-{token}", labels=labels)
        for name in known.values():
            try:
                client.api.remove_volume(name)
            except APIError:
                log.info("fence_left", volume=name)

    def _known(self, client: docker.DockerClient) -> dict[int, str]:
        """Token to name of the volumes that are there."""
        found = client.api.volumes(filters={"label": f"{OWNER}={self._owner}"})["Volumes"] or []
        return {int((v["Labels"] or {}).get(TOKEN, "0")): str(v["Name"]) for v in found}
