"""`ports.Runtime` on the Docker Engine."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import structlog
from docker.errors import APIError, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.images import Image as DockerImage
from docker.types import LogConfig, Mount

from orchestrator.ports.faults import Fault
from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.model import Release
from orchestrator.rollout.observation import Image, Instance
from orchestrator.runtime.client import DockerClient, words
from orchestrator.runtime.fence import Fence
from orchestrator.runtime.labels import GRACE, INSTANCE, OWNER, SERVICE, Identity, identify, labels
from orchestrator.runtime.network import Network
from orchestrator.runtime.probe import Prober

log = structlog.get_logger()

LOOK_DEADLINE = 5.0
"""Seconds for one look; a rollback must not wait for a Docker that hangs."""

LOG_LINES = 20
LOG_DELAY, LOG_LOOKS = 0.3, 4
"""Seconds between looks at the log of a process that has just ended, and how often it is looked for there."""

ENDED = frozenset({"exited", "restarting"})
"""States of a process that ran and ended; a container that is only created, or is being removed, did not."""

START_TRIES = 3
CONFLICT = 409


class DockerRuntime:
    """Containers of one owner on one Docker Engine.

    Args:
        client: The SDK behind its executor.
        network: Where the instances live.
        owner: Marks what is ours; containers without this label are never touched.
        token: Gives the fencing token of the daemon.
        pull: When the registry is asked for a tag. `newer`: each time, and without an answer the image here
            counts; `missing`: for what is not on this host; `always`: each time, and it must answer.
    """

    def __init__(
        self,
        client: DockerClient,
        network: Network,
        owner: str,
        token: Callable[[], int],
        pull: str = "newer",
        pull_deadline: float = 600.0,
    ) -> None:
        self._docker = client
        self._network = network
        self._owner = owner
        self._token = token
        self._pull = pull
        self._pull_deadline = pull_deadline
        self._prober = Prober()
        self._fence = Fence(owner)
        self._addresses = threading.Lock()
        self._living: dict[str, set[tuple[str, str]]] = {}
        self._last_words: dict[tuple[str, str], str] = {}

    async def prepare(self) -> None:
        """Make sure that Docker answers, the network exists, and nobody newer drives.

        Raises:
            Stale: This Engine has seen a newer token.
        """

        def work(client: docker.DockerClient) -> None:
            self._network.ensure(client)
            self._fence.check(client, self._token())

        await self._docker.call(work)

    async def highest_token(self) -> int:
        """The highest fencing token that the Engine knows; 0 while it does not answer."""
        try:
            return await self._docker.call(self._fence.highest, LOOK_DEADLINE)
        except Fault:
            return 0

    async def observe(self, service: str) -> tuple[Instance, ...]:
        """See `ports.Runtime`."""
        found = await self._docker.call(lambda client: self._inspect(client, service), LOOK_DEADLINE)
        seen = await asyncio.gather(*(self._probed(identity, attrs) for identity, attrs in found))
        self._living[service] = {(i.container, i.started_at) for i in seen}
        known = set().union(*self._living.values())
        self._prober.forget(known)
        self._last_words = {p: logs for p, logs in self._last_words.items() if p in known}
        return tuple([await self._with_logs(i) if i.health != "ready" or not i.running else i for i in seen])

    def _inspect(self, client: docker.DockerClient, service: str) -> list[tuple[Identity, dict[str, Any]]]:
        filters = {"label": [f"{OWNER}={self._owner}", f"{SERVICE}={service}"]}
        found = []
        for summary in client.api.containers(all=True, filters=filters):
            try:
                attrs = client.api.inspect_container(summary["Id"])
            except NotFound:
                continue
            identity = identify(attrs["Config"]["Labels"] or {})
            if identity is not None:
                found.append((identity, attrs))
        return found

    async def cpu_seconds(self, service: str) -> dict[str, tuple[float, float]]:
        """See `ports.Usage`. The Engine takes up to a second to answer for each."""
        found = await self._docker.call(lambda client: self._inspect(client, service), LOOK_DEADLINE)

        async def used(container: str) -> tuple[float, float]:
            stats = await self._docker.call(
                lambda client: client.api.stats(container, stream=False, one_shot=True), slow=True
            )
            at = datetime.fromisoformat(stats["read"][:26].rstrip("Z") + "Z")
            return at.timestamp(), stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9

        running = {i.instance: attrs["Id"] for i, attrs in found if attrs["State"]["Running"]}
        counted = await asyncio.gather(*map(used, running.values()))
        return dict(zip(running, counted, strict=True))

    async def _probed(self, identity: Identity, attrs: dict[str, Any]) -> Instance:
        state = attrs["State"]
        endpoint = attrs["NetworkSettings"]["Networks"].get(self._network.name) or {}
        ip = endpoint.get("IPAddress") or ""
        running = bool(state["Running"]) and not state.get("Restarting", False)
        instance = Instance(
            name=identity.instance,
            release=identity.release,
            address=f"{ip}:{identity.port}" if ip else "",
            container=attrs["Id"],
            started_at=state["StartedAt"],
            running=running,
            described=identity.described,
            exit_code=state["ExitCode"] if state["Status"] in ENDED else None,
            oom_killed=bool(state.get("OOMKilled")),
            restarts=int(attrs.get("RestartCount") or 0),
            supervised=attrs["HostConfig"]["RestartPolicy"]["Name"] not in ("", "no"),
            detail=state.get("Error") or "",
        )
        if not running or not instance.address:
            return instance
        health, detail = await self._prober.probe(
            instance.container, instance.started_at, instance.address, identity.probe
        )
        return replace(instance, health=health, detail=detail)

    async def _with_logs(self, instance: Instance) -> Instance:
        """With the last log lines; those of a process that has ended are read once."""

        def tail(client: docker.DockerClient) -> str:
            raw = client.api.logs(instance.container, tail=LOG_LINES, stdout=True, stderr=True)
            return bytes(raw).decode("utf-8", "replace")

        process = (instance.container, instance.started_at)
        if not instance.running and process in self._last_words:
            return replace(instance, logs=self._last_words[process])
        try:
            logs = await self._docker.call(tail)
            for _ in range(LOG_LOOKS):  # Docker tells an exit before its log has been written
                if logs or instance.exit_code is None:
                    break
                await asyncio.sleep(LOG_DELAY)
                logs = await self._docker.call(tail)
        except Fault:
            return instance
        if instance.exit_code is not None:
            self._last_words[process] = logs
        return replace(instance, logs=logs)

    async def resolve(self, image: str) -> Image:
        """See `ports.Runtime`. What a digest names never changes: no registry is asked for what is here.

        Nor for what was built here, unless `always`: in a registry the name may be somebody else's.
        """

        def work(client: docker.DockerClient) -> Image:
            found, note = None, ""
            with contextlib.suppress(ImageNotFound):
                found = client.images.get(image)
            pinned = _pinned(found, image)
            moves = not image.startswith("sha256:") and "@" not in image
            asked = self._pull == "always" or (self._pull == "newer" and pinned)
            if found is None or (moves and asked):
                try:
                    self._pull_image(client, image)
                    found = client.images.get(image)
                except APIError as error:
                    if found is None or self._pull == "always":
                        return Image(error=words(error))
                    note = f"the registry did not give it, this host's image is taken: {words(error)}"
                    log.warning("image_not_asked", image=image, reason=words(error))
                pinned = _pinned(found, image)
            return Image(digest=pinned[0] if pinned else str(found.id), note=note)

        return await self._docker.call(work, self._pull_deadline, slow=True)

    def _pull_image(self, client: docker.DockerClient, image: str) -> None:
        """Pull with the credentials of Docker's own config file, and with the pull's own deadline."""
        puller = docker.APIClient(
            base_url=client.api.base_url if not client.api.base_url.startswith("http+docker") else None,
            timeout=int(self._pull_deadline),
        )
        try:
            for line in puller.pull(image, stream=True, decode=True):
                if "error" in line:
                    raise APIError(str(line["error"]))
        finally:
            puller.close()

    async def start(self, wanted: Wanted) -> None:
        """See `ports.Runtime`."""

        def work(client: docker.DockerClient) -> None:
            self._fence.check(client, self._token())
            preferred = self._clear(client, wanted)
            for attempt in range(1, START_TRIES + 1):
                with self._addresses:
                    container = self._create(client, wanted, preferred)
                if container is None:
                    return
                try:
                    container.start()
                except APIError as error:
                    container.remove(force=True)
                    taken = "address already in use" in words(error).lower()
                    if not taken or attempt == START_TRIES:
                        raise
                    preferred = ""
                else:
                    return

        await self._docker.call(work, 120.0, slow=True)

    def _clear(self, client: docker.DockerClient, wanted: Wanted) -> str:
        """Remove a dead container of this name; returns the address that it had.

        Raises:
            Fault: The name belongs to somebody else's container.
        """
        try:
            found = client.containers.get(self._container_name(wanted.name))
        except NotFound:
            return ""
        mine = found.labels.get(OWNER) == self._owner and found.labels.get(INSTANCE) == wanted.name
        if not mine:
            raise Fault(f"container name {found.name} is taken by a container that is not ours")
        if found.status == "running":
            runs = identify(found.labels)
            if runs is None or runs.described != wanted.release:
                raise Fault(f"{found.name} runs already, and it is not {wanted.release.id} as it is wanted")
            return ""
        endpoint = found.attrs["NetworkSettings"]["Networks"].get(self._network.name) or {}
        address = (endpoint.get("IPAMConfig") or {}).get("IPv4Address") or ""
        found.remove(force=True)
        return str(address)

    def _create(self, client: docker.DockerClient, wanted: Wanted, preferred: str) -> Container | None:
        """Create the container at a free static address; None when it exists and runs already."""
        address = self._network.free(self._taken(client), preferred)
        release, template = wanted.release, wanted.release.template
        settings: dict[str, Any] = {
            "name": self._container_name(wanted.name),
            "labels": labels(wanted, self._owner, self._token()),
            "environment": _environment(release),
            "user": template.user,
            "read_only": template.read_only,
            "tmpfs": dict.fromkeys(template.tmpfs, ""),
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": template.memory,
            "memswap_limit": template.memory,
            "nano_cpus": int(template.cpus * 1e9),
            "pids_limit": template.pids,
            "mounts": [
                Mount(target, source, type="bind", read_only=True) for source, target in template.secrets
            ],
            "log_config": LogConfig(type="json-file", config={"max-size": "10m", "max-file": "3"}),
            "restart_policy": {"Name": "unless-stopped"} if wanted.restart else {"Name": "no"},
            "network": self._network.name,
            "networking_config": {
                self._network.name: client.api.create_endpoint_config(ipv4_address=address)
            },
            "stop_signal": "SIGTERM",
        }
        try:
            return client.containers.create(
                release.digest, command=list(template.command) or None, **settings
            )
        except APIError as error:
            if error.status_code == CONFLICT and "name" in words(error):
                return None
            raise

    def _taken(self, client: docker.DockerClient) -> list[str]:
        taken = []
        for summary in client.api.containers(all=True, filters={"network": self._network.name}):
            endpoint = summary["NetworkSettings"]["Networks"].get(self._network.name) or {}
            fixed = (endpoint.get("IPAMConfig") or {}).get("IPv4Address")
            taken += [a for a in (endpoint.get("IPAddress"), fixed) if a]
        return taken

    def _container_name(self, instance: str) -> str:
        return f"{self._owner}-{instance}"

    async def supervise(self, name: str) -> None:
        """See `ports.Runtime`."""

        def work(client: docker.DockerClient) -> None:
            self._fence.check(client, self._token())
            policy: Any = {"Name": "unless-stopped", "MaximumRetryCount": 0}
            client.api.update_container(self._container_name(name), restart_policy=policy)

        await self._docker.call(work)

    async def stop(self, name: str) -> None:
        """See `ports.Runtime`."""

        def work(client: docker.DockerClient) -> None:
            self._fence.check(client, self._token())
            try:
                found = client.containers.get(self._container_name(name))
                if found.labels.get(OWNER) != self._owner:
                    return
                grace = float(found.labels.get(GRACE, "10"))
                if found.status == "running":
                    found.stop(timeout=max(int(grace), 1))
                found.remove(force=True)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != CONFLICT:
                    raise

        await self._docker.call(work, 600.0, slow=True)

    async def remove_images(self, digests: Sequence[str]) -> None:
        """See `ports.Images`."""

        def work(client: docker.DockerClient) -> None:
            self._fence.check(client, self._token())
            for digest in digests:
                try:
                    client.images.remove(digest)
                    log.info("image_removed", digest=digest)
                except APIError as error:
                    if error.status_code not in (404, CONFLICT):
                        raise

        await self._docker.call(work, 120.0, slow=True)

    async def close(self) -> None:
        """Close what is open."""
        await self._prober.close()


def _pinned(found: DockerImage | None, image: str) -> list[str]:
    """The digests by which the registry of a reference knows an image; none for one that was built here."""
    repository = image.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    known = found.attrs.get("RepoDigests") or [] if found is not None else []
    return [d for d in known if d.partition("@")[0] == repository]


def _environment(release: Release) -> dict[str, str]:
    """The file's lines, then the template's own, then what every instance is told of itself.

    Raises:
        Fault: The file can't be read; names the path.
    """
    template = release.template
    env: dict[str, str] = {}
    if template.env_file:
        try:
            lines = Path(template.env_file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise Fault(f"env_file {template.env_file}: {error.strerror}") from error
        for line in lines:
            name, found, value = line.strip().partition("=")
            if found and not name.startswith("#"):
                env[name] = value
    return {**env, **dict(template.env), "RELEASE": release.id, "SERVICE": release.service}
