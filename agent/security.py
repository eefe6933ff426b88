"""Who is calling, and what that caller may do.

On the unix socket a caller is known by what the kernel says of the peer, on TCP by a certificate that the configured
authority signed. Both come down to a role or to none. Roles are an order: who may command may also operate and view.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from stores.errors import Retry, StorageError

_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; Python has no name for it
_MAX_OPTION = 1024  # bytes that Python's getsockopt takes at most: 256 groups


class Role(StrEnum):
    """`view` looks, `operate` also cancels, `command` also submits."""

    VIEW = "view"
    OPERATE = "operate"
    COMMAND = "command"

    def allows(self, needed: Role) -> bool:
        """Whether a caller of this role may do what needs that one."""
        return _ORDER.index(self) >= _ORDER.index(needed)


_ORDER = (Role.VIEW, Role.OPERATE, Role.COMMAND)


class SecuritySetup(StorageError):
    """The configured users, groups or certificates cannot be used."""

    retry = Retry.OPERATOR


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody at the other end of a connection. `name` is for logs; no role means: refused."""

    name: str
    role: Role | None


def _strongest(roles: list[Role]) -> Role | None:
    return max(roles, key=_ORDER.index, default=None)


# -------------------------------------------------------------------------------------------------- unix socket


@dataclass(frozen=True, slots=True)
class Peer:
    """A process as it was when it connected: what `SO_PEERCRED` and `SO_PEERGROUPS` tell (unix(7))."""

    pid: int
    uid: int
    groups: frozenset[int]  # primary and supplementary


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel, and so no name service while a caller waits."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_OPTION)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        raw = b""  # more groups than fit: such a caller is known by user and primary group alone
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))


@dataclass(frozen=True, slots=True)
class UnixPolicy:
    """Roles on the unix socket. Root and the agent's own user command, as do the members of `group`."""

    users: Mapping[int, Role]
    group: int | None

    @classmethod
    def resolve(cls, users: Mapping[str, Role], group: str | None) -> UnixPolicy:
        """Names to numbers, once, at start. `SecuritySetup` names the one that does not exist."""
        return cls({_uid(name): role for name, role in users.items()}, _gid(group) if group else None)

    def caller(self, peer: Peer) -> Caller:
        roles = []
        if peer.uid in (0, os.geteuid()) or (self.group is not None and self.group in peer.groups):
            roles.append(Role.COMMAND)
        if peer.uid in self.users:
            roles.append(self.users[peer.uid])
        return Caller(f"uid {peer.uid} (pid {peer.pid})", _strongest(roles))


def _uid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise SecuritySetup(f"api.users: there is no user {name!r} on this host", user=name) from None


def _gid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise SecuritySetup(f"api.group: there is no group {name!r} on this host", group=name) from None


def open_unix_listener(path: Path, *, mode: int, group: int | None) -> socket.socket:
    """A bound and listening socket at `path`; until it has its permissions only its owner may connect.

    A socket that a dead process left is replaced; one that still answers is `SecuritySetup`, as is any other kind of file.
    """
    _clear_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, mode)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SecuritySetup(f"cannot listen on {path}: {error.strerror or error}", path=str(path)) from error
    finally:
        os.umask(before)
    return listener


def _clear_stale(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise SecuritySetup(f"{path} is in the way: it is not a socket", path=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise SecuritySetup(f"cannot look who listens on {path}: {error.strerror}", path=str(path)) from error
    raise SecuritySetup(f"{path} is in use by another process", path=str(path))


# ---------------------------------------------------------------------------------------------------------- TLS


def server_tls(cert: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, and no connection without a client certificate that `client_ca` signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # The callback answers for an encrypted key; without it OpenSSL would ask on the terminal.
        context.load_cert_chain(cert, key, password=_no_passphrase)
        context.load_verify_locations(client_ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SecuritySetup(f"cannot use {cert}, {key}, {client_ca} for TLS: {error}", cert=str(cert)) from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the private key is encrypted; give it without a passphrase, as a systemd credential")


def certificate_names(certificate: Mapping[str, Any]) -> list[str]:
    """Names in a verified certificate (`SSLObject.getpeercert()`), as the configuration writes them."""
    names = [
        f"{kind}:{name}" for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI", "email")
    ]
    for part in certificate.get("subject", ()):
        names += [f"CN={value}" for kind, value in part if kind == "commonName"]
    return names


def certificate_caller(certificate: Mapping[str, Any], roles: Mapping[str, Role]) -> Caller:
    """The strongest role that any of the certificate's names has."""
    names = certificate_names(certificate)
    return Caller(
        names[0] if names else "a certificate without names", _strongest([roles[n] for n in names if n in roles])
    )
