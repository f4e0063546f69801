"""`python -m tests.fuzz [CASES] [SEED]`: every parser that strangers can reach, against a million inputs.

Inputs are valid ones that were changed: bytes flipped, cut, doubled and spliced, values of JSON replaced by
hostile ones. A parser may take an input or refuse it in the one way that it says; anything else is a
finding, printed with its seed.
"""

import json
import multiprocessing
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.daemon.doctor.nginx_text import directives, mistakes
from orchestrator.daemon.service_file import ServiceFile
from orchestrator.daemon.yaml_file import ConfigError, check, document
from orchestrator.hooks.runner import _decided
from orchestrator.intake import strict_json
from orchestrator.intake.alertmanager import AlertRule, Group, meant
from orchestrator.intake.forge import github, gitlab
from orchestrator.intake.parse import parse
from orchestrator.intake.problems import Problem
from orchestrator.intake.signed import _fields
from orchestrator.intake.slack import _words
from orchestrator.intake.views import ReleaseBody, RollbackBody, TokenBody
from orchestrator.observability.metrics import seen_by_nginx
from orchestrator.ports.faults import Fault
from orchestrator.rollout.command import handle
from orchestrator.rollout.model import ServiceState
from orchestrator.runtime.env_file import parse as parse_env
from orchestrator.store.codec import dump_event, dump_state, load_event, load_state
from orchestrator.traffic.request_log import RequestLog
from tests.builders import submit
from tests.door.test_forge import DEPLOYMENT, HOOK
from tests.samples import EVENTS

