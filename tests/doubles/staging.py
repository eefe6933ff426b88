"""The upload queue of `tests.uploads`, as the agent uses it, before a store that can be closed for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.upload_service import UploadService
from stores.backends.memory import MemoryStore
from stores.errors import StorageError, Unavailable
from tests.doubles.shaky_store import ShakyStore
from tests.uploads import Host


class Staging(Host):
    """One life of a process: on the same `root` with the same `there`, the next one over what this one has left."""

    def __init__(self, root: Path, there: MemoryStore) -> None:
        super().__init__(root)
        self.store = ShakyStore(there)

    @property
    def service(self) -> UploadService:
        return UploadService(self.queue, [self.pool])

    def close(self, why: StorageError | None = None) -> None:
        """The store refuses from now on."""
        self.store.failure = why or Unavailable("the store is closed today")

    def open(self) -> None:
        self.store.failure = None

    async def put(self, ref: str, *, token: str = "c-1", announce: bool = True, data: bytes = b"content") -> str:
        """Staged: the upload's id."""
        info = await self.stage(ref, data, token=token, announce=announce)
        assert info.upload is not None
        return info.upload


@asynccontextmanager
async def staging(root: Path, there: MemoryStore | None = None) -> AsyncIterator[Staging]:
    made = Staging(root, there or MemoryStore("memory"))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
