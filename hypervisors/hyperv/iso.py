"""An ISO on its way into a pool: its bytes, expanded, in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from hypervisors.contract import Source, Written
from hypervisors.hyperv.place import as_host_file
from hypervisors.landing import verify
from hypervisors.narrowing import as_pending_stream, as_stream
from stores.contract import ByteStream, Kind, PendingWrite, Progress, RangeReader
from stores.streams import presented
from stores.to import ImageFormat
from stores.transfer.compression import expand
from stores.transfer.digests import Checksum, Digester
from stores.transfer.engine import TransferEngine


async def bring_iso(
    engine: TransferEngine,
    source: Source,
    target: PendingWrite,
    *,
    limit: int,
    checksum: Checksum | None,
    progress: Progress,
) -> Written:
    """Of an image store, or of a pool. At most `limit` bytes of one that is compressed: `TooLarge`. `ChecksumMismatch`."""
    given, stream = source.presentation, as_pending_stream(target)
    digester = Digester([checksum.algorithm] if checksum is not None else [])
    size = 0
    progress.phase("transfer", given.info.size)

    async def passing(pieces: ByteStream) -> AsyncGenerator[memoryview, None]:
        async for piece in pieces:
            await engine.run(digester.update, piece)
            yield piece
            progress.advance(len(piece))

    async with AsyncExitStack() as stack:
        if given.kind is Kind.MANAGED_DISK:
            given = await stack.enter_async_context(as_host_file(given).opened())
        ahead = engine.stream(given) if isinstance(given, RangeReader) else as_stream(given)
        stored = await stack.enter_async_context(aclosing(passing(await stack.enter_async_context(presented(ahead)))))
        content = stored
        if source.spec.compression is not None:
            expanding = expand(stored, source.spec.compression, run=engine.run, limit=limit)
            content = await stack.enter_async_context(aclosing(expanding))
        async for piece in content:
            await stream.write(piece)
            size += len(piece)
    verify(checksum, digester.hexdigests(), source.presentation.info.ref)
    return Written(ImageFormat.ISO, size, size, digester.hexdigests())
