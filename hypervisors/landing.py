"""Brings a source's bytes into a local file as they are: expanded if they are compressed, digested on the way.

Afterwards the file holds the object's content, in place, sparse, not yet durable. Nothing is read twice: the digest is
computed beside the transfer, over the object's own (compressed) bytes. Only a file that was cloned by reference is read once
for its digest, since cloning itself reads nothing.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from hypervisors.contract import Source
from hypervisors.local_file import open_file
from hypervisors.narrowing import as_stream
from stores.contract import ByteStream, LocalPath, Progress, RangeReader
from stores.errors import ChecksumMismatch
from stores.os_errors import translate
from stores.transfer.compression import expand
from stores.transfer.digests import Checksum, Digester
from stores.transfer.engine import TransferEngine

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)

_NOT_CLONABLE = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
"""FICLONE (ioctl_ficlonerange(2)): this file system cannot, or the two files are not on the same one."""


async def land(
    engine: TransferEngine, source: Source, path: Path, *, limit: int, checksum: Checksum | None, progress: Progress
) -> dict[str, str]:
    """The object's bytes into `path`, which exists. Returns the digests that were computed.

    `TooLarge` before a byte past `limit` is written, `ChecksumMismatch` when `checksum` is not that of the object. When it
    fails, `path` holds anything; whoever owns it removes it.
    """
    progress.phase("transfer", source.presentation.info.size if source.spec.compression is None else None)
    digests = await _bring(engine, source, path, limit, (checksum.algorithm,) if checksum else (), progress)
    verify(checksum, digests, source.presentation.info.ref)
    return digests


def verify(checksum: Checksum | None, digests: dict[str, str], ref: str) -> None:
    if checksum is not None and digests[checksum.algorithm] != checksum.hex:
        raise ChecksumMismatch(
            f"{ref} has {checksum.algorithm} {digests[checksum.algorithm]}, the command says {checksum.hex};"
            " nothing was published: correct the checksum or upload the image again",
            ref=ref,
            algorithm=checksum.algorithm,
            expected=checksum.hex,
            found=digests[checksum.algorithm],
        )


async def _bring(
    engine: TransferEngine, source: Source, path: Path, limit: int, names: Sequence[str], progress: Progress
) -> dict[str, str]:
    given = source.presentation
    if source.spec.compression is not None:
        stream = engine.stream(given) if isinstance(given, RangeReader) else as_stream(given)
        return await _expand(engine, stream, source.spec.compression, path, limit, names, progress)
    if isinstance(given, RangeReader):
        return (await engine.fetch(given, path, digests=names, progress=progress)).digests
    if isinstance(given, LocalPath):
        return await copy_file(engine, given, path, names, progress)
    return (await engine.store_stream(as_stream(given), path, limit=limit, digests=names, progress=progress)).digests


async def copy_file(
    engine: TransferEngine, source: LocalPath, path: Path, names: Sequence[str], progress: Progress
) -> dict[str, str]:
    async with open_file(source.path, engine) as reader:
        if not await engine.run(clone_file, source.path, path):
            return (await engine.fetch(reader, path, digests=names, progress=progress)).digests
        digests = await engine.digest(reader, names) if names else {}
        progress.advance(reader.info.size or 0)
        return digests


async def _expand(
    engine: TransferEngine,
    stream: ByteStream,
    compression: str,
    path: Path,
    limit: int,
    names: Sequence[str],
    progress: Progress,
) -> dict[str, str]:
    digester = Digester(names)
    async with (
        aclosing(_digested(engine, stream, digester)) as compressed,
        aclosing(expand(compressed, compression, run=engine.run, limit=limit)) as expanded,
    ):
        await engine.store_stream(expanded, path, limit=limit, progress=progress)
    return digester.hexdigests()


async def _digested(engine: TransferEngine, stream: ByteStream, digester: Digester) -> AsyncGenerator[memoryview, None]:
    async for piece in stream:
        await engine.run(digester.update, piece)
        yield piece


def clone_file(source: Path, target: Path) -> bool:
    """Let `target` share `source`'s blocks. False where the file system cannot; `target` is then unchanged. Blocking."""
    with open(source, "rb") as reading, open(target, "r+b") as writing:
        try:
            fcntl.ioctl(writing, _FICLONE, reading.fileno())
        except OSError as error:
            if error.errno in _NOT_CLONABLE:
                return False
            raise translate(error, source.name) from error
    return True
