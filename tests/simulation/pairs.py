"""Every fault and every pair of faults of a story, or an even sample of pairs."""

import asyncio
import gc
import os
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

from tests.simulation.journey import PLAN, PLANS, STORIES, Run, simulate, tell
from tests.simulation.world import Fault, Mode, World

Faults = tuple[Fault, ...]
Story = Callable[[Run], Awaitable[None]]


def some_pairs(name: str, number: int, seed: int) -> Iterator[Faults]:
    """One pair out of each of so many equal parts of all at effects that the story has without faults."""
    effects = range(len(simulate(name).effects))
    whole = list(product(combinations(effects, 2), Mode, Mode))
    chance = random.Random(seed)
    for part in range(number):
        (one, other), first, second = whole[int((part + chance.random()) * len(whole) / number)]
        yield Fault(one, first), Fault(other, second)


def violations(world: World) -> list[str]:
    return world.violations


def every(
    name: str, depth: int, part: int = 0, parts: int = 1, look: Callable[[World], list[str]] = violations
) -> Iterator[tuple[Faults, list[str]]]:
    """Tell a story with every fault or, with a depth of 2, every pair of them.

    The first is at every parts-th effect, from the part-th on, the second at any that is still done after it.
    What they have in common is told once: the process is forked at each effect, for each way to go wrong
    there. `look` says what to report of a world.
    """
    with tempfile.TemporaryFile() as reports:
        branches = _Branches(depth, lambda number: number % parts == part, reports.fileno())
        gc.freeze()  # what nobody collects is not copied by each child
        try:
            found = look(tell(branches.watch(STORIES[name]), branches, None, PLANS.get(name, PLAN)))
        except BaseException as error:
            if not branches:
                raise
            found = [f"raised {error!r}"]
        if branches:
            branches.leave(found)
        gc.unfreeze()
        reports.seek(0)
        texts = reports.read().decode().split("\0")[:-1]
    for text in texts:
        replay, *lines = text.split("\n")
        faults = (f.partition(":") for f in replay.split())
        yield tuple(Fault(int(number), Mode(mode)) for number, _, mode in faults), lines


class _Branches(dict[int, Mode]):
    """The faults of this process, of which the next is chosen when its effect is reached."""

    def __init__(self, depth: int, first: Callable[[int], bool], reports: int) -> None:
        super().__init__()
        self._depth, self._first, self._reports = depth, first, reports
        self._folder, self._parent = Path(), 0

    def watch(self, story: Story) -> Story:
        """The same story; where its files are is known from then on."""

        def watched(run: Run) -> Awaitable[None]:
            self._folder = run.world.nginx.folder
            return story(run)

        return watched

    def get(self, number: int, default: Any = None) -> Any:
        if len(self) == self._depth or (not self and not self._first(number)):
            return default
        if self and os.getppid() != self._parent:
            os._exit(1)  # nobody waits for what it finds
        loop, chance, files = asyncio.get_running_loop(), random.getstate(), _Files(self._folder)
        for mode in Mode:
            child = os.fork()
            if not child:
                self._parent = os.getppid()
                asyncio._set_running_loop(loop)  # asyncio asks whose process it is in
                random.setstate(chance)  # a forked process has a seed of its own
                self[number] = mode
                return mode
            _, status = os.waitpid(child, 0)
            if status:
                self._report(Fault(number, mode), lines=[f"ended with status {status}"])
            files.restore()
        return default

    def leave(self, lines: list[str]) -> None:
        """Report and end a forked process, of which nothing may run that its parent will run."""
        try:
            if len(self) == self._depth:
                self._report(lines=lines)
        finally:
            os._exit(0)

    def _report(self, *more: Fault, lines: list[str]) -> None:
        faults = [*(Fault(number, mode) for number, mode in self.items()), *more]
        os.write(self._reports, "\n".join([" ".join(map(str, faults)), *lines]).encode() + b"\0")


class _Files:
    """A folder as it was; a child that has told its story has removed it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = sorted(folder.rglob("*"))
        self._folders = [path for path in found if path.is_dir()]
        self._texts = {p: (p.read_bytes(), p.stat().st_mode) for p in found if p not in self._folders}

    def restore(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in (self._folder, *self._folders):
            folder.mkdir()
        for path, (text, mode) in self._texts.items():
            path.write_bytes(text)
            path.chmod(mode)
