"""What reading the files again has changed, key by key, and from when on it counts."""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.daemon.config import Config

RELEASE, STARTED = "with the next release", "when the daemon is started again"
FROM: Mapping[str, str] = {
    "container": f"{RELEASE} or restart",
    "nginx": "with the next change of its route",
    "images": "at once",
    "require_digest": "at once",
    "checklist": "at once",
    "metrics": "at once",
}
"""From when on a section of a service's file counts; the others are part of a release."""

AT_ONCE = ("webhooks", "forges", "alerts", "slack/users", "slack/signing_secret_file")
"""What of orchestrator.yaml a running daemon takes; the rest waits until it is started again."""


def changes(old: Config, new: Config) -> tuple[str, ...]:
    """One line for each service that differs, and one for orchestrator.yaml. Names keys, never values."""
    return (*_settings(old, new), *_services(old, new))


def _settings(old: Config, new: Config) -> Iterator[str]:
    paths = list(differing(old.settings.model_dump(mode="json"), new.settings.model_dump(mode="json")))
    yield from _line(new.path.name, {p: "at once" if p.startswith(AT_ONCE) else STARTED for p in paths})


def _services(old: Config, new: Config) -> Iterator[str]:
    for name in sorted({*old.services, *new.services}):
        before, after = old.services.get(name), new.services.get(name)
        if after is None and name in new.files:
            yield f"{name}: its file is wrong; its traffic stays as it is"
        elif after is None:
            yield f"{name}: its file is gone; it takes no release, and is driven until it is removed"
        elif before is None and name in old.gone:
            yield f"{name}: its file is there again"
        elif before is None:
            yield f"{name}: {'its file is right, it is driven' if name in old.files else 'is new'}"
        else:
            paths = differing(before.model_dump(mode="json"), after.model_dump(mode="json"))
            yield from _line(name, {p: FROM.get(p.partition("/")[0], RELEASE) for p in paths})


def _line(name: str, found: Mapping[str, str]) -> Iterator[str]:
    """The changed keys, those together that count from the same moment on; nothing where there are none."""
    moments = dict.fromkeys(found.values())
    parts = [f"{', '.join(p for p in found if found[p] == moment)} {moment}" for moment in moments]
    if parts:
        yield f"{name}: {'; '.join(parts)}"


def differing(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The deepest paths at which two documents differ; a list of another length differs as a whole."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differing(one.get(key), other.get(key), f"{path}/{key}" if path else str(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for n, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differing(a, b, f"{path}/{n}")
    elif one != other:
        yield path
