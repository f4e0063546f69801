"""The HTTP API: who may do what, what is put down, and what comes back."""

import asyncio
import contextlib
import itertools
import json
import stat
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
from pydantic import ValidationError

from orchestrator.daemon.settings import Settings
from orchestrator.engine.tasks import beside
from orchestrator.intake import api as api_module
from orchestrator.intake import door, server
from orchestrator.intake.limits import Lane
from orchestrator.intake.problems import Problem
from orchestrator.intake.server import Server
from orchestrator.intake.views import ReleaseBody, fields_of
from orchestrator.ports.access import MAY, Principal, Role, Verb
from orchestrator.ports.faults import Fault
from orchestrator.rollout.command import Freeze, handle
from orchestrator.rollout.events import ConfigReloaded, ReleaseEnded, RequestRefused
from orchestrator.rollout.model import Ended, Outcome, ServiceState
from orchestrator.store import tail as tail_module
from orchestrator.store.codec import dump_event
from orchestrator.store.tokens import RedisTokens
from tests.builders import release, submit, template
from tests.conftest import LogLines
from tests.door.conftest import House, until
from tests.samples import ended

OURS = "is the daemon's own name in the audit trail; choose another"
IMAGE = {"image": "registry.example.com/team/api:1.2"}


def path_of(verb: Verb) -> str:
    return f"/v1/services/api/{'releases' if verb == 'release' else verb}"


async def test_a_release_is_put_down_before_it_is_accepted(house: House) -> None:
    secret = await house.secret("submitter", "api")
    body = {**IMAGE, "reason": "fixes\nCVE", "link": "https://ci/1", "who": "ann"}
    status, accepted, headers = await house.ask(
        "POST", path_of("release"), secret, body, Idempotency_Key="b-1"
    )
    assert status == 202
    assert headers["Location"] == f"/v1/requests/{accepted['request']}"
    assert await house.asked() == [
        {
            "verb": "release",
            "service": "api",
            "image": IMAGE["image"],
            "who": "ann via the submitter",
            "why": "fixes\nCVE",
            "link": "https://ci/1",
            "key": "b-1",
        }
    ]


async def test_the_same_key_for_something_else_is_a_conflict(house: House) -> None:
    secret = await house.secret("submitter")
    for image, expected in ((IMAGE["image"], 202), (IMAGE["image"], 202), ("other/api:2", 409)):
        body = {"image": image}
        status, told, _ = await house.ask("POST", path_of("release"), secret, body, Idempotency_Key="k")
        assert status == expected
    assert "use a new key" in told["detail"]


@pytest.mark.parametrize("role", get_args(Role))
async def test_a_role_may_do_what_it_may_and_nothing_else(house: House, role: Role) -> None:
    secret = await house.secret(role)
    for verb in get_args(Verb):
        body = {"release": IMAGE, "remove": {"yes": True}}.get(verb, {})
        status, told, _ = await house.ask("POST", path_of(verb), secret, body)
        assert status == (202 if verb in MAY[role] else 403), (verb, told)
    assert {f["verb"] for f in await house.asked()} == MAY[role]
    assert (await house.ask("GET", "/v1/tokens", secret))[0] == (200 if role == "admin" else 403)


async def test_nobody_comes_in_without_a_token_that_is_good(house: House) -> None:
    gone = await house.secret("admin")
    assert await house.tokens.revoke(gone.split("_")[1])
    good = await house.secret("admin")
    late = await house.secret("admin", expires_in=-1.0)
    wrong = [
        "",
        "x",
        "rot_",
        gone,
        late,
        good[:-1],
        good + "x",
        good.upper(),
        "rot_é_" + good,
        good.replace("rot", "rox"),
    ]
    for secret in wrong:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        status, told, answered = await house.ask("POST", path_of("release"), "", IMAGE, **headers)
        assert (status, answered["WWW-Authenticate"]) == (401, "Bearer"), secret
        assert answered["Content-Type"] == "application/problem+json"
        assert told["status"] == 401
    basic = await house.ask("GET", "/v1/me", "", Authorization=f"Basic {good}")
    assert basic[0] == 401
    assert await house.asked() == []


async def test_a_secret_is_kept_nowhere(house: House) -> None:
    secret = await house.secret("admin")
    await house.ask("POST", path_of("release"), secret, IMAGE)
    assert (await house.ask("GET", "/v1/tokens", secret))[1]["tokens"][0]["name"] == "the admin"
    half = secret.split("_", 2)[2]
    for key in await house.redis.keys("*"):
        assert half not in str(await _all(house, key))
    shown = [await house.ask("GET", p, secret) for p in ("/v1/tokens", "/v1/services", "/v1/me")]
    assert half not in str(shown)


async def _all(house: House, key: str) -> Any:
    kind = await house.redis.type(key)
    if kind == "hash":
        return await house.redis.hgetall(key)
    return await (house.redis.xrange(key) if kind == "stream" else house.redis.get(key))


