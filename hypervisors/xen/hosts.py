"""Where a pool's hosts are, and how one knows that it is them."""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stores.backends.connecting import trusting_context
from stores.errors import InvalidReference, TlsFailed

HTTPS_PORT = 443
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Host:
    """One host: an address with a port, or dom0's own socket (`socket`), where no TLS is needed."""

    address: str
    port: int = HTTPS_PORT
    socket: Path | None = None
    fingerprint: bytes | None = None
    """SHA-256 of its certificate, which then needs no authority and no name."""

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix:{self.socket}"
        name = f"[{self.address}]" if ":" in self.address else self.address
        return name if self.port == HTTPS_PORT else f"{name}:{self.port}"

    @property
    def url(self) -> str:
        return "http://localhost" if self.socket is not None else f"https://{self}"


def parse_host(url: str, fingerprint: str | None = None) -> Host:
    """`https://ADDRESS[:PORT]` or `unix:/PATH`; `fingerprint` in hexadecimal, with colons or without. `InvalidReference`."""
    pin = None
    if fingerprint is not None:
        plain = fingerprint.replace(":", "").lower()
        if not _FINGERPRINT.fullmatch(plain):
            raise InvalidReference("a certificate's fingerprint is SHA-256 in 64 hexadecimal digits", seen=fingerprint)
        pin = bytes.fromhex(plain)
    if url.startswith("unix:/"):
        return Host("localhost", socket=Path(url.removeprefix("unix:")))
    try:
        parts = urlsplit(url)
        port = parts.port or HTTPS_PORT
    except ValueError as error:
        raise InvalidReference(f"{url!r} is not a URL: {error}") from error
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise InvalidReference(f"a XenServer host is https://ADDRESS[:PORT] or unix:/PATH, not {url!r}")
    return Host(parts.hostname, port, fingerprint=pin)


def known(address: str, hosts: Iterable[Host]) -> Host | None:
    """The one of `hosts` that has `address`, as XAPI writes it: in HOST_IS_SLAVE, and after https:// in redirects."""
    try:
        parts = urlsplit(f"//{address}")
        wanted = (parts.hostname or address, parts.port or HTTPS_PORT)
    except ValueError:  # an IPv6 address without brackets
        wanted = (address, HTTPS_PORT)
    return next((host for host in hosts if (host.address, host.port) == wanted), None)


class Trust:
    """TLS contexts for hosts, by CA or by pinned certificate."""

    def __init__(self, ca_file: Path | None) -> None:
        """Blocking: reads files. `TlsFailed` when `ca_file` cannot be read."""
        self._named = trusting_context(ca_file)
        # Whoever shows the pinned certificate has its key: neither its name nor its issuer says more.
        self._pinned = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._pinned.check_hostname = False
        self._pinned.verify_mode = ssl.CERT_NONE

    def context(self, host: Host) -> ssl.SSLContext | None:
        """None for a socket. With a pinned host, `check` has to follow the handshake before anything is sent."""
        if host.socket is not None:
            return None
        return self._named if host.fingerprint is None else self._pinned

    def check(self, host: Host, certificate: bytes | None) -> None:
        """`certificate` (DER) is what `host` showed. `TlsFailed` when it is not the pinned one."""
        if host.fingerprint is None:
            return
        seen = hashlib.sha256(certificate or b"").digest()
        if not hmac.compare_digest(seen, host.fingerprint):
            raise TlsFailed(
                f"host {host} shows a certificate that is not the pinned one; correct the fingerprint if it was renewed",
                host=str(host),
                seen=seen.hex(),
            )
