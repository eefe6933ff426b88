"""Where a GET or a PUT goes, and how patiently."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from stores.errors import TlsFailed

USER_AGENT = "storage-agent"


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Where one request goes. The address was resolved and checked by whoever made the target; nothing is resolved here."""

    host: str
    """Name for the Host header, SNI and the certificate check; an IPv6 literal without brackets."""
    port: int
    address: str
    """IP literal to connect to."""
    tls: ssl.SSLContext | None
    """None for plain HTTP."""
    path: str = field(repr=False)
    """Request target, percent-encoded, with its query. May carry a signature and is therefore never shown."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent as they are, beside Host, Range, If-Match, Content-Length and Accept-Encoding, which the target's user sets."""

    @property
    def origin(self) -> object:
        """Targets of one origin may share connections."""
        return self.address, self.port, self.host, self.tls

    def untrusted(self, error: ssl.SSLCertVerificationError) -> TlsFailed:
        """The error for a server whose certificate is refused."""
        return TlsFailed(
            f"the certificate of {self.host} is not trusted: {error.verify_message}; check the CA file", host=self.host
        )

    def request(self, method: str = "GET", **more: str) -> bytes:
        """The head of a request with the target's headers and `more`, whose underscores become dashes.

        `ValueError` when a part would break out of its line: such a target was not made by a URL parser.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (443 if self.tls else 80):
            host = f"{host}:{self.port}"
        headers = {"Host": host, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **self.headers}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        lines = [f"{method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if " " in self.path or any(character in line for line in lines for character in "\r\n\0"):
            raise ValueError("a request target or header holds a character that would split the request")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(frozen=True, slots=True)
class HttpPatience:
    """Limits of one reader or writer. Times in seconds."""

    connections: int = 4
    """Connections in use at once."""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    """Longest silence of a server in the middle of an answer."""
    attempts: int = 5
    """Failures in a row, without a byte between them, after which a read gives up."""
    backoff_s: float = 0.2
    """Mean wait before the second attempt; it doubles with every further one."""
    backoff_limit_s: float = 10.0

    def wait_s(self, failures: int, random: float) -> float:
        """How long to wait after so many failures in a row (from 1), with `random` in [0, 1) spreading it over half to one
        and a half times, so that many readers do not come back at the same instant."""
        return min(self.backoff_s * 2.0 ** min(failures - 1, 16), self.backoff_limit_s) * (0.5 + random)
