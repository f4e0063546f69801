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
