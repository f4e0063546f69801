"""How often nginx is asked for what it shows after a reload, on a virtual clock."""

import asyncio
import itertools
from pathlib import Path
from typing import Any, cast

from orchestrator.traffic.listener import Answer, Listener
from orchestrator.traffic.reload import RUN, SLOWEST_ASKING, SPACING, Reloader, Shown
from orchestrator.traffic.switch import Switches
from tests.simulation.loop import run


class Late:
    """A double of the private listener: it shows the new generation after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = seconds, list[float]()

    async def ask(self, service: str) -> Answer:
        self.asked.append(asyncio.get_running_loop().time())
        generation = 2 if self.asked[-1] >= self.seconds else 1
        return Answer(f"{service} {generation}", generation)


class Mute:
    """A double of a process whose workers can't be seen and that writes no log."""

    async def workers(self) -> Any:
        return type("Workers", (), {"outdated": (), "accepting": frozenset()})

    async def complaint(self) -> Any:
        return type("Complaint", (), {"final": False, "words": ""})


def confirmed(seconds: float) -> tuple[list[float], bool]:
    """The seconds between one question and the next, and whether it was confirmed within 10 s."""
    late = Late(seconds)
    switches = Switches(Path("/nonexistent"))
    reloader = Reloader(
        cast("Any", Mute()), cast("Listener", late), switches, deadline=10.0, closing_wait=0.0
    )
    left = run(reloader.confirm([Shown("api", 2)], frozenset()))
    return [round(b - a, 3) for a, b in itertools.pairwise(late.asked)], not left


def test_what_nginx_does_not_show_is_asked_for_more_and_more_seldom() -> None:
    gaps, shown = confirmed(60.0)
    assert not shown
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (round(1.5 * SPACING, 3), SLOWEST_ASKING)


def test_what_nginx_shows_is_asked_for_closely_however_late_it_does() -> None:
    gaps, shown = confirmed(5.0)
    assert shown
    assert gaps[-RUN:] == [SLOWEST_ASKING, *[SPACING] * (RUN - 1)]
