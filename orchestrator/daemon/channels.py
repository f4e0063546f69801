"""The channels that the settings describe."""

from collections.abc import Iterator

from orchestrator.daemon.section import secret_of
from orchestrator.daemon.settings import Settings
from orchestrator.notify.grafana import Grafana
from orchestrator.notify.jira import Jira
from orchestrator.notify.postman import Channel, Reader, Subscription
from orchestrator.ports.faults import Fault
from orchestrator.ports.store import Bookmarks, Journal


def readers(settings: Settings, journal: Journal, bookmarks: Bookmarks) -> list[Reader]:
    """Everybody who reads the event stream.

    Raises:
        Fault: See `subscriptions`.
    """
    found: list[Reader] = [*subscriptions(settings)]
    slack = settings.slack
    if slack is not None and slack.token_file is not None:
        from orchestrator.notify.slack import SlackThread  # noqa: PLC0415  half a second to import

        token = secret_of(slack.token_file, "slack/token_file")
        found.append(SlackThread(token, slack.channel, slack.language, slack.api_url, journal, bookmarks))
    if settings.traces is not None:
        try:
            from orchestrator.notify.traces import Traces  # noqa: PLC0415  an extra that need not be there
        except ImportError as error:
            raise Fault(f"traces: pip install 'release-orchestrator[otel]' ({error})") from error
        found.append(Traces(settings.traces.endpoint, journal))
    return found


def subscriptions(settings: Settings) -> list[Subscription]:
    """What has to be told to whom. Each address is a channel of its own: one that is down delays no other.

    Raises:
        Fault: A file can't be read, or an address is not understood; names the setting.
    """
    found = []
    for number, section in enumerate(settings.notify):
        for name, channel in _channels(settings, number):
            found.append(
                Subscription(
                    name=name,
                    channel=channel,
                    language=section.language,
                    kinds=frozenset(section.events),
                    outcomes=frozenset(section.outcomes),
                    services=frozenset(section.services),
                )
            )
    return found


def _channels(settings: Settings, number: int) -> Iterator[tuple[str, Channel]]:
    section, place = settings.notify[number], f"notify/{number}"
    if section.jira is not None:
        jira = section.jira
        token = secret_of(jira.token_file, f"{place}/jira/token_file")
        yield section.name, Jira(jira.url, jira.user, token, jira.project, jira.issue_type)
    if section.grafana is not None:
        token = secret_of(section.grafana.token_file, f"{place}/grafana/token_file")
        yield section.name, Grafana(section.grafana.url, token)
    if section.urls_file is not None:
        from orchestrator.notify.chat import Chat  # noqa: PLC0415  Apprise takes a third of a second to import

        where = f"{place}/urls_file {section.urls_file}"
        lines = secret_of(section.urls_file, f"{place}/urls_file").splitlines()
        urls = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        for n, url in enumerate(urls):
            yield f"{section.name}.{n}", Chat(url, f"{where}: line {n + 1}")
