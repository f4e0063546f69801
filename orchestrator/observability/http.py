"""Health, metrics and service discovery over HTTP, on loopback by default."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from orchestrator.observability.metrics import DaemonMetrics
from orchestrator.ports.faults import Fault


@dataclass(frozen=True, slots=True)
class Views:
    """What the endpoints show.

    Attributes:
        targets: The document for service discovery, given what the daemon is called by whoever asks; None
            while not all services have been looked at.
        instance: What nginx has seen of an instance, as Prometheus reads it; raises `Fault` when it can't be
            told, and `KeyError` when there is no such instance.
        unready: Why the daemon does not drive; '' when it does.
        problems: What is wrong with the configuration.
    """

    metrics: DaemonMetrics
    targets: Callable[[str], list[dict[str, Any]] | None]
    instance: Callable[[str], bytes]
    unready: Callable[[], str]
    problems: Callable[[], list[str]] = list


def application(views: Views) -> web.Application:
    """The endpoints: /healthz, /readyz, /metrics, /targets, /instances/NAME."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        reason = views.unready()
        body = {"status": "unready", "reason": reason} if reason else {"status": "ready"}
        return web.json_response({**body, "problems": views.problems()}, status=503 if reason else 200)

    async def metrics(_: web.Request) -> web.Response:
        return _text(views.metrics.render())

    async def instance(request: web.Request) -> web.Response:
        try:
            return _text(views.instance(request.match_info["name"]))
        except KeyError:
            raise web.HTTPNotFound(text="no such instance") from None
        except Fault as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error

    async def targets(request: web.Request) -> web.Response:
        found = views.targets(request.host)
        if found is None:  # Prometheus keeps the targets that it has; an empty list would drop them
            raise web.HTTPServiceUnavailable(text="not all services have been looked at yet")
        return web.json_response(found)

    app = web.Application(client_max_size=64 * 1024)
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/targets", targets),
            web.get("/instances/{name}", instance),
        ]
    )
    return app


def _text(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})


async def listen(app: web.Application, host: str, port: int, **options: Any) -> web.AppRunner:
    """Start serving, with these options of aiohttp's; `cleanup()` of what is returned stops it.

    Raises:
        Fault: The address is taken or may not be used.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise Fault(f"http.listen {host}:{port}: {error.strerror}") from error
    return runner