async def test_a_token_for_one_service_has_nothing_to_do_with_others(house: House) -> None:
    mine = await house.secret("operator", "web")
    await house.commit(submit(1))
    other, _, _ = await house.ask("POST", path_of("rollback"), mine)
    assert other == 403
    entry = await house.store.push({"service": "api", "verb": "pause"})
    for path in (
        "/v1/services/api",
        "/v1/services/api/releases",
        "/v1/releases/api-1",
        f"/v1/requests/{entry}",
    ):
        assert (await house.ask("GET", path, mine))[0] == 403, path
    assert (await house.ask("GET", "/v1/events?service=api", mine))[0] == 403
    names = [s["service"] for s in (await house.ask("GET", "/v1/services", mine))[1]["services"]]
    assert names == ["web"]
    assert len(await house.asked()) == 1


async def test_tokens_are_made_and_taken_back_over_the_api(house: House) -> None:
    admin = await house.secret("admin")
    body = {"name": "ci", "role": "submitter", "services": ["api"], "days": 1}
    status, made, _ = await house.ask("POST", "/v1/tokens", admin, body)
    assert status == 201
    assert made["expires_at"] == pytest.approx(house.clock.now() + 86400, abs=5)
    assert (await house.ask("GET", "/v1/me", made["secret"]))[1] == {
        "name": "ci",
        "role": "submitter",
        "services": ["api"],
    }
    assert (await house.ask("DELETE", f"/v1/tokens/{made['id']}", admin))[0] == 204
    assert (await house.ask("DELETE", f"/v1/tokens/{made['id']}", admin))[0] == 404
    assert (await house.ask("GET", "/v1/me", made["secret"]))[0] == 401


async def test_an_admin_of_some_services_gives_out_sees_and_takes_back_only_what_is_within_them(
    house: House,
) -> None:
    mine, all_of_them = await house.secret("admin", "api"), await house.secret("admin")
    body = {"name": "more", "role": "viewer"}
    for services in ([], ["web"], ["api", "web"]):
        status, told, _ = await house.ask("POST", "/v1/tokens", mine, {**body, "services": services})
        assert (status, told["detail"]) == (403, "the admin gives out tokens for some or all of: api"), (
            services
        )
    status, made, _ = await house.ask("POST", "/v1/tokens", mine, {**body, "services": ["api"]})
    assert (status, made["services"]) == (201, ["api"])
    everything = (await house.ask("GET", "/v1/tokens", all_of_them))[1]["tokens"]
    seen = (await house.ask("GET", "/v1/tokens", mine))[1]["tokens"]
    assert [t["services"] for t in seen] == [["api"], ["api"]]
    assert len(everything) == 3
    (foreign,) = [t["id"] for t in everything if t["services"] != ["api"]]
    status, told, _ = await house.ask("DELETE", f"/v1/tokens/{foreign}", mine)
    assert (status, told["detail"]) == (404, f"there is no token {foreign!r}")
    assert (await house.ask("DELETE", f"/v1/tokens/{made['id']}", mine))[0] == 204
    assert (await house.ask("GET", "/v1/me", made["secret"]))[0] == 401
    assert (await house.ask("GET", "/v1/me", all_of_them))[0] == 200


@pytest.mark.parametrize("role", get_args(Role))
async def test_what_concerns_all_services_is_for_nobody_who_has_only_some(house: House, role: Role) -> None:
    secret = await house.secret(role, "api", "web")
    everywhere = [o for o in house.api.operations() if o.everywhere]
    assert [o.name for o in everywhere] == ["reload"]
    for operation in everywhere:
        status, told, _ = await house.ask(operation.method, operation.path, secret)
        assert status == 403
        if role == "admin":
            assert told["detail"] == "the admin is admin of api, web; this is for admins of all services"
    entry = await house.store.push({"verb": "reload"})
    assert (await house.ask("GET", f"/v1/requests/{entry}", secret))[0] == 403


async def test_the_answer_to_a_request_with_an_id_of_the_future_is_found(house: House) -> None:
    """All later ids lie there too, those of events do not."""
    await house.redis.xadd(house.keys.requests, {"service": "api"}, id="9000000000000-1")
    secret = await house.secret("operator")
    _, told, _ = await house.ask("POST", path_of("freeze"), secret, {"reason": "r"})
    assert told["request"] > "9000000000000-1"
    event = RequestRefused(
        service="api", at=1.0, verb="freeze", actor="ci", request=told["request"], reason="no"
    )
    await house.redis.xadd(house.keys.events, {"data": dump_event(event)})
    for wait in ("", "?wait=5"):
        seen = (await house.ask("GET", f"/v1/requests/{told['request']}{wait}", secret))[1]
        assert (seen["state"], seen["reason"]) == ("refused", "no")


