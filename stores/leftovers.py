"""What interrupted writes have left in stores: known before they begin, and removed as soon as that can be done.

A process that is killed, or that loses its store, in the middle of a write leaves parts in the store that nobody sees and
somebody pays for. So each write into an image store is noted on this host first, with what is needed to take its leftovers
away (`DataStore.discard`, which removes nothing but what that write began). The note goes when the write has come to its end
and left nothing. Whatever is still noted at a start, and what a failed write may have left, is discarded at once, and tried
again until the store has confirmed that nothing is there.

What is staged is not noted: the upload queue goes on with it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import structlog

from stores.contract import DataStore
from stores.errors import StorageError
from stores.private_files import PrivateFiles, target_of, with_secrets
from stores.to import DataStoreTO
from stores.transfer.threads import Threads
from stores.uninterrupted import uninterrupted

FIRST_RETRY_S = 5.0
LAST_RETRY_S = 900.0
"""Pauses between attempts double from the first to the last; a command that names a store with other credentials, and a write
that fails, end the pause."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Write:
    """One write, under way or interrupted. `store` is the id of the store that `to` means."""

    name: str
    store: str
    to: DataStoreTO
    ref: str
    token: str


class Leftovers:
    """Of one process. `load` before use and before the first write, `run` beside the commands, `close` after."""

    def __init__(
        self,
        directory: Path,
        *,
        open_store: Callable[[DataStoreTO], DataStore],
        first_retry_s: float = FIRST_RETRY_S,
        last_retry_s: float = LAST_RETRY_S,
    ) -> None:
        """`directory`: for the notes, which hold credentials; see `PrivateFiles`. `open_store`: `Resolver.store`."""
        self._files = PrivateFiles(directory)
        self._threads = Threads("leftovers", 1)
        self._open_store = open_store
        self._first_retry_s = first_retry_s
        self._last_retry_s = last_retry_s
        self._left: dict[str, Write] = {}  # by name
        self._woken = asyncio.Event()

    async def load(self) -> None:
        """What earlier processes were at when they ended. `AccessDenied` when others may look into the directory."""
        self._left = await self._threads.run(self._read_all)

    def close(self) -> None:
        self._threads.close()

    @property
    def left(self) -> Sequence[Write]:
        """What is to be discarded."""
        return tuple(self._left.values())

    @asynccontextmanager
    async def noted(self, to: DataStoreTO, store: DataStore, ref: str, token: str) -> AsyncIterator[None]:
        """Around a write of `ref`, which has ended when the context does. An exception that leaves it says that something may
        be left. `StoreError` before anything is begun when the note cannot be made."""
        write = Write(uuid.uuid4().hex, store.id, to, ref, token)
        try:
            await uninterrupted(self._threads.run(partial(self._write, write)))
            yield
        except BaseException:
            self._left[write.name] = write
            self._woken.set()
            raise
        with suppress(StorageError):  # then it is found at the next start, and nothing in the store
            await uninterrupted(self._threads.run(partial(self._files.remove, write.name)))

    def named(self, to: DataStoreTO, store: str) -> None:
        """A command names that store (by its id): what is left there is tried with these credentials. Never blocks."""
        for name, write in self._left.items():
            if write.store == store and write.to != to:
                self._left[name] = replace(write, to=to)
                self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = self._first_retry_s
        while True:
            self._woken.clear()
            done = await self.discard()
            pause_s = self._first_retry_s if done else min(self._last_retry_s, pause_s * 2)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s if self._left else None):
                    await self._woken.wait()

    async def discard(self) -> bool:
        """Tries all that is left, in all stores at once. Whether nothing is left then."""
        by_store = groupby(sorted(self._left.values(), key=lambda write: write.store), key=lambda write: write.store)
        async with asyncio.TaskGroup() as group:
            for store, writes in by_store:
                group.create_task(self._discard_of(list(writes)), name=f"leftovers in {store}")
        return not self._left

    async def _discard_of(self, writes: Sequence[Write]) -> None:
        """Of one store, up to the first failure."""
        for write in writes:
            try:
                await self._open_store(write.to).discard(write.ref, token=write.token)
                await uninterrupted(self._threads.run(partial(self._files.remove, write.name)))
            except StorageError as error:
                _log.warning("leftovers not removed", store=write.store, ref=write.ref, why=error.message)
                return
            except Exception:  # noqa: BLE001 - it is told, and tried again
                _log.error("removing leftovers crashed", store=write.store, ref=write.ref, exc_info=True)
                return
            del self._left[write.name]
            _log.info("leftovers removed", store=write.store, ref=write.ref)

    # --------------------------------------------------------------------------------------------- in the thread

    def _read_all(self) -> dict[str, Write]:
        self._files.prepare()
        found = {}
        for name, content in self._files.contents():
            try:
                found[name] = _decoded(name, content)
            except (ValueError, KeyError, TypeError):  # which may quote what they could not read
                _log.warning("note of a write unreadable", file=f"{name}.json")
        return found

    def _write(self, write: Write) -> None:
        content = {"store": write.store, "to": with_secrets(write.to), "ref": write.ref, "token": write.token}
        self._files.prepare()
        self._files.write(write.name, content)


def _decoded(name: str, content: bytes) -> Write:
    """`ValueError`, `KeyError` or `TypeError` for what `Leftovers` has not written."""
    found = json.loads(content)
    return Write(name, str(found["store"]), target_of(found["to"]), str(found["ref"]), str(found["token"]))
