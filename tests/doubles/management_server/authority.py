"""The certificate authority of a management server, which presents its own certificate as the server's."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID


class Authority:
    """Self-signed, without a host name, and with a key usage for nothing but signing certificates."""

    def __init__(self, name: str = "ca.cloudstack.apache.org") -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return _key_pem(self._key)

    def sign(self, request: bytes) -> bytes:
        """A certificate for a signing request (PEM)."""
        wanted = x509.load_pem_x509_csr(request)
        if not wanted.is_signature_valid:
            raise ValueError("the signing request is not signed by its key")
        return (
            self._builder(wanted.subject, wanted.public_key())  # type: ignore[arg-type]
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def issue(self, name: str, days: float = 1) -> tuple[bytes, bytes]:
        """Certificate and key (PEM) for somebody who asked for nothing."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._builder(subject, key.public_key(), days).sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)

    def server_context(self, *, need_client: bool = False, own: tuple[bytes, bytes] | None = None) -> ssl.SSLContext:
        """As a JDK makes it: TLS 1.2 and 1.3, client certificates wanted. `own`: certificate and key, not the authority's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key = own or (self.pem, self.key_pem)
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "server.pem")
            file.write_bytes(key + certificate)
            context.load_cert_chain(file)
        context.load_verify_locations(cadata=self.pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED if need_client else ssl.CERT_OPTIONAL
        return context

    def _builder(self, subject: x509.Name, key: rsa.RSAPublicKey, days: float = 1) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=abs(days)))
            .not_valid_after(now + datetime.timedelta(days=days))
        )


@cache
def shared_authority() -> Authority:
    """One for all tests that need no stranger: keys take time to make."""
    return Authority()


def _key_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
