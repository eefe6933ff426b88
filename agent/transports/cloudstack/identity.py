"""The agent's key and certificate, as the management server has them made: it asks for a signing request, and brings what it
made of it. Blocking; called in threads.

The key is made here and never leaves. It and the certificate are one file, so that there is no moment at which they do not
belong together; the passphrase that the server sends for a Java key store is not needed for that and not kept.
"""

from __future__ import annotations

import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from agent.security import SecuritySetup
from agent.transports.cloudstack.state import StateDirectory
from agent.transports.cloudstack.tls import Identity, read_pins
from stores.secret import Secret

_PENDING = "pending-key.pem"
_IDENTITY = "identity.pem"
_AUTHORITY = "authority.pem"
_KEY_BITS = 2048  # what every JDK that the server may run on takes


class IdentityStore:
    """Key and certificates of one link."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state

    def request(self) -> bytes:
        """A new key, and its signing request (PKCS#10, PEM). The identity in use stays until `accept`."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, socket.gethostname()[:64])])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        self._state.write(_PENDING, _pem(key))
        return request.public_bytes(serialization.Encoding.PEM)

    def accept(self, certificate: bytes, authorities: bytes, private_key: Secret | None = None) -> None:
        """Take what the server made (PEM). `private_key`: where it made that as well. SecuritySetup unless key and certificate
        belong together; what was in use stays then. Durable when it returns."""
        chain = read_pins(certificate, "the certificate for this agent")
        read_pins(authorities, "the authorities of the management server")
        key = self._key(private_key)
        if key.public_key() != chain[0].public_key():
            raise SecuritySetup("the certificate for this agent is for another key than the one it was asked for")
        self._state.write(_AUTHORITY, authorities)
        self._state.write(_IDENTITY, _pem(key) + certificate)
        self._state.remove(_PENDING)

    def identity(self) -> Identity | None:
        """None before the first `accept`."""
        path: Path = self._state.path / _IDENTITY
        return Identity(path, path) if self._state.read(_IDENTITY) is not None else None

    def pins(self) -> tuple[x509.Certificate, ...]:
        """The authorities that came with it."""
        text = self._state.read(_AUTHORITY)
        return read_pins(text, str(self._state.path / _AUTHORITY)) if text is not None else ()

    def _key(self, given: Secret | None) -> CertificateIssuerPrivateKeyTypes:
        text = given.reveal().encode() if given else self._state.read(_PENDING)
        if text is None:
            raise SecuritySetup(
                "a certificate for this agent came, and no key was asked for: send SetupKeyStoreCommand first"
            )
        try:
            key = serialization.load_pem_private_key(text, password=None)
        except (TypeError, ValueError) as error:
            raise SecuritySetup(f"the private key for this agent cannot be used: {error}") from None
        return key  # type: ignore[return-value]  # whichever kind it is, it is compared with the certificate's


def _pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
