"""Pulling from a real registry that wants credentials."""

import base64
import json
import random
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from examples.playground.stack import free_port
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


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[int]:
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
    yield port
    process.kill()
    process.wait()


@pytest.fixture
async def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[DockerRuntime]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    client = DockerClient()
    owner = f"r{random.randrange(16**8):08x}"
    found = DockerRuntime(client, Network(owner, "10.251.0.0/24"), owner, lambda: 1)
    yield found
    await found.close()
    client.close()


async def test_a_tag_is_pulled_with_credentials_and_becomes_a_digest(
    registry: int, runtime: DockerRuntime, images: Images, docker_client: docker.DockerClient, tmp_path: Path
) -> None:
    repository = f"127.0.0.1:{registry}/team/api"
    image = docker_client.images.get(images("v1"))
    image.tag(repository, "1.0")
    credentials = {"username": "ci", "password": "secret"}
    pushed = docker_client.images.push(repository, "1.0", auth_config=credentials)
    assert "digest" in pushed, pushed
    docker_client.images.remove(f"{repository}:1.0")

    refused = await runtime.resolve(f"{repository}:1.0")
    assert refused.digest == ""
    assert "no basic auth credentials" in refused.error or "unauthorized" in refused.error

    (tmp_path / "docker").mkdir()
    auth = base64.b64encode(b"ci:secret").decode()
    (tmp_path / "docker" / "config.json").write_text(
        json.dumps({"auths": {f"127.0.0.1:{registry}": {"auth": auth}}})
    )
    found = await runtime.resolve(f"{repository}:1.0")
    assert found.error == ""
    assert found.digest.startswith(f"{repository}@sha256:")
    again = await runtime.resolve(found.digest)
    assert again.digest == found.digest
    missing = await runtime.resolve(f"{repository}:2.0")
    assert "manifest unknown" in missing.error
    await runtime.remove_images([found.digest])
