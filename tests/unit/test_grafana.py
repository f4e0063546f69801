"""The dashboard that is shipped: made by its generator, and asking for metrics that there are."""

import json
import re
import subprocess
from pathlib import Path

import yaml

from examples.grafana.__main__ import FILE, build
from orchestrator.observability.metrics import DaemonMetrics


def expressions() -> list[str]:
    panels = json.loads(FILE.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_file_is_what_its_generator_makes() -> None:
    assert FILE.read_text() == build(), "run python -m examples.grafana"


def test_every_metric_that_it_asks_for_is_there() -> None:
    known = {s for m in DaemonMetrics().registry.collect() for s in (m.name, f"{m.name}_total")}
    asked = set(re.findall(r"orchestrator_[a-z_]+", " ".join(expressions())))
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in asked} <= known
    assert len(asked) > 10


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"r{n}", "expr": e.replace("$__rate_interval", "1m").replace("$service", ".+")}
        for n, e in enumerate(expressions())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    told = subprocess.run(
        ["promtool", "check", "rules", str(file)], check=False, capture_output=True, text=True
    )
    assert f"SUCCESS: {len(rules)} rules found" in told.stdout, told.stderr
