"""Generated `server` blocks that speak TLS, on a real nginx with certificates of a private CA."""

import asyncio
import contextlib
import gzip
import ssl
from collections import Counter
from dataclasses import dataclass, replace
from http import HTTPStatus

import pytest

from examples.playground.lease import free_port
from orchestrator.observability.certificates import ends_at
from orchestrator.traffic.options import ServerBlock, Tls
from tests.authority import NAME, Authority
from tests.contract.conftest import Site
from tests.http2 import Http2Client


@dataclass
class Secure:
    """A site behind TLS."""

    site: Site
    authority: Authority
    ends: float
    plain: int

    async def get(
        self, path: str = "/a%2Fb", more: str = "", context: ssl.SSLContext | None = None
    ) -> tuple[str, bytes]:
        """Head and body of an answer over TLS."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.site.port,
            ssl=context or self.authority.context(),
            server_hostname=NAME,
        )
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n{more}\r\n".encode())
        async with asyncio.timeout(5):
            answer = await reader.read()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.decode(), body


@pytest.fixture
async def secure(site: Site) -> Secure:
    authority = Authority(site.folder.parent)
    ends, plain = authority.issue(days=1), free_port()
    (site.folder.parent / "acme" / ".well-known" / "acme-challenge").mkdir(parents=True)
    (site.folder.parent / "acme" / ".well-known" / "acme-challenge" / "token").write_text("proof")
    tls = Tls(
        certificate=str(site.folder.parent / "chain.pem"),
        key=str(site.folder.parent / "key.pem"),
        hsts=15552000,
        redirect_from=f"127.0.0.1:{plain}",
        acme_webroot=str(site.folder.parent / "acme"),
    )
    server = ServerBlock(
        listen=f"127.0.0.1:{site.port}",
        server_name=NAME,
        tls=tls,
        gzip=True,
        static_path="/static/",
        static_age=3600,
    )
    site.change(server=server)
    await site.edge.apply(site.plan(3, "api-1", "api-2", back="api-1"), 1)
    return Secure(site, authority, ends, plain)


async def test_a_client_that_trusts_the_ca_is_served_and_others_are_not(secure: Secure) -> None:
    head, body = await secure.get()
    assert head.startswith("HTTP/1.1 200")
    assert body in {b"api-1", b"api-2"}
    assert "Strict-Transport-Security: max-age=15552000" in head
    asked = secure.site.got[-1][1]
    assert "X-Forwarded-Proto: https" in asked
    assert "X-Forwarded-For: 127.0.0.1" in asked
    with pytest.raises(ssl.SSLCertVerificationError):
        await secure.get(context=ssl.create_default_context())


@pytest.mark.parametrize(
    ("version", "ciphers", "welcome"),
    [
        (ssl.TLSVersion.TLSv1_3, None, True),
        (ssl.TLSVersion.TLSv1_2, None, True),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA", False),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
    ],
)
@pytest.mark.parametrize("site", ["reload"], indirect=True)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
async def test_old_protocols_and_ciphers_are_refused(
    secure: Secure, version: ssl.TLSVersion, ciphers: str | None, welcome: bool
) -> None:
    context = secure.authority.context()
    context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    if welcome:
        assert (await secure.get(context=context))[0].startswith("HTTP/1.1 200")
    else:
        with pytest.raises(ssl.SSLError):
            await secure.get(context=context)


async def test_http_2_is_offered(secure: Secure) -> None:
    context = secure.authority.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection(
        "127.0.0.1", secure.site.port, ssl=context, server_hostname=NAME
    )
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.transport.abort()  # over TLS `close` waits until the other side closes too


async def test_plain_requests_are_sent_to_https_and_challenges_are_answered(secure: Secure) -> None:
    site = replace(secure.site, port=secure.plain)
    head, _ = await site.request(start=f"POST /a?b=c HTTP/1.1\r\nHost: {NAME}\r\n".encode())
    assert head.startswith("HTTP/1.1 308")
    assert f"Location: https://{NAME}:{secure.site.port}/a?b=c\r\n" in head
    start = f"GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: {NAME}\r\n".encode()
    assert (await site.request(start=start))[1] == "proof"


async def test_text_is_compressed_and_static_answers_may_be_kept(secure: Secure) -> None:
    head, body = await secure.get("/long", "Accept-Encoding: gzip\r\n")
    assert "Content-Encoding: gzip" in head
    size, _, chunk = body.partition(b"\r\n")
    assert gzip.decompress(chunk[: int(size, 16)]).startswith(b"api-")
    head, _ = await secure.get("/static/x.js")
    assert "Cache-Control: max-age=3600" in head
    assert "Strict-Transport-Security" in head
    assert "Cache-Control" not in (await secure.get())[0]


async def test_a_certificate_that_is_renewed_in_mid_rollout_disturbs_nothing(secure: Secure) -> None:
    site = secure.site
    shown = await ends_at("127.0.0.1", site.port, NAME)
    assert shown == secure.ends
    answered, done = 0, asyncio.Event()

    async def user() -> None:
        nonlocal answered
        while not done.is_set():
            head, _ = await secure.get()
            assert head.startswith("HTTP/1.1 200")
            answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(user())
        renewed = secure.authority.issue(days=90)
        assert await ends_at("127.0.0.1", site.port, NAME) == secure.ends, "written is not loaded"
        before = (await site.edge.observe("api")).served
        await site.edge.reload()
        assert await ends_at("127.0.0.1", site.port, NAME) == renewed
        seen = await site.edge.observe("api")
        assert (seen.served, seen.file) == (before, "ours")
        await site.edge.apply(site.plan(4, "api-2", back="api-1"), 1)
        done.set()
    assert answered > 20
    assert (await secure.get())[1] == b"api-2"


async def test_a_broken_certificate_is_refused_before_anything_changes(secure: Secure) -> None:
    site = secure.site
    (site.folder.parent / "chain.pem").write_text("not a certificate")
    with pytest.raises(Exception, match=r"chain\.pem"):
        await site.edge.reload()
    assert await ends_at("127.0.0.1", site.port, NAME) == secure.ends
    secure.authority.issue(days=5)
    await site.edge.reload()
    assert (await secure.get())[0].startswith("HTTP/1.1 200")


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["busy", "idle"])
async def test_http_2_clients_lose_nothing_over_reloads(secure: Secure, pause: float) -> None:
    site, done, answers = secure.site, asyncio.Event(), Counter[bytes]()
    context = secure.authority.context()
    context.set_alpn_protocols(["h2"])
    clients = [Http2Client(site.port, NAME, context) for _ in range(8)]

    async def user(client: Http2Client, method: str) -> None:
        while not done.is_set():
            status, body = await client.get("/", method)
            assert status == HTTPStatus.OK
            answers[body.split()[0]] += 1
            await asyncio.sleep(pause)
        await client.close()

    async with asyncio.TaskGroup() as group:
        for number, client in enumerate(clients):
            group.create_task(user(client, ("GET", "POST")[number % 2]))
        for generation in range(4, 12):
            await site.edge.apply(site.plan(generation, "api-1", "api-2", back="api-1"), 1)
            enough = answers.total() + 40
            async with asyncio.timeout(10):
                while answers.total() < enough:
                    await asyncio.sleep(0.01)
        done.set()
    assert answers.keys() == {b"api-1", b"api-2"}
    if not site.dynamic:
        assert sum(c.connections for c in clients) > len(clients), "no reload was felt"
