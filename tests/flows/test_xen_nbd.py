"""Disks of the fake pool over NBD and TLS, from a real qemu-nbd: what they hold, whom we believe, and what is not repeated."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from hypervisors.nbd.client import NbdDisk, connect_to
from hypervisors.nbd.servers import TlsServer, pinned
from hypervisors.xen.changed_blocks import changed_blocks
from hypervisors.xen.errors import XapiRefused
from hypervisors.xen.nbd import nbd_disk
from stores.contract import MiB
from stores.errors import NotFound, StorageError, TlsFailed, Unavailable
from stores.secret import Secret
from stores.transfer.engine import TransferEngine
from tests.doubles.xapi import Settings, running
from tests.images import content
from tests.processes import children
from tests.xapi_agent import SIZE, Agent, agent, sha256


@pytest.fixture
async def ours(tmp_path: Path) -> AsyncIterator[Agent]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), children()
    async with running(tmp_path / "p", Settings()) as pool, agent(pool) as one:
        (network,) = await one.client.call("network.get_all")
        await one.client.call("network.add_purpose", network, "nbd")
        yield one
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), children()) == before


async def filled(ours: Agent, scratch: Path) -> tuple[str, str]:
    """A disk, and its digest."""
    disk = await ours.disk()
    (scratch / "data").write_bytes(content(3 * MiB))
    await ours.pool.controls.write(await ours.client.call("VDI.get_uuid", disk), 2 * MiB, str(scratch / "data"))
    return disk, await ours.digest(disk)


async def read(disk: NbdDisk) -> bytes:
    parts = await asyncio.gather(*(disk.read(offset, MiB) for offset in range(0, disk.size, MiB)))
    return b"".join(parts)


async def test_all_of_a_disk(ours: Agent, engine: TransferEngine, tmp_path: Path) -> None:
    vdi, expected = await filled(ours, tmp_path)
    async with nbd_disk(ours.client, vdi, engine=engine) as disk:
        assert disk.size == SIZE
        assert sha256(await read(disk)) == expected
        extents = await disk.extents(0, SIZE)
    assert sum(extent.length for extent in extents if not extent.zero) == 4 * MiB  # in blocks of 2 MiB
    assert sum(extent.length for extent in extents) == SIZE


async def test_what_changed(ours: Agent, engine: TransferEngine, tmp_path: Path) -> None:
    vdi = await ours.disk()
    number = await ours.client.call("VDI.get_uuid", vdi)
    await ours.client.call("VDI.enable_cbt", vdi)
    first = await ours.client.call("VDI.snapshot", vdi)
    data = content(MiB, seed=4)
    (tmp_path / "data").write_bytes(data)
    await ours.pool.controls.write(number, 4 * MiB, str(tmp_path / "data"))
    second = await ours.client.call("VDI.snapshot", vdi)
    changed = await changed_blocks(ours.client, first, second)
    assert changed is not None
    async with nbd_disk(ours.client, second, engine=engine) as disk:
        parts = [(offset, await disk.read(offset, length)) for offset, length in changed]
    assert parts == [(4 * MiB, data)]


async def offered(ours: Agent, scratch: Path) -> dict[str, Any]:
    vdi, _ = await filled(ours, scratch)
    one: dict[str, Any] = (await ours.client.call("VDI.get_nbd_info", vdi))[0]
    return one


def stranger(subject: str) -> str:
    return trustme.CA().issue_cert(subject).cert_chain_pems[0].bytes().decode()


@pytest.mark.parametrize("wrong", ["certificate", "subject"])
async def test_only_the_host_that_xapi_names(ours: Agent, engine: TransferEngine, tmp_path: Path, wrong: str) -> None:
    one = await offered(ours, tmp_path)
    certificate = stranger(one["subject"]) if wrong == "certificate" else one["cert"]
    tls = pinned(certificate, "another-host.pool.example" if wrong == "subject" else one["subject"])
    with pytest.raises(TlsFailed) as caught:
        async with connect_to(TlsServer(one["address"], one["port"], tls), Secret(one["exportname"]), engine=engine):
            pass
    assert_silent(caught.value, one["exportname"])


def assert_silent(error: StorageError, name: str) -> None:
    """The export's name is as good as the session in it."""
    told = f"{error!r} {error.details} {error.__cause__!r}"
    assert name not in told
    assert name.partition("session_id=")[2] not in told


async def test_names_that_are_not_served_are_not_repeated(ours: Agent, engine: TransferEngine, tmp_path: Path) -> None:
    one = await offered(ours, tmp_path)
    server = TlsServer(one["address"], one["port"], pinned(one["cert"], one["subject"]))
    name = one["exportname"] + "x"
    with pytest.raises(NotFound) as caught:
        async with connect_to(server, Secret(name), engine=engine):
            pass
    assert_silent(caught.value, name)


async def test_disks_that_nobody_serves(ours: Agent, engine: TransferEngine) -> None:
    (network,) = await ours.client.call("network.get_all")
    await ours.client.call("network.remove_purpose", network, "nbd")
    with pytest.raises(XapiRefused, match="add the purpose nbd"):
        async with nbd_disk(ours.client, await ours.disk(), engine=engine):
            pass


async def test_a_server_that_says_nothing(ours: Agent, engine: TransferEngine, tmp_path: Path) -> None:
    """Before, and in the middle of, the handshake."""
    one = await offered(ours, tmp_path)
    tls = pinned(one["cert"], one["subject"])
    greeting = b"NBDMAGICIHAVEOPT\0\3"
    acknowledged = (0x3E889045565A9).to_bytes(8) + (5).to_bytes(4) + (1).to_bytes(4) + (0).to_bytes(4)
    for said, error in (
        (b"", Unavailable),
        (greeting, Unavailable),
        (greeting + acknowledged, StorageError),
    ):
        said_all = said

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = said_all) -> None:
            writer.write(said[:18])
            await reader.read(20)
            writer.write(said[18:])
            await reader.read()
            writer.close()

        listening = await asyncio.start_server(client, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(error):
            async with connect_to(TlsServer("127.0.0.1", port, tls), Secret("x"), engine=engine, stall_s=0.4):
                pass
        listening.close()
        await listening.wait_closed()


async def test_cancelled_in_mid_read(ours: Agent, engine: TransferEngine, tmp_path: Path) -> None:
    vdi, expected = await filled(ours, tmp_path)
    async with nbd_disk(ours.client, vdi, engine=engine) as disk:
        for _ in range(10):
            reading = asyncio.create_task(disk.read(0, SIZE))
            await asyncio.sleep(0.002)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert sha256(await read(disk)) == expected
