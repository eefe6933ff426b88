"""Who is calling: real peer credentials, real certificates, and the rules over both."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from agent.security import (
    Peer,
    Role,
    SecuritySetup,
    UnixPolicy,
    certificate_caller,
    certificate_names,
    open_unix_listener,
    peer_of,
    server_tls,
)

ROOT = os.geteuid() == 0
OTHER = 54321 if ROOT else os.geteuid()  # a user that tests can become
GROUPS = [54322, 54323] if ROOT else list(os.getgroups())


def test_roles_are_an_order() -> None:
    assert [[role.allows(needed) for needed in Role] for role in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


# -------------------------------------------------------------------------------------------------- unix socket


@contextmanager
def listening(directory: Path, *, mode: int = 0o666, group: int | None = None) -> Iterator[socket.socket]:
    listener = open_unix_listener(directory / "api.sock", mode=mode, group=group)
    try:
        listener.settimeout(20)
        yield listener
    finally:
        listener.close()
        (directory / "api.sock").unlink()


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users may enter; pytest's are private."""
    with tempfile.TemporaryDirectory(prefix="agent-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_the_kernel_tells_user_and_all_groups(public: Path) -> None:
    script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(public / 'api.sock')!r}); s.recv(1)"
    with listening(public) as listener:
        identity = {"user": OTHER, "group": OTHER, "extra_groups": GROUPS} if ROOT else {}
        with subprocess.Popen(["/usr/bin/env", "python3", "-c", script], cwd="/", **identity) as child:  # type: ignore[call-overload]
            connection, _ = listener.accept()
            with connection:
                peer = peer_of(connection)
            assert peer.uid == OTHER
            assert peer.pid == child.pid
            assert peer.groups >= set(GROUPS)


def test_who_may_what_on_the_unix_socket() -> None:
    policy = UnixPolicy({1500: Role.OPERATE, 1501: Role.VIEW}, group=77)

    def role(uid: int, *groups: int) -> Role | None:
        return policy.caller(Peer(1, uid, frozenset(groups))).role

    assert role(0) is Role.COMMAND
    assert role(os.geteuid()) is Role.COMMAND
    assert role(4242, 5, 77) is Role.COMMAND
    assert role(1500) is Role.OPERATE
    assert role(1501) is Role.VIEW
    assert role(1501, 77) is Role.COMMAND
    assert role(4242, 5) is None
    assert UnixPolicy({}, None).caller(Peer(1, 4242, frozenset({0}))).role is None


def test_names_are_resolved_once_and_must_exist() -> None:
    policy = UnixPolicy.resolve({"root": Role.VIEW, "1500": Role.OPERATE}, "root")
    assert policy == UnixPolicy({0: Role.VIEW, 1500: Role.OPERATE}, 0)
    assert UnixPolicy.resolve({}, "4711").group == 4711
    with pytest.raises(SecuritySetup, match=r"api\.users: there is no user 'no-such-user'"):
        UnixPolicy.resolve({"no-such-user": Role.VIEW}, None)
    with pytest.raises(SecuritySetup, match=r"api\.group: there is no group 'no-such-group'"):
        UnixPolicy.resolve({}, "no-such-group")


def test_the_socket_has_its_permissions(tmp_path: Path) -> None:
    group = GROUPS[0]
    with listening(tmp_path, mode=0o660, group=group):
        found = (tmp_path / "api.sock").stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == group
    umask = os.umask(0o022)
    os.umask(umask)
    assert umask != 0o177


def test_what_a_dead_process_left_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with listening(tmp_path), pytest.raises(SecuritySetup, match="in use by another process"):
        open_unix_listener(path, mode=0o600, group=None)
    path.write_text("precious")
    with pytest.raises(SecuritySetup, match="it is not a socket"):
        open_unix_listener(path, mode=0o600, group=None)
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SecuritySetup, match="No such file or directory"):
        open_unix_listener(tmp_path / "none" / "api.sock", mode=0o600, group=None)
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(tmp_path: Path, authority: trustme.CA) -> ssl.SSLContext:
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return server_tls(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, object]:
    """What the server knows of the client after a TLS handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    ends = [client_end, server_end]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(server_end.getpeercert() or {})


def client_context(authority: trustme.CA, certificate: trustme.LeafCert | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def test_names_of_a_real_certificate(server: ssl.SSLContext, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("m.example", "ops@example.org", common_name="manager")
    names = certificate_names(handshake(server, client_context(authority, certificate)))
    assert names == ["DNS:m.example", "email:ops@example.org", "CN=manager"]


def test_only_certificates_of_the_authority_get_through(server: ssl.SSLContext, authority: trustme.CA) -> None:
    for certificate in (None, trustme.CA().issue_cert("m.example")):
        with pytest.raises(ssl.SSLError):
            handshake(server, client_context(authority, certificate))


def test_old_tls_is_refused(server: ssl.SSLContext, authority: trustme.CA) -> None:
    assert server.minimum_version is ssl.TLSVersion.TLSv1_2
    client = client_context(authority, authority.issue_cert("m.example"))
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(server, client)
    client = client_context(authority, authority.issue_cert("m.example"))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(server, client)


def test_the_strongest_name_counts() -> None:
    certificate = {
        "subject": ((("organizationName", "manager"),), (("commonName", "desk"),)),
        "subjectAltName": (("DNS", "monitor"), ("IP Address", "10.0.0.1"), ("URI", "spiffe://x/y")),
    }
    roles = {"DNS:monitor": Role.VIEW, "CN=desk": Role.OPERATE, "CN=manager": Role.COMMAND}
    caller = certificate_caller(certificate, roles)
    assert (caller.name, caller.role) == ("DNS:monitor", Role.OPERATE)
    assert certificate_caller(certificate, {"URI:spiffe://x/y": Role.COMMAND}).role is Role.COMMAND
    assert certificate_caller(certificate, {"DNS:desk": Role.COMMAND}).role is None
    assert certificate_caller({}, {"CN=": Role.COMMAND}).role is None


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_name_of_one_kind_is_never_taken_for_another(one: str, other: str) -> None:
    """A certificate that may choose its DNS name cannot become somebody's common name."""
    certificate = {"subjectAltName": (("DNS", one), ("DNS", f"CN={other}"))}
    assert certificate_caller(certificate, {f"CN={one}": Role.COMMAND, f"CN={other}": Role.COMMAND}).role is None


def test_unusable_files_are_named(tmp_path: Path, server: ssl.SSLContext) -> None:
    cert, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    with pytest.raises(SecuritySetup, match="No such file"):
        server_tls(cert, tmp_path / "none.pem", ca)
    with pytest.raises(SecuritySetup, match=r"cannot use .*cert\.pem"):
        server_tls(cert, ca, ca)
    ca.write_text("")
    with pytest.raises(SecuritySetup, match=r"ca\.pem"):
        server_tls(cert, key, ca)


def test_an_encrypted_key_is_refused_instead_of_asked_for(tmp_path: Path, server: ssl.SSLContext) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "locked.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(SecuritySetup, match="the private key is encrypted"):
        server_tls(tmp_path / "cert.pem", tmp_path / "locked.pem", tmp_path / "ca.pem")
