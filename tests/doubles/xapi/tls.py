"""Certificates of the pool's hosts, made when it starts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

import trustme

Identity = Literal["own", "another-host", "stranger"]
"""What a host shows: its certificate; that of a host of the same pool at another address; one of an unknown authority."""


class Authority:
    """`ca_pem` is what clients trust."""

    def __init__(self) -> None:
        self._ca = trustme.CA(organization_name="pool")
        self._stranger = trustme.CA(organization_name="stranger")
        self.ca_pem = self._ca.cert_pem.bytes().decode()

    def leaf(self, hostname: str, identity: Identity = "own") -> trustme.LeafCert:
        if identity == "another-host":
            return self._ca.issue_cert("another-host.pool.example", "192.0.2.1")
        return (self._ca if identity == "own" else self._stranger).issue_cert(hostname, "localhost", "127.0.0.1")

    def write_nbd_credentials(self, folder: Path, leaf: trustme.LeafCert) -> None:
        """A folder as qemu's `tls-creds-x509` takes it."""
        folder.mkdir()
        (folder / "ca-cert.pem").write_text(self.ca_pem)
        (folder / "server-cert.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
        (folder / "server-key.pem").write_bytes(leaf.private_key_pem.bytes())


def present(context: ssl.SSLContext, leaf: trustme.LeafCert) -> None:
    """What connections made from now on are shown."""
    leaf.configure_cert(context)
