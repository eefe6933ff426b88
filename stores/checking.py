"""The promises of `stores.contract`, tried on somebody's own store.

Everything happens below one prefix with a random name, so that nothing else in the store is touched; and every name that may be
written is known before the first byte, so that all of it can be removed whenever this ends.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import cast

from stores.contract import ByteStream, DataStore, KiB, Kind, MiB, ObjectInfo, PendingStream, RangeReader
from stores.errors import AlreadyExists, NotFound, ObjectChanged, StorageError, StoreUnsupported
from stores.uninterrupted import uninterrupted

SMALL = 64 * KiB + 1
LARGE = 24 * MiB + 5
"""More than every store sends by one request."""
BEGINNING = "storage-agent-check-"


class Verdict(StrEnum):
    """How a promise fared."""

    OK = "ok"
    BROKEN = "broken"
    NOT_OFFERED = "not offered"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seen`: what there was instead of what was promised; empty where it was kept."""

    promise: str
    verdict: Verdict
    seen: str = ""


class Broken(Exception):
    """A promise was not kept; says what was seen."""


class StoreCheck:
    """Of one store, once. `name`: random, unlike any other's. `folder`: for a file of `LARGE` bytes that is uploaded; an empty
    directory of the caller's."""

    def __init__(self, store: DataStore, name: str, folder: Path) -> None:
        self.prefix = f"{BEGINNING}{name}"
        self._store = store
        self._token = f"check-{name}"
        self._source = folder / "upload"
        self._promises: Sequence[tuple[str, Callable[[], Awaitable[None]]]] = (
            ("an object that is not there is not found", self._missing),
            ("what is written is there as it was sent", self._written),
            ("nothing is visible before the commit", self._invisible),
            ("a taken name is not overwritten", self._taken),
            ("replacing takes the place at once, and readers of the old one are told", self._replaced),
            ("a write that is given up leaves nothing", self._given_up),
            ("a write that is cancelled leaves nothing", self._cancelled),
            ("any range gives the bytes of its place", self._ranges),
            ("a large object arrives whole", self._large),
            ("a file is uploaded, and gone on with after an interruption", self._uploaded),
            ("what an interrupted upload left is discarded, by its own token only", self._discarded),
            ("listing shows what is there, in order", self._listed),
            ("deleting removes, and may be repeated", self._deleted),
            ("usage is told", self._usage),
        )

    @property
    def promises(self) -> int:
        return len(self._promises) + 1

    async def run(self) -> AsyncGenerator[Outcome, None]:
        """One promise after the other. However this ends, all that was made is removed: to be closed (`aclosing`)."""
        try:
            for promise, attempt in self._promises:
                yield await _tried(promise, attempt)
            yield await _tried("nothing of all this is left", self._nothing_left)
        finally:
            await uninterrupted(self.tidy())

    async def tidy(self) -> None:
        """Removes whatever may have been made. Idempotent. The first failure is raised, after everything was tried."""
        failure: StorageError | None = None
        if not self._store.writes:
            return
        for ref in self._refs():
            for remove in (partial(self._store.discard, ref, token=self._token), partial(self._store.delete, ref)):
                try:
                    await remove()
                except StoreUnsupported:
                    continue
                except StorageError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    # ------------------------------------------------------------------------------------------------ the promises

    async def _missing(self) -> None:
        with suppress(NotFound):
            found = await self._store.stat(self._ref("missing"))
            raise Broken(f"an object of {found.size} bytes")

    async def _written(self) -> None:
        for name, size in (("empty", 0), ("small", SMALL)):
            info = await self._write(name, size)
            _same("the size", size, info.size)
            seen = await self._store.stat(self._ref(name))
            _same("size and version", (size, info.version), (seen.size, seen.version))
            await self._expect(seen, size)

    async def _invisible(self) -> None:
        async with self._writing("invisible") as pending:
            await pending.write(memoryview(_content(SMALL)))
            await self._gone("invisible")

    async def _taken(self) -> None:
        info = await self._write("taken", SMALL)
        with suppress(AlreadyExists):
            await self._write("taken", SMALL, seed=2)
            raise Broken("the second writer succeeded")
        await self._expect(info, SMALL)

    async def _replaced(self) -> None:
        old = await self._write("replaced", SMALL)
        new = await self._write("replaced", SMALL, seed=2, replace=True)
        await self._expect(new, SMALL, seed=2)
        with suppress(ObjectChanged, NotFound):
            await self._digest(old)
            raise Broken("the old version could still be opened, or the new one in its place")

    async def _given_up(self) -> None:
        async with self._writing("given-up") as pending:
            await pending.write(memoryview(_content(LARGE)))
        await self._gone("given-up")

    async def _cancelled(self) -> None:
        begun = asyncio.Event()

        async def endless() -> None:
            async with self._writing("cancelled") as pending:
                while True:
                    await pending.write(memoryview(_content(MiB)))
                    begun.set()

        task = asyncio.ensure_future(endless())
        waiting = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            task.cancel()
            await uninterrupted(asyncio.wait([task, waiting]))
        if not task.cancelled():
            await task
        await self._gone("cancelled")

    async def _ranges(self) -> None:
        self._need(Kind.RANGE_READER in self._store.offers())
        data = _content(SMALL)
        info = await self._write("ranges", SMALL)
        async with self._store.present(info, Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            for offset, length in ((0, 1), (SMALL - 1, 1), (4096, 4096), (1, SMALL - 2), (0, SMALL)):
                if await reader.read(offset, length) != data[offset : offset + length]:
                    raise Broken(f"other bytes at {offset}-{offset + length - 1}")

    async def _large(self) -> None:
        info = await self._write("large", LARGE)
        _same("the size", LARGE, info.size)
        await self._expect(info, LARGE)

    async def _uploaded(self) -> None:
        ref = await self._uploads()
        async with self._store.upload(ref("uploaded"), self._source, token=self._token) as upload:
            parts = upload.parts
            if parts > 1:
                await upload.send(1)
                await self._gone("uploaded")
        async with self._store.upload(ref("uploaded"), self._source, token=self._token) as upload:
            again = [await upload.send(number) for number in range(1, parts + 1)]
            if parts > 1 and again[0]:
                raise Broken("the part that was sent had to be sent again")
            info = await upload.commit()
        await self._expect(info, LARGE)

    async def _discarded(self) -> None:
        ref = await self._uploads()
        async with self._store.upload(ref("discarded"), self._source, token=self._token) as upload:
            await upload.send(1)
        await self._store.discard(ref("discarded"), token=f"{self._token}-another")
        await self._store.discard(ref("discarded"), token=self._token)
        async with self._store.upload(ref("discarded"), self._source, token=self._token) as upload:
            if upload.parts > 1 and not await upload.send(1):
                raise Broken("the part was still there")
        await self._store.discard(ref("discarded"), token=self._token)
        await self._gone("discarded")

    async def _listed(self) -> None:
        names = ("list/a", "list/b/c", "list/b-d", "list2")
        for name in names:
            await self._write(name, 1)
        found = [info.ref async for info in self._store.list(self._ref("list"))]
        _same("the listing", sorted(self._ref(name) for name in names[:3]), found)

    async def _deleted(self) -> None:
        await self._write("deleted", 1)
        for _ in range(2):
            await self._store.delete(self._ref("deleted"))
        await self._gone("deleted")

    async def _usage(self) -> None:
        usage = await self._store.usage()
        if usage.used < 0 or (usage.capacity is not None and usage.capacity < usage.used):
            raise Broken(f"{usage.used} bytes of {usage.capacity} are used")

    async def _nothing_left(self) -> None:
        self._need(bool(self._store.writes))
        await self.tidy()
        for ref in self._refs():
            await self._gone(ref.removeprefix(f"{self.prefix}/"))
        with suppress(StoreUnsupported):
            left = [info.ref async for info in self._store.list(self.prefix)]
            _same("the listing", [], left)

    # ---------------------------------------------------------------------------------------------------- helpers

    def _refs(self) -> Sequence[str]:
        """Every name that is ever written."""
        names = (
            "missing", "empty", "small", "invisible", "taken", "replaced", "given-up", "cancelled", "ranges", "large",
            "uploaded", "discarded", "list/a", "list/b/c", "list/b-d", "list2", "deleted",
        )  # fmt: skip
        return [self._ref(name) for name in names]

    def _ref(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    async def _uploads(self) -> Callable[[str], str]:
        self._need(Kind.UPLOAD in self._store.writes)
        if not self._source.exists():
            await asyncio.to_thread(self._source.write_bytes, _content(LARGE))
        return self._ref

    def _need(self, offered: bool) -> None:
        if not offered:
            raise StoreUnsupported("the store does not offer this")

    @asynccontextmanager
    async def _writing(
        self, name: str, *, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingStream]:
        self._need(Kind.BYTE_STREAM in self._store.writes)
        async with self._store.write(
            self._ref(name), Kind.BYTE_STREAM, token=self._token, size=size, replace=replace
        ) as pending:
            yield cast(PendingStream, pending)

    async def _write(self, name: str, size: int, *, seed: int = 1, replace: bool = False) -> ObjectInfo:
        data = memoryview(_content(size, seed))
        async with self._writing(name, size=size, replace=replace) as pending:
            for start in range(0, size, MiB):
                await pending.write(data[start : start + MiB])
            return await pending.commit()

    async def _gone(self, name: str) -> None:
        with suppress(NotFound):
            found = await self._store.stat(self._ref(name))
            raise Broken(f"{name} is there, with {found.size} bytes")

    async def _expect(self, info: ObjectInfo, size: int, *, seed: int = 1) -> None:
        if await self._digest(info) != hashlib.sha256(_content(size, seed)).hexdigest():
            raise Broken(f"other bytes than were sent, in {info.ref}")

    async def _digest(self, info: ObjectInfo) -> str:
        digest = hashlib.sha256()
        async with self._store.present(info, Kind.BYTE_STREAM) as stream:
            assert isinstance(stream, ByteStream)
            async for piece in stream:
                digest.update(piece)
        return digest.hexdigest()


async def _tried(promise: str, attempt: Callable[[], Awaitable[None]]) -> Outcome:
    try:
        await attempt()
    except StoreUnsupported:
        return Outcome(promise, Verdict.NOT_OFFERED)
    except Broken as broken:
        return Outcome(promise, Verdict.BROKEN, str(broken))
    except StorageError as error:
        return Outcome(promise, Verdict.BROKEN, f"{error.kind}: {error.message}")
    return Outcome(promise, Verdict.OK)


def _same(what: str, expected: object, seen: object) -> None:
    if expected != seen:
        raise Broken(f"{what} is {seen}, and should be {expected}")


def _content(size: int, seed: int = 1) -> bytes:
    """Bytes that do not repeat within a MiB."""
    return (_block(seed) * (size // MiB + 1))[:size]


@functools.cache
def _block(seed: int) -> bytes:
    return random.Random(seed).randbytes(MiB)  # noqa: S311 - content, not a secret
