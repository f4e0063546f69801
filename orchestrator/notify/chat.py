"""Chat, mail and pagers, by Apprise."""

import logging

import apprise

from orchestrator.notify.text import Message
from orchestrator.ports.faults import Away, Fault
from orchestrator.rollout.events import Event

apprise.logger.setLevel(logging.CRITICAL + 1)
"""It would print addresses, and with them tokens."""

_TYPES = {
    "info": apprise.NotifyType.INFO,
    "success": apprise.NotifyType.SUCCESS,
    "warning": apprise.NotifyType.WARNING,
    "failure": apprise.NotifyType.FAILURE,
}


class Chat:
    """One address of Apprise, such as `slack://`, `wecombot://`, `dingtalk://`, `mailto://`, `pagerduty://`.

    Raises:
        Fault: It is none that Apprise knows; the message does not show it, as it holds secrets.
    """

    def __init__(self, url: str, place: str) -> None:
        self._place = place
        self._apprise = apprise.Apprise()
        if not self._apprise.add(url):
            scheme = url.partition("://")[0][:20]
            raise Fault(f"{place}: this {scheme}:// address is none that Apprise knows")

    async def send(self, event: Event, text: Message) -> None:
        """See `Channel`."""
        del event
        done = await self._apprise.async_notify(
            title=text.title,
            body=text.body or text.title,
            notify_type=_TYPES[text.severity],
            body_format=apprise.NotifyFormat.TEXT,
        )
        if not done:
            raise Away(f"{self._place}: it was not taken")  # Apprise does not tell why
