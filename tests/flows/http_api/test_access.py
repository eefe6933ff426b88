"""The HTTP API over TLS: who may do what."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from agent.security import Role
from agent.transports.http_api.routes import ROUTES
from tests.flows.http_api.place import Agent, agent, delete


def test_each_route_needs_the_role_it_should() -> None:
    needed = {(route.method, route.path): route.role for route in ROUTES}
    commanding = {route for route, role in needed.items() if role is Role.COMMAND}
    operating = {route for route, role in needed.items() if role is Role.OPERATE}
    assert commanding == {("POST", "/v1/commands"), ("POST", "/v1/events/{id}/ack")}
    assert operating == {
        ("DELETE", "/v1/commands/{id}"),
        ("DELETE", "/v1/cache/entries/{key}"),
        ("PUT", "/v1/cache/entries/{key}/pin"),
        ("DELETE", "/v1/cache/entries/{key}/pin"),
        ("POST", "/v1/uploads/{id}/retry"),
        ("POST", "/v1/uploads/retry"),
        ("DELETE", "/v1/uploads/{id}"),
        ("POST", "/v1/drain"),
        ("DELETE", "/v1/drain"),
    }


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@dataclass
class Certificates:
    directory: Path
    authority: trustme.CA

    def settings(self, **roles: str) -> dict[str, Any]:
        server = self.authority.issue_cert("127.0.0.1")
        self.authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        server.private_key_pem.write_to_path(str(self.directory / "key.pem"))
        for pem in server.cert_chain_pems:
            pem.write_to_path(str(self.directory / "cert.pem"), append=True)
        return {
            "tcp_listen": "127.0.0.1:0",
            "tls_cert": str(self.directory / "cert.pem"),
            "tls_key": str(self.directory / "key.pem"),
            "tls_client_ca": str(self.directory / "ca.pem"),
            "tls_roles": roles,
        }

    def client(self, certificate: trustme.LeafCert | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        if certificate is not None:
            certificate.configure_cert(context)
        return context


async def over_tcp(a: Agent, tls: ssl.SSLContext, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    port = next(address.rsplit(":", 1)[1] for address in a.api.addresses if address.startswith("127."))
    connector = aiohttp.TCPConnector(ssl=tls, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        client.request(method, f"https://127.0.0.1:{port}{path}", **options) as response,
    ):
        return response.status, await response.json()


async def test_certificates_have_roles(tmp_path: Path, authority: trustme.CA) -> None:
    certificates = Certificates(tmp_path, authority)
    roles = {"DNS:manager.example": "command", "DNS:desk.example": "operate", "CN=monitor": "view"}
    async with agent(tmp_path, **certificates.settings(**roles)) as a:
        manager = certificates.client(authority.issue_cert("manager.example"))
        desk = certificates.client(authority.issue_cert("desk.example"))
        monitor = certificates.client(authority.issue_cert("other.example", common_name="monitor"))
        nobody = certificates.client(authority.issue_cert("nobody.example"))

        async def statuses(tls: ssl.SSLContext) -> list[int]:
            return [
                (await over_tcp(a, tls, *request))[0]
                for request in (("GET", "/v1/status"), ("DELETE", "/v1/commands/none"))
            ] + [(await over_tcp(a, tls, "POST", "/v1/commands", json={}))[0]]

        assert await statuses(manager) == [200, 404, 422]
        assert await statuses(desk) == [200, 404, 403]
        assert await statuses(monitor) == [200, 403, 403]
        assert await statuses(nobody) == [403, 403, 403]
        status, answer = await over_tcp(a, monitor, "POST", "/v1/commands", json=delete())
        assert (status, answer["error"]["kind"]) == (403, "Forbidden")
        assert answer["error"]["details"] == {"needed": "command", "role": "view"}
        assert await a.dispatcher.list() == []


async def test_tls_without_a_known_certificate_gets_no_http(tmp_path: Path, authority: trustme.CA) -> None:
    certificates = Certificates(tmp_path, authority)
    async with agent(tmp_path, **certificates.settings(**{"DNS:manager.example": "command"})) as a:
        stranger = trustme.CA().issue_cert("manager.example")
        for certificate in (None, stranger):
            with pytest.raises(aiohttp.ClientError):
                await over_tcp(a, certificates.client(certificate), "GET", "/v1/status")
        old = certificates.client(authority.issue_cert("manager.example"))
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await over_tcp(a, old, "GET", "/v1/status"))[0] == 200


async def test_plain_http_on_the_tcp_port_gets_nothing(tmp_path: Path, authority: trustme.CA) -> None:
    certificates = Certificates(tmp_path, authority)
    async with agent(tmp_path, **certificates.settings()) as a:
        port = next(address.rsplit(":", 1)[1] for address in a.api.addresses if address.startswith("127."))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"HTTP" not in await reader.read()
        writer.close()
