"""Files that another client of the same share caches: the server breaks its oplock, and nobody loses a byte. Samba is real.

The other client is ours on another connection, which asks for an oplock, and answers when the server wants it back.
"""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from smbprotocol.connection import Request
from smbprotocol.exceptions import SharingViolation
from smbprotocol.header import Commands, SMB2HeaderRequest
from smbprotocol.open import (
    ImpersonationLevel,
    RequestedOplockLevel,
    SMB2CreateRequest,
    SMB2CreateResponse,
    SMB2WriteRequest,
)
from smbprotocol.structure import BytesField, IntField, Structure

from stores.backends import smb_calls as calls
from stores.backends.smb import SmbStore
from stores.backends.smb_link import Link
from stores.backends.smb_links import Hold, Links
from stores.contract import MiB
from stores.errors import ObjectChanged
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine
from tests.objects import content, read_all, send, sending
from tests.samba import SambaServer

QUICK = StoreSettings(connect_timeout=5, read_timeout=10, attempts=3)
BATCH = RequestedOplockLevel.SMB2_OPLOCK_LEVEL_BATCH
SHARED = RequestedOplockLevel.SMB2_OPLOCK_LEVEL_II
NONE = RequestedOplockLevel.SMB2_OPLOCK_LEVEL_NONE
_UNASKED = 2**64 - 1  # the message id of what a server says by itself ([MS-SMB2] 2.2.23)


class Acknowledgment(Structure):  # type: ignore[misc]  # the library has no types, and not this message
    """[MS-SMB2] 2.2.24.1"""

    COMMAND = Commands.SMB2_OPLOCK_BREAK

    def __init__(self) -> None:
        self.fields = OrderedDict(
            [
                ("structure_size", IntField(size=2, default=24)),
                ("oplock_level", IntField(size=1)),
                ("reserved", IntField(size=1)),
                ("reserved2", IntField(size=4)),
                ("file_id", BytesField(size=16)),
            ]
        )
        super().__init__()


