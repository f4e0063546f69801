"""When the certificates end that nginx serves."""

import asyncio
import ssl

from cryptography import x509

DEADLINE = 5.0
"""Seconds for one handshake."""


async def ends_at(host: str, port: int, name: str) -> float:
    """When the certificate ends that is shown at an address for a name, in seconds since the epoch.

    It is asked of the server, not read from the file: a file that was renewed and never loaded does not help
    anybody. Who has signed it is not looked at.

    Raises:
        OSError: Nobody answers, or does not speak TLS.
        ValueError: What is shown is no certificate.
        TimeoutError: There was no end within the deadline.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(DEADLINE):
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
        try:
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()  # over TLS `close` waits until the other side closes too
    return x509.load_der_x509_certificate(shown or b"").not_valid_after_utc.timestamp()
