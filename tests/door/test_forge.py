"""Deployments of GitHub and GitLab as releases."""

import hashlib
import hmac
import json
import urllib.parse
from typing import Any

import pytest

from orchestrator.intake.forge import FORM, GITHUB_PATH, GITLAB_PATH, Forge, Project
from orchestrator.ports.faults import Fault
from tests.builders import submit
from tests.door.conftest import House

SHA = "a84d88e7554fc1fa21bcbc4efae3c782a70d2b9d"
DEPLOYMENT = {
    "action": "created",
    "deployment": {
        "id": 145988746,
        "sha": SHA,
        "ref": "main",
        "task": "deploy",
        "environment": "production",
        "description": "the fix",
        "creator": {"login": "ann", "id": 1},
    },
    "repository": {
        "id": 1,
        "full_name": "team/api",
        "html_url": "https://github.example/team/api",
        "private": True,
    },
    "sender": {"login": "ann"},
}
HOOK = {
    "object_kind": "deployment",
    "status": "running",
    "deployment_id": 15,
    "deployable_url": "https://gitlab.example.com/team/api/-/jobs/79",
    "environment": "production",
    "project": {"path_with_namespace": "team/api"},
    "short_sha": "279484c0",
    "ref": "main",
    "user": {"username": "ann"},
    "commit_title": "the fix",
    "commit_url": f"https://gitlab.example.com/team/api/-/commit/{SHA}",
}


@pytest.fixture
def forged(house: House) -> House:
    projects = {"team/api": Project("api", "registry.example.com/team/api:{short_sha}", "production")}
    house.forges = {"github": Forge("s" * 32, projects), "gitlab": Forge("t" * 32, projects)}
    return house


async def github(
    house: House, payload: Any, secret: str = "s" * 32, event: str = "deployment", *, form: bool = False
) -> tuple[int, Any]:
    body = json.dumps(payload).encode()
    if form:
        body = urllib.parse.urlencode({"payload": body}).encode()
    sign = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-Hub-Signature-256": sign,
        "X-GitHub-Event": event,
        "Content-Type": FORM if form else "application/json",
    }
    async with house.session.post(house.url + GITHUB_PATH, data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def gitlab(house: House, payload: Any, token: str = "t" * 32) -> tuple[int, Any]:
    headers = {"X-Gitlab-Token": token, "X-Gitlab-Event": "Deployment Hook"}
    async with house.session.post(house.url + GITLAB_PATH, json=payload, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_deployment_of_either_is_one_release(forged: House) -> None:
    assert (await github(forged, DEPLOYMENT))[0] == 202
    assert (await github(forged, DEPLOYMENT))[0] == 202
    assert (await gitlab(forged, HOOK))[0] == 202
    assert (await gitlab(forged, {**HOOK, "status": "created"}))[0] == 202
    first, again, second, also = await forged.asked()
    assert (first, second) == (again, also)
    for n, key in enumerate([first["key"], again["key"], second["key"], also["key"]]):
        await forged.commit(submit(1, request=f"{n + 1}-0", key=key))
    assert (await forged.store.load("api"))[0].released == 2
    assert first == {
        "service": "api",
        "image": "registry.example.com/team/api:a84d88e",
        "who": "ann via github",
        "why": "the fix",
        "link": f"https://github.example/team/api/commit/{SHA}",
        "key": "github-145988746",
    }
    assert (second["image"], second["key"]) == ("registry.example.com/team/api:279484c0", "gitlab-15")


async def test_a_form_is_taken_as_github_sends_it_unless_told_otherwise(forged: House) -> None:
    assert (await github(forged, DEPLOYMENT, form=True))[0] == 202
    assert (await github(forged, DEPLOYMENT))[0] == 202
    first, again = await forged.asked()
    assert first == again
    assert (await github(forged, DEPLOYMENT, "x" * 32, form=True))[0] == 401
    assert (await github(forged, [], form=True))[0] == 422
    for body in (b"payload=", b"other=1", b"\xff", b"a=1&" * 60, b"payload=%7B"):
        sign = "sha256=" + hmac.new(b"s" * 32, body, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": sign, "X-GitHub-Event": "deployment", "Content-Type": FORM}
        async with forged.session.post(forged.url + GITHUB_PATH, data=body, headers=headers) as answer:
            assert answer.status == 400, body
    assert len(await forged.asked()) == 2


async def test_what_is_no_deployment_of_ours_asks_for_nothing(forged: House) -> None:
    other = {**DEPLOYMENT, "repository": {"full_name": "team/web"}}
    staging = json.loads(json.dumps(DEPLOYMENT).replace("production", "staging"))
    for payload, event in (
        (other, "deployment"),
        (staging, "deployment"),
        ({"zen": "x"}, "ping"),
        (DEPLOYMENT, "push"),
    ):
        status, told = await github(forged, payload, event=event)
        assert (status, told["request"]) == (200, None), told
    assert (await gitlab(forged, {**HOOK, "status": "success"}))[0] == 200
    assert await forged.asked() == []


async def test_a_wrong_secret_and_a_wrong_body_are_refused(forged: House) -> None:
    assert (await github(forged, DEPLOYMENT, "x" * 32))[0] == 401
    assert (await gitlab(forged, HOOK, "é" * 32))[0] == 401
    assert (await github(forged, {"action": "created"}))[0] == 422
    assert (await github(forged, []))[0] == 422
    hostile = json.loads(json.dumps(DEPLOYMENT).replace(SHA, "x;}server{"))
    assert (await github(forged, hostile))[0] == 422
    forged.forges = {}
    assert (await github(forged, DEPLOYMENT))[0] == 401
    assert (await gitlab(forged, HOOK, "none"))[0] == 401
    assert await forged.asked() == []


async def test_one_that_could_not_be_taken_may_come_again(
    forged: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> str:
        raise Fault("Redis: away")

    with monkeypatch.context() as broken:
        broken.setattr(forged.store, "push", away)
        assert (await github(forged, DEPLOYMENT))[0] == 503
    assert (await github(forged, DEPLOYMENT))[0] == 202
    assert len(await forged.asked()) == 1


async def test_an_account_of_the_daemons_name_is_shown_with_where_it_is_from(forged: House) -> None:
    assert (await gitlab(forged, {**HOOK, "user": {"username": "orchestrator"}}))[0] == 202
    assert [fields["who"] for fields in await forged.asked()] == ["orchestrator via gitlab"]
