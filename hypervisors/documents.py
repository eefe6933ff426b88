"""Small texts about the images of a pool: what we know of each, kept with it.

Where images are files of a store, the texts are objects beside them (`StoreDocuments`). Where a hypervisor keeps the images,
its handler keeps the texts in the same place (`HypervisorHandler.pool`).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ValidationError

from hypervisors.narrowing import as_pending_stream, as_reader
from stores.contract import DataStore, Kind, MiB
from stores.errors import IntegrityError, NotFound

Model = TypeVar("Model", bound=BaseModel)

HIDDEN = ".storage-agent"
"""First path component of everything that is ours in a pool and no image."""

_LIMIT = 1 * MiB
"""Bytes; a document has some hundred."""


@dataclass(frozen=True, slots=True)
class About:
    """Names one document: of which image, and which of its documents. A folder of them is named by fewer parts."""

    image: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'/'.join(self.parts)} of {self.image}"


class Documents(abc.ABC):
    """The documents of one pool. Whoever changes one holds the lock of its image."""

    @abc.abstractmethod
    async def read(self, about: About) -> bytes | None:
        """None if there is none."""

    @abc.abstractmethod
    async def put(self, about: About, content: bytes, *, token: str, replace: bool = False) -> None:
        """Durable when it returns, and whole or not there at any moment; with `replace` one of the two is. `AlreadyExists` if
        there is one already, unless `replace`. `token` is the writing command's."""

    @abc.abstractmethod
    async def remove(self, about: About) -> None:
        """Idempotent."""

    @abc.abstractmethod
    async def names(self, folder: About) -> Sequence[str]:
        """The next parts of those below `folder`, in order, each once."""

    @abc.abstractmethod
    async def discard(self, about: About, *, token: str) -> None:
        """Remove what a `put` with that token, of a process that is gone, left half written. Idempotent."""

    async def load(self, about: About, model: type[Model], *, otherwise: str) -> Model | None:
        """The document; None if there is none. `IntegrityError` if it is damaged: `otherwise` says what to do."""
        text = await self.read(about)
        if text is None:
            return None
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            raise IntegrityError(
                f"the {about} is damaged ({error.error_count()} faults): {otherwise}", ref=about.image
            ) from None

    async def save(self, about: About, value: BaseModel, *, token: str, replace: bool = False) -> None:
        """As `put`."""
        await self.put(about, value.model_dump_json(indent=1).encode(), token=token, replace=replace)


async def read_object(store: DataStore, ref: str) -> bytes | None:
    """A small object's bytes; None if there is none."""
    try:
        info = await store.stat(ref)
    except NotFound:
        return None
    size = info.size or 0
    if size > _LIMIT:
        raise IntegrityError(f"{ref} has {size} bytes; it is not ours", store=store.id, ref=ref)
    async with store.present(info, Kind.RANGE_READER) as presentation:
        return await as_reader(presentation).read(0, size)


class StoreDocuments(Documents):
    """As objects of a store, below `.storage-agent/`:

        images/<ref>.json               record
        children/<image>/<child>        and all others: their first part is the folder

    All but the ref of the record are percent-encoded.
    """

    def __init__(self, store: DataStore) -> None:
        self._store = store

    async def read(self, about: About) -> bytes | None:
        return await read_object(self._store, document_ref(about))

    async def put(self, about: About, content: bytes, *, token: str, replace: bool = False) -> None:
        ref = document_ref(about)
        async with self._store.write(ref, Kind.BYTE_STREAM, token=token, size=len(content), replace=replace) as pending:
            await as_pending_stream(pending).write(memoryview(content))
            await pending.commit()

    async def remove(self, about: About) -> None:
        await self._store.delete(document_ref(about))

    async def names(self, folder: About) -> Sequence[str]:
        ref = document_ref(folder)
        below = [info.ref[len(ref) + 1 :] async for info in self._store.list(ref) if not info.is_dir]
        return list(dict.fromkeys(unquote(name.partition("/")[0]) for name in below if name))

    async def discard(self, about: About, *, token: str) -> None:
        await self._store.discard(document_ref(about), token=token)


def document_ref(about: About) -> str:
    """The object that holds it, where documents are objects."""
    if about.parts == ("record",):
        return f"{HIDDEN}/images/{about.image}.json"
    folder, *names = about.parts
    return "/".join((HIDDEN, folder, *(quote(name, safe="") for name in (about.image, *names))))
