"""Signed requests: the right one is taken once, and nothing that only looks like it."""

import asyncio
import json
import time
from typing import Any

import pytest

from orchestrator.intake.signed import HEADERS, PATH, Key, signature
from orchestrator.ports.access import Principal
from orchestrator.ports.faults import Fault
from tests.door.conftest import House

OLD, NEW = b"o" * 40, b"n" * 40
ROLLBACK = {"verb": "rollback", "service": "api", "who": "ann", "why": "errors"}


@pytest.fixture
def signing(house: House) -> House:
    who = Principal(name="hook", role="operator", services=("api",))
    house.keys_of = {"old": Key(who, OLD), "new": Key(who, NEW)}
    return house


def signed_headers(body: bytes, secret: bytes = NEW, **changed: str) -> dict[str, str]:
    now = str(int(time.time()))  # noqa: TID251  as a caller does
    given = {"key": "new", "timestamp": now, "nonce": "n" * 20, "method": "POST", "path": PATH, **changed}
    sign = signature(secret, given["timestamp"], given["nonce"], given["method"], given["path"], body)
    return {
        "X-Release-Key": given["key"],
        "X-Release-Timestamp": given["timestamp"],
        "X-Release-Nonce": given["nonce"],
        "X-Release-Signature": sign,
    }


