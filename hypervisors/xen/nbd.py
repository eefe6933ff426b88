"""Disks of the pool read at random over NBD, where one of its networks is for that.

Source: VDI.get_nbd_info of xen-api and its NBD service, which takes 16 connections for each host. A service without structured
replies is `StoreUnsupported` (`hypervisors.nbd`): whoever reads has to do with `exporting` then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from hypervisors.nbd.client import NbdDisk, connect_to
from hypervisors.nbd.servers import TlsServer, pinned
from hypervisors.xen.errors import XapiRefused
from hypervisors.xen.session import PoolClient
from stores.errors import StoreError, Unavailable
from stores.secret import Secret
from stores.transfer.engine import TransferEngine


@asynccontextmanager
async def nbd_disk(
    client: PoolClient, vdi: str, *, engine: TransferEngine, connections: int = 4, stall_s: float = 60.0
) -> AsyncIterator[NbdDisk]:
    """`vdi`, to which nobody writes, by the first of the hosts that answers, until the context ends.

    Each host has to show the certificate that XAPI names for it. `XapiRefused` where no network has the purpose `nbd`; for
    others `XapiFailure` and its kin, and what `connect_to` raises.
    """
    offered: list[dict[str, Any]] = await client.call("VDI.get_nbd_info", vdi)
    secured = [one for one in offered if one["cert"]]
    if not secured:
        raise XapiRefused(
            f"no host serves {vdi} over NBD with TLS: add the purpose nbd to a network of the pool, or do without",
            code="NO_NBD",
            params=[vdi],
        )
    async with AsyncExitStack() as stack:
        yield await _first_that_answers(stack, secured, engine, connections, stall_s)


async def _first_that_answers(
    stack: AsyncExitStack, offered: list[dict[str, Any]], engine: TransferEngine, connections: int, stall_s: float
) -> NbdDisk:
    problem: StoreError | None = None
    for one in offered:
        server = TlsServer(str(one["address"]), int(one["port"]), pinned(str(one["cert"]), str(one["subject"])))
        name = Secret(str(one["exportname"]))  # it has the session in it
        try:
            opened = connect_to(server, name, engine=engine, connections=connections, stall_s=stall_s)
            return await stack.enter_async_context(opened)
        except Unavailable as error:
            problem = error
    assert problem is not None, "something was offered"
    raise problem
