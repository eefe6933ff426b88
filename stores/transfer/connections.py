"""Kept-alive connections, pooled for each origin."""

from __future__ import annotations

import asyncio
import socket

from stores.errors import Unavailable
from stores.transfer.target import HttpTarget
from stores.transfer.wire import Connection

IDLE_S = 15.0
"""How long an unused connection is kept. Servers keep theirs for 60 to 75 s (nginx, AWS S3: 20 s)."""


class Connections:
    """Idle connections by origin and read timeout; the number in use is bounded by the threads that use them.

    For the event loop's thread.
    """

    def __init__(self) -> None:
        self._idle: dict[object, list[tuple[Connection, asyncio.TimerHandle]]] = {}

    async def take(self, target: HttpTarget, *, connect_timeout_s: float, read_timeout_s: float) -> Connection:
        """A connection to the target's address: the one last used, or a new one. `Unavailable` when it cannot be made."""
        idle = self._idle.get((target.origin, read_timeout_s), [])
        while idle:
            connection, timer = idle.pop()
            timer.cancel()
            if connection.idle():
                connection.reused = True
                return connection
            connection.close()
        return await _connect(target, connect_timeout_s, read_timeout_s)

    def give(self, target: HttpTarget, connection: Connection) -> None:
        """Takes a connection back whose last answer was read to its end."""
        key = (target.origin, connection.read_timeout_s)  # the timeout is set on the socket and stays with it
        timer = asyncio.get_running_loop().call_later(IDLE_S, self._expire, key, connection)
        self._idle.setdefault(key, []).append((connection, timer))

    def close(self) -> None:
        """Closes what is idle."""
        for idle in self._idle.values():
            for connection, timer in idle:
                timer.cancel()
                connection.close()
        self._idle.clear()

    def _expire(self, key: object, connection: Connection) -> None:
        idle = [entry for entry in self._idle.get(key, []) if entry[0] is not connection]
        connection.close()
        if idle:
            self._idle[key] = idle
        else:
            self._idle.pop(key, None)


async def _connect(target: HttpTarget, connect_timeout_s: float, read_timeout_s: float) -> Connection:
    """The connect waits on the event loop: an address that swallows packets costs no thread."""
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    raw = socket.socket(family, socket.SOCK_STREAM)
    try:
        raw.setblocking(False)
        async with asyncio.timeout(connect_timeout_s):
            await asyncio.get_running_loop().sock_connect(raw, (target.address, target.port))
        return Connection(raw, tls=target.tls, host=target.host, read_timeout_s=read_timeout_s)
    except OSError as error:  # TimeoutError is one
        raw.close()
        why = f"no answer for {connect_timeout_s:g} s" if isinstance(error, TimeoutError) else error.strerror
        raise Unavailable(f"cannot connect to {target.host} ({target.address}) port {target.port}: {why}") from error
    except BaseException:
        raw.close()
        raise
