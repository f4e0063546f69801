"""nginx in an image of its own."""

import contextlib
import io
import re
import subprocess
import tarfile

import docker

NGINX_IMAGE = "orchestrator-test-nginx:1"


def nginx_image(client: docker.DockerClient) -> None:
    """nginx and its libraries from this machine in an image of its own: no registry is needed."""
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.get(NGINX_IMAGE)
        return
    linked = subprocess.run(["ldd", "/usr/sbin/nginx"], check=True, capture_output=True, text=True).stdout
    files = {"/usr/sbin/nginx", *re.findall(r"(/\S+\.so\S*)", linked)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for file in sorted(files):
            tar.add(file, file.lstrip("/"))
        for name, text in (
            ("etc/passwd", "root:x:0:0::/:/\nwww-data:x:33:33::/:/\nnobody:x:65534:65534::/:/\n"),
            ("etc/group", "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for folder in ("var/log/nginx", "var/lib/nginx", "run", "tmp"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(info)
        link = tarfile.TarInfo("bin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/sbin"
        tar.addfile(link)
    archive.seek(0)
    repository, _, tag = NGINX_IMAGE.partition(":")
    changes = ["ENV PATH=/usr/sbin"]
    client.api.import_image_from_data(archive.read(), repository=repository, tag=tag, changes=changes)
