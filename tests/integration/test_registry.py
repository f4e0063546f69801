"""Pulling from a real registry that wants credentials, and what counts while it is away."""

import base64
import contextlib
import json
import random
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from examples.playground.lease import free_port
from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.network import Network
from tests.conftest import Images

CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}/registry}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: t, path: {root}/htpasswd}}}}
"""


CREDENTIALS = {"username": "ci", "password": "secret"}


@dataclass
class Registry:
    port: int
    process: subprocess.Popen[bytes]
    client: docker.DockerClient

    @property
    def repository(self) -> str:
        return f"127.0.0.1:{self.port}/team/api"

    def push(self, image: str, tag: str) -> None:
        """Push an image, and let this host forget that it had it."""
        self.client.images.get(image).tag(self.repository, tag)
        pushed = self.client.images.push(self.repository, tag, auth_config=CREDENTIALS)
        assert "digest" in pushed, pushed
        self.client.images.remove(f"{self.repository}:{tag}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def registry(tmp_path: Path, docker_client: docker.DockerClient) -> Iterator[Registry]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import crypt

        hashed = crypt.crypt("secret", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))
    (tmp_path / "htpasswd").write_text(f"ci:{hashed}\n")
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(root=tmp_path, port=port))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(1.0)
    found = Registry(port, process, docker_client)
    yield found
    found.stop()
    for tag in ("1.0", "latest"):
        with contextlib.suppress(docker.errors.ImageNotFound):
            docker_client.images.remove(f"{found.repository}:{tag}", force=True)


@pytest.fixture
async def runtimes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Callable[[str], DockerRuntime]]:
    """By their pull policies."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    client = DockerClient()
    owner = f"r{random.randrange(16**8):08x}"
    made = []

    def make(pull: str) -> DockerRuntime:
        made.append(DockerRuntime(client, Network(owner, "10.251.0.0/24"), owner, lambda: 1, pull))
        return made[-1]

    yield make
    for runtime in made:
        await runtime.close()
    client.close()


def log_in(registry: Registry, folder: Path) -> None:
    (folder / "docker").mkdir()
    auth = base64.b64encode(b"ci:secret").decode()
    auths = {f"127.0.0.1:{registry.port}": {"auth": auth}}
    (folder / "docker" / "config.json").write_text(json.dumps({"auths": auths}))


async def test_a_tag_is_pulled_with_credentials_and_becomes_a_digest(
    registry: Registry, runtimes: Callable[[str], DockerRuntime], images: Images, tmp_path: Path
) -> None:
    runtime, repository = runtimes("newer"), registry.repository
    registry.push(images("v1"), "1.0")
    refused = await runtime.resolve(f"{repository}:1.0")
    assert refused.digest == ""
    assert "no basic auth credentials" in refused.error or "unauthorized" in refused.error

    log_in(registry, tmp_path)
    found = await runtime.resolve(f"{repository}:1.0")
    assert (found.error, found.note) == ("", "")
    assert found.digest.startswith(f"{repository}@sha256:")
    again = await runtime.resolve(found.digest)
    assert again.digest == found.digest
    missing = await runtime.resolve(f"{repository}:2.0")
    assert "manifest unknown" in missing.error
    await runtime.remove_images([found.digest])


async def test_a_tag_that_has_moved_is_what_the_registry_says(
    registry: Registry, runtimes: Callable[[str], DockerRuntime], images: Images, tmp_path: Path
) -> None:
    log_in(registry, tmp_path)
    image = f"{registry.repository}:latest"
    registry.push(images("v1"), "latest")
    old = (await runtimes("newer").resolve(image)).digest
    registry.client.api.tag(image, registry.repository, "kept")
    registry.push(images("v2"), "latest")
    registry.client.api.tag(f"{registry.repository}:kept", registry.repository, "latest")
    registry.client.images.remove(f"{registry.repository}:kept")
    assert (await runtimes("missing").resolve(image)).digest == old  # this host still has the old one
    new = (await runtimes("newer").resolve(image)).digest
    assert new != old
    assert (await runtimes("newer").resolve(image)).digest == new
    assert (await runtimes("always").resolve(image)).digest == new


async def test_while_the_registry_is_away_what_this_host_has_counts_where_the_policy_says_so(
    registry: Registry, runtimes: Callable[[str], DockerRuntime], images: Images, tmp_path: Path
) -> None:
    log_in(registry, tmp_path)
    image = f"{registry.repository}:1.0"
    registry.push(images("v1"), "1.0")
    found = await runtimes("newer").resolve(image)
    registry.stop()
    without = await runtimes("newer").resolve(image)
    assert (without.digest, without.error) == (found.digest, "")
    assert without.note.startswith("the registry did not give it, this host's image is taken: ")
    assert "connection refused" in without.note
    always = (await runtimes("always").resolve(image)).error
    assert "connection refused" in always
    assert "on this host" not in always
    for policy in ("missing", "newer", "always"):  # a digest never changes
        assert (await runtimes(policy).resolve(found.digest)).digest == found.digest
    nowhere = (await runtimes("newer").resolve(f"{registry.repository}:2.0")).error
    assert "connection refused" in nowhere
    assert nowhere.endswith("; nor is it on this host")


async def test_no_registry_is_asked_for_what_was_built_on_this_host(
    runtimes: Callable[[str], DockerRuntime], images: Images
) -> None:
    built = images("v1")
    found = await runtimes("newer").resolve(built)
    assert found.digest.startswith("sha256:")
    assert found.note == ""
    assert (await runtimes("always").resolve(found.digest)).digest == found.digest
