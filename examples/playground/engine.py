"""A Docker Engine: the one that answers, or one that is started for as long as it is needed.

`python -m examples.playground.engine [OPTION...] -- COMMAND...` runs a command with an engine; the options
are dockerd's, should it have to be started.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
from docker.errors import DockerException

DEADLINE = 30.0


def answers() -> bool:
    """Whether an engine answers where the SDK looks for it."""
    try:
        client = docker.from_env(timeout=5)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except DockerException:
        return False


@contextlib.contextmanager
def engine(*options: str) -> Iterator[None]:
    """Make sure that Docker answers; an engine that is started here ends here."""
    if answers():
        yield
        return
    program = shutil.which("dockerd")
    if program is None or os.geteuid() != 0:
        sys.exit("Docker does not answer. Start it, or as root: apt-get install docker.io iptables")
    with tempfile.TemporaryDirectory(prefix="orchestrator-dockerd-") as folder:
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            limit = time.monotonic() + DEADLINE
            while not answers():
                if process.poll() is not None or time.monotonic() > limit:
                    tail = (Path(folder) / "log").read_text(errors="replace")[-2000:]
                    sys.exit(f"dockerd did not come up:\n{tail}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> int:
    """Run the command after `--`; its exit code is ours."""
    end = sys.argv.index("--")
    options, command = sys.argv[1:end], sys.argv[end + 1 :]
    with engine(*options):
        process = subprocess.Popen(command)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the command has it too, and ends by itself


if __name__ == "__main__":
    sys.exit(main())
