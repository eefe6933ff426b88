"""An image that is sent to an image store: read once, digested beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hypervisors.context import Context
from hypervisors.contract import Accepts
from hypervisors.landing import verify
from hypervisors.narrowing import as_pending_file, as_pending_stream
from hypervisors.verbs import Call
from stores.contract import ByteStream, DataStore, Kind, ObjectInfo, PendingUpload, PendingWrite, RangeReader
from stores.errors import AlreadyExists, NotFound
from stores.resolver import Durability
from stores.to import DataStoreTO
from stores.transfer.digests import Checksum
from stores.transfer.engine import Fetched
from stores.uninterrupted import uninterrupted

DIGEST = "sha256"

T = TypeVar("T")


async def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Where an image goes: object `ref` of that store, instead of what is there if it `replaces`."""

    ctx: Context
    call: Call
    to: DataStoreTO
    ref: str
    durability: Durability = Durability.STORED
    replaces: bool = False
    let_go: Callable[[], Coroutine[Any, Any, None]] = _nothing
    """Of what is sent, once it has been read or nobody wants it any more, and before the store completes or removes anything,
    which takes as long as the store likes."""

    @property
    def store(self) -> DataStore:
        return self.ctx.resolver.store(self.to)

    async def send(
        self, image: RangeReader | ByteStream, fills: Accepts, commit: Commit, *, checksum: Checksum | None = None
    ) -> tuple[ObjectInfo, Fetched]:
        """All of the image, and its size and digest. The object is there as a whole when this returns, and stays if the context
        that gave `commit` (`both_or_neither`) ends well.
        `ChecksumMismatch` when `checksum` is not that of the image."""
        progress = self.call.progress
        wanted = [DIGEST] if checksum is None else [*{DIGEST, checksum.algorithm}]
        progress.phase("send", image.info.size)
        async with self._create(fills.kinds, image.info.size) as pending:
            sent = await letting_go(self._fill(pending, image, wanted), self.let_go)
            verify(checksum, sent.digests, image.info.ref)
            progress.phase("publish")
            return await commit.of(pending), sent

    async def _fill(self, pending: PendingWrite, image: RangeReader | ByteStream, digests: Sequence[str]) -> Fetched:
        engine, progress = self.ctx.engine, self.call.progress
        match image, pending.kind:
            case RangeReader(), Kind.LOCAL_PATH:
                return await engine.fetch(image, as_pending_file(pending).path, digests=digests, progress=progress)
            case RangeReader(), _:
                return await engine.send(image, as_pending_stream(pending), digests=digests, progress=progress)
            case ByteStream(), Kind.LOCAL_PATH:
                path = as_pending_file(pending).path
                return await engine.store_stream(image, path, digests=digests, progress=progress)
            case ByteStream(), _:
                stream = as_pending_stream(pending)
                return await engine.send_stream(image, stream, digests=digests, progress=progress)

    def both_or_neither(self) -> AbstractAsyncContextManager[Commit]:
        """See the function of that name."""
        return both_or_neither(self.store, self.ref)

    async def require_free(self) -> None:
        """`AlreadyExists` where something has that name, `UploadPending` while something is on its way there."""
        await self.ctx.resolver.require_not_uploading(self.store, self.ref)
        try:
            await self.store.stat(self.ref)
        except NotFound:
            return
        raise AlreadyExists(f"{self.ref} exists already; delete it first, or choose another name", ref=self.ref)

    async def send_small(self, content: bytes, *, follows: str | None = None) -> ObjectInfo:
        """A small object, in the same way. `follows`: the upload that has to be stored before this one."""
        kinds = (Kind.LOCAL_PATH, Kind.BYTE_STREAM)
        async with self._create(kinds, len(content), follows) as pending:
            if pending.kind is Kind.LOCAL_PATH:
                await self.ctx.engine.run(as_pending_file(pending).path.write_bytes, content)
            else:
                await as_pending_stream(pending).write(memoryview(content))
            return await pending.commit()

    def _create(
        self, kinds: Sequence[Kind], size: int | None, follows: str | None = None
    ) -> AbstractAsyncContextManager[PendingWrite]:
        return self.ctx.resolver.create(
            self.store,
            self.ref,
            kinds,
            token=self.call.token,
            size=size,
            replace=self.replaces,
            durability=self.durability,
            store_to=self.to,
            follows=follows,
        )


async def letting_go(work: Coroutine[Any, Any, T], let_go: Callable[[], Coroutine[Any, Any, None]]) -> T:
    """What `work` returns or raises, after `let_go`. When cancelled, `let_go` comes first, since `work` may be at something
    that is not interrupted, and waits for a store; then `work` is cancelled, and waited for."""
    task = asyncio.ensure_future(work)

    async def given_up() -> None:
        try:
            await let_go()
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # nobody is interested; asyncio wants it looked at

    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        await uninterrupted(given_up())
        raise
    await uninterrupted(let_go())
    return task.result()


class Commit:
    """A commit that is carried out to its end, whoever is cancelled meanwhile, and what came of it."""

    def __init__(self) -> None:
        self.info: ObjectInfo | None = None

    async def of(self, pending: PendingWrite | PendingUpload) -> ObjectInfo:
        async def carried_out() -> ObjectInfo:
            self.info = await pending.commit()
            return self.info

        return await uninterrupted(carried_out())

    def forget(self) -> None:
        """What was committed is somebody else's by now."""
        self.info = None


@asynccontextmanager
async def both_or_neither(store: DataStore, ref: str) -> AsyncIterator[Commit]:
    """The object is there and its sender told of it; or, failed or cancelled at any moment, it is not there. What is staged is
    the upload queue's."""
    commit = Commit()
    try:
        yield commit
    except BaseException:
        if commit.info is not None and commit.info.upload is None:
            await uninterrupted(store.delete(ref))
        raise
