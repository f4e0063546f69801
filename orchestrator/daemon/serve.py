"""The daemon: start, drive, reload, stop."""

import asyncio
import contextlib
import math
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from orchestrator.analysis.discovery import document, served, targets
from orchestrator.daemon.adapters import REDIS_TIMEOUT, make_edge, make_process, make_prometheus
from orchestrator.daemon.changes import changes
from orchestrator.daemon.channels import readers
from orchestrator.daemon.clock import SystemClock
from orchestrator.daemon.config import Config, load
from orchestrator.daemon.doors import Doors
from orchestrator.daemon.kept import KeptFiles
from orchestrator.daemon.settings import Settings
from orchestrator.daemon.watch import Watch
from orchestrator.daemon.yaml_file import ConfigError, Problem
from orchestrator.engine.conductor import Parts
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.measure import Measurer
from orchestrator.engine.tasks import beside, bug, courtesy, eternal
from orchestrator.hooks.afterwards import Afterwards
from orchestrator.hooks.runner import HookRunner
from orchestrator.intake.server import IDLE, PROTOCOL, Idle
from orchestrator.intake.stream import RequestStream
from orchestrator.notify.postman import Postman
from orchestrator.observability import stall, systemd
from orchestrator.observability.events import tell
from orchestrator.observability.http import Views, application, listen
from orchestrator.observability.logs import LineWriter
from orchestrator.observability.metrics import DaemonMetrics, seen_by_nginx
from orchestrator.ports.faults import Fault, Stale
from orchestrator.ports.metrics import Target
from orchestrator.ports.requests import Request
from orchestrator.ports.service import ServicePlan
from orchestrator.ports.traffic import Traffic
from orchestrator.rollout.events import ConfigReloaded, Event, ReleaseAccepted, ServiceRemoved
from orchestrator.rollout.model import ServiceState
from orchestrator.rollout.observation import Observation
from orchestrator.rollout.policy import Hook
from orchestrator.runtime.client import DockerClient
from orchestrator.runtime.docker_events import DockerEvents
from orchestrator.runtime.docker_runtime import DockerRuntime
from orchestrator.runtime.network import Network
from orchestrator.store.board import RedisBoard
from orchestrator.store.keys import Keys
from orchestrator.store.lease import Lease
from orchestrator.store.redis_store import Client, ReadingStore, RedisStore, connect
from orchestrator.store.server import PrivateRedis, check_settings
from orchestrator.store.tokens import RedisTokens
from orchestrator.traffic.edge import NginxEdge
from orchestrator.traffic.files import to_the_end
from orchestrator.traffic.fleet import Fleet
from orchestrator.traffic.options import EdgeOptions
from orchestrator.traffic.request_log import RequestLog

log = structlog.get_logger()

STOP_DEADLINE = 15.0
"""Seconds for an orderly end, whatever has begun it; then the process leaves whatever still hangs."""

PROBE_EVERY = 0.9
"""Ticks between two probes of an instance: a service is looked at oftener while something moves."""

TARGETS_WITHHELD = 30.0
"""Seconds that a service which has not been looked at yet may hold back the targets of all. Meanwhile
Prometheus goes on with those that it has; those of a service that is missing it would drop."""


