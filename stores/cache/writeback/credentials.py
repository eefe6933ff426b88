"""What stores need to know us by, kept for the uploads that are still to be made: apart from ledgers and journals, in files
that only this process's user may read.

One file for each store, named after its id, with the last TO that a command gave: so an upload goes on after a restart, and
with new credentials as soon as somebody sends some. The file goes when no upload needs it any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from functools import partial
from pathlib import Path

import structlog

from stores.private_files import PrivateFiles, target_of, with_secrets
from stores.to import DataStoreTO
from stores.transfer.threads import Threads
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)


class Credentials:
    """Those of all stores that uploads wait for, in memory and in `directory`. `load` before use, `close` after."""

    def __init__(self, directory: Path) -> None:
        self._files = PrivateFiles(directory)
        self._threads = Threads("upload-credentials", 1)
        self._known: dict[str, DataStoreTO] = {}
        self._changed: dict[str, int] = {}  # when, in changes
        self._changes = 0
        self._unsaved: set[str] = set()

    async def load(self) -> None:
        """What earlier processes kept. `AccessDenied` when others may look into the directory."""
        self._known = await self._threads.run(self._read_all) | self._known

    def close(self) -> None:
        self._threads.close()

    @property
    def changes(self) -> int:
        """Counts what was put and named so far: see `sweep`."""
        return self._changes

    def get(self, store: str) -> DataStoreTO | None:
        """The last that was heard of, by the store's id."""
        return self._known.get(store)

    async def put(self, store: str, to: DataStoreTO) -> None:
        """An upload is about to need them: durable when this returns. The last TO that was heard of a store is the one kept."""
        self._note(store, to)
        await self.save()

    def named(self, store: str, to: DataStoreTO) -> bool:
        """A command has named the store. Whether uploads wait for it and this is news for them: then `save`."""
        if store not in self._known or self._known[store] == to:
            return False
        self._note(store, to)
        return True

    async def save(self) -> set[str]:
        """Makes durable what is not. The stores that this was about."""
        saved: set[str] = set()
        while self._unsaved:
            store = self._unsaved.pop()
            try:
                await uninterrupted(self._threads.run(partial(self._write, store, self._known[store])))
            except BaseException:
                self._unsaved.add(store)
                raise
            saved.add(store)
        return saved

    async def sweep(self, needed: Collection[str], *, seen: int) -> None:
        """Forgets what is not needed, and has not changed since `changes` was `seen`."""
        for store in [store for store in self._known if store not in needed]:
            if self._changed.get(store, 0) <= seen:
                self._known.pop(store, None)
                self._changed.pop(store, None)
                self._unsaved.discard(store)
                await self._threads.run(partial(self._remove, store))

    def _note(self, store: str, to: DataStoreTO) -> None:
        self._changes += 1
        self._changed[store] = self._changes
        if self._known.get(store) != to:
            self._known[store] = to
            self._unsaved.add(store)

    # --------------------------------------------------------------------------------------------- in the thread

    def _read_all(self) -> dict[str, DataStoreTO]:
        self._files.prepare()
        found = {}
        for name, content in self._files.contents():
            try:
                store, to = _decoded(content)
            except ValueError:  # which quotes what it could not read
                _log.warning("upload credentials unreadable", file=f"{name}.json")
            else:
                found[store] = to
        return found

    def _write(self, store: str, to: DataStoreTO) -> None:
        self._files.write(_name_of(store), {"store": store, "to": with_secrets(to)})

    def _remove(self, store: str) -> None:
        self._files.remove(_name_of(store))


def _name_of(store: str) -> str:
    return hashlib.sha256(store.encode("utf-8", "surrogatepass")).hexdigest()


def _decoded(data: bytes) -> tuple[str, DataStoreTO]:
    """`ValueError` for what `Credentials` has not written."""
    found = json.loads(data)
    if not isinstance(found, dict) or not isinstance(found.get("store"), str):
        raise ValueError("not the credentials of a store")
    return found["store"], target_of(found.get("to"))