class Holder:
    """Another client, which has a file open. Blocking."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._handle = b""
        # Of no session: Samba sends it without encryption or signature ([MS-SMB2] 3.3.4.6).
        self._break = Request(SMB2HeaderRequest(), Acknowledgment, link._connection, 0)
        link._connection.outstanding_requests[_UNASKED] = self._break

    def open(self, path: str, access: int, level: int, *, share: int = calls.SHARE_ALL) -> int:
        """The oplock that the server gives."""
        request = SMB2CreateRequest()
        request["requested_oplock_level"] = level
        request["impersonation_level"] = ImpersonationLevel.Impersonation
        request["desired_access"] = access
        request["share_access"] = share
        request["create_disposition"] = calls.OPEN
        request["create_options"] = calls.FILE
        request["buffer_path"] = path.encode("utf-16-le")
        answer = SMB2CreateResponse()
        answer.unpack(self._link.call(request))
        self._handle = bytes(answer["file_id"].get_value())
        return int(answer["oplock_level"].get_value())

    def broken_to(self) -> int:
        """Waits until the server wants the oplock back: what may be kept of it."""
        assert self._break.response_event.wait(20)
        (level,) = struct.unpack_from("<2xB", self._break.response["data"].get_value())
        return int(level)

    @property
    def asked(self) -> bool:
        return bool(self._break.response_event.is_set())

    def write(self, data: bytes) -> None:
        request = SMB2WriteRequest()
        request["length"] = len(data)
        request["file_id"] = self._handle
        request["buffer"] = data
        self._link.call(request, payload=len(data))

    def acknowledge(self, level: int) -> None:
        request = Acknowledgment()
        request["oplock_level"] = level
        request["file_id"] = self._handle
        self._link.call(request)

    def close(self) -> None:
        calls.close(self._link, self._handle)


@pytest.fixture
def root(samba: SambaServer) -> Path:
    path = samba.root / uuid.uuid4().hex
    path.mkdir()
    return path


@pytest.fixture
async def store(samba: SambaServer, root: Path, engine: TransferEngine) -> AsyncIterator[SmbStore]:
    made = SmbStore(samba.place(root.name), QUICK, engine, id="smb:test")
    yield made
    await made.aclose()


@asynccontextmanager
async def other_client(samba: SambaServer, root: Path, engine: TransferEngine) -> AsyncIterator[Holder]:
    links = Links(samba.place(root.name), QUICK, engine)
    link = await asyncio.to_thread(links.take, Hold())
    try:
        yield Holder(link)
    finally:
        await asyncio.to_thread(link.close)


def everything(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_a_reader_waits_until_the_cache_is_given_up(
    store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
) -> None:
    (root / "disk").write_bytes(content(MiB))
    info = await store.stat("disk")
    async with other_client(samba, root, engine) as other:
        assert await asyncio.to_thread(other.open, f"{root.name}\\disk", calls.READ, BATCH) == BATCH
        assert await store.stat("disk") == info  # to look disturbs nobody
        assert not other.asked
        reading = asyncio.create_task(read_all(store, info))
        assert await asyncio.to_thread(other.broken_to) == SHARED
        assert not reading.done()
        await asyncio.to_thread(other.acknowledge, SHARED)
        assert await reading == content(MiB)
        await asyncio.to_thread(other.close)


async def test_what_a_writer_had_not_sent_yet_is_another_version(
    store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
) -> None:
    (root / "disk").write_bytes(content(MiB))
    info = await store.stat("disk")
    async with other_client(samba, root, engine) as other:
        access = calls.READ | calls.WRITE
        assert await asyncio.to_thread(other.open, f"{root.name}\\disk", access, BATCH) == BATCH
        reading = asyncio.create_task(read_all(store, info))
        await asyncio.to_thread(other.broken_to)
        await asyncio.to_thread(other.write, b"written late")
        await asyncio.to_thread(other.close)
        with pytest.raises(ObjectChanged):
            await reading
    now = content(MiB)
    assert await read_all(store, await store.stat("disk")) == b"written late" + now[12:]


async def test_who_looks_into_what_is_being_written_disturbs_nobody(
    store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
) -> None:
    data = content(5 * MiB)
    async with other_client(samba, root, engine) as other, sending(store, "disk") as pending:
        await pending.write(memoryview(data)[:MiB])
        (name,) = everything(root)
        await asyncio.to_thread(other.open, f"{root.name}\\{name}", calls.READ, SHARED)
        await pending.write(memoryview(data)[MiB:])
        await pending.commit()
        await asyncio.to_thread(other.close)
    assert everything(root) == {"disk": data}


async def test_who_would_keep_what_is_being_written_from_its_name_does_not_get_it(
    store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
) -> None:
    """As a scanner for viruses may want to."""
    data, no_deleting, no_writing = content(2 * MiB), 0x3, 0x5
    async with other_client(samba, root, engine) as other, sending(store, "disk") as pending:
        await pending.write(memoryview(data))
        (name,) = everything(root)
        for share in (no_deleting, no_writing, 0):
            with pytest.raises(SharingViolation):
                await asyncio.to_thread(other.open, f"{root.name}\\{name}", calls.READ, BATCH, share=share)
        await pending.commit()
    assert everything(root) == {"disk": data}


async def test_what_somebody_caches_is_replaced_at_once(
    store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
) -> None:
    """By Samba: others may refuse. Whoever has the old file open keeps that one."""
    (root / "disk").write_bytes(content(1000))
    data = content(2 * MiB)
    async with other_client(samba, root, engine) as other:
        assert await asyncio.to_thread(other.open, f"{root.name}\\disk", calls.READ, BATCH) == BATCH
        await send(store, "disk", data, replace=True)
        assert everything(root) == {"disk": data}
        await asyncio.to_thread(other.close)
    assert everything(root) == {"disk": data}


async def test_what_somebody_caches_is_deleted_when_it_is_given_up(
    store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
) -> None:
    (root / "disk").write_bytes(content(1000))
    async with other_client(samba, root, engine) as other:
        assert await asyncio.to_thread(other.open, f"{root.name}\\disk", calls.READ, BATCH) == BATCH
        deleting = asyncio.create_task(store.delete("disk"))
        await asyncio.to_thread(other.broken_to)
        assert not deleting.done()
        assert everything(root) == {"disk": content(1000)}
        await asyncio.to_thread(other.close)
        await deleting
    assert everything(root) == {}


async def test_a_client_that_does_not_give_up_its_cache(
    store: SmbStore, samba: SambaServer, root: Path, engine: TransferEngine
) -> None:
    """Until its connection ends: then the server does."""
    (root / "disk").write_bytes(content(1000))
    info = await store.stat("disk")
    async with other_client(samba, root, engine) as other:
        await asyncio.to_thread(other.open, f"{root.name}\\disk", calls.READ, BATCH)
        reading = asyncio.create_task(read_all(store, info))
        await asyncio.to_thread(other.broken_to)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        reading = asyncio.create_task(read_all(store, info))
        done, _ = await asyncio.wait([reading], timeout=0.3)
        assert not done
    assert await reading == content(1000)
