"""A host that runs: `async with running(folder, roots=...) as host:`."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hypervisors.hyperv.endpoint import Auth, Endpoint
from stores.secret import Secret
from tests.doubles.hyperv.faults import Faults
from tests.doubles.hyperv.model import Model
from tests.doubles.hyperv.paths import Volumes
from tests.doubles.hyperv.scripts import Scripts
from tests.doubles.hyperv.server import Server
from tests.doubles.hyperv.shells import Shells
from tests.doubles.xapi.tls import Authority

USER, PASSWORD = "HYPERV\\agent", "correct horse battery"


@dataclass(frozen=True)
class Host:
    endpoint: Endpoint
    certificate: bytes
    """Of the host, DER."""
    client_certificate: Path
    client_key: Path
    faults: Faults
    model: Model
    scripts: Scripts
    shells: Shells
    server: Server

    def with_certificate(self) -> Endpoint:
        return replace(
            self.endpoint,
            auth=Auth.CERTIFICATE,
            user=None,
            password=None,
            certificate=self.client_certificate,
            key=self.client_key,
        )


@asynccontextmanager
async def running(folder: Path, *, roots: Mapping[str, Path], most_shells: int = 30) -> AsyncIterator[Host]:
    """In the caller's event loop, until the context ends; then nothing of it is left but its certificates in `folder`.

    AssertionError at the end for texts that were not known."""
    authority = Authority()
    leaf, client = authority.leaf("localhost"), authority.leaf("agent")
    (folder / "ca.pem").write_text(authority.ca_pem)
    (folder / "agent.pem").write_bytes(client.cert_chain_pems[0].bytes())
    (folder / "agent.key").write_bytes(client.private_key_pem.bytes())
    (folder / "users").write_text(":".join([*USER.split("\\"), PASSWORD]) + "\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    context.load_verify_locations(cadata=authority.ca_pem)
    context.verify_mode = ssl.CERT_OPTIONAL
    certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)

    faults, model = Faults(), Model(Volumes(dict(roots)))
    scripts = Scripts(model, faults)
    shells = Shells(scripts.run, most_shells)
    server = Server(shells, faults, context, certificate)
    with patch.dict(os.environ, NTLM_USER_FILE=str(folder / "users")):
        await server.start()
        endpoint = Endpoint(
            "localhost", port=server.port, user=USER, password=Secret(PASSWORD), ca_file=folder / "ca.pem"
        )
        try:
            yield Host(
                endpoint,
                certificate,
                folder / "agent.pem",
                folder / "agent.key",
                faults,
                model,
                scripts,
                shells,
                server,
            )
        finally:
            await server.stop()
            await shells.close()
            await model.close()
    assert not scripts.unknown, f"scripts that the double does not know: {scripts.unknown}"
