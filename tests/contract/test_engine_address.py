"""Which Engine is driven: every call goes to the one that the settings or the environment name."""

import ssl
from pathlib import Path

import pytest

from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.network import Network
from tests.authority import Authority
from tests.contract.front import Front


async def looks_and_pulls(url: str, front: Front) -> None:
    client = DockerClient(url)
    runtime = DockerRuntime(client, Network("n", "10.9.0.0/24"), "n", lambda: 1)
    assert await runtime.observe("api") == ()
    missing = await runtime.resolve("no-such-image:1")
    assert missing.error
    asked = [path.partition("?")[0].rpartition("v1.")[2].partition("/")[2] for path in front.asked]
    assert "containers/json" in asked
    assert "images/no-such-image:1/json" in asked
    assert "images/create" in asked
    await runtime.close()
    client.close()


@pytest.mark.parametrize("named", ["docker.url", "DOCKER_HOST"])
async def test_a_look_and_a_pull_both_go_to_the_socket_that_is_named(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = Front()
    async with front.at(tmp_path / "docker.sock") as url:
        monkeypatch.setenv("DOCKER_HOST", url if named == "DOCKER_HOST" else "unix:///no/such.sock")
        await looks_and_pulls(url if named == "docker.url" else "", front)


@pytest.mark.parametrize("named", ["docker.url", "DOCKER_HOST"])
async def test_a_look_and_a_pull_both_show_the_client_certificate(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    authority.issue(30, "localhost")
    (tmp_path / "ca.pem").write_text(authority.pem)
    (tmp_path / "chain.pem").rename(tmp_path / "cert.pem")
    wanted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
    wanted.verify_mode = ssl.CERT_REQUIRED
    wanted.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    for bundle in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(bundle, raising=False)
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    front = Front()
    async with front.with_tls(wanted) as url:
        monkeypatch.setenv("DOCKER_HOST", url if named == "DOCKER_HOST" else "tcp://localhost:1")
        await looks_and_pulls(url if named == "docker.url" else "", front)
