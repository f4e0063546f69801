"""`python -m tests.doubles.engine SOCKET [RATE]`: a double of the Docker Engine's API, for many containers.

It knows what `orchestrator.runtime` asks for and no more. A container is a listener of this process at an
address of 127/8 that answers /health, /metrics and anything else as the Gin example does; its counters grow
by RATE requests a second by themselves. `tests/contract/test_runtime.py` holds it to what the Engine does.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

ROOT = Path(__file__).parents[2]

LATENCY = 0.005
"""Seconds that each request of a container's counters has taken."""

NEVER = "0001-01-01T00:00:00Z"
KILLED, ENDED = 137, 0
LABELS = 'path="/ping",method="GET"'

METRICS = """\
http_requests_total{{{labels},code="200"}} {count}
http_request_duration_seconds_bucket{{{labels},le="0.001"}} 0
http_request_duration_seconds_bucket{{{labels},le="0.01"}} {count}
http_request_duration_seconds_bucket{{{labels},le="+Inf"}} {count}
http_request_duration_seconds_sum{{{labels}}} {seconds}
http_request_duration_seconds_count{{{labels}}} {count}
"""


class RefusalError(Exception):
    """What the Engine answers instead: a status and its words."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Container:
    """One container, as it was asked for and as it is now."""

    id: str
    name: str
    body: dict[str, Any]
    network: str
    address: str
    created: str
    rate: float
    status: str = "created"
    started_at: str = NEVER
    since: float = 0.0
    exit_code: int = 0
    policy: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    server: asyncio.Server | None = None
    clients: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def labels(self) -> dict[str, str]:
        """Those that it was created with."""
        return dict(self.body.get("Labels") or {})

    @property
    def networks(self) -> dict[str, Any]:
        """Its end in its network; the address is the Engine's word only while it runs."""
        running = self.status == "running"
        end = {
            "IPAMConfig": {"IPv4Address": self.address},
            "IPAddress": self.address if running else "",
            "NetworkID": self.network,
        }
        return {self.network: end} if self.network else {}

    def inspected(self) -> dict[str, Any]:
        """As `GET /containers/ID/json` shows it."""
        running = self.status == "running"
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Created": self.created,
            "Image": self.body["Image"],
            "RestartCount": 0,
            "Config": {**self.body, "Labels": self.labels, "Tty": False},
            "State": {
                "Status": self.status,
                "Running": running,
                "Restarting": False,
                "OOMKilled": False,
                "Error": "",
                "ExitCode": self.exit_code,
                "StartedAt": self.started_at,
            },
            "HostConfig": {**(self.body.get("HostConfig") or {}), "RestartPolicy": self.policy},
            "NetworkSettings": {"Networks": self.networks},
            "Mounts": [],
        }

    def summary(self) -> dict[str, Any]:
        """As `GET /containers/json` shows it."""
        return {
            "Id": self.id,
            "Names": [f"/{self.name}"],
            "Image": self.body["Image"],
            "Labels": self.labels,
            "State": self.status,
            "NetworkSettings": {"Networks": self.networks},
        }

    async def start(self) -> None:
        """Listen, as the program in it would."""
        port = int(next(iter(self.body.get("ExposedPorts") or {"8080/tcp": {}})).partition("/")[0])
        self.server = await asyncio.start_server(self._serve, self.address, port)
        self.status, self.since = "running", time.monotonic()
        self.started_at = _stamp()
        self.said.append(f"gin-api double listens on :{port}")

    def end(self, exit_code: int) -> None:
        """Take no more connections, and end those there are."""
        if self.server is not None:
            self.server.close()
            self.server = None
        for client in tuple(self.clients):
            client.transport.abort()
        self.status, self.exit_code = "exited", exit_code

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    status, text = self._answer(head.split(b" ", 2)[1].decode())
                    lines = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n"
                    writer.write(f"{lines}Content-Length: {len(text)}\r\n\r\n{text}".encode())
                    await writer.drain()
                    if b"connection: close" in head.lower():
                        return
        finally:
            self.clients.discard(writer)
            writer.close()

    def _answer(self, path: str) -> tuple[str, str]:
        if path == "/metrics":
            count = int((time.monotonic() - self.since) * self.rate)
            return "200 OK", METRICS.format(labels=LABELS, count=count, seconds=count * LATENCY)
        if path in ("/health", "/ping"):
            return "200 OK", "ok"
        return "404 Not Found", "no such page"


