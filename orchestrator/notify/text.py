"""Events as messages to people, in English and Chinese. Pure."""

import re
from dataclasses import dataclass
from typing import Literal

from orchestrator.rollout.events import (
    ApprovalWanted,
    EdgeDrifted,
    EdgeRepaired,
    EdgeStuck,
    Event,
    InstanceDied,
    ReleaseAccepted,
    ReleaseEnded,
    RequestRefused,
    RollbackStarted,
    RolloutPaused,
    ServiceTroubled,
    StateRestored,
)
from orchestrator.rollout.model import Outcome, Verdict, readable
from orchestrator.rollout.told import harmless, logs_of

Language = Literal["en", "zh"]
Severity = Literal["info", "success", "warning", "failure"]

LOG_LINES = 8
"""Last lines of a container's log that a message holds."""

_MENTION = re.compile(r"@(?=channel|here|all\b|everyone)|<(?=[!@#a])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent. `title` is one line; `body` has one fact a line."""

    title: str
    body: str
    severity: Severity


OUTCOMES: dict[Language, dict[Outcome, str]] = {
    "en": {
        Outcome.PROMOTED: "promoted",
        Outcome.ROLLED_BACK: "rolled back",
        Outcome.REJECTED: "rejected",
        Outcome.SUPERSEDED: "superseded",
        Outcome.ABORTED: "aborted",
        Outcome.FAILED: "failed before it had traffic",
    },
    "zh": {
        Outcome.PROMOTED: "已发布",
        Outcome.ROLLED_BACK: "已回滚",
        Outcome.REJECTED: "被拒绝",
        Outcome.SUPERSEDED: "被新版本取代",
        Outcome.ABORTED: "已中止",
        Outcome.FAILED: "在接收流量之前失败",
    },
}

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "image": "image: {}",
        "author": "released by: {}",
        "back": "{}: has the traffic again",
        "by": "by: {}",
        "why": "why: {}",
        "took": "after {:.0f} s",
        "gate": "gate {gate}: candidate {value} over {samples} requests{baseline}{limit}",
        "baseline": ", stable {value} over {samples} requests",
        "limit": ", limit {}",
        "logs": "last log lines:",
        "accepted": "{}: accepted",
        "refused": "{}: {} was refused",
        "rollback": "{}: going back",
        "approval": "{}: waits for approval",
        "paused": "{}: paused",
        "died": "{}: {}",
        "drifted": "{}: nginx' file is {}",
        "repaired": "{}: nginx' file is ours again",
        "stuck": "{}: nginx does not confirm generation {}",
        "troubled": "{}: the daemon meets an error of its own and tries again",
        "restored": "{}: the store had lost {} commits; they were written again",
        "next_ended": "next: orchestrator explain {release}",
        "next_promoted": "to go back: orchestrator rollback {service}",
        "next_approval": "next: orchestrator approve {service}, or orchestrator rollback {service}",
        "next_paused": "next: orchestrator resume {service}, or orchestrator rollback {service}",
        "next_drifted": "next: move the edit into the service's file; until it is gone no step is taken",
        "next_stuck": "next: nginx -t on its host; where users are: orchestrator status {service}",
    },
    "zh": {
        "image": "镜像:{}",
        "author": "发布人:{}",
        "back": "{}:已重新接收全部流量",
        "by": "操作人:{}",
        "why": "原因:{}",
        "took": "用时 {:.0f} 秒",
        "gate": "门禁 {gate}:候选版本 {value}({samples} 个请求){baseline}{limit}",
        "baseline": ",稳定版本 {value}({samples} 个请求)",
        "limit": ",上限 {}",
        "logs": "最后的日志:",
        "accepted": "{}:已受理",
        "refused": "{}:{} 被拒绝",
        "rollback": "{}:正在回滚",
        "approval": "{}:等待批准",
        "paused": "{}:已暂停",
        "died": "{}:{}",
        "drifted": "{}:nginx 文件状态为 {}",
        "repaired": "{}:nginx 文件已恢复",
        "stuck": "{}:nginx 未确认第 {} 代配置",
        "troubled": "{}:守护进程遇到内部错误,正在重试",
        "restored": "{}:存储丢失了 {} 次提交,已重新写入",
        "next_ended": "下一步:orchestrator explain {release}",
        "next_promoted": "如需回退:orchestrator rollback {service}",
        "next_approval": "下一步:orchestrator approve {service},或 orchestrator rollback {service}",
        "next_paused": "下一步:orchestrator resume {service},或 orchestrator rollback {service}",
        "next_drifted": "下一步:把改动移入服务配置文件;在此之前不会继续放量",
        "next_stuck": "下一步:在 nginx 主机上执行 nginx -t;用户流量所在版本:orchestrator status {service}",
    },
}


