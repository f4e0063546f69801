"""What is said to requests that no conductor carries out."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.engine import replies as replies_module
from orchestrator.engine.replies import Replies
from orchestrator.ports.faults import Away
from orchestrator.rollout.events import ConfigReloaded, Event

EVENT = ConfigReloaded(service="", at=1.0, actor="ann", request="1-0")


class SlowStore:
    """Writes what it is given once a test lets it."""

    def __init__(self) -> None:
        self.may, self.written = asyncio.Event(), list[str]()

    async def answer(self, entry: str, _: Event) -> None:
        await self.may.wait()
        self.written.append(entry)

    async def refuse(self, entry: str, _: Mapping[str, str], event: Event) -> None:
        await self.answer(entry, event)


async def test_an_answer_is_waited_for_as_long_as_it_may_take_and_a_refusal_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reader of requests, who refuses, has others to read; who answers has nothing else to do."""
    monkeypatch.setattr(replies_module, "PATIENCE", 0.0)
    store: Any = SlowStore()
    replies = Replies(store, {})
    with pytest.raises(Away, match="is not written yet"):
        await replies.refuse("1-0", {}, EVENT)
    store.may.set()
    while not store.written:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.may.clear()
    answering = asyncio.create_task(replies.answer("2-0", EVENT))
    await asyncio.sleep(0.01)
    assert not answering.done()
    store.may.set()
    await answering
    assert store.written == ["1-0", "2-0"]
