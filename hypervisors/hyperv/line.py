"""The TLS connections of one shell, which another thread may cut: a blocked call then ends at once."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool


class Line:
    """Thread-safe. Once cut, nothing connects any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: WeakSet[HTTPSConnection] = WeakSet()
        self._cut = False

    def cut(self) -> None:
        """Ends every connection, whatever a thread does with it."""
        with self._lock:
            self._cut = True
            for connection in self._connections:
                if connection.sock is not None:
                    with suppress(OSError):
                        # Not the TLS socket's own shutdown, which takes its state from under a reading thread.
                        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def admit(self, connection: HTTPSConnection) -> None:
        """Before and after it connects. OSError when the line is cut."""
        with self._lock:
            self._connections.add(connection)
            if self._cut:
                raise OSError("the line was cut")


class LineAdapter(HTTPAdapter):
    """Makes requests over a line. With `fingerprint`, a server's certificate is that one or is refused."""

    def __init__(self, line: Line, fingerprint: bytes | None) -> None:
        self._line = line
        self._fingerprint = fingerprint
        super().__init__(max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        if self._fingerprint is not None:
            options["assert_fingerprint"] = self._fingerprint.hex()
        super().init_poolmanager(connections, maxsize, block, **options)
        self.poolmanager.pool_classes_by_scheme = {"https": _pool_class(self._line)}

    def close(self) -> None:
        for key in self.poolmanager.pools.keys():  # noqa: SIM118 - it cannot be iterated itself
            pool = self.poolmanager.pools.get(key)
            if pool is not None:
                pool.close()  # urllib3 leaves that to the garbage collector
        super().close()


def _pool_class(line: Line) -> type[HTTPSConnectionPool]:
    class Connection(HTTPSConnection):
        def connect(self) -> None:
            line.admit(self)
            super().connect()
            line.admit(self)

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Connection

    return Pool
