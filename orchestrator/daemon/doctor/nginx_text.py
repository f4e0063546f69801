"""nginx' whole configuration as `nginx -T` prints it, and ordinary mistakes in it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from orchestrator.traffic.render import PROXY_SNIPPET, closing_path

_FILE = re.compile(r"^# configuration file (.+):$", re.MULTILINE)
_TOKEN = re.compile(
    r"""(?P<skip>\#[^\n]*|\s+)|(?P<mark>[{};])"""
    r"""|"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>(?:\\.|[^'\\])*)'"""
    r"""|(?P<word>(?:\$\{[^}]*\}|\\.|[^\s{};])+)""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Directive:
    """One directive, with those inside its block."""

    words: tuple[str, ...]
    file: str
    line: int
    block: tuple["Directive", ...] = ()

    @property
    def place(self) -> str:
        """Where it is."""
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class _Block:
    words: tuple[str, ...] = ()
    line: int = 0
    inside: list[Directive] = field(default_factory=list)


def directives(whole: str) -> list[Directive]:
    """The outermost directives of every file; what is no configuration is passed over."""
    marks = list(_FILE.finditer(whole))
    found: list[Directive] = []
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(whole)
        found += _directives(whole[mark.end() : end].removeprefix("\n"), mark[1])
    return found


def _directives(text: str, file: str) -> list[Directive]:
    open_blocks = [_Block()]
    words: list[str] = []
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:  # a quote that is not closed
            break
        if match["mark"] == "{" and words and words[0].endswith("_by_lua_block"):
            end = _end_of_lua(text, at)
            open_blocks[-1].inside.append(Directive(tuple(words), file, line))
            words = []
        else:
            end = match.end()
            if match["mark"] == ";":
                open_blocks[-1].inside.append(Directive(tuple(words), file, line))
                words = []
            elif match["mark"] == "{":
                open_blocks.append(_Block(tuple(words), line))
                words = []
            elif match["mark"] == "}" and len(open_blocks) > 1:
                block = open_blocks.pop()
                open_blocks[-1].inside.append(Directive(block.words, file, block.line, tuple(block.inside)))
            elif not match["skip"] and not match["mark"]:
                words.append(
                    next(g for g in (match["double"], match["single"], match["word"]) if g is not None)
                )
        line += text.count("\n", at, end)
        at = end
    return open_blocks[0].inside


def _end_of_lua(text: str, at: int) -> int:
    depth = 0
    for end in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return end + 1
    return len(text)


def walk(found: list[Directive] | tuple[Directive, ...]) -> Iterator[Directive]:
    """All directives, outer ones first."""
    for one in found:
        yield one
        yield from walk(one.block)


def taken_upstreams(found: list[Directive], folder: Path, services: list[str]) -> list[tuple[str, str]]:
    """Upstreams outside our folder that are called as one of ours would be: the name, and where it is."""
    ours = {pool for name in services for pool in _pools(name)}
    return [
        (one.words[1], one.place)
        for one in walk(found)
        if one.words[:1] == ("upstream",)
        and len(one.words) > 1
        and one.words[1] in ours
        and Path(one.file).parent != folder
    ]


def _pools(service: str) -> set[str]:
    return {f"{service}{part}" for part in ("", "_back", "_preview", "_stable", "_candidate")}


def uses(found: list[Directive], folder: Path, service: str) -> Iterator[Directive]:
    """Directives outside our folder that nginx does not take any more once a service is removed."""
    snippet = str(folder / "snippets" / f"{service}.conf")
    for one in walk(found):
        name, rest = "".join(one.words[:1]), "".join(one.words[1:2])
        host = re.fullmatch(r"(?:\w+://)?([\w.-]+)(?:[:/].*)?", rest)
        passes = name.endswith("_pass") and host is not None and host[1] in _pools(service)
        ours = Path(one.file).is_relative_to(folder)
        if not ours and (passes or (name == "include" and rest == snippet)):
            yield one


def unasked(found: list[Directive], folder: Path, services: list[str]) -> list[str]:
    """Where requests are sent to one of ours, and nobody is asked to close a connection before a reload.

    That is so unless the block or one around it looks for our sign, or keeps no connection at all.
    """
    pools = {*services, "$release_pool", "${release_pool}"}
    closing = closing_path(str(folder))
    files: dict[str, list[Directive]] = {}
    for one in found:
        files.setdefault(one.file, []).append(one)

    def inside(block: tuple[Directive, ...], within: Path) -> Iterator[Directive]:
        for one in block:
            yield one
            if one.words[:1] == ("include",) and len(one.words) > 1:
                wanted = str(within / one.words[1])
                for name in [name for name in files if fnmatchcase(name, wanted)]:
                    yield from inside(tuple(files[name]), within)

    def look(block: tuple[Directive, ...], within: Path) -> Iterator[str]:
        here = list(inside(block, within))
        if any(_asks(one, closing) for one in here):
            return
        for one in here:
            if one.words[:1] == ("proxy_pass",) and one.words[-1].split("/")[2:3] in ([p] for p in pools):
                yield one.place
            yield from look(one.block, within)

    main = next(iter(files), "")
    return list(look(tuple(files.get(main, ())), Path(main).parent))


def _asks(one: Directive, closing: str) -> bool:
    looks = one.words[:1] == ("if",) and any(closing in word for word in one.words)
    return looks or one.words in (("keepalive_timeout", "0"), ("keepalive_timeout", "0s"))


def mistakes(found: list[Directive], folder: Path) -> list[tuple[str, str]]:
    """What nginx takes and nobody means: what is wrong, with its place, and what would be right."""
    blocks = (Directive((), "", 0, tuple(found)), *walk(found))
    return [problem for block in blocks for problem in _in(block, f"{folder}/snippets/")]


def _in(block: Directive, snippets: str) -> Iterator[tuple[str, str]]:
    proxy = f"{snippets}proxy.conf"
    for number, one in enumerate(block.block):
        name, rest = one.words[:1], one.words[1:]
        if name == ("proxy_pass",) and rest and _POOL_AND_PATH.fullmatch(rest[0]):
            yield (
                f"{one.place}: proxy_pass {rest[0]} sends every request to the path after $release_pool",
                "write proxy_pass http://$release_pool; without a path",
            )
        below = (d.words[1] for d in block.block[number:] if d.words[:1] == ("include",) and d.words[1:])
        if name == ("rewrite",) and rest[-1:] == ("break",) and any(p.startswith(snippets) for p in below):
            yield (
                f"{one.place}: rewrite … break ends the `set` of the snippets below it: the pool is empty",
                f"put the include of {snippets}… above the rewrite",
            )
    for header, one in _headers(block).items():
        if header in _OURS and _includes(block, proxy):
            yield (
                f"{one.place}: proxy_set_header {one.words[1]} is in {proxy} too: the service gets it twice",
                "remove it here (Go answers 400 to two Hosts)",
            )
        within = (inner for inner in walk(block.block) if _includes(inner, proxy))
        if header not in _OURS and any(header not in _headers(inner) for inner in within):
            yield (
                f"{one.place}: proxy_set_header {one.words[1]} does not hold where {proxy} is included",
                "put it into the location, beside the include",
            )


_POOL_AND_PATH = re.compile(r"https?://\$(?:release_pool|\{release_pool\})/[^$]*")


def _headers(block: Directive) -> dict[str, Directive]:
    """The headers that a block sets itself."""
    found = (d for d in block.block if d.words[:1] == ("proxy_set_header",) and d.words[1:])
    return {d.words[1].lower(): d for d in found}


def _includes(block: Directive, path: str) -> bool:
    return any(d.words == ("include", path) for d in block.block)


_OURS = frozenset(_headers(Directive((), "", 0, tuple(_directives(PROXY_SNIPPET, "proxy.conf")))))
"""What our own snippet sets."""
