"""Asking one hook, with its deadline and its retries."""

import asyncio
import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import stamina
import structlog

from orchestrator.ports.addresses import masked
from orchestrator.ports.faults import Fault
from orchestrator.ports.given import read_given
from orchestrator.ports.program import program
from orchestrator.rollout.hooks import HookCall, HookResult
from orchestrator.rollout.policy import Hook

log = structlog.get_logger()

OUTPUT = 2000
"""Letters of what a hook says that are kept: the last ones of a program's, the first ones of an answer."""

ANSWER = 1_000_000
"""The most bytes of an answer of OPA that are read; of others only the beginning is kept."""

_FIELD = re.compile(r"\{([a-z]+)\}")

PASSES = frozenset({HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED})


def facts(call: HookCall, more: Mapping[str, Any]) -> dict[str, Any]:
    """What a hook is told."""
    release = call.release
    return {
        "id": call.key,
        "hook": call.hook.name,
        "phase": call.hook.at,
        "service": release.service,
        "release": release.id,
        "image": release.image,
        "digest": release.digest,
        "author": release.author,
        "reason": release.reason,
        "link": release.link,
        "step": call.step + 1,
        "weight": call.weight,
        **more,
    }


class HookRunner:
    """See `ports.Hooks`."""

    async def ask(self, call: HookCall, more: Mapping[str, Any] | None = None) -> HookResult:
        """See `ports.Hooks`."""
        told, hook = facts(call, more or {}), call.hook
        try:
            async for attempt in stamina.retry_context(
                on=Fault, attempts=hook.retries + 1, timeout=None, wait_initial=0.5, wait_max=10.0
            ):
                with attempt:
                    result = await self._once(hook, told)
        except Fault as error:
            result = HookResult(passed=False, text=str(error))
        except Exception as error:
            log.exception("hook_failed", release=call.release.id, hook=hook.name)
            result = HookResult(passed=False, text=masked(f"{type(error).__name__}: {str(error)[:200]}"))
        if not result.passed and not hook.required:
            result = HookResult(passed=True, text=f"{result.text} (not required)")
        # half of a surrogate pair, as JSON can have it, can't be written into the state
        result = replace(result, text=result.text.encode(errors="replace").decode())
        level = "info" if result.passed else "warning"
        getattr(log, level)(
            "hook_asked",
            service=call.release.service,
            release=call.release.id,
            hook=hook.name,
            phase=hook.at,
            passed=result.passed,
            text=result.text,
        )
        return result

    async def _once(self, hook: Hook, told: dict[str, Any]) -> HookResult:
        """Ask once; raises `Fault` when there is no answer, which may be asked for again."""
        try:
            async with asyncio.timeout(hook.timeout):
                if hook.kind == "command":
                    return await _run(hook, told)
                return await _call(hook, told)
        except TimeoutError:
            reason = f"no answer within {hook.timeout:g} s"
        except (OSError, aiohttp.ClientError) as error:
            reason = masked(f"{type(error).__name__}: {str(error)[:200]}")
        log.warning("hook_failed", release=told["release"], hook=hook.name, reason=reason)
        raise Fault(reason)


async def _run(hook: Hook, told: dict[str, Any]) -> HookResult:
    """A program: told by its environment and its standard input, it passes with exit code 0."""
    words = [_filled(word, told) for word in hook.command]
    env = {f"RELEASE_{name.upper()}": str(value).replace("\0", "") for name, value in told.items()}
    env["PATH"] = os.environ.get("PATH", os.defpath)
    said = b""
    async with program(words, env=env, told=json.dumps(told).encode()) as process:
        assert process.stdout is not None
        while chunk := await process.stdout.read(65536):
            said = (said + chunk)[-4 * OUTPUT :]
        code = await process.wait()
    text = said.decode(errors="replace").strip()[-OUTPUT:]
    return HookResult(passed=code == 0, text=text if code == 0 else f"exit code {code}: {text}".rstrip(": "))


def _filled(word: str, told: dict[str, Any]) -> str:
    """A word of a command with `{image}` and the like filled in, once: values hold what strangers write.

    There is no shell that could see more in them.
    """
    return _FIELD.sub(lambda field: str(told.get(field[1], field[0])).replace("\0", ""), word)


async def _call(hook: Hook, told: dict[str, Any]) -> HookResult:
    """A service: it gets JSON; 5xx is no answer."""
    body = json.dumps({"input": told} if hook.kind == "opa" else told).encode()
    headers = {"Content-Type": "application/json", **_signature(hook, body)}
    async with (
        aiohttp.ClientSession() as session,
        session.post(hook.url, data=body, headers=headers, allow_redirects=False) as answer,
    ):
        said, limit = b"", ANSWER if hook.kind == "opa" else OUTPUT * 4
        async for chunk in answer.content.iter_any():
            said += chunk
            if len(said) > limit:
                break
        text = said.decode(errors="replace")
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Fault(f"status {answer.status}: {text[:200]}")
        if answer.status not in PASSES:
            return HookResult(passed=False, text=f"status {answer.status}: {text[:OUTPUT]}")
        if hook.kind != "opa":
            return HookResult(passed=True, text=text[:OUTPUT])
        if len(said) > limit:
            return HookResult(passed=False, text=f"the answer is longer than {limit // 1000} kB")
        return _decided(text)


def _decided(text: str) -> HookResult:
    """OPA's answer: `{"result": true}`, or `{"result": {"allow": true, "reasons": []}}`. Undefined is no."""
    try:
        result = json.loads(text).get("result")
    except (ValueError, AttributeError):
        return HookResult(passed=False, text=f"not an answer of OPA: {text[:200]}")
    if isinstance(result, dict):
        reasons = result.get("reasons") or result.get("deny") or []
        why = "; ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
        return HookResult(passed=result.get("allow") is True, text=why[:OUTPUT] or "policy")
    return HookResult(passed=result is True, text="policy" if result is not None else "policy is undefined")


def _signature(hook: Hook, body: bytes) -> dict[str, str]:
    if not hook.secret_file:
        return {}
    secret = read_given(Path(hook.secret_file)).strip()
    return {"X-Release-Signature": "v1=" + hmac.new(secret, body, hashlib.sha256).hexdigest()}