CASES = 1_000_000
HOSTILE: list[Any] = [
    None, True, -1, 0, 2**63, 1e308, float("nan"), float("inf"), "", " ", "\x00", "\u202e", "١٢", "../../etc",
    "x" * 5000, "x;}server{listen 1;", "{{7*7}}", "%s%n", "api\n", [], {}, [[]], {"": {}}, "<!channel>",
    "'\"`$(id)", "\ud800",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A parser, inputs that it takes, and how it refuses."""

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refuses: tuple[type[Exception], ...]


def _text(value: object) -> bytes:
    return json.dumps(value).encode()


def _alerts(body: bytes) -> object:
    rules = [AlertRule({"alertname": "E"}, "", "rollback")]
    return meant(Group.model_validate(strict_json.loads(body)).firing()[0], rules)


def _entry(body: bytes) -> object:
    """As redis-py hands a stream entry over: text, with replacement characters."""
    given = strict_json.loads(body)
    if not isinstance(given, dict):
        raise Fault("no fields")
    return parse("1-0", {str(k): str(v).encode("utf-8", "replace").decode() for k, v in given.items()})


def _service(body: bytes) -> object:
    path = Path("api.yaml")
    return check(path, document(path, body), ServiceFile).plan()


LOG = RequestLog(None, Path("/nonexistent"))  # type: ignore[arg-type]


def _log_line(body: bytes) -> object:
    LOG._error = ""
    LOG.counts("api-1-0", "10.0.0.1:80")
    LOG._count(body.decode("ascii", "replace"), 1)
    return seen_by_nginx(LOG.counts("api-1-0", "10.0.0.1:80"))


RELEASE = {
    "verb": "release",
    "service": "api",
    "image": "a/b:1",
    "who": "ci",
    "why": "w",
    "key": "k",
    "checks": '{"a": 1}',
}
GROUP = {
    "version": "4",
    "status": "firing",
    "truncatedAlerts": 1,
    "commonLabels": {"alertname": "E", "service": "api"},
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "E", "service": "api"},
            "startsAt": "2026-11-25T10:00:00.123Z",
        }
    ],
}
SERVICE = """\
service: api
images: [a/b]
container: {port: 8080, instances: 2, memory: 64MiB}
gates: [{metric: error_rate}, {metric: latency, quantile: 0.99}, {metric: error_rate, max: 5%, for: 1m}]
strategy: {steps: [5, {weight: 50, hold: 30s}, 100]}
checklist: {tests: 98%}
hooks: [{name: scan, at: preflight, command: [trivy, "{image}"]}]
"""
STATE, TOLD = handle(ServiceState(service="api"), submit(1), 1000.0)

BODIES: dict[type[BaseModel], Any] = {
    ReleaseBody: {"image": "a/b:1", "reason": "r", "checks": {"a": True}},
    RollbackBody: {"release": "api-1", "to": "api-2"},
    TokenBody: {"name": "ci", "role": "viewer", "services": ["api"], "days": 1},
}


def _body(model: type[BaseModel], seed: Any) -> Target:
    def run(body: bytes) -> object:
        return model.model_validate(strict_json.loads(body))

    return Target(f"API: {model.__name__}", run, (_text(seed),), (Fault, ValidationError))


TARGETS = [
    Target("JSON", strict_json.loads, (_text(GROUP), b'["\\u00e9", 1.5e3, [{"a": [null]}]]'), (Fault,)),
    Target("stream entry", _entry, (_text(RELEASE),), (Fault,)),
    Target("signed request", _fields, (_text(RELEASE),), (Problem,)),
    Target("Alertmanager", _alerts, (_text(GROUP),), (Fault, ValidationError)),
    Target(
        "Slack's words",
        lambda b: _words(b.decode("utf-8", "replace")),
        (b"rollback api it burns",),
        (Problem,),
    ),
    *(_body(model, seed) for model, seed in BODIES.items()),
    Target("GitHub", lambda b: github(strict_json.loads(b)), (_text(DEPLOYMENT),), (Fault, ValidationError)),
    Target("GitLab", lambda b: gitlab(strict_json.loads(b)), (_text(HOOK),), (Fault, ValidationError)),
    Target("state", load_state, (dump_state(STATE),), (Fault,)),
    Target("event", load_event, tuple(map(dump_event, EVENTS)), (Fault,)),
    Target("service file", _service, (SERVICE.encode(),), (ConfigError,)),
    Target("env file", lambda b: parse_env(b.decode()), (b"A=1\nexport B='two' # x\n",), (ValueError,)),
    Target(
        "nginx -T",
        lambda b: mistakes(directives(b.decode("utf-8", "replace")), Path("/e")),
        (b"# configuration file /a:\nhttp { server / { include /e/snippets/a.conf; rewrite a b break; }}",),
        (),
    ),
    Target(
        "OPA's answer",
        lambda b: _decided(b.decode("utf-8", "replace")),
        (b'{"result": {"allow": true}}',),
        (),
    ),
    Target(
        "nginx' log",
        _log_line,
        (b"200|10.0.0.1:80, 10.0.0.2:80|502, 200|-, 0.010|0.001, 0.011",),
        (),
    ),
]


def changed(seed: bytes, chance: random.Random) -> bytes:
    """An input that is nearly right."""
    if chance.random() < 0.4:
        try:
            return json.dumps(_replaced(json.loads(seed), chance)).encode("utf-8", "surrogatepass")
        except ValueError:
            pass
    body = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        at, way = chance.randrange(len(body) + 1), chance.randrange(6)
        if way == 0 and body:
            body[at % len(body)] = chance.randrange(256)
        elif way == 1:
            del body[at : at + chance.randint(1, 8)]
        elif way == 2:
            body[at:at] = body[at : at + chance.randint(1, 30)]
        elif way == 3:
            body[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 6)))
        elif way == 4:
            word = chance.choice(HOSTILE)
            body[at:at] = str(word).encode("utf-8", "surrogatepass")
        else:
            body[at:at] = chance.choice(
                [b"{", b"[", b'"', b"\\", b"\n", b"|", b",", b": ", b"\xff", b"- "]
            ) * chance.choice([1, 1, 1, 40])
    return bytes(body)


def _replaced(value: Any, chance: random.Random) -> Any:
    """A value with something else somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {**value, str(chance.choice(HOSTILE)): chance.choice(HOSTILE)}
        return {**value, key: _replaced(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], _replaced(value[at], chance), *value[at + 1 :]]
    return chance.choice(HOSTILE)


def fuzz(job: tuple[int, int, int]) -> tuple[str, int, int, str]:
    """Run one target on so many inputs; its name, how many were taken, how many were not, and a finding."""
    number, cases, seed = job
    target = TARGETS[number]
    chance = random.Random(f"{seed} {target.name}")
    taken = refused = 0
    for case in range(cases):
        body = changed(chance.choice(target.seeds), chance)
        try:
            target.run(body)
            taken += 1
        except target.refuses:
            refused += 1
        except Exception:  # noqa: BLE001  that is what is looked for
            return target.name, taken, refused, f"case {case}: {body!r}\n{traceback.format_exc()}"
    return target.name, taken, refused, ""


def main(cases: int, seed: int) -> int:
    """Fuzz everything on all cores; the number of findings."""
    began = time.monotonic()
    found = 0
    with multiprocessing.Pool() as pool:
        jobs = [(number, cases, seed) for number in range(len(TARGETS))]
        for name, taken, refused, finding in pool.imap_unordered(fuzz, jobs):
            print(f"{name:16} {taken + refused:>8} inputs, {taken} taken, {refused} refused", flush=True)
            if finding:
                found += 1
                print(f"FOUND in {name}, seed {seed}: {finding}", flush=True)
    print(f"{found} findings in {time.monotonic() - began:.0f} s, seed {seed}")
    return found


if __name__ == "__main__":
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else CASES
    sys.exit(bool(main(cases, int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6))))
