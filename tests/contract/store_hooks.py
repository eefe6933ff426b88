"""How the store contract reaches past the store under test, and the names that it tries."""

from __future__ import annotations

import abc
import asyncio
from typing import Any

from stores.contract import DataStore, MiB

HOSTILE_REFS = [
    "",
    "/etc/passwd",
    "../secret",
    "a/../../secret",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "-rf",
    "a/-rf",
    "n" * 256,
    "/".join(["d" * 200] * 6),
    "surrogate-\udc80",
    "dir/.object.0123456789abcdef.partial",
]

STRANGE_REFS = [
    "template/tmpl/2/201/ubuntu.qcow2",
    "with space",
    "plus+plus",
    "percent%41%2F",
    "question?mark#hash",
    "semi;colon&amp=1",
    "ünïcödé/日本語/🦀",
    "quote'double\"back\\slash",
    "tilde~star*brackets[0]{1}",
    ".hidden",
    "a.b/..c/d..",
]


class ReadHooks(abc.ABC):
    """For a store that is only read."""

    sparse_size = 8 * MiB + 17
    """Size of the large sparse object; a store that keeps holes can afford much more."""

    @abc.abstractmethod
    async def put_directly(self, ref: str, data: bytes) -> None:
        """Create or overwrite an object."""

    async def put_sparse_directly(self, ref: str, size: int, pieces: dict[int, bytes]) -> None:
        """An object of zeroes apart from `pieces`; with holes where the store keeps them."""
        data = bytearray(size)
        for offset, piece in pieces.items():
            data[offset : offset + len(piece)] = piece
        await self.put_directly(ref, bytes(data))

    async def expect_no_more_tasks(self, before: set[asyncio.Task[Any]]) -> None:
        """Whatever the store began since has ended."""
        assert asyncio.all_tasks() == before


class WriteHooks(ReadHooks):
    """For a store that is written as well."""

    upload_part = 8 * MiB
    """Length of the first part of an upload of three of them."""

    @abc.abstractmethod
    async def read_directly(self, ref: str) -> bytes | None:
        """The object's bytes, or None if there is no such object."""

    @abc.abstractmethod
    async def everything_left(self) -> set[str]:
        """All that exists in the place of the store: objects, temporary files, unfinished uploads."""

    async def reopened(self, store: DataStore) -> DataStore:
        """The same store as another process would see it; the store itself where nothing outlives it."""
        return store
