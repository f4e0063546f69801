"""The one grammar of env files."""

from pathlib import Path

import pytest

from orchestrator.ports.faults import Fault
from orchestrator.runtime.env_file import NAME, parse, read_env_file


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("", {}),
        ("\n  \n# a comment\n  # another\n", {}),
        ("A=first\nB=second", {"A": "first", "B": "second"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("  A = spaces around  ", {"A": "spaces around"}),
        ("export A=x", {"A": "x"}),
        ("export\tA=x", {"A": "x"}),
        ("export=x", {"export": "x"}),
        ("A=", {"A": ""}),
        ("A=\"\"\nB=''", {"A": "", "B": ""}),
        ('A="two words"', {"A": "two words"}),
        ("A='$HOME \\n # kept'  # a comment", {"A": "$HOME \\n # kept"}),
        ('A="it\'s"', {"A": "it's"}),
        ("A=$HOME\\n", {"A": "$HOME\\n"}),
        ("A=a#b", {"A": "a#b"}),
        ("A=a # a comment", {"A": "a"}),
        ("A=# a comment", {"A": ""}),
        ("A=b=c==", {"A": "b=c=="}),
        ('A={"x": 1}', {"A": '{"x": 1}'}),
        ("spring.datasource-url=x", {"spring.datasource-url": "x"}),
        ("A=one\u2028line", {"A": "one\u2028line"}),
    ],
)
def test_a_file_says_what_its_lines_say_and_nothing_is_expanded(text: str, env: dict[str, str]) -> None:
    assert parse(text) == env


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A=1\nonly-a-name", "line 2: there is no '='"),
        ("A=1\n\n1A=secret", "line 3: what is before '=' is no name"),
        ("MII/secret+base64==", "line 1: what is before '=' is no name"),
        ("=secret", "line 1: what is before '=' is no name"),
        ("A B=secret", "line 1: what is before '=' is no name"),
        ('A="secret', "line 1: the quote is not closed"),
        ("A='secret' more", "line 1: something comes after the closing quote"),
        ("A=sec\0ret", "line 1: there is a zero byte"),
    ],
)
def test_what_is_wrong_is_told_by_its_line_and_without_its_value(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse(text)
    assert "secret" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    file = tmp_path / "api.env"
    file.write_bytes(b"\xef\xbb\xbfA=first\n")
    assert read_env_file(file) == {"A": "first"}


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"env_file .*none: No such file"):
        read_env_file(tmp_path / "none")
    latin = tmp_path / "latin"
    latin.write_bytes(b"A=\xe9\n")
    with pytest.raises(Fault, match=r"env_file .*latin: is not UTF-8"):
        read_env_file(latin)
    wrong = tmp_path / "wrong"
    wrong.write_text("A=1\nB\n")
    with pytest.raises(Fault, match=r"env_file .*wrong: line 2: there is no '='"):
        read_env_file(wrong)


def test_names() -> None:
    assert NAME.fullmatch("_A.b-1")
    assert not NAME.fullmatch("A\n")
