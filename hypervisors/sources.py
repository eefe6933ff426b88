"""What a copy reads: who vouches for its format, what the gate says, and in which form it is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from hypervisors.context import Context
from hypervisors.contract import HypervisorHandler, ImageSpec, Operation, Source
from hypervisors.digesting import DigestingReader
from hypervisors.encrypting import require_plain
from hypervisors.images.gate import HEAD, GateLimits, Verdict, inspect, inspect_head
from hypervisors.inspected import InspectedReader, InspectedStore
from hypervisors.narrowing import as_reader, as_stream
from hypervisors.primary import Pool
from stores.contract import DataStore, Kind, MiB, ObjectInfo, RangeReader
from stores.errors import InvalidReference, StoreUnsupported
from stores.resolver import CacheUse
from stores.to import ImageFormat
from stores.transfer.compression import Expander, sniff_compression
from stores.transfer.digests import Checksum
from stores.transfer.engine import TransferEngine

_COMPRESSED_HEAD = 1 * MiB
"""How much of a compressed object is expanded for a first look: more than one bzip2 block (900 kB)."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A source that may be opened, before it is. `reader` is there when it can be read at random."""

    store: DataStore
    info: ObjectInfo
    spec: ImageSpec
    reader: RangeReader | None


class OpenSource:
    """A source opened for a handler, and the digest of what the handler's tool reads of it."""

    def __init__(
        self, source: Source, reader: RangeReader | None, follower: DigestingReader | None, engine: TransferEngine
    ) -> None:
        self.source = source
        self._reader = reader
        self._follower = follower
        self._engine = engine

    async def digest(self, algorithm: str) -> dict[str, str]:
        """Of the object's bytes, once the handler is done with them."""
        if self._follower is not None:
            return await self._follower.finish()
        if self._reader is None:
            raise StoreUnsupported(f"{self.source.presentation.info.ref} cannot be read again for its checksum")
        return await self._engine.digest(self._reader, [algorithm])


@asynccontextmanager
async def examine(
    store: DataStore, info: ObjectInfo, declared: ImageFormat | None, limits: GateLimits
) -> AsyncIterator[Examined]:
    """An image from outside, past the gate: the beginning of it, or all metadata where it can be read at random.
    Raises `ImageRefused`."""
    if Kind.RANGE_READER in store.offers(info) and info.ranges and info.size is not None:
        async with store.present(info, Kind.RANGE_READER) as presentation:
            reader = InspectedReader(as_reader(presentation))
            spec = await _examined_at_random(reader, info.size, declared, limits)
            reader.seal()
            yield Examined(store, info, spec, reader)
    else:
        yield Examined(store, info, await _examined_in_order(store, info, declared, limits), None)


async def vouched_for(
    pool: Pool, info: ObjectInfo, declared: ImageFormat | None, *, encrypted: bool = False
) -> Examined:
    """An image of a pool: its format is what we recorded, else what the command says; its bytes are not asked, since a guest
    may have written them. `OperationUnsupported` for an encrypted one, unless it may be `encrypted`."""
    record = await pool.records.load(info.ref)
    if not encrypted:
        require_plain(record, info.ref)
    image_format = record.format if record is not None else declared
    if image_format is None:
        raise InvalidReference(
            f"the format of {info.ref} is neither recorded in its pool nor in the command, and is never guessed;"
            " name it in the command",
            store=pool.store.id,
            ref=info.ref,
        )
    encryption = record.encryption if record is not None else None
    return Examined(pool.store, info, ImageSpec(image_format, encryption=encryption), None)


@asynccontextmanager
async def opened(
    ctx: Context,
    handler: HypervisorHandler,
    operation: Operation,
    examined: Examined,
    target: ImageSpec,
    checksum: Checksum | None,
    cache: CacheUse | None,
) -> AsyncIterator[OpenSource]:
    """The source in the form that the handler likes best of those that the store has; `cache` as in `Resolver.open`."""
    store, info = examined.store, examined.info
    accepts = handler.accepts(operation, examined.spec, target)
    accepted = accepts.kinds
    reader, follower = examined.reader, None
    if reader is not None:
        if checksum is not None:
            # What a tool fetches by itself would have to be fetched once more for the checksum.
            accepted = tuple(kind for kind in accepted if kind is not Kind.HTTP_URL)
        at_random = (Kind.NBD_EXPORT, Kind.RANGE_READER) if accepts.random else (Kind.NBD_EXPORT,)
        if checksum is not None and ctx.resolver.negotiate(store, info, accepted, cache=cache).chosen in at_random:
            reader = follower = DigestingReader(reader, checksum.algorithm, ctx.engine)
        store = InspectedStore(store, reader)
    async with ctx.resolver.open(store, info, accepted, cache=cache) as presentation:
        yield OpenSource(Source(presentation, examined.spec), examined.reader, follower, ctx.engine)