class Daemon:
    """Everything that runs, wired once."""

    def __init__(self, config: Config, writer: LineWriter) -> None:
        settings = config.settings
        self._kept = KeptFiles(settings.state_dir)
        self._removed: set[str] = set()
        self.config = self._with_kept(config)
        self._writer = writer
        self._clock = SystemClock()
        self._metrics = DaemonMetrics()
        self._unready = "starting"
        self._lease: Lease | None = None
        self._private: PrivateRedis | None = None
        self._token = 0
        self._targets: dict[str, list[Target]] = {}
        self._plans: dict[str, ServicePlan] = {}
        self._drives_since = math.inf
        self._reloads: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._unanswered: set[str] = set()
        self._docker = DockerClient(settings.docker.url)
        self._requests = RequestLog(make_process(settings, self._docker), settings.nginx.directory)
        self._keys = Keys(settings.redis.prefix)
        self._prometheus = make_prometheus(settings, self._clock)
        self._watch = Watch(
            settings, self._metrics, self._prometheus, lambda: self.config.driven, self._all_targets
        )
        self._problems: Sequence[Problem] = ()
        self._tell(self.config.problems)

    def _with_kept(self, config: Config) -> Config:
        """With the services whose files have gone, or gone wrong, since they were driven last."""
        try:
            return load(config.path, self._kept.before(config))
        except ConfigError:  # it was right a moment ago
            return config

    async def run(self, ending: Callable[[], None]) -> None:
        """Start, drive until cancelled, stop.

        Args:
            ending: Called when the end begins; what runs may hang then, and nothing is driven.

        Raises:
            Fault: A part that can't be waited for is missing.
            Stale: Another daemon has taken over.
        """
        settings = self.config.settings
        _prepare(settings.state_dir)
        http = contextlib.AsyncExitStack()
        await http.enter_async_context(self._http())
        systemd.notify("READY=1\nSTATUS=waiting for the lease")  # a standby is a healthy service too
        try:
            async with self._beside("heartbeat", systemd.heartbeat, 1.0), self._redis() as redis:
                edge = make_edge(settings, self._docker, self._edge_options)
                edge.prepare()
                self._requests.prepare()
                runtime = self._runtime(settings)

                async def floor() -> int:
                    return max(edge.highest_token(), await runtime.highest_token())

                doors = self._doors(redis)
                await doors.open()
                self._lease = lease = Lease(
                    redis.apart(), self._keys, settings.state_dir, settings.redis.lease_ttl, floor=floor
                )
                self._unready = "standby: another daemon may hold the lease"
                try:
                    async with beside(doors.works()):
                        self._token = await lease.acquire()
                        log.info("lease_acquired", token=self._token)
                        await self._drive(redis, lease, edge, runtime, doors, ending)
                finally:
                    ending()
                    await lease.release()
                    await doors.close()
        finally:
            ending()
            systemd.notify("STOPPING=1")
            log.info("stopped", reason="the traffic stays as it is")
            await http.aclose()
            self._docker.close()
            self._prometheus.close()

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[None]:
        """Health, metrics and service discovery."""
        host, _, port = self.config.settings.http.listen.rpartition(":")
        views = Views(
            self._metrics,
            self._target_document,
            self._instance,
            self._why_unready,
            lambda: [str(problem) for problem in self._problems],
        )
        app, idle = application(views), Idle()
        app.middlewares.append(idle.middleware)
        runner = await listen(app, host, int(port), keepalive_timeout=IDLE, logger=PROTOCOL)
        try:
            async with self._beside("silent connections", lambda: idle.watch(lambda: runner), 1.0):
                yield
        finally:
            await runner.cleanup()

    @contextlib.asynccontextmanager
    async def _redis(self) -> AsyncIterator[Client]:
        """The client of a given server, or of a private one that ends with the daemon."""
        async with contextlib.AsyncExitStack() as closing:
            if url := self.config.settings.redis.url:
                redis = connect(url, REDIS_TIMEOUT)
                closing.push_async_callback(redis.aclose)
                await self._check_redis(redis)
            else:
                private = PrivateRedis(self.config.settings.state_dir)
                await private.start()
                self._private = private
                closing.push_async_callback(private.stop)
                await closing.enter_async_context(self._beside("private redis", private.keep, 5.0))
                redis = connect(private.url, REDIS_TIMEOUT)
                closing.push_async_callback(redis.aclose)
            yield redis

    def _beside(
        self, name: str, work: Callable[[], Awaitable[object]], longest_pause: float
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """A courtesy that runs beside a block."""
        failed = self._metrics.task_failed
        return beside({name: work}, partial(courtesy, failed=failed, longest_pause=longest_pause))

    async def _check_redis(self, redis: Client) -> None:
        problems = await check_settings(redis)
        relaxed = self.config.settings.redis.durability == "relaxed"
        for problem in problems:
            log.warning("redis_setting", problem=problem)
        if problems and not relaxed:
            raise Fault(
                "Redis may lose what it has acknowledged: "
                + "; ".join(problems)
                + "; or set redis/durability to relaxed"
            )

    def _runtime(self, settings: Settings) -> DockerRuntime:
        docker = settings.docker
        network = Network(docker.network, docker.subnet)
        return DockerRuntime(
            self._docker,
            network,
            docker.owner,
            lambda: self._token,
            docker.pull,
            docker.pull_deadline,
            probe_every=PROBE_EVERY * settings.tick,
        )

    def _doors(self, redis: Client) -> Doors:
        store = ReadingStore(redis, self._keys)
        tokens = RedisTokens(redis, self._keys)
        return Doors(self.config.settings, store, tokens, self._clock, lambda: self.config.templates)

    async def _drive(
        self,
        redis: Client,
        lease: Lease,
        edge: NginxEdge,
        runtime: DockerRuntime,
        doors: Doors,
        ending: Callable[[], None],
    ) -> None:
        settings = self.config.settings
        store = RedisStore(redis, self._keys, self._token)
        docker_events = DockerEvents(self._docker, settings.docker.owner, runtime.picture)
        runner = HookRunner()
        parts = self._parts(store, lease, self._traffic(redis, edge), runtime, runner)
        dispatcher = Dispatcher(parts, store)
        try:
            async with asyncio.TaskGroup() as group:

                def vital(name: str, work: Callable[[], Any]) -> None:
                    group.create_task(eternal(name, work), name=name)

                def courteous(name: str, work: Callable[[], Any], longest_pause: float = 15.0) -> None:
                    failed = self._metrics.task_failed
                    group.create_task(courtesy(name, work, failed, longest_pause=longest_pause), name=name)

                courteous("end", lambda: _when_cancelled(ending))  # the group waits for all of its tasks
                vital("lease", lambda: lease.keep(dispatcher.doubt))
                await self._await_docker(runtime)
                self._configure(dispatcher, group)
                await self._keep()

                async def take(request: Request, fields: Mapping[str, str]) -> None:
                    if request.verb == "reload":
                        self._want_reload(request.who, request.id)
                    else:
                        await dispatcher.dispatch(request, fields)

                vital(
                    "requests", self._stream(redis, dispatcher.replies.refuse, take, store.acknowledged).run
                )
                vital("measure", parts.measurer.run)
                courteous("reload", lambda: self._keep_reloading(dispatcher, group, doors))
                courteous("request log", self._requests.run, longest_pause=1.0)  # gates wait for it
                courteous("docker events", lambda: dispatcher.listen(docker_events))
                courteous("clock", lambda: self._clock.watch(self._metrics.ahead.set))
                courteous("stall", lambda: stall.watch(self._metrics.stall.set))
                courteous("counts", lambda: self._count(store))
                for name, look in self._watch.looks(self._board(redis)).items():
                    courteous(name, look)
                courteous("hooks", Afterwards(runner, store, store, self._hooks).run)
                for reader in readers(settings, store, store):
                    postman = Postman(reader, store, store, self._clock, self._metrics.notification_dropped)
                    courteous(f"notify {reader.name}", postman.run)
                asyncio.get_running_loop().add_signal_handler(
                    signal.SIGHUP, lambda: self._want_reload("SIGHUP")
                )
                self._unready = ""
                self._drives_since = self._clock.now()
                systemd.notify("STATUS=driving")
                log.info("ready", services=sorted(self.config.services), token=self._token)
        except* Stale as stale:
            raise stale.exceptions[0] from None
        finally:
            self._unready = "stopping"
            await runtime.close()
            await edge.close()
            self._requests.close()

    def _parts(
        self, store: RedisStore, lease: Lease, traffic: Traffic, runtime: DockerRuntime, runner: HookRunner
    ) -> Parts:
        """What the conductors act with."""
        settings = self.config.settings
        return Parts(
            store=store,
            runtime=runtime,
            images=runtime,
            usage=runtime,
            traffic=traffic,
            hooks=runner,
            measurer=Measurer(self._prometheus, self._clock, settings.prometheus.interval),
            clock=self._clock,
            tick=settings.tick,
            may_act=lease.fresh,
            publish=self._publish,
        )

    def _stream(
        self,
        redis: Client,
        refuse: Callable[[str, Mapping[str, str], Event], Awaitable[None]],
        take: Callable[[Request, Mapping[str, str]], Awaitable[None]],
        acknowledged: Callable[[], Awaitable[str]],
    ) -> RequestStream:
        """Where requests come from."""
        return RequestStream(
            redis.apart(),
            self._keys.requests,
            self._keys.group,
            refuse,
            self._clock,
            take,
            acknowledged,
            self._metrics.trimmed.inc,
        )

    def _traffic(self, redis: Client, own: NginxEdge) -> Traffic:
        """This host's edge, or all of them."""
        settings = self.config.settings
        if not settings.edges.enabled:
            return own
        return Fleet(
            own,
            self._board(redis),
            self._edge_options,
            deadline=settings.nginx.confirm_deadline,
            on_failure=settings.edges.on_failure,
        )

    def _board(self, redis: Client) -> RedisBoard:
        return RedisBoard(redis, self._keys, self.config.settings.edges.ttl, self._token)

    async def _await_docker(self, runtime: DockerRuntime) -> None:
        """Docker may come up later than the daemon; until then nothing can be driven."""
        while True:
            try:
                await runtime.prepare()
            except Stale:
                raise
            except Fault as error:
                self._unready = str(error)
                log.warning("docker_unavailable", reason=str(error))
                await asyncio.sleep(2.0)
            else:
                return

    def _want_reload(self, actor: str, request: str = "") -> None:
        """Queue a reload; a request that is delivered again before it is answered is queued already."""
        if request not in self._unanswered:
            self._unanswered |= {request} - {""}
            self._reloads.put_nowait((actor, request))

    async def _keep_reloading(self, dispatcher: Dispatcher, group: asyncio.TaskGroup, doors: Doors) -> None:
        """Carry out one reload after the other; until it is answered, who asked for it is kept waiting."""
        while True:
            actor, request = await self._reloads.get()
            try:
                told = await self._reload(actor, request, dispatcher, group, doors)
                await self._answer(dispatcher, request, told)
            finally:
                self._unanswered.discard(request)

    async def _answer(self, dispatcher: Dispatcher, request: str, told: ConfigReloaded) -> None:
        while request:
            try:
                await dispatcher.replies.answer(request, told)
                break
            except Stale:
                raise
            except Fault as error:
                log.warning("request_left", request=request, reason=str(error))
                await asyncio.sleep(1.0)

    async def _reload(
        self, actor: str, request: str, dispatcher: Dispatcher, group: asyncio.TaskGroup, doors: Doors
    ) -> ConfigReloaded:
        """Read the files again; what they change, and what is wrong with them and stays as it was.

        A bug in that is told with it, and ends nothing.
        """
        systemd.notify("RELOADING=1")
        changed: tuple[str, ...] = ()
        try:
            changed = await self._read_again(dispatcher, group)
            lacking = doors.reload(self.config.settings)
        except Exception as error:
            log.exception("reload_failed")
            lacking = bug(error)
        systemd.notify("READY=1")
        return ConfigReloaded(
            service="",
            at=self._clock.now(),
            actor=actor,
            request=request,
            changes=changed,
            problems=(*map(str, self._problems), *filter(None, [lacking])),
        )

    async def _read_again(self, dispatcher: Dispatcher, group: asyncio.TaskGroup) -> tuple[str, ...]:
        """Take what the files say, read beside everything else. Returns what that changes."""
        before = replace(
            self.config,
            services={n: s for n, s in self.config.services.items() if n not in self._removed},
            gone={n: s for n, s in self.config.gone.items() if n not in self._removed},
        )
        try:
            config = await asyncio.to_thread(load, self.config.path, before)
        except ConfigError as error:
            self._tell(error.problems)
            return ()
        config = replace(config, gone={n: s for n, s in config.gone.items() if n not in self._removed})
        changed = changes(before, config)
        self.config = config
        self._tell(config.problems)
        self._configure(dispatcher, group)
        await self._keep()
        log.info("config_reloaded", services=sorted(config.services), changes=changed)
        return changed

    async def _keep(self) -> None:
        """Keep the files that are right, and of no service that is removed meanwhile."""
        before = set(self._removed)
        await to_the_end(lambda: self._kept.keep(self.config))
        for service in self._removed - before:
            self._kept.forget(service)

    def _configure(self, dispatcher: Dispatcher, group: asyncio.TaskGroup) -> None:
        config = self.config
        closed = config.unusable | {
            name: f"its file is gone: put it back, or run orchestrator remove {name}" for name in config.gone
        }
        plans = {}
        for service, file in config.driven.items():
            try:
                plans[service] = file.plan()
            except Exception as error:
                log.exception("service_not_planned", service=service)
                closed[service] = bug(error)
                if service in self._plans:  # it is driven as before
                    plans[service] = self._plans[service]
        self._plans = plans
        dispatcher.configure(plans, group, closed)
        for service in config.gone:
            log.warning(
                "service_file_gone", service=service, reason="it is driven as before until it is removed"
            )
        for service in config.names:
            if service in config.unusable:
                log.error(
                    "service_not_driven", service=service, reason="its file is wrong; traffic stays as it is"
                )
            elif config.wrong(service):
                log.error(
                    "service_file_kept", service=service, reason="its file is wrong; it is driven as before"
                )

    def _tell(self, problems: Sequence[Problem]) -> None:
        """Say what is wrong with the configuration, in the log and wherever the daemon is looked at."""
        self._problems = problems
        self._metrics.show_problems(Counter(str(problem.file) for problem in problems))
        for problem in problems:
            log.error("config_refused", problem=str(problem))

    def _hooks(self, service: str) -> Sequence[Hook]:
        found = self.config.driven.get(service)
        return [section.hook() for section in found.hooks] if found else []

    def _edge_options(self, service: str) -> EdgeOptions:
        found = self.config.driven.get(service)
        return found.edge if found else EdgeOptions()

    def _publish(
        self, state: ServiceState, plan: ServicePlan, seen: Observation, events: tuple[Event, ...]
    ) -> None:
        """Show what a turn has found; a bug here is no reason to stop the turn."""
        try:
            if seen.runtime_ok:
                self._targets[state.service] = targets(state, seen.instances, plan.metrics)
            elif state.service not in self._targets:  # what was committed is the best that is known
                self._targets[state.service] = targets(state, served(state.route), plan.metrics)
            for event in events:
                tell(event, self._metrics)
                if isinstance(event, ReleaseAccepted):
                    self._removed.discard(state.service)
                if isinstance(event, ServiceRemoved):
                    self._removed.add(state.service)
                    self._kept.forget(state.service)
            self._metrics.show(state, seen)
        except Exception:
            log.exception("task_failed", task="publish", service=state.service)
            self._metrics.task_failed("publish")

    def _all_targets(self) -> Iterator[Target]:
        return (t for found in self._targets.values() for t in found)

    def _target_document(self, here: str) -> list[dict[str, Any]] | None:
        unknown = self.config.driven.keys() - self._targets.keys()
        if unknown and self._clock.now() < self._drives_since + TARGETS_WITHHELD:
            return None
        return document(self._all_targets(), here)

    def _instance(self, name: str) -> bytes:
        addresses = {t.labels["instance"]: t.address for t in self._all_targets() if t.at_edge}
        self._requests.forget(set(addresses.values()))
        return seen_by_nginx(self._requests.counts(name, addresses[name]))

    def _why_unready(self) -> str:
        store = self._private.trouble if self._private else ""
        stale = self._lease is not None and not self._unready and not self._lease.fresh()
        lease = "the lease was not renewed in time: does Redis answer?" if stale and not store else ""
        return "; ".join(filter(None, (self._watch.unwritten, store, lease, self._unready)))

    async def _count(self, store: RedisStore) -> None:
        while True:
            try:
                self._metrics.pending.set(await store.waiting())
            except Fault:
                self._metrics.store.set(0)
                raise
            self._metrics.store.set(1)
            self._metrics.dropped.set(self._writer.dropped)
            await asyncio.sleep(2.0)


async def _when_cancelled(call: Callable[[], None]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        call()


def _prepare(state_dir: Path) -> None:
    """The folder of all that is kept.

    Raises:
        Fault: This process may not write to it.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"state_dir {state_dir}: {error.strerror}: create it for uid {os.getuid()}") from error
    if not os.access(state_dir, os.W_OK | os.X_OK):
        raise Fault(f"state_dir {state_dir}: can't be written: chown {os.getuid()} {state_dir}")


class _Deadline:
    """Of the daemon's end: what hangs `STOP_DEADLINE` seconds after it has begun is left by force.

    Attributes:
        code: What the process then exits with.
    """

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self._begun = False
        self.code = 70

    def begin(self) -> None:
        """The end begins; it may have begun before."""
        if not self._begun:
            self._begun = True
            asyncio.get_running_loop().call_later(STOP_DEADLINE, self._leave)

    def _leave(self) -> None:
        hang = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks() if task.cancelling()))
        log.error("stop_overdue", reason=f"{hang or 'the daemon'} did not end within {STOP_DEADLINE:g} s")
        self._writer.flush()
        os._exit(self.code)


def serve(config: Config, writer: LineWriter) -> int:
    """Run the daemon until a signal; returns the exit code. A second signal ends it at once."""
    return asyncio.run(_serve(config, writer))


async def _serve(config: Config, writer: LineWriter) -> int:
    loop = asyncio.get_running_loop()
    try:
        daemon = Daemon(config, writer)
    except Fault as error:
        log.error("start_failed", reason=str(error))
        writer.flush()
        return 1
    signals: list[int] = []
    deadline = _Deadline(writer)

    def stop(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            log.warning("stop_forced")
            writer.flush()
            os._exit(128 + number)
        log.info("stopping", signal=signal.Signals(number).name)
        task.cancel()
        deadline.code = 128 + number
        deadline.begin()

    task = asyncio.create_task(daemon.run(deadline.begin), name="daemon")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until it drives there is nothing to read again
    try:
        await task
    except asyncio.CancelledError:
        return 0
    except Stale as error:
        log.error("superseded", reason=str(error))
        return 75
    except Fault as error:
        log.error("start_failed", reason=str(error))
        return 1
    except Exception:
        log.exception("crashed")
        return 70
    finally:
        writer.flush()
    return 0
