"""`orchestrator edge`: beside an nginx on another host, serves what the daemon wants."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from orchestrator.daemon.adapters import REDIS_TIMEOUT, make_edge
from orchestrator.daemon.config import Config
from orchestrator.engine.tasks import beside, courtesy
from orchestrator.observability import systemd
from orchestrator.ports.faults import Fault
from orchestrator.runtime.client import DockerClient
from orchestrator.store.board import RedisBoard, host_name
from orchestrator.store.keys import Keys
from orchestrator.store.redis_store import connect
from orchestrator.traffic.follower import Follower

log = structlog.get_logger()

NEWS = 0.25
"""Seconds for which news of what is wanted are waited for; what nobody tells of is seen after them."""

ROUND = 0.05
"""Seconds between rounds, in some of which there is nothing to do."""

PAUSE = 1.0
"""Seconds between tries while Redis does not answer."""


async def run_edge(config: Config, *, once: bool) -> None:
    """Follow until a signal; with `once`, only write what nginx has to start with.

    Raises:
        Fault: No Redis is configured; or with `once`, it does not answer.
    """
    settings = config.settings
    if not settings.redis.url:
        raise Fault("redis/url: an edge needs the daemon's Redis; set it on both hosts")
    redis = connect(settings.redis.url, REDIS_TIMEOUT)
    docker = DockerClient(settings.docker.url)
    name = settings.edges.name or host_name()
    board = RedisBoard(redis, Keys(settings.redis.prefix), settings.edges.ttl)
    follower = Follower(board, name, lambda options: make_edge(settings, docker, options))
    try:
        if once:
            services = await follower.prepare()
            why = {} if services else {"reason": "nothing is wanted yet, or not under this redis/prefix"}
            log.info("edge_prepared", edge=name, services=services, **why)
        else:
            await _until_a_signal(follower, name)
    finally:
        await follower.close()
        await redis.aclose()
        docker.close()


async def _until_a_signal(follower: Follower, name: str) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        more: dict[str, Callable[[], Awaitable[object]]] = {
            "heartbeat": systemd.heartbeat,
            "news": partial(_hear, follower, name),
        }
        async with beside(more, partial(courtesy, longest_pause=1.0)):
            follower.make_ready()
            systemd.notify("READY=1")
            log.info("edge_ready", edge=name)
            await _follow(follower, name, stopped)
    finally:
        log.info("edge_stopped", edge=name, reason="the traffic stays as it is")


async def _hear(follower: Follower, name: str) -> None:
    """Let no rollback wait for the looks of a round, for ever."""
    told = ""
    while True:
        try:
            await follower.hear(NEWS)
        except Fault as error:
            if str(error) != told:
                log.warning("edge_deaf", edge=name, reason=f"{error}; the traffic stays as it is")
            told = str(error)
            await asyncio.sleep(PAUSE)
        else:
            told = ""


async def _follow(follower: Follower, name: str, stopped: asyncio.Event) -> None:
    cut_off = False
    while not stopped.is_set():
        try:
            await follower.go_round()
        except Fault as error:
            if not cut_off:
                log.warning("edge_cut_off", edge=name, reason=f"{error}; the traffic stays as it is")
            cut_off = True
        else:
            if cut_off:
                log.info("edge_caught_up", edge=name)
            cut_off = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE if cut_off else ROUND):
                await stopped.wait()
