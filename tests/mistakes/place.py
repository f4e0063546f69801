"""A configuration that is right, in which mistakes are made."""

import asyncio
from pathlib import Path

from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.daemon.config import load
from orchestrator.daemon.doctor import files, guarded
from orchestrator.daemon.doctor.check import Check
from orchestrator.daemon.doctor.nginx import nginx

SETTINGS = """
state_dir: {folder}/state
nginx: {{directory: {folder}/edge, conf: {folder}/nginx.conf, pid_file: {folder}/nginx.pid}}
prometheus: {{url: "http://127.0.0.1:9"}}
"""

SERVICE = """
service: api
images: [registry.example.com/team/api]
container:
  port: 8080
"""

NGINX = """
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_shutdown_timeout 60s;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
    include {folder}/edge/*.conf;
    include {folder}/sites/*.conf;
}}
"""


ELSEWHERE = {"nginx", "nginx switch"}
"""Findings about an nginx that runs, and about the folders above the test's."""


class Place:
    """A folder with orchestrator.yaml, services/api.yaml and nginx.conf."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "orchestrator.yaml"
        for name in ("services", "state", "edge", "tmp", "sites"):
            (folder / name).mkdir()
        self.settings("")
        self.service("")
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder))

    def settings(self, more: str) -> None:
        """Write orchestrator.yaml, with more in it."""
        self.config.write_text(SETTINGS.format(folder=self.folder) + more.replace("FOLDER", str(self.folder)))

    def service(self, more: str, name: str = "api") -> None:
        """Write a service's file, with more in it."""
        text = SERVICE.replace("service: api", f"service: {name}") + more.replace("FOLDER", str(self.folder))
        self.write(f"services/{name}.yaml", text)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """Write any file of the folder."""
        path = self.folder / name
        path.write_text(text.replace("FOLDER", str(self.folder)))
        path.chmod(mode)

    def remove(self, name: str) -> None:
        """Remove one."""
        (self.folder / name).unlink()

    def run(self, *words: str) -> tuple[int, str]:
        """The command line; returns exit code and all that it prints."""
        result = CliRunner().invoke(app, [*words, "--config", str(self.config)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    def check(self) -> str:
        """What `config check` finds; '' when nothing."""
        code, text = self.run("config", "check")
        assert code == (0 if text.startswith("ok: ") else 2)
        return "" if code == 0 else text

    def doctor(self) -> str:
        """What the doctor finds wrong in files and nginx' configuration; '' when nothing."""
        checks = asyncio.run(self._doctor())
        return "\n".join(f"{c.name}: {c.detail}\n{c.mend}" for c in checks if not c.ok)

    async def _doctor(self) -> list[Check]:
        config = load(self.config)
        found = [
            await guarded("x", check, config) for check in (files.folders, files.services, files.secrets)
        ]
        found.append([c for c in await guarded("nginx", nginx, config) if c.name not in ELSEWHERE])
        return [c for group in found for c in group]
