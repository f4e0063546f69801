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
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.images import Image as DockerImage
from docker.types import LogConfig, Mount

from orchestrator.ports.faults import Away, Fault
from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.model import Release
from orchestrator.rollout.observation import Image, Instance
from orchestrator.runtime.client import DockerClient, Lane, words
from orchestrator.runtime.env_file import read_env_file
from orchestrator.runtime.fence import Fence
from orchestrator.runtime.labels import GRACE, INSTANCE, OWNER, SERVICE, Identity, identify, labels
from orchestrator.runtime.last_words import LastWords
from orchestrator.runtime.network import Network
from orchestrator.runtime.picture import Containers, Picture
from orchestrator.runtime.probe import Prober

log = structlog.get_logger()

LOOK_DEADLINE = 5.0
"""Seconds for one look; a rollback must not wait for a Docker that hangs."""

ENDED = frozenset({"exited", "restarting"})
"""States of a process that ran and ended; a container that is only created, or is being removed, did not."""

NOBODY = "65534:65534"
"""Who runs what says nothing, or root."""

NOWHERE = "; nor is it on this host"
"""What is added to the words of a registry where no image is here either."""

START_TRIES = 3
CONFLICT = 409


class DockerRuntime:
    """Containers of one owner on one Docker Engine.

    Attributes:
        picture: What is kept of the containers; nothing is while nobody listens to Docker's events.

    Args:
        client: The SDK behind its executor.
        network: Where the instances live.
        owner: Marks what is ours; containers without this label are never touched.
        token: Gives the fencing token of the daemon.
        pull: When the registry is asked for a tag. `newer`: each time, and without an answer the image here
            counts; `missing`: for what is not on this host; `always`: each time, and it must answer.
        probe_every: Seconds between two probes of an instance, however often it is observed.
    """

    def __init__(
        self,
        client: DockerClient,
        network: Network,
        owner: str,
        token: Callable[[], int],
        pull: str = "newer",
        pull_deadline: float = 600.0,
        probe_every: float = 0.0,
    ) -> None:
        self._docker = client
        self._network = network
        self._owner = owner
        self._token = token
        self._pull = pull
        self._pull_deadline = pull_deadline
        self.picture = Picture()
        self._prober = Prober(probe_every)
        self._fence = Fence(owner)
        self._addresses = threading.Lock()
        self._given: set[str] = set()
        self._living: dict[str, set[tuple[str, str]]] = {}
        self._last_words = LastWords(client)

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
        found = await self._inspected(service)
        seen = await asyncio.gather(*(self._seen(service, identity, attrs) for identity, attrs in found))
        before, now = self._living.get(service, set()), {(i.container, i.started_at) for i in seen}
        self._living[service] = now
        self._prober.forget(before - now)
        self._last_words.keep(service, [i for i in seen if not _well(i)])
        return tuple(seen)

    async def _seen(self, service: str, identity: Identity, attrs: dict[str, Any]) -> Instance:
        instance = await self._probed(identity, attrs)
        return (
            instance
            if _well(instance)
            else replace(instance, logs=await self._last_words.of(service, instance))
        )

    async def _inspected(self, service: str, lane: Lane = "look") -> Containers:
        """A service's containers, inspected side by side, or as they are kept."""
        kept = self.picture.of(service)
        if kept is not None:
            return kept
        mark = self.picture.mark(service)
        filters = {"label": [f"{OWNER}={self._owner}", f"{SERVICE}={service}"]}

        async def inspected(container: str) -> tuple[Identity, dict[str, Any]] | None:
            def work(client: docker.DockerClient) -> tuple[Identity, dict[str, Any]] | None:
                try:
                    attrs = client.api.inspect_container(container)
                except NotFound:
                    return None
                identity = identify(attrs["Config"]["Labels"] or {})
                return (identity, attrs) if identity is not None else None

            return await self._docker.call(work, lane=lane, about=service)

        try:
            async with asyncio.timeout(LOOK_DEADLINE):
                listed = await self._docker.call(
                    lambda client: client.api.containers(all=True, filters=filters), lane=lane, about=service
                )
                answers = await asyncio.gather(
                    *(inspected(summary["Id"]) for summary in listed), return_exceptions=True
                )
        except TimeoutError as error:
            raise Away(f"Docker did not answer within {LOOK_DEADLINE:.0f} s") from error
        found = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                found.append(answer)
        apart = self._told_apart(found)
        self.picture.keep(service, apart, mark)
        return apart

    def _told_apart(self, found: Containers) -> Containers:
        """One container an instance: what runs before what does not, then the one with the instance's name.

        Any other, as somebody's copy or the corpse of a renamed one, is `instance@id`, which nobody wants.
        """
        best: dict[str, tuple[bool, bool, str]] = {}
        for identity, attrs in found:
            named = attrs["Name"] == f"/{self._container_name(identity.instance)}"
            rank = (attrs["State"]["Running"], named, attrs["Id"])
            best[identity.instance] = max(best.get(identity.instance, rank), rank)
        return [
            (
                identity
                if attrs["Id"] == best[identity.instance][2]
                else replace(identity, instance=f"{identity.instance}@{attrs['Id'][:12]}"),
                attrs,
            )
            for identity, attrs in found
        ]

    async def cpu_seconds(self, service: str) -> dict[str, tuple[float, float]]:
        """See `ports.Usage`. The Engine takes up to a second to answer for each."""
        found = await self._inspected(service, "usage")

        async def used(container: str) -> tuple[float, float]:
            stats = await self._docker.call(
                lambda client: client.api.stats(container, stream=False, one_shot=True),
                lane="usage",
                about=service,
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

    async def resolve(self, image: str) -> Image:
        """See `ports.Runtime`. What a digest names never changes: no registry is asked for what is here.

        Nor for what was built here, unless `always`: in a registry the name may be somebody else's.
        """

        def look(client: docker.DockerClient) -> DockerImage | None:
            with contextlib.suppress(ImageNotFound):
                return client.images.get(image)
            return None

        def pull(client: docker.DockerClient) -> Image:
            try:
                self._pull_image(image)
                found = look(client)
            except APIError as error:
                return Image(error=words(error))
            return _image(found, image) if found else Image(error=f"{image} was pulled and is gone again")

        here = await self._docker.call(look)
        moves = not image.startswith("sha256:") and "@" not in image
        asked = self._pull == "always" or (self._pull == "newer" and _pinned(here, image))
        if here is not None and not (moves and asked):
            return _image(here, image)
        try:
            found = await self._docker.call(pull, self._pull_deadline, "pull", _repository(image))
        except Away as error:
            if here is None:
                raise Away(f"{error}{NOWHERE}") from error
            if self._pull == "always":
                raise
            found = Image(error=str(error))
        if found.error and here is None:
            return replace(found, error=f"{found.error}{NOWHERE}")
        if not found.error or here is None or self._pull == "always":
            return found
        log.warning("image_not_asked", image=image, reason=found.error)
        note = f"the registry did not give it, this host's image is taken: {found.error}"
        return replace(_image(here, image), note=note)

    def _pull_image(self, image: str) -> None:
        """Pull with the credentials that Docker's own config file has at this moment.

        Raises:
            APIError: The Engine, the registry or the helper for credentials refuses.
        """
        puller = self._docker.connect()
        try:
            lines = puller.api.pull(image, stream=True, decode=True)
        except APIError:
            raise
        except DockerException as error:  # of the helper that ~/.docker/config.json names
            raise APIError(str(error)) from error
        else:
            for line in lines:
                if "error" in line:
                    raise APIError(str(line["error"]))
        finally:
            puller.close()

    async def start(self, wanted: Wanted) -> None:
        """See `ports.Runtime`."""

        def work(client: docker.DockerClient) -> None:
            self._fence.check(client, self._token())
            for attempt in range(1, START_TRIES + 1):
                preferred = self._clear(client, wanted)
                if preferred is None:
                    return
                try:
                    self._run(client, wanted, preferred)
                except APIError as error:
                    if not _taken_meanwhile(error) or attempt == START_TRIES:
                        raise
                else:
                    return

        await self._act(work, 120.0, "start", wanted.release.service)

    async def _act(
        self, work: Callable[[docker.DockerClient], None], deadline: float, lane: Lane, service: str
    ) -> None:
        """Do something with a service's containers; the next look inspects them, however soon it is."""
        try:
            await self._docker.call(work, deadline, lane, service)
        finally:
            self.picture.changed(service)

    def _mine(self, client: docker.DockerClient, instance: str) -> list[Container]:
        """Our containers of an instance, whatever they are called; the one with its own name comes first.

        `instance@id` is one container alone, of which there should be none.
        """
        name, _, container = instance.partition("@")
        filters: dict[str, Any] = {"label": [f"{OWNER}={self._owner}", f"{INSTANCE}={name}"]}
        if container:
            filters["id"] = container
        found = client.containers.list(all=True, filters=filters, ignore_removed=True)
        return sorted(found, key=lambda c: c.name != self._container_name(name))

    def _clear(self, client: docker.DockerClient, wanted: Wanted) -> str | None:
        """Remove dead containers of an instance; returns the address that it had, None when one runs.

        Raises:
            Fault: Its name belongs to somebody else's container, or what runs is another release.
        """
        found = self._mine(client, wanted.name)
        running = next((c for c in found if c.status == "running"), None)
        if running is not None:
            runs = identify(running.labels)
            if runs is None or runs.described != wanted.release:
                raise Fault(f"{running.name} runs already, and it is not {wanted.release.id} as it is wanted")
            return None
        name = self._container_name(wanted.name)
        if not found or found[0].name != name:
            try:
                client.containers.get(name)
            except NotFound:
                pass
            else:
                raise Fault(f"container name {name} is taken by a container that is not ours")
        address = ""
        for dead in found:
            endpoint = dead.attrs["NetworkSettings"]["Networks"].get(self._network.name) or {}
            address = address or (endpoint.get("IPAMConfig") or {}).get("IPv4Address") or ""
            dead.remove(force=True, v=True)
        return str(address)

    def _run(self, client: docker.DockerClient, wanted: Wanted, preferred: str) -> None:
        container = self._create(client, wanted, preferred)
        try:
            container.start()
        except APIError:
            container.remove(force=True, v=True)
            raise

    def _create(self, client: docker.DockerClient, wanted: Wanted, preferred: str) -> Container:
        """Create the container at a free static address, the preferred one if it can be."""
        with self._addresses:  # not while it is created: that may take long, or hang
            address = self._network.free([*self._taken(client), *self._given], preferred)
            self._given.add(address)
        try:
            return self._create_at(client, wanted, address)
        finally:
            with self._addresses:
                self._given.discard(address)

    def _create_at(self, client: docker.DockerClient, wanted: Wanted, address: str) -> Container:
        release, template = wanted.release, wanted.release.template
        settings: dict[str, Any] = {
            "name": self._container_name(wanted.name),
            "labels": labels(wanted, self._owner, self._token()),
            "environment": _environment(release),
            "user": template.user or _user(client, release.digest),
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
        }
        return client.containers.create(release.digest, command=list(template.command) or None, **settings)

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
            found = self._mine(client, name)
            if not found:
                raise Fault(f"{name} is not there")
            for container in found:
                client.api.update_container(str(container.id), restart_policy=policy)

        await self._act(work, 30.0, "look", _service(name))

    async def stop(self, name: str) -> None:
        """See `ports.Runtime`."""

        def work(client: docker.DockerClient) -> None:
            self._fence.check(client, self._token())
            for found in self._mine(client, name):
                try:
                    grace = float(found.labels.get(GRACE, "10"))
                    if found.status == "running":
                        found.stop(timeout=max(int(grace), 1))
                    found.remove(force=True, v=True)
                except NotFound:
                    continue
                except APIError as error:
                    if error.status_code != CONFLICT:
                        raise

        await self._act(work, 600.0, "remove", _service(name))

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

        await self._docker.call(work, 120.0, "remove")

    async def close(self) -> None:
        """Close what is open."""
        await self._last_words.close()
        await self._prober.close()


def _well(instance: Instance) -> bool:
    return instance.running and instance.health == "ready"


def _taken_meanwhile(error: APIError) -> bool:
    """Whether somebody has taken the address, or the container's name, since it was free."""
    said = words(error).lower()
    return "address already in use" in said or (error.status_code == CONFLICT and "name" in said)


def _service(instance: str) -> str:
    """Whose an instance is, by its name."""
    return instance.rpartition("-")[0].rpartition("-")[0]


def _image(found: DockerImage, image: str) -> Image:
    """An image on this host, by the registry's digest where it has one."""
    return Image(digest=next(iter(_pinned(found, image)), str(found.id)))


def _pinned(found: DockerImage | None, image: str) -> list[str]:
    """The digests by which the registry of a reference knows an image; none for one that was built here."""
    known = found.attrs.get("RepoDigests") or [] if found is not None else []
    return [d for d in known if d.partition("@")[0] == _repository(image)]


def _repository(image: str) -> str:
    """A reference without its tag and digest."""
    repository = image.partition("@")[0]
    return repository.rpartition(":")[0] if ":" in repository.rpartition("/")[2] else repository


def _user(client: docker.DockerClient, image: str) -> str:
    """The image's own user, unless it is root."""
    config = (client.images.get(image).attrs or {}).get("Config") or {}
    user = str(config.get("User") or "")
    return NOBODY if user.partition(":")[0] in ("", "0", "root") else user


def _environment(release: Release) -> dict[str, str]:
    """What the file says, then the template, then what every instance is told of itself.

    Raises:
        Fault: The file is not right; names the path, and the line.
    """
    template = release.template
    env = read_env_file(Path(template.env_file)) if template.env_file else {}
    return {**env, **dict(template.env), "RELEASE": release.id, "SERVICE": release.service}