@asynccontextmanager
async def with_parents(ctx: Context, pool: Pool, examined: Examined, kinds: Sequence[Kind]) -> AsyncIterator[Source]:
    """An image of a pool, in the first of `kinds` that fits, with every parent that our records name."""
    record = await pool.records.load(examined.info.ref)
    async with AsyncExitStack() as stack:
        parents = []
        for parent, above in await pool.records.chain(record) if record is not None else ():
            info = await examined.store.stat(parent.ref)
            presentation = await stack.enter_async_context(ctx.resolver.open(examined.store, info, kinds))
            parents.append(Source(presentation, ImageSpec(above.format if above is not None else parent.format)))
        top = await stack.enter_async_context(ctx.resolver.open(examined.store, examined.info, kinds))
        yield Source(top, examined.spec, tuple(parents))


@asynccontextmanager
async def opened_image(
    ctx: Context,
    handler: HypervisorHandler,
    pool: Pool,
    info: ObjectInfo,
    declared: ImageFormat | None,
    *,
    encrypted: bool = False,
) -> AsyncIterator[Source]:
    """An image of a pool with its parents, as its own hypervisor opens it: whatever its version is now, since a machine may be
    writing to it. As `vouched_for`."""
    examined = await vouched_for(pool, replace(info, version=None), declared, encrypted=encrypted)
    kinds = handler.accepts(Operation.SNAPSHOT, examined.spec, examined.spec).kinds
    async with with_parents(ctx, pool, examined, kinds) as source:
        yield source


async def _examined_at_random(
    reader: RangeReader, size: int, declared: ImageFormat | None, limits: GateLimits
) -> ImageSpec:
    head = await reader.read(0, min(HEAD, size))
    compression = sniff_compression(head)
    if compression is None:
        return _spec(await inspect(reader, declared=declared, limits=limits), None)
    head = await reader.read(0, min(_COMPRESSED_HEAD, size))
    return _expanded_head(head, len(head) == size, compression, declared, limits)


async def _examined_in_order(
    store: DataStore, info: ObjectInfo, declared: ImageFormat | None, limits: GateLimits
) -> ImageSpec:
    async with store.present(info, Kind.BYTE_STREAM) as presentation:
        head = bytearray()
        async for piece in as_stream(presentation):
            head += piece
            enough = _COMPRESSED_HEAD if sniff_compression(bytes(head[:HEAD])) else HEAD
            if len(head) >= enough:
                break
    whole = len(head) < enough or len(head) == info.size
    compression = sniff_compression(bytes(head[:HEAD]))
    if compression is not None:
        return _expanded_head(bytes(head), whole, compression, declared, limits)
    total = len(head) if whole else info.size
    return _spec(inspect_head(bytes(head), total_size=total, declared=declared, limits=limits), None, sequential=True)


def _expanded_head(
    compressed: bytes, whole: bool, compression: str, declared: ImageFormat | None, limits: GateLimits
) -> ImageSpec:
    """Judge what the beginning of a compressed object expands to; `whole` if there is no more of it."""
    expander = Expander(compression, limit=None)
    expander.feed(compressed)
    head = bytearray()
    ended = False
    while len(head) < HEAD and not ended:
        piece = expander.piece()
        head += piece
        ended = not piece
    if ended and whole:
        expander.finish()
    total = len(head) if ended and whole else None
    return _spec(inspect_head(bytes(head), total_size=total, declared=declared, limits=limits), compression)


def _spec(verdict: Verdict, compression: str | None, *, sequential: bool = False) -> ImageSpec:
    return ImageSpec(verdict.format, verdict.virtual_size, compression, sequential)
