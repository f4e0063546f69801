"""Certificates of a private CA."""

import datetime as dt
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "api.example.com"
DAY = dt.timedelta(days=1)


@dataclass
class Authority:
    """A private CA that writes certificates into a folder."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a private CA")])
        self._own = self._certificate(self._name, self._key, days=30, ca=True)

    def _certificate(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int, ca: bool = False
    ) -> x509.Certificate:
        host = str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        now = dt.datetime.fromtimestamp(1_700_000_000, dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + 3650 * DAY + days * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> str:
        """Its own certificate."""
        return self._own.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, days: int, host: str = NAME) -> float:
        """Write a new certificate and key; returns when it ends."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._certificate(name, key, days=days)
        pem = serialization.Encoding.PEM
        self.folder.joinpath("chain.pem").write_bytes(certificate.public_bytes(pem))
        form, open_ = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        self.folder.joinpath("key.pem").write_bytes(key.private_bytes(pem, form, open_))
        return certificate.not_valid_after_utc.timestamp()

    def context(self) -> ssl.SSLContext:
        """A client's that trusts this CA alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem)
        return context
