"""Addresses as they may be shown."""

import re

_USER = re.compile(r"(://)\S*@")
_QUERY = re.compile(r"(://[^\s?\"'<>]*\?)[^\s\"'<>]*[^\s\"'<>).,;]")


def masked(text: str) -> str:
    """Without user, password and query of any address in a text: each may hold a secret.

    The user ends at the last `@` of the word: a password may have one.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))
