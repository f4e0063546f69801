"""People and machines at the door of a real daemon."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from examples.playground.load import Load
from examples.playground.stack import Stack
from tests.authority import NAME, Authority
from tests.conftest import Images, Stacks
from tests.door.slack_double import CHANNEL, SIGNING, TEAM, SlackDouble


async def test_a_release_and_a_rollback_over_the_api_with_tls(
    stack: Stacks, images: Images, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    authority.issue(1)
    tls = {"certificate": str(tmp_path / "chain.pem"), "key": str(tmp_path / "key.pem")}
    s = await stack(settings={"api": {"tls": tls}})
    code, secret = await s.cli(
        "token", "create", "ci", "--role", "operator", "--service", "api", "--expires", "1d"
    )
    assert code == 0
    secret = next(line for line in secret.splitlines() if line.startswith("rot_"))

    async def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        context = authority.context()
        given = {"Authorization": f"Bearer {secret}", **headers}
        url = f"https://127.0.0.1:{s.door}{path}"
        async with (
            aiohttp.ClientSession() as client,
            client.request(
                method, url, json=body, headers=given, ssl=context, server_hostname=NAME
            ) as answer,
        ):
            return answer.status, await answer.json()

    async def release(image: str, key: str) -> Any:
        body = {"image": image, "who": "ann", "reason": "a build"}
        status, accepted = await ask("POST", "/v1/services/api/releases", body, **{"Idempotency-Key": key})
        assert status == 202, accepted
        _, found = await ask("GET", f"/v1/requests/{accepted['request']}?wait=20")
        assert found["state"] == "accepted", found
        return (await ask("GET", f"/v1/releases/{found['release']}?wait=60"))[1]

    first = await release(images("v1"), "1")
    assert (first["release"], first["outcome"], first["author"]) == ("api-1", "promoted", "ann via ci")
    async with Load(s.url("api"), 100) as load:
        second = await release(images("v2"), "2")
        again = await release(images("v2"), "2")
        assert (second["release"], second["outcome"]) == ("api-2", "promoted")
        assert again == second
        authority.issue(2)  # renewed, and read on SIGHUP
        assert s.daemon is not None
        s.daemon.send_signal(signal.SIGHUP)

        async def read_again() -> bool:
            return any(line.get("event") == "config_reloaded" for line in s.lines())

        await s.until(read_again, 10, "the configuration is read again")
        body = {"reason": "checkout is broken", "release": "api-2"}
        status, accepted = await ask("POST", "/v1/services/api/rollback", body)
        assert status == 202

        async def back() -> bool:
            shown = (await ask("GET", "/v1/services/api"))[1]
            stable: str = shown["stable"]["release"]
            return stable == "api-1" and bool(shown["confirmed"] == shown["generation"])

        await s.until(back, 20, "the rollback is confirmed")
        status, found = await ask("GET", f"/v1/requests/{accepted['request']}")
        assert (status, found["state"]) == (200, "accepted")
        status, refused = await ask("POST", "/v1/services/api/rollback", body)
        _, found = await ask("GET", f"/v1/requests/{refused['request']}?wait=20")
        assert found["state"] == "refused"
        assert "api-2 has no traffic any more" in found["reason"]
    assert load.seen.failed == 0, load.seen
    code, listed = await s.cli("token", "list")
    assert "ci" in listed
    code, _ = await s.cli("token", "revoke", listed.splitlines()[1].split()[0])
    await asyncio.sleep(1.1)
    assert (code, (await ask("GET", "/v1/me"))[0]) == (0, 401)
    assert secret.split("_", 2)[2] not in s.log.read_text()


async def test_hooks_stop_a_release_hold_a_step_and_hear_of_its_end(
    stack: Stacks, images: Images, tmp_path: Path
) -> None:
    scan = tmp_path / "scan.sh"
    scan.write_text('case "$1" in *:bad*) echo "CRITICAL: CVE-2026-1"; exit 1 ;; esac\n')
    told, gate = tmp_path / "told", tmp_path / "gate"
    s = await stack(
        checklist={"rehearsed": True},
        hooks=[
            {"name": "scan", "at": "preflight", "command": ["sh", str(scan), "{image}"]},
            {
                "name": "gate",
                "at": "before_step",
                "command": ["sh", "-c", f"test -e {gate} || test $RELEASE_STEP = 1"],
            },
            {"name": "told", "at": "after_rollback", "command": ["sh", "-c", f"cat >> {told}"]},
        ],
    )
    code, text = await s.cli("release", "api", images("v1"))
    assert (code, "checklist: rehearsed is missing" in text) == (10, True), text
    said = ("--check", "rehearsed", "--wait", "--timeout", "60")
    code, text = await s.cli("release", "api", images("v1"), *said)
    assert code == 0, text
    bad = images("v1").replace(":", ":bad-")
    s.docker.images.get(images("v1")).tag(*bad.split(":"))
    try:
        code, text = await s.cli("release", "api", bad, *said)
        assert (code, "hook scan: exit code 1: CRITICAL: CVE-2026-1" in text) == (14, True), text
    finally:
        s.docker.images.remove(bad, noprune=True)
    async with Load(s.url("api"), 100) as load:
        code, text = await s.cli("release", "api", images("v2"), *said)
        assert (code, "hook gate: exit code 1" in text) == (11, True), text
    assert load.seen.failed == 0, load.seen

    async def heard() -> bool:
        return told.exists() and '"release": "api-3"' in told.read_text()

    await s.until(heard, 20, "the hook has been told of the rollback")


CANARY = "canary7f3a"
"""Is in every secret."""


async def test_no_secret_is_found_anywhere(stack: Stacks, images: Images, tmp_path: Path) -> None:
    """In no log, event, state, reply, page, command line, environment or container."""
    double = SlackDouble()
    await double.start()

    def secret(name: str, text: str = "") -> str:
        (tmp_path / name).write_text(text or f"{CANARY}-{name}-{'x' * 32}")
        return str(tmp_path / name)

    hook = {"name": "h", "at": "preflight", "url": f"http://127.0.0.1:{double.port}/x", "on_failure": "go_on"}
    s = await stack(
        parts=Stack,  # /proc shows how a process was started, not what a fork has become
        settings={
            "prometheus": {"bearer_file": secret("bearer")},
            "webhooks": [{"id": "k", "name": "k", "role": "operator", "secret_file": secret("hook")}],
            "slack": {
                "team": TEAM,
                "signing_secret_file": secret("signing", f"{SIGNING}{CANARY}"),
                "token_file": secret("bot"),  # the double refuses it
                "channel": CHANNEL,
                "api_url": double.url,
            },
            "notify": [
                {"name": "a", "urls_file": secret("urls", f"json://u:{CANARY}@127.0.0.1:9/{CANARY}")},
                {
                    "name": "j",
                    "jira": {
                        "url": f"http://127.0.0.1:{double.port}",
                        "project": "P",
                        "token_file": secret("jira"),
                    },
                },
            ],
        },
        hooks=[{**hook, "secret_file": secret("sign"), "retries": 0}],
        container={
            "port": 8080,
            "memory": "64MiB",
            "env_file": secret("env", "GREETING=hello"),
            "secrets": [{"source": secret("db"), "target": "/run/db"}],
            "probe": {"successes": 2},
        },
    )
    (tmp_path / "db").chmod(0o644)
    _, said = await s.cli("token", "create", "ann", "--role", "admin")
    token = next(line for line in said.splitlines() if line.startswith("rot_"))
    wanted = (CANARY, token.split("_", 2)[2], SIGNING)
    await s.push("api", images("v1"))
    await s.ended("api-1")
    bad = {"Authorization": f"Bearer {token}x"}
    seen: list[str] = []
    async with aiohttp.ClientSession() as client:
        for path in (
            "/",
            "/services/api",
            "/releases/api-1",
            "/v1/services",
            "/v1/tokens",
            "/v1/me",
            "/docs",
        ):
            for headers in ({"Authorization": f"Bearer {token}"}, bad):
                async with client.get(f"http://127.0.0.1:{s.door}{path}", headers=headers) as answer:
                    seen.append(await answer.text())
        for path in ("/metrics", "/targets", "/readyz"):
            async with client.get(f"http://127.0.0.1:{s.http}{path}") as answer:
                seen.append(await answer.text())
    _, doctor = await s.cli("doctor")
    seen += [doctor, (await s.cli("status"))[1], (await s.cli("token", "list"))[1], s.log.read_text()]
    seen += [json.dumps(c.attrs) for c in s.containers()]
    seen += [str(await _value(s.redis, key)) for key in await s.redis.keys("*")]
    assert s.daemon is not None
    seen += list(_processes(s.daemon.pid))
    text = "\n".join(seen)
    assert "notification_failed" in text  # the failures were seen, and told
    for word in wanted:
        assert word not in text, text[max(text.index(word) - 300, 0) : text.index(word) + 100]
    await double.stop()


async def _value(redis: Any, key: str) -> Any:
    kind = await redis.type(key)
    if kind == "hash":
        return await redis.hgetall(key)
    if kind == "set":
        return await redis.smembers(key)
    return await (redis.xrange(key) if kind == "stream" else redis.get(key))


def _processes(pid: int) -> Iterator[str]:
    """Command line and environment of a process and of all that it has started."""
    yield Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    yield Path(f"/proc/{pid}/environ").read_text(errors="replace")
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _processes(int(child))
