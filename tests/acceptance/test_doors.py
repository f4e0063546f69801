"""People and machines at the door of a real daemon."""

import signal
from pathlib import Path
from typing import Any

import aiohttp

from examples.playground.load import Load
from tests.authority import NAME, Authority
from tests.conftest import Images, Stacks


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
    assert (code, (await ask("GET", "/v1/me"))[0]) == (0, 401)
    assert secret.rpartition("_")[2] not in s.log.read_text()


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
