"""The labels that make a container ours and self-describing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from pydantic import TypeAdapter, ValidationError

from orchestrator.rollout.desired import Wanted
from orchestrator.rollout.model import Release
from orchestrator.rollout.policy import Probe

PREFIX = "io.release-orchestrator."
OWNER = f"{PREFIX}owner"
SERVICE = f"{PREFIX}service"
RELEASE = f"{PREFIX}release"
INSTANCE = f"{PREFIX}instance"
TOKEN = f"{PREFIX}token"
PORT = f"{PREFIX}port"
GRACE = f"{PREFIX}stop-grace"
PROBE = f"{PREFIX}probe"
SPEC = f"{PREFIX}spec"
"""The whole release as JSON, so that a running service can be taken up again from what runs alone."""

_RELEASE: TypeAdapter[Release] = TypeAdapter(Release)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a container says of itself. `described`: None when that label is missing or damaged."""

    service: str
    release: str
    instance: str
    port: int
    grace: float
    probe: Probe
    described: Release | None


def labels(wanted: Wanted, owner: str, token: int) -> dict[str, str]:
    """The labels of an instance of this owner, created under this fencing token."""
    template = wanted.release.template
    return {
        OWNER: owner,
        SERVICE: wanted.release.service,
        RELEASE: wanted.release.id,
        INSTANCE: wanted.name,
        TOKEN: str(token),
        PORT: str(template.port),
        GRACE: str(template.stop_grace),
        PROBE: json.dumps(asdict(template.probe), separators=(",", ":")),
        SPEC: _RELEASE.dump_json(wanted.release).decode(),
    }


def identify(found: Mapping[str, str]) -> Identity | None:
    """What the labels say; None when a needed one is missing or damaged."""
    try:
        return Identity(
            service=found[SERVICE],
            release=found[RELEASE],
            instance=found[INSTANCE],
            port=int(found[PORT]),
            grace=float(found[GRACE]),
            probe=Probe(**json.loads(found[PROBE])),
            described=_described(found.get(SPEC, "")),
        )
    except (KeyError, ValueError, TypeError):
        return None


@lru_cache(maxsize=4096)
def _described(text: str) -> Release | None:
    try:
        return _RELEASE.validate_json(text)
    except ValidationError:
        return None
