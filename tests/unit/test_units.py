"""Amounts as people write and read them, what is said to a checklist, and why there is no connection."""

import json
import socket
from typing import Literal

import aiohttp
import pytest
import typer

from orchestrator.cli.verbs import _checks
from orchestrator.daemon.units import as_duration, as_size, limit, seconds, size
from orchestrator.ports.addresses import unreached
from orchestrator.rollout.policy import Probe
from orchestrator.runtime.probe import Prober


@pytest.mark.parametrize(("text", "is_"), [("0.99", 0.99), ("1", 1.0), ("1.0", 1.0), ("99.2%", 0.992)])
def test_a_limit_may_be_a_plain_number_as_text(text: str, is_: float) -> None:
    assert limit(text) == pytest.approx(is_)
    assert json.loads(_checks([f"rate={text}"])) == {"rate": pytest.approx(is_)}


@pytest.mark.parametrize("text", ["", "nan", "inf", "1_0", "many", "%", "1e999"])
def test_a_limit_is_a_number_that_is_finite(text: str) -> None:
    with pytest.raises(ValueError, match="limit"):
        limit(text)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("foo=", "foo=: has no value; write foo, or foo=0.99"),
        ("=1", "=1: has no name; write NAME, or NAME=0.99"),
        ("", "has no name"),
        ("foo=many", "foo: 'many' is not a limit"),
    ],
)
def test_what_says_nothing_to_a_checklist_is_refused(given: str, says: str) -> None:
    with pytest.raises(typer.BadParameter, match=says):
        _checks([given])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0s"), (0.25, "250ms"), (0.0005, "0.5ms"), (1.5, "1s500ms"), (30, "30s"), (90, "1m30s"),
        (1800, "30m"), (5400, "1h30m"), (86400, "1d"), (90061, "1d1h1m1s"),
    ],
)  # fmt: skip
def test_a_duration_is_shown_as_it_may_be_written(number: float, text: str) -> None:
    assert as_duration(number) == text
    assert seconds(text) == pytest.approx(number)


@pytest.mark.parametrize(
    ("number", "text"),
    [(536870912, "512MiB"), (2**31, "2GiB"), (3 * 2**29, "1536MiB"), (6291457, "6291457B")],
)
def test_a_size_is_shown_as_it_may_be_written(number: int, text: str) -> None:
    assert as_size(number) == text
    assert size(text) == number


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_a_probe_of_a_port_where_nothing_listens_says_so_and_where_the_port_is_set(
    nobody: str, kind: Literal["http", "tcp"]
) -> None:
    prober = Prober()
    assert await prober._ask(nobody, Probe(kind=kind)) == f"nothing listens on {nobody} (container/port)"
    await prober.close()


async def test_why_there_is_no_connection_is_said_without_the_librarys_words(nobody: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError) as refused:
            await session.get(f"http://{nobody}")
        with pytest.raises(aiohttp.ClientError) as unknown:
            await session.get("http://no-such-host.invalid:1")
    assert unreached(refused.value, nobody) == f"nothing listens on {nobody}"
    assert "ssl:default" not in unreached(unknown.value, "no-such-host.invalid:1")
    assert unreached(unknown.value, "no-such-host.invalid:1").startswith("no-such-host.invalid:1: ")
    assert unreached(OSError(113, "Connect call failed ('10.0.0.1', 1)"), "h:1") == "h:1: No route to host"
    assert unreached(aiohttp.ServerDisconnectedError(), "h:1") == "h:1: Server disconnected"
    assert unreached(OSError(), "h:1") == "h:1: OSError"
