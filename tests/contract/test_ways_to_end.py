"""However a daemon comes to its end, what hangs does not keep it: another one may drive already."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from examples.playground.lease import free_port
from orchestrator.store.server import PrivateRedis

SCRIPT = """
import asyncio, os, signal, sys
from pathlib import Path

from orchestrator.daemon import serve
from orchestrator.daemon.config import load
from orchestrator.observability.logs import configure
from orchestrator.ports.faults import Stale
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.store.lease import Lease
from orchestrator.traffic.files import uncut
from orchestrator.traffic.request_log import RequestLog

async def nothing(*_): return 0
async def hangs(*_): await uncut(asyncio.get_running_loop().create_future())

async def ends(*_):
    await asyncio.sleep(0.5)
    match sys.argv[2]:
        case "stale": raise Stale("another daemon holds the lease")
        case "bug": raise ZeroDivisionError
        case _: os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)

DockerRuntime.highest_token = DockerRuntime.prepare = nothing
RequestLog.run, Lease.keep, serve.STOP_DEADLINE = hangs, ends, 1.0
os._exit(serve.serve(load(Path(sys.argv[1])), configure("json")))
"""


@pytest.mark.parametrize(("way", "code"), [("stale", 70), ("bug", 70), ("signal", 128 + signal.SIGTERM)])
async def test_a_job_that_hangs_does_not_keep_a_daemon_that_drives_nothing(
    tmp_path: Path, way: str, code: int
) -> None:
    state = tmp_path / "state"
    config = tmp_path / "orchestrator.yaml"
    config.write_text(
        f"state_dir: {state}\n"
        f"http: {{listen: '127.0.0.1:{free_port()}'}}\n"
        f"nginx: {{directory: {tmp_path}/edge}}\n"
    )
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", SCRIPT, str(config), way], stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            text, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        await PrivateRedis(state).stop()
    lines = [json.loads(line) for line in text.splitlines()]
    overdue = [line["reason"] for line in lines if line["event"] == "stop_overdue"]
    assert [reason.endswith("request log did not end within 1 s") for reason in overdue] == [True]
    assert process.returncode == code
