"""What of an address may be shown, wherever words of others are."""

import io
import json
import logging

import pytest
import structlog

from orchestrator.engine.tasks import bug
from orchestrator.observability.logs import configure
from orchestrator.ports.addresses import masked
from orchestrator.ports.faults import Away, Conflict, Fault, Refused, Stale


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h:1/metrics", "http://h:1/metrics"),
        ("http://me:pw@h/a?b=c&d=e#f", "http://***@h/a?***"),
        ("redis://me:and/p@ss@h/0", "redis://***@h/0"),
        (
            'Get "http://10.0.0.1:8080/metrics?token=x": dial tcp: refused',
            'Get "http://10.0.0.1:8080/metrics?***": dial tcp: refused',
        ),
        ("two http://h/?a http://u@h/?b, so", "two http://h/?*** http://***@h/?***, so"),
        ("is it api? no: a@b", "is it api? no: a@b"),
        ("http://h/? nothing", "http://h/? nothing"),
    ],
)
def test_user_and_query_of_an_address_are_left_out(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize("kind", [Fault, Away, Refused, Conflict, Stale])
def test_no_fault_says_what_may_be_secret(kind: type[Fault]) -> None:
    assert str(kind("no answer of http://me:pw@h/?t=s")) == "no answer of http://***@h/?***"


def test_a_bug_says_nothing_secret_either() -> None:
    assert bug(ValueError("http://me:pw@h/")).endswith("ValueError: http://***@h/")


def test_no_line_of_the_log_holds_it_and_a_link_can_still_be_opened() -> None:
    stream = io.StringIO()
    writer = configure("json", "info", stream)
    log = structlog.get_logger()
    log.info("told", reason="http://u:pw@h/?token=pw", link="https://ci/job?id=5", number=3)
    logging.getLogger("library").warning("can't reach %s", "https://u:pw@h/?token=pw")
    log.error("failed", exc_info=ValueError("http://u:pw@h/?token=pw"))
    writer.flush()
    assert "pw" not in stream.getvalue()
    first = json.loads(stream.getvalue().splitlines()[0])
    assert (first["link"], first["reason"]) == ("https://ci/job?id=5", "http://***@h/?***")