async def send(house: House, body: bytes, headers: Any) -> tuple[int, Any]:
    async with house.session.post(house.url + PATH, data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_signed_request_is_put_down_in_the_name_of_its_key(signing: House) -> None:
    body = json.dumps(ROLLBACK).encode()
    for key, secret in (("old", OLD), ("new", NEW)):
        status, told = await send(signing, body, signed_headers(body, secret, key=key, nonce=key * 8))
        assert status == 202, told
    assert await signing.asked() == [{**ROLLBACK, "who": "ann via hook"}] * 2


async def test_a_replay_is_refused_also_with_another_time(signing: House) -> None:
    body = json.dumps(ROLLBACK).encode()
    headers = signed_headers(body)
    assert (await send(signing, body, headers))[0] == 202
    again = await send(signing, body, headers)
    fresh = await send(
        signing, body, signed_headers(body, timestamp=str(int(headers["X-Release-Timestamp"]) + 1))
    )
    assert (again[0], fresh[0]) == (401, 401)
    (entry,) = [e for e, _ in await signing.redis.xrange(signing.keys.requests)]
    assert f"it has come before, as request {entry}" in again[1]["detail"]
    assert len(await signing.asked()) == 1


async def test_what_was_not_taken_may_come_again_as_it_is(signing: House) -> None:
    body = json.dumps(ROLLBACK).encode()
    headers = signed_headers(body)
    assert signing.private is not None
    await signing.private.stop()
    assert (await send(signing, body, headers))[0] == 503
    await signing.private.start()
    assert (await send(signing, body, headers))[0] == 202
    wrong = json.dumps({**ROLLBACK, "service": "web"}).encode()
    headers = signed_headers(wrong, nonce="m" * 20)
    assert [(await send(signing, wrong, headers))[0] for _ in range(2)] == [403, 403]
    signing.keys_of["new"] = Key(Principal(name="hook", role="operator"), NEW)
    assert (await send(signing, wrong, headers))[0] == 202
    assert len(await signing.asked()) == 2


async def test_what_was_taken_although_its_answer_was_lost_is_not_taken_again(
    signing: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = signing.store.push

    async def loses_its_reply(*given: Any) -> str:
        await push(*given)
        monkeypatch.undo()
        raise Fault("Redis: timeout")

    monkeypatch.setattr(signing.store, "push", loses_its_reply)
    body = json.dumps(ROLLBACK).encode()
    headers = signed_headers(body)
    assert (await send(signing, body, headers))[0] == 503
    assert (await send(signing, body, headers))[0] == 401
    assert len(await signing.asked()) == 1


@pytest.mark.parametrize("shift", [-301, 330, -(10**9)])
async def test_a_stale_or_future_time_is_refused(signing: House, shift: int) -> None:
    body = json.dumps(ROLLBACK).encode()
    then = str(int(signing.clock.now()) + shift)
    assert (await send(signing, body, signed_headers(body, timestamp=then)))[0] == 401
    assert await signing.asked() == []


@pytest.mark.parametrize(
    "change",
    [
        {"X-Release-Key": "nobody"},
        {"X-Release-Key": "old"},
        {"X-Release-Timestamp": "0x10"},
        {"X-Release-Timestamp": "١٢٣"},
        {"X-Release-Nonce": "m" * 20},
        {"X-Release-Nonce": "short"},
        {"X-Release-Signature": "v1=é"},
        {"X-Release-Signature": "v0=00"},
        {"X-Release-Signature": ""},
    ],
    ids=str,
)
async def test_a_header_that_does_not_fit_is_refused(signing: House, change: dict[str, str]) -> None:
    body = json.dumps(ROLLBACK).encode()
    assert (await send(signing, body, signed_headers(body) | change))[0] == 401
    assert await signing.asked() == []


@pytest.mark.parametrize("name", ["Key", "Timestamp", "Nonce", "Signature"])
@pytest.mark.parametrize("times", [0, 2])
async def test_every_header_must_be_there_once(signing: House, name: str, times: int) -> None:
    body = json.dumps(ROLLBACK).encode()
    headers = signed_headers(body)
    value = headers.pop(f"X-Release-{name}")
    given = [*headers.items(), *[(f"X-Release-{name}", value)] * times]
    status, told = await send(signing, body, given)
    assert status == 401
    assert f"X-Release-{name}" in told["detail"]


@pytest.mark.parametrize(
    ("secret", "changed"),
    [(b"x" * 40, {}), (NEW, {"method": "PUT"}), (NEW, {"path": "/hooks/other"}), (OLD, {})],
)
async def test_a_signature_over_something_else_is_refused(
    signing: House, secret: bytes, changed: dict[str, str]
) -> None:
    body = json.dumps(ROLLBACK).encode()
    assert (await send(signing, body, signed_headers(body, secret, **changed)))[0] == 401


async def test_a_body_that_was_written_anew_is_refused(signing: House) -> None:
    body = json.dumps(ROLLBACK).encode()
    same_value = json.dumps(ROLLBACK, indent=1).encode()
    assert (await send(signing, same_value, signed_headers(body)))[0] == 401
    query = signed_headers(body)
    async with signing.session.post(signing.url + PATH + "?x=1", data=body, headers=query) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"verb": "rollback", "service": "web"}, 403),
        ({"verb": "release", "service": "api", "image": "a b"}, 422),
        ({"verb": "explode", "service": "api"}, 422),
        ({"verb": "rollback", "service": "../../etc"}, 403),
        ({"verb": "rollback", "service": "api", "extra": 1}, 422),
        ([], 422),
        ("NaN", 422),
    ],
    ids=str,
)
async def test_what_is_signed_and_wrong_is_refused_with_its_reason(
    signing: House, body: Any, expected: int
) -> None:
    text = json.dumps(body).encode()
    status, told = await send(signing, text, signed_headers(text))
    assert status == expected, told
    assert await signing.asked() == []


@pytest.mark.parametrize("name", HEADERS)
async def test_bytes_that_are_no_text_in_a_header_make_no_signature(signing: House, name: str) -> None:
    headers = {**signed_headers(b"{}"), name: "\udcff\udc80"}
    head = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    raw = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{head}\r\n{{}}"
    reader, writer = await asyncio.open_connection("127.0.0.1", signing.port)
    writer.write(raw.encode("utf-8", "surrogateescape"))
    async with asyncio.timeout(5):
        assert b" 401 " in await reader.readline()
    writer.close()


async def test_nobody_signs_as_the_daemon_itself(signing: House) -> None:
    body = json.dumps({**ROLLBACK, "who": "orchestrator"}).encode()
    status, told = await send(signing, body, signed_headers(body))
    assert (status, told["detail"][:22]) == (422, "who: 'orchestrator' is"), told
    assert await signing.asked() == []
