"""The bridge: any object that can be read at random, as a read-only NBD export on a unix socket.

    wire.py options.py negotiation.py   the protocol, without I/O
    readahead.py                        when to read ahead: a pure decision
    blocks.py                           what is in memory
    connection.py server.py             clients and their requests; the socket

No disk is involved, and no URL or credential leaves the process.
"""

from stores.bridge.blocks import Memory
from stores.bridge.server import serve

__all__ = ["Memory", "serve"]
