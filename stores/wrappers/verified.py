"""Objects that must have a certain size and checksum.

What can be promised depends on how an object is read. A byte stream is digested as it passes, and its end is not reached
unless size and checksum agree. Ranges, paths and exports are read in any order, by others, more than once or in part: for
those the size is compared before the first byte, the version is pinned by the store, and the checksum is not verified here.
Who needs it digests the object (`TransferEngine.digest`, or `fetch` with digests).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from stores.contract import ByteStream, DataStore, Kind, ObjectInfo, Presentation
from stores.errors import ChecksumMismatch, IntegrityError
from stores.streams import presented
from stores.transfer.digests import Checksum, Digester
from stores.transfer.engine import TransferEngine
from stores.wrappers.base import WrapperStore


@dataclass(frozen=True, slots=True)
class Expected:
    """What an object must be. `size` in bytes; None: not known."""

    size: int | None = None
    checksum: Checksum | None = None


class VerifiedStore(WrapperStore):
    """`expected`: by ref. Objects that are not in it are not looked at."""

    def __init__(self, inner: DataStore, expected: Mapping[str, Expected], engine: TransferEngine) -> None:
        super().__init__(inner)
        self._expected = dict(expected)
        self._engine = engine

    async def stat(self, ref: str) -> ObjectInfo:
        """`IntegrityError` when the store tells another size than the expected one."""
        info = await self.inner.stat(ref)
        self._check_size(info)
        return info

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        """`IntegrityError` when the size differs, `ChecksumMismatch` at the end of a byte stream when the checksum does."""
        self._check_size(info)
        async with self.inner.present(info, kind) as presentation:
            expected = self._expected.get(info.ref)
            if expected is not None and isinstance(presentation, ByteStream):
                async with presented(_VerifiedStream(presentation, expected, self._engine)) as stream:
                    yield stream
            else:
                yield presentation

    def _check_size(self, info: ObjectInfo) -> None:
        expected = self._expected.get(info.ref)
        if expected is not None and expected.size is not None and info.size is not None:
            _compare_size(info.ref, expected.size, info.size)


class _VerifiedStream(ByteStream):
    def __init__(self, inner: ByteStream, expected: Expected, engine: TransferEngine) -> None:
        self.info = inner.info
        self._inner = inner
        self._expected = expected
        self._engine = engine

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        ref, expected = self.info.ref, self._expected
        digester = Digester([expected.checksum.algorithm] if expected.checksum else [])
        seen = 0
        async for piece in self._inner:
            seen += len(piece)
            if expected.size is not None and seen > expected.size:
                _compare_size(ref, expected.size, seen)
            if expected.checksum:
                await self._engine.run(digester.update, piece)
            yield piece
        if expected.size is not None:
            _compare_size(ref, expected.size, seen)
        if expected.checksum:
            _compare_digest(ref, expected.checksum, digester.hexdigests()[expected.checksum.algorithm])


def _compare_size(ref: str, expected: int, seen: int) -> None:
    if expected != seen:
        raise IntegrityError(f"{ref} should have {expected} bytes and has {seen}", ref=ref, needed=expected, seen=seen)


def _compare_digest(ref: str, expected: Checksum, found: str) -> None:
    if expected.hex != found:
        raise ChecksumMismatch(
            f"{ref} has the {expected.algorithm} digest {found}, and {expected.hex} was expected",
            ref=ref,
            algorithm=expected.algorithm,
            expected=expected.hex,
            found=found,
        )
