"""Ordinary mistakes in asking: each answer names what is so, and is made of no name of the machine."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cli.explain import story_of
from orchestrator.ports.faults import Fault
from orchestrator.rollout.command import (
    Abort,
    Approve,
    Freeze,
    Pause,
    Promote,
    Remove,
    Restart,
    Resume,
    Rollback,
    Unfreeze,
    handle,
)
from orchestrator.rollout.events import RequestRefused
from orchestrator.rollout.model import Ended, Mark, Outcome, Phase, Retreat, Rollout, ServiceState
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import RedisStore, connect
from orchestrator.store.server import PrivateRedis
from tests.builders import policy, release, submit, template
from tests.mistakes.place import Place

GOING = Rollout(
    release=release(2), phase=Phase.SHIFTING, began_at=1.0, entered_at=1.0, actor="ci", reason="r"
)
BACK = replace(
    GOING,
    phase=Phase.ROLLING_BACK,
    retreat=Retreat(outcome=Outcome.ROLLED_BACK, actor="ann", reason="errors"),
)
STATES = {
    "nothing released": ServiceState(service="api"),
    "idle": ServiceState(service="api", stable=release(1)),
    "rolling out": ServiceState(service="api", stable=release(1), rollout=GOING),
    "starting": ServiceState(service="api", rollout=replace(GOING, phase=Phase.STARTING)),
    "going back": ServiceState(service="api", stable=release(1), rollout=BACK),
    "waiting": ServiceState(
        service="api",
        stable=release(1),
        rollout=replace(
            GOING, mark=Mark(kind="awaiting_approval", actor="orchestrator", reason="r", since=1.0)
        ),
    ),
    "reverting": ServiceState(
        service="api", stable=release(2), rollout=replace(GOING, kind="revert", release=release(1))
    ),
    "switching back": ServiceState(
        service="api",
        stable=release(2),
        rollout=replace(GOING, kind="revert", release=release(1), phase=Phase.BAKING),
    ),
    "frozen": ServiceState(
        service="api", stable=release(1), frozen=Mark(kind="frozen", actor="ann", reason="", since=1.0)
    ),
    "queued": ServiceState(service="api", stable=release(1), queue=(release(3),)),
    "removing": ServiceState(
        service="api", removal=Mark(kind="removing", actor="ann", reason="unused", since=1.0)
    ),
    "removed": ServiceState(
        service="api", removal=Mark(kind="removed", actor="ann", reason="unused", since=1.0)
    ),
}
WHO: dict[str, Any] = {"request": "9-0", "actor": "bob"}
COMMANDS = [
    *(kind(**WHO) for kind in (Rollback, Pause, Resume, Approve, Promote, Abort, Freeze, Unfreeze, Remove)),
    *(kind(**WHO, release="api-9") for kind in (Rollback, Pause, Resume, Approve, Promote, Abort)),
    Rollback(**WHO, to="api-9"),
    Restart(**WHO, template=template(), policy=policy()),
    submit(4, policy=policy(on_new_release="reject")),
]


@pytest.mark.parametrize("moment", STATES)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{type(c).__name__} {getattr(c, 'release', '')}")
def test_a_refusal_is_made_of_words_of_the_field(moment: str, command: Any) -> None:
    _, events = handle(STATES[moment], command, 1000.0)
    for event in events:
        if isinstance(event, RequestRefused):
            assert not re.search(r"[a-z]_[a-z]|submit|None|<|Phase|\bOutcome", event.reason), event.reason
            assert event.verb in (type(command).__name__.lower(), "release")
            assert event.verb != "submit"
            assert len(event.reason.split()) >= 3


def ended(number: int) -> Ended:
    return Ended(
        release=release(number),
        kind="release",
        outcome=Outcome.PROMOTED,
        reason="",
        actor="ci",
        began_at=1.0,
        ended_at=2.0,
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RedisStore]:
    server = PrivateRedis(tmp_path)
    await server.start()
    redis = connect(server.url)
    await redis.set("t:lease", 1)
    found = RedisStore(redis, Keys("t"), 1)
    state = replace(STATES["queued"], history=(ended(1),), frozen=STATES["frozen"].frozen)
    await found.commit(state, 0, ())
    yield found
    await redis.aclose()
    await server.stop()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("api-3", "api-3 waits in the queue: api is frozen by ann; there is nothing to explain yet"),
        ("api-9", "'api-9' is no release that is remembered of api; the last ones are: api-1, api-3"),
        ("api", "'api' is no release that is remembered of api; the last ones are: api-1, api-3"),
        ("foo", "'foo' is no release: write SERVICE-NUMBER, such as api-7; services with releases: api"),
    ],
)
async def test_what_can_not_be_explained_is_answered_by_what_can(
    store: RedisStore, name: str, says: str
) -> None:
    with pytest.raises((Fault, typer.BadParameter)) as refused:
        await story_of(store, name)
    assert str(refused.value) == says


def test_what_nobody_knows_is_a_mistake_and_answered_by_what_there_is(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def said(*asked: str) -> tuple[int, str]:
        server = PrivateRedis(tmp_path / "state")
        await server.start()
        try:
            words = [*asked, "--config", str(place.config)]
            result = await asyncio.to_thread(CliRunner().invoke, app, words)
        finally:
            await server.stop()
        return result.exit_code, result.output

    code, text = asyncio.run(said("history", "api"))
    assert (code, text.splitlines()[-1]) == (0, "no release of api is remembered")
    for verb in ("history", "status", "watch", "remove"):
        code, text = asyncio.run(said(verb, "nope"))
        assert (code, "'nope' is not known; there are: api" in text) == (2, True), text
    for verb in ("explain", "replay"):
        code, text = asyncio.run(said(verb, "nope-7"))
        assert (code, "'nope-7' is no release" in text) == (2, True), text
    code, text = asyncio.run(said("edges", "--forget", "[x]"))
    assert (code, "no edge '[x]' is known; there are: none" in text) == (2, True), text
