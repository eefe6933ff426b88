"""Where a Hyper-V host listens for PowerShell remoting, who we are there, and how we know that it is the host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from stores.secret import Secret

WINRM_HTTPS_PORT = 5986


class Auth(StrEnum):
    NEGOTIATE = "negotiate"
    """Kerberos where there is a ticket or a realm, NTLM otherwise."""
    KERBEROS = "kerberos"
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """TLS always, and its certificate is always checked: by the system's authorities, by those in `ca_file` instead, or by
    `fingerprint` (SHA-256), which then needs no authority and no name.

    `user` and `password`, or a file that holds it: for negotiate, and for kerberos unless there is a ticket already.
    `certificate` and `key`: PEM files for certificate. `configuration`: of the PowerShell endpoint, where it is one that
    offers our scripts alone.
    """

    address: str
    auth: Auth = Auth.NEGOTIATE
    port: int = WINRM_HTTPS_PORT
    user: str | None = None
    password: Secret | Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    ca_file: Path | None = None
    fingerprint: bytes | None = None
    configuration: str = "Microsoft.PowerShell"

    def __post_init__(self) -> None:
        """ValueError where what `auth` needs is missing."""
        if self.auth is Auth.CERTIFICATE and (self.certificate is None or self.key is None):
            raise ValueError("certificate authentication needs a certificate and its key")
        if self.auth is Auth.NEGOTIATE and (self.user is None or self.password is None):
            raise ValueError("negotiate needs a user and a password")

    def __str__(self) -> str:
        name = f"[{self.address}]" if ":" in self.address else self.address
        return name if self.port == WINRM_HTTPS_PORT else f"{name}:{self.port}"