async def test_a_field_that_is_given_twice_is_named_and_refused(house: House) -> None:
    secret = await house.secret("operator")
    status, told, _ = await house.ask("GET", "/v1/releases/api-1?wait=1&wait=2", secret)
    assert (status, told["detail"]) == (422, "wait: is there twice")
    json_ = b'{"reason": "a", "reason": "b"}'
    status, told, _ = await house.ask(
        "POST", path_of("pause"), secret, json_, Content_Type="application/json"
    )
    assert (status, told["detail"]) == (400, "not JSON: 'reason' is there twice")
    with pytest.raises(Problem, match=r"^text: is there twice$"):
        door.form_of(b"text=pause+api&user_id=U1&text=rollback+api")


async def test_no_two_tokens_have_one_name(house: House) -> None:
    admin = await house.secret("admin")
    body = {"name": "ci", "role": "viewer"}
    answers = await asyncio.gather(*(house.ask("POST", "/v1/tokens", admin, body) for _ in range(5)))
    assert sorted(a[0] for a in answers) == [201, 409, 409, 409, 409]
    for name in ("CI", "ci "):
        assert (await house.ask("POST", "/v1/tokens", admin, {**body, "name": name}))[0] == 409, name
    told = next(a[1]["detail"] for a in answers if a[0] == 409)
    assert told == "there is a token 'ci' already; revoke it first, or choose another name"
    made = next(a[1]["id"] for a in answers if a[0] == 201)
    await house.redis.hset(house.keys.tokens, "damaged", "{")
    assert (await house.ask("POST", "/v1/tokens", admin, body))[0] == 409
    await house.redis.hdel(house.keys.tokens, "damaged")
    assert (await house.ask("DELETE", f"/v1/tokens/{made}", admin))[0] == 204
    assert (await house.ask("POST", "/v1/tokens", admin, body))[0] == 201


async def test_an_entry_that_is_no_token_keeps_none_from_being_shown_and_taken_back(house: House) -> None:
    admin, mine = await house.secret("admin"), await house.secret("admin", "api")
    leaked = await house.secret("operator", "api")
    await house.redis.hset(house.keys.tokens, "0badbad0", '{"of": "another version"}')
    shown = (await house.ask("GET", "/v1/tokens", admin))[1]["tokens"]
    assert [t["name"] for t in shown] == ["the admin", "the admin 2", "the operator"]
    assert (await house.ask("DELETE", f"/v1/tokens/{leaked.split('_')[1]}", mine))[0] == 204
    assert (await house.ask("GET", "/v1/me", leaked))[0] == 401
    assert (await house.ask("DELETE", "/v1/tokens/0badbad0", mine))[0] == 404, "it may be for other services"
    assert (await house.ask("DELETE", "/v1/tokens/0badbad0", admin))[0] == 204
    assert not await house.redis.hexists(house.keys.tokens, "0badbad0")


@pytest.mark.parametrize("name", ["orchestrator", "Orchestrator", "ORCHESTRATOR "])
async def test_nobody_gets_the_daemons_own_name(house: House, name: str) -> None:
    admin = await house.secret("admin")
    status, told, _ = await house.ask("POST", "/v1/tokens", admin, {"name": name, "role": "viewer"})
    assert (status, told["detail"]) == (422, f"name: {name.strip()!r} {OURS}")
    status, told, _ = await house.ask("POST", path_of("pause"), admin, {"who": name})
    assert (status, told["detail"]) == (422, f"who: {name.strip()!r} {OURS}")
    assert await house.asked() == []
    user = {"name": name, "role": "viewer"}
    for section in (
        {"slack": {"team": "T1", "signing_secret_file": "/x", "users": {"U1": user}}},
        {"webhooks": [{"id": "k", "secret_file": "/x", **user}]},
    ):
        with pytest.raises(ValidationError, match=OURS):
            Settings.model_validate(section)


async def test_an_older_versions_token_with_the_daemons_name_is_refused_with_the_cure(
    house: House,
) -> None:
    who = Principal(name="orchestrator", role="operator")
    _, secret = await house.tokens.create(who, "test", house.clock.now(), None)
    status, told, _ = await house.ask("POST", path_of("rollback"), secret, {})
    assert (status, told["detail"]) == (
        403,
        f"'orchestrator' {OURS}: make another token, and revoke this one",
    )
    assert await house.asked() == []


async def test_a_token_that_is_taken_back_elsewhere_works_for_a_second_at_the_most(house: House) -> None:
    secret = await house.secret("viewer")
    assert (await house.ask("GET", "/v1/me", secret))[0] == 200
    await RedisTokens(house.redis, house.keys).revoke(secret.split("_")[1])
    await asyncio.sleep(1.05)
    assert (await house.ask("GET", "/v1/me", secret))[0] == 401


