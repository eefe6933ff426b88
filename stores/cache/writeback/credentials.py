"""What stores need to know us by, kept for the uploads that are still to be made: apart from ledgers and journals, in files
that only this process's user may read.

One file for each store, named after its id, with the last TO that a command gave: so an upload goes on after a restart, and
with new credentials as soon as somebody sends some. The file goes when no upload needs it any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from pydantic import TypeAdapter

from stores.errors import AccessDenied
from stores.os_errors import translated
from stores.secret import Secret
from stores.to import DataStoreTO
from stores.transfer.threads import Threads
from stores.uninterrupted import uninterrupted

_TO: TypeAdapter[DataStoreTO] = TypeAdapter(DataStoreTO)
_SUFFIX = ".json"
_TEMPORARY = ".new"
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_log = structlog.get_logger(__name__)


class Credentials:
    """Those of all stores that uploads wait for, in memory and in `directory`. `load` before use, `close` after."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
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
        found = {}
        with translated(str(self._directory)):
            with suppress(FileExistsError):
                os.mkdir(self._directory, 0o700)
            status = os.stat(self._directory, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise AccessDenied(
                    f"{self._directory} holds credentials: it must be a directory of user {os.geteuid()} with mode 700",
                    directory=str(self._directory),
                )
            for path in sorted(self._directory.iterdir()):
                if path.suffix == _SUFFIX:
                    try:
                        store, to = _decoded(path.read_bytes())
                    except ValueError:  # which quotes what it could not read
                        _log.warning("upload credentials unreadable", file=path.name)
                    else:
                        found[store] = to
        return found

    def _write(self, store: str, to: DataStoreTO) -> None:
        path = self._path(store)
        temporary = path.with_suffix(_TEMPORARY)
        with translated(str(path)):
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            with os.fdopen(os.open(temporary, _MAKE, 0o600), "wb") as file:
                file.write(json.dumps({"store": store, "to": _revealed(to)}).encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
            self._sync()

    def _remove(self, store: str) -> None:
        path = self._path(store)
        with translated(str(path)):
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, store: str) -> Path:
        return self._directory / (hashlib.sha256(store.encode("utf-8", "surrogatepass")).hexdigest() + _SUFFIX)


def _revealed(value: Any) -> Any:
    """A TO with its secrets, as JSON knows it."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return {name: _revealed(each) for name, each in value.items()}
    if hasattr(type(value), "model_fields"):
        return {name: _revealed(getattr(value, name)) for name in type(value).model_fields}
    return value


def _decoded(data: bytes) -> tuple[str, DataStoreTO]:
    """`ValueError` for what `Credentials` has not written."""
    found = json.loads(data)
    if not isinstance(found, dict) or not isinstance(found.get("store"), str):
        raise ValueError("not the credentials of a store")
    return found["store"], _TO.validate_python(found.get("to"))
