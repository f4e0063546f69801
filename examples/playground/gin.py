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


def reference(version: str, misbehave: Mapping[str, str] | None = None) -> str:
    """The name of an image: the same source and settings have the same name."""
    mark = hashlib.sha256(repr((version, sorted((misbehave or {}).items()))).encode())
    for file in sorted(SOURCE.glob("*.go")):
        mark.update(file.read_bytes())
    return f"{REPOSITORY}:{version}-{mark.hexdigest()[:10]}"


def build(client: docker.DockerClient, version: str, misbehave: Mapping[str, str] | None = None) -> str:
    """An image of the service, built unless it is there; returns its reference.

    Args:
        client: Docker.
        version: What `/version` answers.
        misbehave: The switches of misbehaviour.go, baked into the image.
    """
    name = reference(version, misbehave)
    if not there(client, name):
        _build(client, name, _binary(version), misbehave or {})
    return name


def there(client: docker.DockerClient, name: str) -> bool:
    """Whether an image is on the host."""
    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


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


def _build(client: docker.DockerClient, name: str, binary: bytes, env: Mapping[str, str]) -> None:
    lines = ["FROM scratch", "COPY gin-api /gin-api", *(f"ENV {k}={v}" for k, v in env.items())]
    lines += ["USER 65534:65534", "EXPOSE 8080", 'ENTRYPOINT ["/gin-api"]']
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for file, content, mode in (
            ("gin-api", binary, 0o755),
            ("Dockerfile", "\n".join(lines).encode(), 0o644),
        ):
            info = tarfile.TarInfo(file)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=name, rm=True)
