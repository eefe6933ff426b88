"""A real upload queue over a real pool, before a store in memory that can be closed for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.upload_service import UploadService
from stores.backends.memory import MemoryStore
from stores.cache.pool import Pool
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.queue import UploadQueue
from stores.contract import DataStore, PendingUpload
from stores.errors import StorageError, Unavailable
from stores.to import S3TO
from stores.wrappers.base import WrapperStore
from tests.doubles.caches import pool_settings, running

TO = S3TO.model_validate(
    {"endPoint": "https://s3.invalid", "bucketName": "b", "accessKey": "k", "secretKey": "s-e-c-r-e-t"}
)
QUICK = WritebackSettings(first_retry_s=0.01, last_retry_s=0.02, first_probe_s=0.01, last_probe_s=0.02)


class ClosedStore(WrapperStore):
    """Refuses uploads with `why` while it is set."""

    why: StorageError | None = None

    def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingUpload]:
        if self.why is not None:
            raise self.why
        return self.inner.upload(ref, source, token=token, replace=replace)


@dataclass
class Staging:
    """The queue of one life of a process."""

    pool: Pool
    queue: UploadQueue
    store: ClosedStore

    @property
    def service(self) -> UploadService:
        return UploadService(self.queue, [self.pool])

    def close(self, why: StorageError | None = None) -> None:
        self.store.why = why or Unavailable("the store is closed today")

    def open(self) -> None:
        self.store.why = None

    async def stage(self, ref: str, *, token: str = "c-1", announce: bool = True, data: bytes = b"content") -> str:
        """The upload's id."""
        size = len(data)
        async with self.queue.staging(
            TO, self.store, ref, token=token, size=size, replace=False, wait_s=1, announce=announce
        ) as pending:
            pending.path.write_bytes(data)
            info = await pending.commit()
        assert info.upload is not None
        return info.upload


@asynccontextmanager
async def staging(root: Path, inner: DataStore | None = None) -> AsyncIterator[Staging]:
    """On the same `root` again: the next life, over what the one before has left."""
    store = ClosedStore(inner or MemoryStore())
    async with running(pool_settings(root / "pool")) as pool:
        queue = UploadQueue([pool], QUICK, credentials=root / "credentials", open_store=lambda to: store, tick_s=0.02)
        await queue.start()
        try:
            yield Staging(pool, queue, store)
        finally:
            await queue.aclose()
