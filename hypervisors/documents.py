"""Small JSON objects in a store: what we know of images, beside the images."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hypervisors.narrowing import as_pending_stream, as_reader
from stores.contract import DataStore, Kind, MiB
from stores.errors import IntegrityError, NotFound

Model = TypeVar("Model", bound=BaseModel)

_LIMIT = 1 * MiB
"""Bytes; a document has some hundred."""


async def read(store: DataStore, ref: str) -> bytes | None:
    """The document's bytes; None if there is none."""
    try:
        info = await store.stat(ref)
    except NotFound:
        return None
    size = info.size or 0
    if size > _LIMIT:
        raise IntegrityError(f"{ref} has {size} bytes; it is not ours", store=store.id, ref=ref)
    async with store.present(info, Kind.RANGE_READER) as presentation:
        return await as_reader(presentation).read(0, size)


async def load(store: DataStore, ref: str, model: type[Model], *, otherwise: str) -> Model | None:
    """The document; None if there is none. `IntegrityError` if it is damaged: `otherwise` says what to do."""
    text = await read(store, ref)
    if text is None:
        return None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise IntegrityError(
            f"{ref} is damaged ({error.error_count()} faults): {otherwise}", store=store.id, ref=ref
        ) from None


async def save(store: DataStore, ref: str, value: BaseModel, *, token: str, replace: bool = False) -> None:
    """Durable when it returns. `AlreadyExists` if there is one already, unless `replace`."""
    await put(store, ref, value.model_dump_json(indent=1).encode(), token=token, replace=replace)


async def put(store: DataStore, ref: str, content: bytes, *, token: str, replace: bool = False) -> None:
    async with store.write(ref, Kind.BYTE_STREAM, token=token, size=len(content), replace=replace) as pending:
        await as_pending_stream(pending).write(memoryview(content))
        await pending.commit()
