"""Images of `examples/gin-api`, built from Debian's Go packages: no registry, no module proxy."""

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import docker
from docker.errors import ImageNotFound

SOURCE = Path(__file__).parents[1] / "gin-api"
REPOSITORY = "gin-api"
GO_ENV = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}


def build(client: docker.DockerClient, version: str, misbehave: Mapping[str, str] | None = None) -> str:
    """An image of the service; returns its reference. The same source and settings are built once.

    Args:
        client: Docker.
        version: What `/version` answers.
        misbehave: The switches of misbehaviour.go, baked into the image.
    """
    env = dict(misbehave or {})
    files = sorted(SOURCE.glob("*.go"))
    mark = hashlib.sha256(repr((version, sorted(env.items()))).encode())
    for file in files:
        mark.update(file.read_bytes())
    tag = f"{version}-{mark.hexdigest()[:10]}"
    reference = f"{REPOSITORY}:{tag}"
    try:
        client.images.get(reference)
    except ImageNotFound:
        _build(client, reference, _binary(version), env)
    return reference


def _binary(version: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="gin-api-") as folder:
        out = Path(folder) / "gin-api"
        flags = f"-s -w -X main.version={version} -X main.commit=playground"
        subprocess.run(
            ["go", "build", "-trimpath", f"-ldflags={flags}", "-o", str(out), "."],
            cwd=SOURCE,
            env={**os.environ, **GO_ENV},
            check=True,
            timeout=300,
        )
        return out.read_bytes()


def _build(client: docker.DockerClient, reference: str, binary: bytes, env: Mapping[str, str]) -> None:
    lines = ["FROM scratch", "COPY gin-api /gin-api", *(f"ENV {k}={v}" for k, v in env.items())]
    lines += ["USER 65534:65534", "EXPOSE 8080", 'ENTRYPOINT ["/gin-api"]']
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content, mode in (
            ("gin-api", binary, 0o755),
            ("Dockerfile", "\n".join(lines).encode(), 0o644),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=reference, rm=True)
