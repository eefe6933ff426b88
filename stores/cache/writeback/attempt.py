"""One attempt to send an upload: watched, so that nobody sends what is not theirs any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from stores.cache.errors import LeaseLost
from stores.cache.health import PoolSick
from stores.cache.ledger import uploads
from stores.cache.ledger.rows import existing
from stores.cache.ledger.uploads import Upload
from stores.cache.pool import Pool
from stores.cache.writeback.errors import StagedCopyDamaged, UploadCancelled
from stores.cache.writeback.order import Candidate
from stores.contract import DataStore, Kind, ObjectInfo, PendingUpload, Silent
from stores.errors import IntegrityError
from stores.to import DataStoreTO
from stores.transfer.sending import send_all
from stores.uninterrupted import uninterrupted

WATCH_S = 0.1
"""How often an attempt looks whether it may go on. A lease is renewed long before it ends, so this is soon enough."""

NOTE_S = 2.0
"""How often it tells the ledger how far it is, and learns there whether somebody has cancelled the upload."""


class _Counted:
    """An upload whose parts are counted in bytes."""

    kind: ClassVar[Kind] = Kind.UPLOAD

    def __init__(self, inner: PendingUpload, attempt: Attempt) -> None:
        self.parts = inner.parts
        self.parallel = inner.parallel
        self._inner = inner
        self._attempt = attempt

    def length(self, number: int) -> int:
        return self._inner.length(number)

    async def send(self, number: int) -> bool:
        new = await self._inner.send(number)
        self._attempt.sent += self.length(number)
        self._attempt.resumed += 0 if new else self.length(number)
        return new

    async def commit(self) -> ObjectInfo:
        self._attempt.committing = True
        return await self._inner.commit()


class Attempt:
    """`sent` and `resumed` are bytes; `committing`: the store is being asked to make an object of it, and only it knows whether
    that happened."""

    def __init__(self, pool: Pool, upload: Upload) -> None:
        self.pool = pool
        self.upload = upload
        self.owner = pool.lease.owner
        self.to: DataStoreTO | None = None  # how the store was opened
        self.candidate = Candidate(upload.id, upload.store, 0 if upload.entry is None else upload.size)
        self.sent = 0
        self.resumed = 0
        self.committing = False
        self.over = asyncio.Event()
        self._given_up = False

    def give_up(self) -> None:
        """The upload was cancelled. What is in the store's hands comes to its end."""
        self._given_up = True

    async def send(self, store: DataStore) -> ObjectInfo:
        """What the store confirmed. Raises what it raises; `StagedCopyDamaged`; `PoolSick`, `LeaseLost` and `UploadCancelled`
        when it may not go on."""
        path = await self._proven()
        sending = asyncio.create_task(self._send(store, path), name=f"upload-{self.upload.id[:12]}")
        clock = asyncio.get_running_loop().time
        noted = clock()
        try:
            while not sending.done():
                await asyncio.wait({sending}, timeout=WATCH_S)
                if sending.done():
                    break
                self._check()
                if clock() - noted >= NOTE_S:
                    await self._note()
                    noted = clock()
            return sending.result()
        finally:
            await uninterrupted(_stopped(sending))

    async def _proven(self) -> Path:
        entries, entry = self.pool.access.entries, self.upload.entry
        assert entry is not None
        found = await self.pool.transact(lambda tx: existing(tx, self.pool.name, entry))
        fault = await self.pool.access.touch(lambda: entries.prove(found))
        if fault is not None:
            raise StagedCopyDamaged(
                f"the staged copy of {self.upload.ref} in pool {self.pool.name} is not what was staged: {fault}; cancel the"
                " upload, and write the object again",
                upload=self.upload.id,
                pool=self.pool.name,
            )
        return entries.path_of(found)

    async def _send(self, store: DataStore, path: Path) -> ObjectInfo:
        upload = self.upload
        async with store.upload(upload.ref, path, token=upload.id, replace=upload.replaces) as pending:
            info = await send_all(_Counted(pending, self), progress=Silent())
        if info.size not in (None, upload.size):
            raise IntegrityError(
                f"store {upload.store} has {info.size} bytes of {upload.ref} and {upload.size} were sent",
                needed=upload.size,
                seen=info.size,
            )
        return info

    def _check(self) -> None:
        pool = self.pool
        if not pool.healthy:
            raise PoolSick(f"pool {pool.name} turned sick during an upload", pool=pool.name)
        if pool.lease.owner != self.owner or not pool.lease.left_s:
            raise LeaseLost(f"the lease of pool {pool.name} ran out during an upload", pool=pool.name)
        if self._given_up and not self.committing:
            raise UploadCancelled(f"the upload of {self.upload.ref} was cancelled", upload=self.upload.id)

    async def _note(self) -> None:
        goes_on = await self.pool.transact(
            lambda tx: uploads.note(
                tx, self.pool.name, self.upload.id, owner=self.owner, sent=self.sent, resumed=self.resumed
            )
        )
        self._given_up = self._given_up or not goes_on


async def _stopped(sending: asyncio.Task[ObjectInfo]) -> None:
    sending.cancel()
    await asyncio.wait({sending})
    if not sending.cancelled():
        sending.exception()  # looked at: it has failed already, or this is what it failed with