def message(event: Event, language: Language) -> Message | None:  # noqa: C901, PLR0911, PLR0912  a case a kind
    """What people are told of an event; None where it is not for them."""
    say, name = WORDS[language], event.release or event.service
    end = {"service": event.service, "release": event.release}
    match event:
        case ReleaseEnded():
            return _ended(event, language)
        case ReleaseAccepted(duplicate=False):
            lines = [
                say["image"].format(event.image),
                *_who(say, event.actor, event.reason),
                plain(event.link),
            ]
            return _made(say["accepted"].format(name), lines, "info")
        case RequestRefused():
            title = say["refused"].format(event.service, event.verb)
            return _made(title, _who(say, event.actor, event.reason), "warning")
        case RollbackStarted():
            lines = [*_who(say, event.actor, event.reason), *_gate(say, event.verdict)]
            return _made(say["rollback"].format(name), lines, "failure")
        case ApprovalWanted():
            lines = [say["why"].format(plain(event.reason)), say["next_approval"].format(**end)]
            return _made(say["approval"].format(name), lines, "warning")
        case RolloutPaused():
            lines = [*_who(say, event.actor, event.reason), say["next_paused"].format(**end)]
            return _made(say["paused"].format(name), lines, "warning")
        case InstanceDied():
            title = say["died"].format(event.instance, plain(event.reason))
            return _made(title, _logs(say, logs_of(event)), "failure")
        case EdgeDrifted():
            return _made(say["drifted"].format(event.service, event.file), [say["next_drifted"]], "warning")
        case EdgeRepaired():
            return _made(say["repaired"].format(event.service), [], "info")
        case EdgeStuck():
            lines = [say["why"].format(plain(event.reason)), say["next_stuck"].format(**end)]
            return _made(say["stuck"].format(event.service, event.generation), lines, "failure")
        case ServiceTroubled() if event.reason:
            return _made(
                say["troubled"].format(event.service), [say["why"].format(plain(event.reason))], "failure"
            )
        case StateRestored():
            lost = event.remembered - event.found
            return _made(say["restored"].format(event.service, lost), [], "warning")
        case _:
            return None


def _ended(event: ReleaseEnded, language: Language) -> Message:
    say = WORDS[language]
    good = event.outcome is Outcome.PROMOTED
    lines = [say["image"].format(event.image)]
    lines += [say["author"].format(plain(event.author))] if event.author else []
    lines += [plain(event.link), *_who(say, event.actor, event.reason)]
    lines += [*_gate(say, event.verdict), say["took"].format(event.seconds), *_logs(say, logs_of(event))]
    following = "next_promoted" if good else "next_ended"
    lines.append(say[following].format(service=event.service, release=event.release))
    title = f"{event.release}: {OUTCOMES[language][event.outcome]}"
    if good and event.journey == "revert":
        title = say["back"].format(event.release)
    bad = event.outcome in (Outcome.ROLLED_BACK, Outcome.FAILED)
    return _made(title, lines, "success" if good else "failure" if bad else "warning")


def _made(title: str, lines: list[str], severity: Severity) -> Message:
    return Message(title, "\n".join(line for line in lines if line), severity)


def _who(say: dict[str, str], actor: str, reason: str) -> list[str]:
    return [say["by"].format(plain(actor)), say["why"].format(plain(reason)) if reason else ""]


def _gate(say: dict[str, str], verdict: Verdict | None) -> list[str]:
    """Metric, value, limit, baseline and how many requests they rest on."""
    if verdict is None or verdict.value is None:
        return []
    baseline = limit = ""
    if verdict.baseline is not None:
        value = readable(verdict.baseline, verdict.unit)
        baseline = say["baseline"].format(value=value, samples=f"{verdict.baseline_samples:,}")
    if verdict.limit is not None:
        limit = say["limit"].format(readable(verdict.limit, verdict.unit))
    value = readable(verdict.value, verdict.unit)
    samples = f"{verdict.samples:,}"
    return [
        say["gate"].format(gate=verdict.gate, value=value, samples=samples, baseline=baseline, limit=limit)
    ]


def _logs(say: dict[str, str], logs: str) -> list[str]:
    lines = logs.splitlines()[-LOG_LINES:]
    return [say["logs"], *(f"  {plain(line[:200])}" for line in lines)] if lines else []


def plain(text: str) -> str:
    """A stranger's text on one line, in which nothing calls anybody."""
    return _MENTION.sub(lambda found: found[0] + "\u200b", harmless(" ".join(text.split())))
