"""What a verb imports, for which a person or a pipeline waits each time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "aiohttp",
    "docker",
    "jinja2",
    "prometheus_api_client",
    "orchestrator.daemon.adapters",
    "orchestrator.daemon.serve",
    "orchestrator.engine.conductor",
    "orchestrator.intake.views",
    "orchestrator.traffic.edge",
}

RUN = """
import json, sys
from orchestrator.__main__ import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, list(sys.modules)]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        "status",
        "history api",
        "release api repo/api:1",
        "rollback api",
        "abort api",
        "freeze api",
        "explain api-1",
    ],
)
def test_a_verb_that_asks_redis_imports_nothing_of_the_daemon(tmp_path: Path, words: str) -> None:
    path = tmp_path / "orchestrator.yaml"
    path.write_text("redis: {url: 'redis://127.0.0.1:1'}\n")
    (tmp_path / "services").mkdir()
    service = {"service": "api", "images": ["repo/api"], "container": {"port": 8080}, "gates": []}
    (tmp_path / "services" / "api.yaml").write_text(json.dumps(service))
    command = [sys.executable, "-c", RUN, *words.split(), "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert "can't be reached" in done.stderr or "127.0.0.1:1" in done.stderr, done.stderr
    assert code == 1
    assert HEAVY.isdisjoint(modules), HEAVY & set(modules)