DEEP = b'{"reason": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HOSTILE: list[tuple[Any, int]] = [
    ({"image": "x;}server{listen 1;"}, 422),
    ({"image": "api:1\n"}, 422),
    ({"image": "api:١٢"}, 422),
    ({"image": "api:1", "privileged": True}, 422),
    ({"image": "api:1", "who": ["ann"]}, 422),
    ({"image": "api:1", "link": "javascript:alert(1)"}, 422),
    ({"image": "api:1", "reason": "x" * 2001}, 422),
    ({}, 422),
    ([], 422),
    (b"null", 422),
    (b"", 400),
    (b"{", 400),
    (b'{"image": "a:1", "image": "b:1"}', 400),
    (b'{"image": NaN}', 400),
    (b'{"image": Infinity}', 400),
    (b'{"image": ' + b"9" * 5000 + b"}", 400),
    (b'{"image": 1e309}', 422),
    (b'{"image": "\xff"}', 400),
    (b'{"image": "a:1", "who": "\\ud800"}', 400),
    (b'\xef\xbb\xbf{"image": "a:1"}', 400),
    (DEEP[:60_000], 400),
    (DEEP, 413),
    (b'{"image": "' + b"x" * 70_000 + b'"}', 413),
]


@pytest.mark.parametrize(("body", "expected"), HOSTILE, ids=lambda value: str(value)[:40])
async def test_a_hostile_body_is_refused_with_its_reason(house: House, body: Any, expected: int) -> None:
    secret = await house.secret("admin")
    status, told, _ = await house.ask(
        "POST", path_of("release"), secret, body, Content_Type="application/json"
    )
    assert (status, told["status"]) == (expected, expected), told
    assert told["detail"]
    assert await house.asked() == []


async def test_a_packed_body_and_another_kind_are_not_read(house: House) -> None:
    secret = await house.secret("admin")
    packed = await house.ask(
        "POST",
        path_of("release"),
        secret,
        b"\x1f\x8b",
        Content_Encoding="gzip",
        Content_Type="application/json",
    )
    form = await house.ask("POST", path_of("release"), secret, "image=a:1", Content_Type="text/plain")
    assert (packed[0], form[0]) == (415, 415)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/services/nope", 404),
        ("GET", "/v1/services/..%2f..%2fetc", 404),
        ("GET", "/v1/releases/api-99", 404),
        ("GET", "/v1/releases/api", 404),
        ("GET", "/v1/releases/api-%D9%A1", 404),
        ("GET", "/v1/requests/1-1", 404),
        ("GET", "/v1/requests/x", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/v1/services/api", 405),
        ("POST", "/v1/services/nope/rollback", 404),
        ("GET", "/v1/releases/api-1?wait=-1", 422),
        ("GET", "/v1/releases/api-1?wait=NaN", 422),
        ("GET", "/v1/releases/api-1?wait=1&wait=2", 422),
        ("GET", "/v1/services?x=1", 422),
        ("GET", "/v1/events?after=x", 422),
    ],
)
async def test_what_is_not_there_or_not_asked_well_is_a_problem(
    house: House, method: str, path: str, expected: int
) -> None:
    await house.commit(submit(1))
    status, told, headers = await house.ask(method, path, await house.secret("admin"))
    assert (status, headers["Content-Type"]) == (expected, "application/problem+json"), told
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_what_is_not_known_is_answered_by_what_there_is(house: House) -> None:
    await house.commit(submit(1))
    secret = await house.secret("admin")
    for path, says in (
        ("/v1/services/nope", "'nope' is not known; there are: api, web"),
        ("/v1/services/nope/releases", "'nope' is not known; there are: api, web"),
        ("/v1/releases/nope-1", "'nope' is not known; there are: api, web"),
        ("/v1/releases/api-9", "'api-9' is no release that is remembered of api; the last ones are: api-1"),
        ("/v1/events?service=nope", "'nope' is not known; there are: api, web"),
        ("/v1/events?release=nope-1", "'nope' is not known; there are: api, web"),
    ):
        status, told, _ = await house.ask("GET", path, secret)
        assert (status, told["detail"]) == (404, says)


async def test_an_answer_waits_for_the_end_of_a_release(house: House) -> None:
    secret = await house.secret("viewer")
    await house.commit(submit(1))
    early = await house.ask("GET", "/v1/releases/api-1", secret)
    assert (early[1]["state"], early[1]["outcome"]) == ("queued", None)
    waiting = asyncio.create_task(house.ask("GET", "/v1/releases/api-1?wait=30", secret))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    (event,) = [e for e in await house.commit(submit(2, request="2-0")) if isinstance(e, ReleaseEnded)]
    assert event.outcome is Outcome.SUPERSEDED
    status, told, _ = await asyncio.wait_for(waiting, 5)
    assert (status, told["outcome"], told["ended_because"]) == (200, "superseded", "superseded by api-2")
    listed = (await house.ask("GET", "/v1/services/api/releases", secret))[1]["releases"]
    assert [r["release"] for r in listed] == ["api-2", "api-1"]


