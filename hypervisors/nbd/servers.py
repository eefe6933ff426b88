"""Where NBD servers are, and how one gets to them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stores.errors import NotFound, TlsFailed, Unavailable

_BUSY_WAIT_S = 0.02  # between attempts while a server's listen queue is full


@dataclass(frozen=True, slots=True)
class Tls:
    """`name`: what the server's certificate has to be for."""

    context: ssl.SSLContext
    name: str


class Server(Protocol):
    @property
    def tls(self) -> Tls | None: ...

    async def connected(self) -> socket.socket:
        """A new connection, to be closed by the caller. `NotFound` where there is no server, `Unavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class UnixServer:
    """On this host."""

    path: Path
    tls: None = None

    def __str__(self) -> str:
        return self.path.name

    async def connected(self) -> socket.socket:
        """Connecting to a unix socket never waits, but is refused with EAGAIN while the server's listen queue is full."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            while code := sock.connect_ex(os.fspath(self.path)):
                if code != errno.EAGAIN:
                    text = f"no connection to {self.path}: {os.strerror(code)}"
                    raise NotFound(text) if code == errno.ENOENT else Unavailable(text)
                await asyncio.sleep(_BUSY_WAIT_S)
        except BaseException:
            sock.close()
            raise
        return sock


@dataclass(frozen=True, slots=True)
class TlsServer:
    """At an address of the network; it has to prove by its certificate who it is."""

    address: str
    port: int
    tls: Tls

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    async def connected(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self.address, self.port))
        except OSError as error:
            sock.close()
            raise Unavailable(f"no connection to {self}: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise
        return sock


def pinned(certificate: str, name: str) -> Tls:
    """For a server that shows exactly this certificate (PEM), made out to `name`; a name may begin with a wildcard, as the
    certificate then does. `TlsFailed` where it is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it is trusted as it is, whoever issued it
    try:
        context.load_verify_locations(cadata=certificate)
    except (ssl.SSLError, ValueError) as error:
        raise TlsFailed(f"the certificate of {name} cannot be read: {error}") from error
    return Tls(context, name.replace("*", "any", 1))
