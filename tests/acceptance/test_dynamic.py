"""Releases while weights change in nginx' memory: the same outcomes, and no reload."""

import asyncio

from examples.playground.load import Load
from orchestrator.rollout.model import Outcome
from orchestrator.runtime.labels import RELEASE
from orchestrator.traffic.process import children
from tests.conftest import Images, Stacks

DYNAMIC = {"nginx": {"mode": "dynamic"}}


async def test_good_and_bad_releases_without_a_reload(stack: Stacks, images: Images) -> None:
    s = await stack(DYNAMIC, keep_previous="3s")
    await s.push("api", images("v1"))
    await s.ended("api-1")
    workers = children(s.nginx_pid() or 0)
    async with Load(s.url("api"), 100) as load:
        await s.push("api", images("v2"))
        assert (await s.ended("api-2")).outcome is Outcome.PROMOTED
        await s.push("api", images("v3", FAIL_RATE="0.3"))
        assert (await s.ended("api-3")).outcome is Outcome.ROLLED_BACK
        code, text = await s.cli("rollback", "api", "--to", "api-1", "--wait", "--who", "ann")
        assert code == 0, text

        async def alone() -> bool:
            return {c.labels[RELEASE] for c in s.containers()} == {"api-1"}

        await s.until(alone, 40, "what is let go has drained and is stopped")
        await asyncio.sleep(1)
    assert children(s.nginx_pid() or 0) == workers
    assert set(load.seen.good) == {"api-1", "api-2", "api-3"}
    assert load.seen.lost + load.seen.bad_gateway == 0, load.seen
    assert set(load.seen.errors) <= {"api-3"}, load.seen
