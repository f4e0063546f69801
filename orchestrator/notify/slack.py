"""One message a release in Slack: kept up to date in place, with its story in its thread."""

from http import HTTPStatus
from typing import Any

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from orchestrator.notify.http_json import fault
from orchestrator.notify.text import OUTCOMES, Language, message, plain
from orchestrator.ports.faults import Away, Fault, Refused
from orchestrator.ports.store import Bookmarks, Journal
from orchestrator.rollout.command import offers
from orchestrator.rollout.events import Event, ReleaseEnded
from orchestrator.rollout.model import FULL, Outcome, Phase, ServiceState
from orchestrator.rollout.plan import current_step, step_count

IN_PLACE = frozenset(
    {
        "release_accepted",
        "phase_entered",
        "approval_wanted",
        "rollout_paused",
        "command_accepted",
        "rollback_started",
        "release_ended",
    }
)
"""Events after which the message is written anew."""

IN_THREAD = frozenset(
    {"approval_wanted", "rollout_paused", "rollback_started", "instance_died", "release_ended"}
)
"""Events that are told in its thread too."""

LATER = frozenset(
    {
        "accesslimited",
        "external_channel_migrating",
        "fatal_error",
        "internal_error",
        "org_login_required",
        "rate_limited",
        "ratelimited",
        "request_timeout",
        "service_unavailable",
        "team_added_to_org",
    }
)
"""Errors of https://docs.slack.dev/reference/methods/chat.postMessage that pass by themselves."""

BUTTONS = frozenset({"rollback", "pause", "resume", "approve"})

WIDTH = 20

ICONS = {
    Outcome.PROMOTED: ":white_check_mark:",
    Outcome.ROLLED_BACK: ":rewind:",
    Outcome.REJECTED: ":no_entry:",
    Outcome.SUPERSEDED: ":fast_forward:",
    Outcome.ABORTED: ":black_square_for_stop:",
    Outcome.FAILED: ":x:",
}

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "queued": "waits",
        "of": "step {} of {}",
        "rollback": "Roll back",
        "pause": "Pause",
        "resume": "Resume",
        "approve": "Approve",
        "sure": "{} of {}?",
        "yes": "Yes",
        "no": "No",
        "build": "build",
    },
    "zh": {
        "queued": "排队中",
        "of": "第 {} 步,共 {} 步",
        "rollback": "回滚",
        "pause": "暂停",
        "resume": "继续",
        "approve": "批准",
        "sure": "确定对 {1} 执行{0}?",
        "yes": "确定",
        "no": "取消",
        "build": "构建",
    },
}


class SlackThread:
    """A reader (see `postman.Reader`) that writes into one channel of one workspace.

    Args:
        token: Of the bot, with the scope `chat:write`.
        channel: Its id.
        api_url: Slack's own; another for a proxy.
    """

    name = "slack"

    def __init__(
        self,
        token: str,
        channel: str,
        language: Language,
        api_url: str,
        journal: Journal,
        bookmarks: Bookmarks,
    ) -> None:
        self._client = AsyncWebClient(token=token, base_url=api_url, timeout=10)
        self._channel = channel
        self._language: Language = language
        self._journal = journal
        self._bookmarks = bookmarks

    def wants(self, event: Event) -> bool:
        """See `Reader`."""
        return bool(event.release) and event.kind in IN_PLACE | IN_THREAD

    async def take(self, event: Event) -> None:
        """See `Reader`."""
        state, _ = await self._journal.load(event.service)
        thread = await self._bookmarks.bookmark(f"slack.{event.release}")
        if not thread or event.kind in IN_PLACE:
            thread = await self._write(state, event, thread)
        text = message(event, self._language) if event.kind in IN_THREAD else None
        if text is not None:
            said = f"*{escaped(text.title)}*\n{escaped(text.body)}"
            await self._call("chat_postMessage", thread_ts=thread, text=said[:3900])

    async def _write(self, state: ServiceState, event: Event, thread: str) -> str:
        """Make the message, or write it anew; returns its timestamp, which is its id."""
        headline, lines = shown(state, event, self._language)
        blocks = [_section(headline), _context(lines), *_buttons(state, event.release, self._language)]
        if thread:
            await self._call("chat_update", ts=thread, text=headline, blocks=blocks)
            return thread
        made = await self._call("chat_postMessage", text=headline, blocks=blocks)
        await self._bookmarks.set_bookmark(f"slack.{event.release}", made)
        return made

    async def _call(self, method: str, **words: Any) -> str:
        """Call a method; returns the timestamp of its message.

        Raises:
            Away: Slack did not answer, or what answers is not Slack.
            Refused: Slack will not.
        """
        try:
            answer = await getattr(self._client, method)(channel=self._channel, **words)
            stamp = answer.get("ts")
        except SlackApiError as error:
            raise _fault(error.response) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Away(f"Slack: {type(error).__name__}") from error
        except (AttributeError, TypeError, ValueError) as error:  # the SDK takes any answer for an object
            raise Away(f"Slack: not an answer of Slack ({error})") from error
        if not isinstance(stamp, str) or not stamp:
            raise Away("Slack: an answer without ts")
        return stamp