async def test_a_release_that_died_is_shown_with_its_last_log_lines(house: House) -> None:
    secret = await house.secret("viewer")
    over = Ended(
        release=release(4),
        kind="release",
        outcome=Outcome.FAILED,
        reason="api-4-0 exited with code 1 while starting",
        actor="orchestrator",
        began_at=990.0,
        ended_at=1000.0,
    )
    end = ended(4, logs='one\n\x1b[31mpanic: FAIL_RATE: "nope"\n')
    await house.put(ServiceState(service="api", history=(over,)), end)
    _, told, _ = await house.ask("GET", "/v1/releases/api-4", secret)
    assert (told["outcome"], told["logs"]) == ("failed", 'one\npanic: FAIL_RATE: "nope"')


async def test_what_became_of_a_request_is_told(house: House) -> None:
    secret = await house.secret("admin")
    asked = {}
    for verb in ("freeze", "resume"):
        _, told, headers = await house.ask("POST", path_of(verb), secret, {"reason": "r"})
        assert (await house.ask("GET", headers["Location"], secret))[1]["state"] == "waiting"
        asked[verb] = told["request"]
    slow = asyncio.create_task(house.ask("GET", f"/v1/requests/{asked['freeze']}?wait=20", secret))
    await asyncio.sleep(0.2)
    await house.commit(Freeze(request=asked["freeze"], actor="ann"))
    assert (await asyncio.wait_for(slow, 5))[1]["state"] == "accepted"
    await house.commit(Freeze(request=asked["resume"], actor="ann"))
    told = (await house.ask("GET", f"/v1/requests/{asked['resume']}", secret))[1]
    assert (told["state"], told["reason"]) == ("refused", "api is already frozen by ann")
    _, told, headers = await house.ask("POST", path_of("release"), secret, IMAGE)
    await house.commit(submit(1, request=told["request"]))
    told = (await house.ask("GET", headers["Location"], secret))[1]
    assert (told["state"], told["reason"]) == ("accepted", "queued: frozen by ann")


