"""What our folder must hold for all services, whichever of them changes next."""

import contextlib
import itertools
import math
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

from orchestrator.ports.given import read_given
from orchestrator.traffic.files import LARGEST, in_the_way, matching, replace
from orchestrator.traffic.render import (
    BALANCER,
    HTTP,
    PROXY_SNIPPET,
    balancer_path,
    closing_path,
    requests_path,
)

log = structlog.get_logger()

HTTP_FILE = "_http.conf"
"""Beside the services' files; no service can have that name."""

LUA_FILE = "_lua.conf"
"""Likewise, where routes change in nginx' memory."""

LUA_MARK = "_by_lua_block"
"""In the file of a service whose routes change there."""

SHARED_MEMORY = "lua_shared_dict release_orchestrator 4m;\n"
"""Room for some thousand services' routes."""

ASIDE = ".aside"
"""Suffix of what was moved aside, and a number from the second one on."""

PASS = 0o011
"""What nginx' workers need of a folder to look for files in it."""

READ = 0o444
"""What they need of a file that they read."""


class Shared:
    """The files and folders in ours that belong to no service: looked at and made whole as one.

    Args:
        directory: Our folder.

    Attributes:
        lua: Whether routes change in nginx' memory.
        broken: What could not be mended, and why.
        folders: Those that must be there.
    """

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self.lua = False
        self.broken: tuple[str, ...] = ()
        places = (path(str(directory)) for path in (closing_path, requests_path))
        self.folders = (directory, *(Path(place).parent for place in places))
        self._requests = Path(requests_path(str(directory)))
        self._whole: set[Path] = set()
        self._repairing = threading.Lock()

    @property
    def texts(self) -> dict[Path, str]:
        """The files that must be there, and what they say."""
        texts = {self._dir / HTTP_FILE: HTTP, self._dir / "snippets" / "proxy.conf": PROXY_SNIPPET}
        if self.lua:
            texts |= {Path(balancer_path(str(self._dir))): BALANCER, self._dir / LUA_FILE: SHARED_MEMORY}
        return texts

    @property
    def _files(self) -> tuple[Path, ...]:
        """Files that somebody else writes, and whose names must be free for it."""
        return (self._dir / ".lock", self._dir / "secret")

    def lacking(self, files: Iterable[Path] = ()) -> dict[Path, str]:
        """What is not as it must be, and how it is.

        Args:
            files: Further ones in whose place nothing else may be.
        """
        lacking = {path: "is missing" for path in self.folders if not is_folder(path)}
        ways = {path: self._in_the_way(path) for path in (*self._files, *files, self._requests)}
        lacking |= {path: why for path, why in ways.items() if why}
        return lacking | {path: why for path, text in self.texts.items() if (why := _differs(path, text))}

    def _in_the_way(self, path: Path) -> str:
        """Why what lies there can't stay; '' if it can. The log of requests may have any length."""
        if path in self._files and os.path.islink(path):  # noqa: PTH114  never raises
            return "is a link"
        return in_the_way(path, math.inf if path == self._requests else LARGEST)

    def odd(self) -> Iterator[Path]:
        """What nginx would include, whosever it is, and is no plain file: it waits for a pipe, say."""
        for place in (self._dir, self._dir / "snippets", *matching(self._dir, "locations/*")):
            with contextlib.suppress(OSError), os.scandir(place) as found:
                for one in found:
                    if one.name.endswith(".conf") and not one.is_file(follow_symlinks=False):
                        yield Path(one.path)

    def repair(self, files: Iterable[Path] = ()) -> None:
        """Make it whole; what lies in the way is moved aside. One thread at a time."""
        with self._repairing:
            self._repair(files)

    def _repair(self, files: Iterable[Path]) -> None:
        broken: dict[Path, str] = {}
        for path, why in self.lacking(files).items():
            try:
                self._mend(path)
            except OSError as error:
                broken[path] = f"{path} {why}: {error.strerror}"
            else:
                if path in self._whole or path not in (*self.folders, *self.texts):  # it is no first start
                    log.warning("edge_folder_repaired", path=str(path), reason=why)
        self._whole |= {*self.folders, *self.texts} - broken.keys()
        told, self.broken = self.broken, tuple(broken.values())
        for reason in self.broken:
            if reason not in told:
                log.warning("edge_folder_broken", reason=reason)
        for folder in (*self.folders, *([Path(balancer_path(str(self._dir))).parent] if self.lua else [])):
            with contextlib.suppress(OSError):  # somebody else's, or missing; the doctor names it
                mode = folder.stat().st_mode
                if mode & PASS != PASS:
                    folder.chmod(mode | PASS)

    def _mend(self, path: Path) -> None:
        if path in self.folders:
            make_folder(path)
            return
        if self._in_the_way(path):  # a file of ours may have taken its place since the look
            _move_aside(path)
        if path in self.texts:
            make_folder(path.parent)
            replace(path, self.texts[path])
            path.chmod(path.stat().st_mode | READ)


def _differs(path: Path, text: str) -> str:
    """In what a file is not as it must be; empty when it is."""
    try:
        if read_given(path, LARGEST) != text.encode():
            return "differs from what the daemon writes"
        return "" if path.stat().st_mode & READ == READ else "can't be read by nginx' workers"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"can't be read: {error.strerror}"


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False too where nobody may look."""
    return os.path.isdir(path)  # noqa: PTH112  never raises


def make_folder(path: Path) -> None:
    """Let there be a folder; what is in its place and is none is moved aside. Raises OSError."""
    if not is_folder(path) and os.path.lexists(path):
        _move_aside(path)
    path.mkdir(parents=True, exist_ok=True)


def _move_aside(path: Path) -> None:
    """Rename what is not ours, so that nothing of it is lost."""
    names = (path.with_name(f"{path.name}{ASIDE}{number or ''}") for number in itertools.count())
    path.rename(next(name for name in names if not os.path.lexists(name)))
