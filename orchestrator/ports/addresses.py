"""Addresses as they may be shown."""

import errno
import os
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


def unreached(error: Exception, address: str) -> str:
    """Why there is no connection to an address, by an exception of asyncio or aiohttp.

    Their own words name the address twice and what is of no use to people, such as `ssl:default`.
    """
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None) or 0
    if number == errno.ECONNREFUSED:
        return f"nothing listens on {address}"
    known = os.strerror(number) if number in errno.errorcode else getattr(cause, "strerror", None)
    return f"{address}: {known or str(error) or type(error).__name__}"
