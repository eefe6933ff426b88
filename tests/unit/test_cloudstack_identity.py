"""What a link keeps: its id, and key and certificate as servers provision them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.security import SecuritySetup
from agent.transports.cloudstack.identity import IdentityStore
from agent.transports.cloudstack.state import StateDirectory
from agent.transports.cloudstack.tls import client_context
from stores.errors import StoreError
from stores.secret import Secret
from tests.doubles.management_server.authority import Authority, shared_authority

AUTHORITY = shared_authority()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "link")


@pytest.fixture
def store(state: StateDirectory) -> IdentityStore:
    return IdentityStore(state)


def files(state: StateDirectory) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.path.iterdir()}


# ------------------------------------------------------------------------------------------------------------- state


def test_host_id(state: StateDirectory) -> None:
    assert state.host_id() == -1
    state.keep_host_id(7)
    state.keep_host_id(8)
    assert StateDirectory(state.path).host_id() == 8
    assert files(state) == {"host-id": 0o600}
    state.write("host-id", b"nonsense")
    assert state.host_id() == -1


def test_what_a_killed_agent_left_is_replaced(state: StateDirectory) -> None:
    state.write("host-id", b"1")
    (state.path / ".host-id.new").write_bytes(b"half")
    state.write("host-id", b"2")
    assert state.read("host-id") == b"2"
    assert files(state) == {"host-id": 0o600}


def test_state_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state = StateDirectory(tmp_path / "file")
    uses: list[Callable[[], object]] = [
        lambda: state.write("x", b""),
        lambda: state.read("x"),
        lambda: state.remove("x"),
    ]
    for use in uses:
        with pytest.raises(StoreError):
            use()


# ---------------------------------------------------------------------------------------------------------- identity


def test_before_anything_was_provisioned(store: IdentityStore) -> None:
    assert store.identity() is None
    assert store.pins() == ()


def test_certificate_for_our_own_key(store: IdentityStore, state: StateDirectory) -> None:
    request = store.request()
    assert store.identity() is None
    certificate = AUTHORITY.sign(request)
    store.accept(certificate, AUTHORITY.pem)
    identity = store.identity()
    assert identity is not None
    client_context(identity)
    assert store.pins() == (AUTHORITY.certificate,)
    assert files(state) == {"identity.pem": 0o600, "authority.pem": 0o600}


def test_certificate_with_the_servers_key(store: IdentityStore) -> None:
    certificate, key = AUTHORITY.issue("kvm7")
    store.accept(certificate, AUTHORITY.pem + Authority().pem, Secret(key.decode()))
    identity = store.identity()
    assert identity is not None
    client_context(identity)
    assert len(store.pins()) == 2


def test_another_request_leaves_the_identity_in_use(store: IdentityStore) -> None:
    store.accept(AUTHORITY.sign(store.request()), AUTHORITY.pem)
    before = store.identity()
    assert before is not None
    content = before.certificate.read_bytes()
    first, second = store.request(), store.request()
    assert x509.load_pem_x509_csr(first).public_key() != x509.load_pem_x509_csr(second).public_key()
    with pytest.raises(SecuritySetup, match="another key"):
        store.accept(AUTHORITY.sign(first), AUTHORITY.pem)
    assert before.certificate.read_bytes() == content
    store.accept(AUTHORITY.sign(second), AUTHORITY.pem)
    assert before.certificate.read_bytes() != content


@pytest.mark.parametrize(
    ("certificate", "authorities", "key", "says"),
    [
        (b"nothing", AUTHORITY.pem, None, "the certificate for this agent needs to hold"),
        (AUTHORITY.pem, b"", None, "the authorities of the management server need|needs to hold"),
        (AUTHORITY.pem, AUTHORITY.pem, None, "no key was asked for"),
        (AUTHORITY.pem, AUTHORITY.pem, Secret("nothing"), "cannot be used"),
    ],
)
def test_what_cannot_be_accepted(
    store: IdentityStore, certificate: bytes, authorities: bytes, key: Secret | None, says: str
) -> None:
    with pytest.raises(SecuritySetup, match=says):
        store.accept(certificate, authorities, key)
    assert store.identity() is None


def test_encrypted_key_is_refused_without_showing_it(store: IdentityStore) -> None:
    key = serialization.load_pem_private_key(AUTHORITY.key_pem, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    with pytest.raises(SecuritySetup, match="cannot be used") as refused:
        store.accept(AUTHORITY.pem, AUTHORITY.pem, Secret(encrypted.decode()))
    assert "PRIVATE" not in str(refused.value)
