"""What every backend that speaks TLS over TCP needs: addresses of a name, and whom to trust."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from stores.errors import TlsFailed, Unavailable

Resolve: TypeAlias = Callable[[str, int], Awaitable[tuple[str, ...]]]
"""From a host name (or IP literal) and port to IP addresses in text, at least one. `Unavailable` if there is none."""


async def system_resolve(host: str, port: int) -> tuple[str, ...]:
    """Addresses by the system's resolver, in its order of preference, each once."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Unavailable(f"host name {host} does not resolve: {error.strerror}", host=host) from error
    return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def trusting_context(ca_file: Path | None) -> ssl.SSLContext:
    """A client's TLS context that trusts the system's authorities and those in `ca_file`. Blocking: reads files.

    `TlsFailed` when `ca_file` cannot be read.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError included
            raise TlsFailed(f"ca_file {ca_file} is not a readable PEM bundle: {error}", ca_file=str(ca_file)) from error
    return context