def _fault(answer: Any) -> Fault:
    """What an answer means that the SDK does not take; where it can't be parsed, it is that of aiohttp."""
    status = answer.status if isinstance(answer, aiohttp.ClientResponse) else answer.status_code
    data = None if isinstance(answer, aiohttp.ClientResponse) else answer.data
    error = data.get("error") if isinstance(data, dict) else None
    if status >= HTTPStatus.BAD_REQUEST:
        return fault(status, f"Slack: status {status}: {error or 'not an answer of Slack'}")
    if not isinstance(error, str):
        return Away(f"Slack: status {status}: not an answer of Slack")
    return (Away if error in LATER else Refused)(f"Slack: {error}")


def shown(state: ServiceState, event: Event, language: Language) -> tuple[str, list[str]]:
    """The headline of a release's message, and the lines below it."""
    say, name, rollout = WORDS[language], event.release, state.rolling(event.release)
    release = state.known(name)
    lines = []
    if release is not None:
        lines = [f"`{escaped(release.image)}`", escaped(release.author), escaped(release.reason[:200])]
        if release.link:
            lines.append(f"<{escaped(release.link)}|{say['build']}>")
    if isinstance(event, ReleaseEnded):
        lines.append(escaped(event.reason[:500]))
        return f"{ICONS[event.outcome]} *{name}* {OUTCOMES[language][event.outcome]}", lines
    if rollout is None:
        ended = next(iter(state.journeys(name)), None)
        what = f"{OUTCOMES[language][ended.outcome]}" if ended else say["queued"]
        return f"{ICONS[ended.outcome] if ended else ':hourglass:'} *{name}* {what}", lines
    headline = f":rocket: *{name}* {rollout.phase.value}"
    if rollout.phase in (Phase.SHIFTING, Phase.BAKING):
        weight = current_step(state, rollout).weight
        full = round(weight / FULL * WIDTH)
        step = say["of"].format(rollout.step + 1, step_count(state, rollout))
        headline += f"  `{'█' * full}{'░' * (WIDTH - full)}` {weight} %, {step}"
    if rollout.mark is not None:
        headline += f"\n:raised_hand: {rollout.mark.kind}: {escaped(rollout.mark.reason[:300])}"
    return headline, lines


def _buttons(state: ServiceState, name: str, language: Language) -> list[dict[str, Any]]:
    elements = [_button(verb, name, language) for verb in offers(state, name) if verb in BUTTONS]
    return [{"type": "actions", "elements": elements}] if elements else []


def _button(verb: str, name: str, language: Language) -> dict[str, Any]:
    say = WORDS[language]
    found: dict[str, Any] = {
        "type": "button",
        "action_id": verb,
        "value": name,
        "text": {"type": "plain_text", "text": say[verb]},
        "confirm": {
            "title": {"type": "plain_text", "text": say[verb]},
            "text": {"type": "plain_text", "text": say["sure"].format(say[verb], name)},
            "confirm": {"type": "plain_text", "text": say["yes"]},
            "deny": {"type": "plain_text", "text": say["no"]},
        },
    }
    if verb == "rollback":
        found["style"] = "danger"
    return found


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text[:2900]}}


def _context(lines: list[str]) -> dict[str, Any]:
    text = "  ".join(line for line in lines if line)[:2900] or " "
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": text}]}


def escaped(text: str) -> str:
    """A text in which Slack sees no markup of its own."""
    kept = "\n".join(plain(line) for line in text.splitlines())
    return kept.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