async def _lines(house: House, secret: str, path: str, number: int, **headers: str) -> list[tuple[str, Any]]:
    """So many events of a stream: id and data."""
    found: list[tuple[str, Any]] = []
    given = {"Authorization": f"Bearer {secret}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    async with asyncio.timeout(10), house.session.get(house.url + path, headers=given) as answer:
        assert answer.content_type == "text/event-stream"
        entry = ""
        async for raw in answer.content:
            name, _, value = raw.decode().strip().partition(": ")
            if name == "id":
                entry = value
            elif name == "data":
                found.append((entry, json.loads(value)))
                if len(found) == number:
                    break
    return found


async def test_events_come_live_and_go_on_after_the_last_one_seen(house: House) -> None:
    secret = await house.secret("viewer")
    live = asyncio.create_task(_lines(house, secret, "/v1/events", 1))
    await asyncio.sleep(0.5)
    told = await house.commit(submit(1))
    first, data = (await live)[0]
    assert data["kind"] == told[0].kind == "release_accepted"
    await house.commit(submit(2, request="2-0"))
    rest = await _lines(house, secret, "/v1/events?release=api-2", 1, Last_Event_ID=first)
    assert rest[0][1]["release"] == "api-2"
    everything = [e async for e in _pages(house)]
    again = await _lines(house, secret, "/v1/events", len(everything) - 1, Last_Event_ID=first)
    assert [entry for entry, _ in again] == everything[1:]


async def _pages(house: House) -> Any:
    for entry, _ in await house.store.events_after("0-0", 1000):
        yield entry


async def test_a_listener_hears_nothing_of_services_that_are_not_its_own(house: House) -> None:
    secret = await house.secret("viewer", "web")
    live = asyncio.create_task(_lines(house, secret, "/v1/events", 1))
    await asyncio.sleep(0.5)
    await house.commit(submit(1))
    state, events = handle(ServiceState(service="web"), Freeze(request="3-0", actor="ann"), 1000.0)
    await house.put(state, *events)
    assert (await live)[0][1]["service"] == "web"


@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
@pytest.mark.parametrize("ends", ["revoked", "expired", "logged out"])
async def test_a_listener_whose_token_is_good_no_longer_is_let_go(
    house: House, monkeypatch: pytest.MonkeyPatch, ends: str, busy: bool
) -> None:
    monkeypatch.setattr(tail_module, "QUIET", 3600.0 if busy else 0.1)
    monkeypatch.setattr(api_module, "RECHECK", 0.1)
    who, now = Principal(name="ann", role="viewer"), house.clock.wall()
    token, secret = await house.tokens.create(who, "test", now, now + (2.0 if ends == "expired" else 3600.0))
    session = await house.tokens.open_session(token, 3600.0)
    given = {"Cookie": f"{door.SESSION}={session}"} if ends == "logged out" else {}
    headers = given or {"Authorization": f"Bearer {secret}"}

    async def goes_on() -> None:
        for number in itertools.count():
            await asyncio.sleep(0.02)
            await house.put(ServiceState(service="api"), ended(number))

    async with (
        asyncio.timeout(10),
        beside({"events": goes_on} if busy else {}),
        house.session.get(house.url + "/v1/events", headers=headers) as answer,
    ):
        heard = [await answer.content.readline() for _ in range(6)]
        assert any(line.startswith(b"data: " if busy else b": quiet") for line in heard)
        if ends == "revoked":
            await house.tokens.revoke(token.id)
        elif ends == "logged out":
            await house.tokens.close_session(session)
        await answer.content.read()  # to its end


async def test_a_listener_is_let_go_without_redis_and_one_that_leaves_is_no_bug(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = await house.secret("viewer")
    for sent in (b"", b"x"):  # it leaves before it has got anything, or later
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
        if sent:
            await reader.readline()
        writer.transport.abort()
        await house.commit(submit(1))
    headers = {"Authorization": f"Bearer {secret}"}
    async with asyncio.timeout(10), house.session.get(house.url + "/v1/events", headers=headers) as answer:
        assert house.private is not None
        await house.private.stop()
        assert b"HTTP/1.1" not in await answer.content.read()
    assert "door_failed" not in capsys.readouterr().out


async def test_a_listener_that_is_too_slow_is_let_go(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "BEHIND", 3)
    async with house.tail.follow("0-0") as events:
        await house.commit(submit(1))
        assert await anext(events)
        for n in range(2, 8):
            await house.commit(submit(n, request=f"{n}-0"))
        await asyncio.sleep(0.3)
        rest = [told async for told in events]
    assert 0 < len(rest) < 20
    assert house.tail._listeners == set()


async def test_who_asks_too_often_waits_and_a_rollback_still_comes_through(house: House) -> None:
    house.guard._usual._rate, house.guard._usual._burst = 1.0, 3
    secret, other = await house.secret("operator"), await house.secret("viewer")
    answers = [await house.ask("GET", "/v1/me", secret) for _ in range(5)]
    assert [a[0] for a in answers] == [200, 200, 200, 429, 429]
    assert answers[-1][2]["Retry-After"] == "1"
    assert (await house.ask("GET", "/v1/me", other))[0] == 200
    assert (await house.ask("POST", path_of("rollback"), secret))[0] == 202


async def _unfinished(house: House, secret: str, verb: Verb) -> asyncio.StreamWriter:
    """A request whose body does not come."""
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST {path_of(verb)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{".encode())
    return writer


async def _waiting(house: House, secret: str, path: str) -> asyncio.StreamWriter:
    """A request that waits for news."""
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode())
    return writer


def test_a_lane_is_shared_and_nobody_gets_all_of_it() -> None:
    lane = Lane("requests", most=3, each=2)
    with lane.entered("a"), lane.entered("a"), lane.entered("b"):
        for name, status, says in (
            ("a", 429, "more than 2 requests at once with one token; try again"),
            ("c", 503, "more than 3 requests at once; try again"),
        ):
            with pytest.raises(Problem, match=f"^{says}$") as problem, lane.entered(name):
                pass
            assert (problem.value.status, problem.value.headers) == (status, {"Retry-After": "1"})
    with lane.entered("a"), lane.entered("a"), lane.entered("c"):
        assert lane.busy == 3
    assert lane.busy == 0


async def test_a_sender_that_is_not_known_has_a_share_by_its_address(house: House) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(100):
            held.enter_context(house.guard._lanes[False].entered("at 192.0.2.1"))
        assert (await house.ask("GET", "/v1/me", await house.secret("viewer")))[0] == 200
    with contextlib.ExitStack() as held:
        for _ in range(100):
            held.enter_context(house.guard._lanes[False].entered("at 127.0.0.1"))
        status, told, _ = await house.ask("GET", "/v1/me", await house.secret("viewer"))
    assert (status, told["detail"]) == (429, "more than 100 requests at once from one address; try again")


@pytest.mark.parametrize(
    "path",
    ["/hooks/request", "/hooks/alertmanager", "/hooks/slack/command", "/login"],
    ids=["signed", "alerts", "slack", "login"],
)
async def test_bodies_of_senders_that_are_not_known_take_a_share_by_address(house: House, path: str) -> None:
    house.guard._strangers._each = 1
    secret = await house.secret("admin")
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Length: 50\r\n"
    writer.write(f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{{".encode())
    await until(lambda: house.guard._strangers.busy == 1)
    status, told, _ = await house.ask("POST", path, secret, {})
    says = "more than 1 requests of unknown senders at once from one address; try again"
    assert (status, told["detail"]) == (503, says)
    assert (await house.ask("POST", path_of("rollback"), secret))[0] == 202
    writer.transport.abort()
    await until(lambda: house.guard._strangers.busy == 0)


async def test_who_waits_takes_a_share_and_nothing_from_those_who_do_not_wait(house: House) -> None:
    house.guard._patient = Lane("requests that wait", most=3, each=2)
    greedy, other = await house.secret("viewer"), await house.secret("operator")
    await house.commit(submit(1))
    path = "/v1/releases/api-1"
    held = [await _waiting(house, greedy, f"{path}?wait=30") for _ in range(2)]
    await until(lambda: house.guard._patient.busy == 2)
    for more in (f"{path}?wait=1", "/v1/requests/1-1?wait=1", "/v1/events"):
        status, told, headers = await house.ask("GET", more, greedy)
        assert (status, headers["Retry-After"]) == (429, "1"), told
    assert (await house.ask("GET", path, greedy))[0] == 200
    assert (await house.ask("GET", f"{path}?wait=0.1", other))[0] == 200
    held.append(await _waiting(house, other, "/v1/events"))
    await until(lambda: house.guard._patient.busy == 3)
    assert (await house.ask("GET", f"{path}?wait=1", other))[0] == 503
    assert (await house.ask("GET", path, other))[0] == 200
    for writer in held:
        writer.close()


@pytest.mark.parametrize("path", ["/v1/releases/api-1?wait=60", "/v1/requests/{}?wait=60", "/v1/events"])
async def test_who_leaves_while_it_waits_frees_its_place_at_once(
    house: House, path: str, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LOOK", 0.1)
    secret = await house.secret("viewer")
    await house.commit(submit(1))
    request = await house.store.push({"service": "api", "verb": "pause"})
    writer = await _waiting(house, secret, path.format(request))
    await until(lambda: house.guard._patient.busy == 1 and len(house.tail._listeners) == 1)
    writer.transport.abort()
    await until(lambda: house.guard._patient.busy == 0 and not house.tail._listeners)
    assert log_lines() == []


async def test_bodies_that_do_not_come_take_a_share_and_nothing_from_those_that_have_none(
    house: House,
) -> None:
    for urgent in (True, False):
        house.guard._bodies[urgent] = Lane("requests whose body has not come", most=3, each=2)
    slow, other = await house.secret("submitter"), await house.secret("operator")
    held = [await _unfinished(house, slow, "restart") for _ in range(2)]
    await until(lambda: house.guard._bodies[False].busy == 2)
    status, told, headers = await house.ask("POST", path_of("release"), slow, IMAGE)
    assert (status, headers["Retry-After"]) == (429, "1"), told
    assert (await house.ask("POST", path_of("release"), other, IMAGE))[0] == 202
    held.append(await _unfinished(house, other, "resume"))
    await until(lambda: house.guard._bodies[False].busy == 3)
    assert (await house.ask("POST", path_of("release"), other, IMAGE))[0] == 503
    assert (await house.ask("GET", "/v1/me", slow))[0] == 200
    assert (await house.ask("POST", path_of("rollback"), other))[0] == 202
    admin, token = await house.secret("admin"), slow.split("_")[1]
    assert (await house.ask("DELETE", f"/v1/tokens/{token}", admin))[0] == 204
    for writer in held:
        writer.close()
    await until(lambda: house.guard._bodies[False].busy == 0)


async def test_a_body_that_does_not_come_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BODY_DEADLINE", 0.2)
    secret = await house.secret("operator")
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST {path_of('rollback')} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{".encode())
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await asyncio.sleep(1.2)


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 50\r\n\r\n{",
        b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
        b"Content-Encoding: deflate\r\nContent-Length: 4\r\n\r\nnope",
    ],
    ids=repr,
)
async def test_a_body_that_breaks_off_or_is_none_is_no_bug(
    house: House, rest: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = await house.secret("operator")
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST {path_of('resume')} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n" + rest)
    await asyncio.sleep(0.2)
    writer.close()
    await asyncio.sleep(1.3)
    assert "door_failed" not in capsys.readouterr().out
    assert await house.asked() == []
    assert (await house.ask("GET", "/v1/me", secret))[0] == 200
    del reader


@pytest.mark.parametrize("path", ["/v1/services/api/releases", "/hooks/request", "/hooks/slack/command"])
async def test_a_body_that_goes_on_is_refused_long_before_its_end(house: House, path: str) -> None:
    """Its length is not told; 100 MB of it would come."""
    secret = await house.secret("submitter")
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    answer = asyncio.create_task(reader.read(12))
    sent, chunk = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with contextlib.suppress(ConnectionError):
        while not answer.done() and sent < 100_000_000:
            writer.write(chunk)
            await writer.drain()
            sent += 0x10000
    assert await asyncio.wait_for(answer, 5) == b"HTTP/1.1 413"
    assert sent < 10_000_000
    writer.close()


async def test_a_head_that_does_not_end_is_cut(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE", 0.5)
    watching = asyncio.create_task(house.server.watch(), name="watch")
    _, mute = await asyncio.open_connection("127.0.0.1", house.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /v1/me HTTP/1.1\r\nX-Slow: ")
    secret = await house.secret("viewer")
    await house.commit(submit(1))
    busy = asyncio.create_task(house.ask("GET", "/v1/releases/api-1?wait=2", secret))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    assert (await busy)[0] == 200
    watching.cancel()
    for left in (mute, writer):
        left.close()


async def test_too_many_connections_push_out_those_that_say_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 5)
    opened = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(12)]
    await asyncio.sleep(0.1)
    assert house.server._runner is not None
    assert house.server._runner.server is not None
    await asyncio.sleep(0.05)
    house.server._idle.close(house.server._runner.server.connections)
    await asyncio.sleep(0.05)
    house.server._idle.close(house.server._runner.server.connections)
    await asyncio.sleep(0.1)
    assert len(house.server._runner.server.connections) <= 5
    for _, writer in opened:
        writer.close()


async def test_without_redis_the_door_says_so(house: House) -> None:
    secret = await house.secret("operator")
    assert house.private is not None
    await house.private.stop()
    status, told, headers = await house.ask("POST", path_of("rollback"), secret)
    assert (status, headers["Retry-After"]) == (503, "2")
    assert "sock" not in told["detail"]


async def test_a_bug_is_told_without_what_is_inside(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = await house.secret("viewer")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(api_module.Api, "_view", broken)
    status, told, _ = await house.ask("GET", "/v1/services", secret)
    assert (status, "inside" in str(told)) == (500, False)


def test_every_field_of_a_request_comes_from_the_body() -> None:
    body = ReleaseBody(image="a/b:1", strategy="slow")
    assert fields_of("release", "api", body) == {
        "verb": "release",
        "service": "api",
        "image": "a/b:1",
        "strategy": "slow",
    }


async def test_the_page_for_people_names_every_operation_and_loads_nothing(house: House) -> None:
    async with house.session.get(house.url + "/docs") as answer:
        text = await answer.text()
    for operation in house.api.operations():
        assert f'id="{operation.name}"' in text
    assert "<script" not in text
    assert "src=" not in text


async def test_it_listens_at_a_socket_that_only_its_group_may_use(house: House, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    other = Server(house.guard, house.api.operations(), [], f"unix:{path}")
    await other.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        headers = {"Authorization": f"Bearer {await house.secret('viewer')}"}
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("http://door/v1/me", headers=headers) as answer,
        ):
            assert (await answer.json())["role"] == "viewer"
    finally:
        await other.close()
    again = Server(house.guard, house.api.operations(), [], f"unix:{path}")
    await again.start()  # also where a killed one has left its socket
    await again.close()


async def test_an_address_that_is_taken_is_a_clear_fault(house: House) -> None:
    other = Server(house.guard, house.api.operations(), [], f"127.0.0.1:{house.port}")
    with pytest.raises(Fault, match=f"api/listen 127.0.0.1:{house.port}: .*in use"):
        await other.start()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"listen": "0.0.0.0:9181"}, "can be reached from elsewhere; set tls, or use loopback"),
        ({"listen": "9181"}, "is not address:port"),
        ({"listen": "unix:api.sock"}, "the path of a socket is absolute"),
        ({"rate": 0}, "greater than 0"),
    ],
)
def test_settings_that_would_not_do_are_refused(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings.model_validate({"api": section})


async def test_a_service_tells_in_what_stable_differs_from_its_file(house: House) -> None:
    secret = await house.secret("submitter")
    await house.put(ServiceState(service="api", stable=release()))
    assert (await house.ask("GET", "/v1/services/api", secret))[1]["outdated"] == ""
    house.services["api"] = template(instances=5)
    said = "stable differs from its file: instances"
    assert (await house.ask("GET", "/v1/services/api", secret))[1]["outdated"] == said
    assert (await house.ask("GET", "/v1/services", secret))[1]["services"][0]["outdated"] == said
    asked = {"reason": "more of them", "strategy": "fast"}
    assert (await house.ask("POST", "/v1/services/api/restart", secret, asked))[0] == 202
    (fields,) = await house.asked()
    assert fields == {
        "verb": "restart",
        "service": "api",
        "why": "more of them",
        "strategy": "fast",
        "who": "the submitter",
    }


async def test_an_admin_lets_the_daemon_read_its_files(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, admin = await house.secret("operator"), await house.secret("admin")
    assert (await house.ask("POST", "/v1/reload", operator))[0] == 403
    asking = asyncio.create_task(house.ask("POST", "/v1/reload", admin), name="reload")
    while not (asked := await house.redis.xrange(house.keys.requests)):
        await asyncio.sleep(0.01)
    ((entry, fields),) = asked
    assert fields == {"verb": "reload", "who": "the admin"}
    await house.redis.xgroup_create(house.keys.requests, house.keys.group, id="0")
    await house.redis.xreadgroup(house.keys.group, "driver", {house.keys.requests: ">"})
    told = ConfigReloaded(
        service="", at=1.0, actor="the admin", request=entry, changes=("web: is new",), problems=("x: no",)
    )
    await house.store.answer(entry, told)
    status, said, _ = await asking
    assert (status, said) == (200, {"changes": ["web: is new"], "problems": ["x: no"]})
    monkeypatch.setattr(api_module, "RELOAD_WAIT", 0.05)
    status, said, _ = await house.ask("POST", "/v1/reload", admin)
    assert status == 202
    assert (await house.ask("GET", f"/v1/requests/{said['request']}", admin))[1]["state"] == "waiting"