class Engine:
    """Containers, images, volumes, networks and events, in memory.

    Attributes:
        asked: How often each kind of question was asked.
    """

    def __init__(self, rate: float = 5.0) -> None:
        self.asked: Counter[str] = Counter()
        self._rate = rate
        self._containers: dict[str, Container] = {}
        self._images: dict[str, str] = {}
        self._volumes: dict[str, dict[str, Any]] = {}
        self._networks: dict[str, dict[str, Any]] = {}
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self._numbers = itertools.count(1)

    def add_image(self, name: str) -> str:
        """Let an image be there; returns its id."""
        return self._images.setdefault(name, f"sha256:{hashlib.sha256(name.encode()).hexdigest()}")

    def app(self) -> web.Application:
        """The API."""
        app = web.Application(middlewares=[self._count], client_max_size=2**20)
        one = "/{api:v[0-9.]+}/containers/{id}"
        routes: dict[tuple[str, str], Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            ("GET", "/version"): self._version,
            ("GET", "/{api:v[0-9.]+}/version"): self._version,
            ("GET", "/{api:v[0-9.]+}/events"): self._events,
            ("GET", "/{api:v[0-9.]+}/containers/json"): self._list,
            ("POST", "/{api:v[0-9.]+}/containers/create"): self._create,
            ("GET", f"{one}/json"): self._inspect,
            ("GET", f"{one}/logs"): self._logs,
            ("GET", f"{one}/stats"): self._stats,
            ("POST", f"{one}/start"): self._start,
            ("POST", f"{one}/stop"): self._stop,
            ("POST", f"{one}/kill"): self._kill,
            ("POST", f"{one}/update"): self._update,
            ("DELETE", one): self._remove,
            ("POST", "/{api:v[0-9.]+}/images/create"): self._pull,
            ("GET", "/{api:v[0-9.]+}/images/{name:.+}/json"): self._image,
            ("DELETE", "/{api:v[0-9.]+}/images/{name:.+}"): self._remove_image,
            ("GET", "/{api:v[0-9.]+}/volumes"): self._list_volumes,
            ("POST", "/{api:v[0-9.]+}/volumes/create"): self._create_volume,
            ("DELETE", "/{api:v[0-9.]+}/volumes/{name}"): self._remove_volume,
            ("POST", "/{api:v[0-9.]+}/networks/create"): self._create_network,
            ("GET", "/{api:v[0-9.]+}/networks/{name}"): self._network,
            ("DELETE", "/{api:v[0-9.]+}/networks/{name}"): self._remove_network,
            ("GET", "/asked"): self._tell_asked,
            ("POST", "/image"): self._take_image,
        }
        for (method, path), handler in routes.items():
            app.router.add_route(method, path, handler)
        return app

    @web.middleware
    async def _count(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is not None:
            self.asked[f"{request.method} {resource.canonical.replace('/{api}', '')}"] += 1
        try:
            return await handler(request)
        except RefusalError as refusal:
            return web.json_response({"message": str(refusal)}, status=refusal.status)

    async def _tell_asked(self, _: web.Request) -> web.Response:
        return web.json_response(self.asked)

    async def _take_image(self, request: web.Request) -> web.Response:
        return web.json_response({"Id": self.add_image((await request.json())["name"])})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"Version": "double", "ApiVersion": "1.41", "MinAPIVersion": "1.12"})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        wanted = _filters(request)
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            with contextlib.suppress(ConnectionError):
                while True:
                    event = await queue.get()
                    if _labelled(wanted, event["Actor"]["Attributes"]):
                        await answer.write(json.dumps(event).encode() + b"\n")
        finally:
            self._listeners.discard(queue)
        return answer

    def _tell(self, container: Container, action: str) -> None:
        actor = {"ID": container.id, "Attributes": {**container.labels, "name": container.name}}
        event = {"Type": "container", "Action": action, "Actor": actor, "timeNano": time.time_ns()}
        for queue in self._listeners:
            queue.put_nowait(event)

    def _found(self, request: web.Request) -> Container:
        name = request.match_info["id"]
        known = self._containers.values()
        found = self._containers.get(name) or next((c for c in known if c.name == name), None)
        if found is None:
            raise RefusalError(HTTPStatus.NOT_FOUND, f"No such container: {name}")
        return found

    async def _list(self, request: web.Request) -> web.Response:
        wanted, every = _filters(request), request.query.get("all") in ("1", "true", "True")
        networks, ids = wanted.get("network", []), wanted.get("id", [])
        found = [
            container.summary()
            for container in self._containers.values()
            if (every or container.status == "running")
            and _labelled(wanted, container.labels)
            and (not networks or container.network in networks)
            and (not ids or any(container.id.startswith(one) for one in ids))
        ]
        return web.json_response(found)

    async def _create(self, request: web.Request) -> web.Response:
        name, body = request.query.get("name", ""), await request.json()
        taken = next((c for c in self._containers.values() if c.name == name), None)
        if taken is not None:
            words = f'Conflict. The container name "/{name}" is already in use by container "{taken.id}".'
            raise RefusalError(HTTPStatus.CONFLICT, words)
        if body["Image"] not in (*self._images, *self._images.values()):
            raise RefusalError(HTTPStatus.NOT_FOUND, f"No such image: {body['Image']}")
        ends = (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
        network = next(iter(ends), "")
        container = Container(
            id=hashlib.sha256(f"{name} {next(self._numbers)}".encode()).hexdigest(),
            name=name,
            body=body,
            network=network,
            address=((ends.get(network) or {}).get("IPAMConfig") or {}).get("IPv4Address", ""),
            created=_stamp(),
            rate=self._rate,
            policy=(body.get("HostConfig") or {}).get("RestartPolicy") or {"Name": "no"},
        )
        self._containers[container.id] = container
        self._tell(container, "create")
        return web.json_response({"Id": container.id, "Warnings": []}, status=HTTPStatus.CREATED)

    async def _inspect(self, request: web.Request) -> web.Response:
        return web.json_response(self._found(request).inspected())

    async def _logs(self, request: web.Request) -> web.Response:
        text = "".join(f"{line}\n" for line in self._found(request).said).encode()
        return web.Response(body=b"\x02\0\0\0" + len(text).to_bytes(4, "big") + text if text else b"")

    async def _stats(self, request: web.Request) -> web.Response:
        used = (time.monotonic() - self._found(request).since) * self._rate * LATENCY
        read = _stamp()
        return web.json_response({"read": read, "cpu_stats": {"cpu_usage": {"total_usage": int(used * 1e9)}}})

    async def _start(self, request: web.Request) -> web.Response:
        container = self._found(request)
        if container.status == "running":
            return web.Response(status=HTTPStatus.NOT_MODIFIED)
        same = (c for c in self._containers.values() if c.address == container.address)
        if any(c.status == "running" for c in same):
            raise RefusalError(HTTPStatus.FORBIDDEN, "Address already in use")
        await container.start()
        self._tell(container, "start")
        return web.Response(status=HTTPStatus.NO_CONTENT)

    def _end(self, container: Container, exit_code: int) -> None:
        if container.status == "running":
            container.end(exit_code)
            self._tell(container, "die")

    async def _stop(self, request: web.Request) -> web.Response:
        self._end(self._found(request), ENDED)
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _kill(self, request: web.Request) -> web.Response:
        container = self._found(request)
        if container.status != "running":
            raise RefusalError(HTTPStatus.CONFLICT, f"Container {container.id} is not running")
        self._end(container, KILLED)
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _update(self, request: web.Request) -> web.Response:
        container, body = self._found(request), await request.json()
        container.policy = body["RestartPolicy"]
        self._tell(container, "update")
        return web.json_response({"Warnings": []})

    async def _remove(self, request: web.Request) -> web.Response:
        container = self._found(request)
        if container.status == "running" and request.query.get("force") not in ("1", "true", "True"):
            raise RefusalError(HTTPStatus.CONFLICT, f"You cannot remove a running container {container.id}.")
        self._end(container, KILLED)
        del self._containers[container.id]
        self._tell(container, "destroy")
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _pull(self, request: web.Request) -> web.Response:
        name = request.query.get("fromImage", "")
        raise RefusalError(HTTPStatus.NOT_FOUND, f"pull access denied for {name}, repository does not exist")

    async def _image(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = next((i for i in self._images.items() if name in i), None)
        if found is None:
            raise RefusalError(HTTPStatus.NOT_FOUND, f"No such image: {name}")
        tag, identity = found
        shown = {"Id": identity, "RepoTags": [tag], "RepoDigests": [], "Config": {"User": "65534:65534"}}
        return web.json_response(shown)

    async def _remove_image(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        gone = [tag for tag, identity in self._images.items() if name in (tag, identity)]
        if not gone:
            raise RefusalError(HTTPStatus.NOT_FOUND, f"No such image: {name}")
        for tag in gone:
            del self._images[tag]
        return web.json_response([{"Deleted": name}])

    async def _list_volumes(self, request: web.Request) -> web.Response:
        wanted = _filters(request)
        found = [v for v in self._volumes.values() if _labelled(wanted, v["Labels"])]
        return web.json_response({"Volumes": found, "Warnings": []})

    async def _create_volume(self, request: web.Request) -> web.Response:
        body = await request.json()
        volume = {"Name": body["Name"], "Labels": body.get("Labels") or {}}
        return web.json_response(self._volumes.setdefault(body["Name"], volume), status=HTTPStatus.CREATED)

    async def _remove_volume(self, request: web.Request) -> web.Response:
        if self._volumes.pop(request.match_info["name"], None) is None:
            raise RefusalError(HTTPStatus.NOT_FOUND, "no such volume")
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _create_network(self, request: web.Request) -> web.Response:
        body = await request.json()
        for pool in (body.get("IPAM") or {}).get("Config") or []:
            ipaddress.ip_network(pool["Subnet"])
        self._networks[body["Name"]] = {"Id": body["Name"], **body}
        return web.json_response({"Id": body["Name"], "Warning": ""}, status=HTTPStatus.CREATED)

    async def _network(self, request: web.Request) -> web.Response:
        found = self._networks.get(request.match_info["name"])
        if found is None:
            raise RefusalError(HTTPStatus.NOT_FOUND, f"network {request.match_info['name']} not found")
        return web.json_response(found)

    async def _remove_network(self, request: web.Request) -> web.Response:
        if self._networks.pop(request.match_info["name"], None) is None:
            raise RefusalError(HTTPStatus.NOT_FOUND, "no such network")
        return web.Response(status=HTTPStatus.NO_CONTENT)


def _stamp() -> str:
    """Now, as the Engine writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")  # noqa: TID251  a double of what has a clock


def _filters(request: web.Request) -> dict[str, list[str]]:
    """Both forms that clients send: a list of values, or values as keys."""
    found = json.loads(request.query.get("filters", "{}"))
    return {key: list(values) for key, values in found.items()}


def _labelled(wanted: dict[str, list[str]], labels: dict[str, str]) -> bool:
    pairs = [one.partition("=") for one in wanted.get("label", [])]
    return all(key in labels and (not sep or labels[key] == value) for key, sep, value in pairs)


@contextlib.asynccontextmanager
async def double(socket: Path, *images: str, rate: float = 5.0) -> AsyncIterator[str]:
    """One in a process of its own, with these images; its address."""
    command = [sys.executable, "-m", "tests.doubles.engine", str(socket), str(rate)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
            for image in images:
                async with session.post("http://double/image", json={"name": image}) as answer:
                    answer.raise_for_status()
        yield f"unix://{socket}"
    finally:
        process.kill()
        await process.wait()


async def serve(socket: str, rate: float) -> None:
    """Answer at a Unix socket, until the end."""
    runner = web.AppRunner(Engine(rate).app(), access_log=None)
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    print("up", flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever has started it ends


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 5.0))
