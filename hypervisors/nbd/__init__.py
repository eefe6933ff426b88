"""A client of NBD servers (qemu-nbd, libvirt's backups, nbdkit): the content of any image that qemu can read, with its holes
and its dirty bitmaps.

    negotiation.py replies.py   the protocol, without I/O
    servers.py                  where a server is: a unix socket, or an address with TLS
    connection.py               one blocking socket
    connections.py              as many of them as are of use
    client.py                   the export as a `RangeReader`
"""

from hypervisors.nbd.client import NbdDisk, connect

__all__ = ["NbdDisk", "connect"]
