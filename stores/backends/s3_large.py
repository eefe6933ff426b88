"""A part of a multipart upload that is larger than the memory there is for it: it passes through once for its checksum, and is
then sent from where it can be read again."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from functools import partial

from stores.backends.s3_send import Part, Sender
from stores.backends.s3_sums import crc64nvme
from stores.contract import RangeReader
from stores.errors import IntegrityError
from stores.transfer.engine import TransferEngine
from stores.transfer.put import Reread
from stores.transfer.scratch import Scratch
from stores.transfer.slices import Slice

LARGE_AT_ONCE = 2
"""Parts of one stream that are in work at once: one is filled while another is sent. Those of a source that cannot be read
again take so much room on a disk."""


class LargePart:
    """Part `number`, which begins at byte `start` of the object. With `source`, which is the whole object, it is read again
    from there; without, it is kept in a file without a name (`TransferEngine.scratch_file`)."""

    def __init__(
        self, engine: TransferEngine, number: int, start: int, length: int, source: RangeReader | None
    ) -> None:
        """`length`: the most that it can have. Bytes, as `start`."""
        self.number = number
        self.length = length
        self.filled = 0
        self.crc = 0
        self._engine = engine
        self._start = start
        self._source = source
        self._kept: Scratch | None = engine.scratch_file() if source is None else None

    @property
    def whole(self) -> bool:
        return self.filled == self.length

    async def pass_through(self, view: memoryview) -> None:
        """The next bytes of it, in order; they need not be kept when this returns."""
        self.crc = await self._engine.run(crc64nvme, view, self.crc)
        if self._kept is not None:
            await self._kept.append(view)
        self.filled += len(view)

    async def send(self, sender: Sender, upload_id: str) -> Part:
        """As `Sender.part`. Where the bytes are other ones by now, the server refuses them, or does not confirm them."""
        body = Reread(self._engine, self._reader())
        return await sender.part(upload_id, self.number, body, self.crc, partial(self._md5, body))

    async def close(self) -> None:
        """Nothing is kept any more. Idempotent."""
        if self._kept is not None:
            await self._kept.close()

    async def _md5(self, body: Reread) -> str:
        """Of what has passed through: reading it once more must give the same CRC."""
        digest, crc = hashlib.md5(usedforsecurity=False), 0
        async with aclosing(body.pieces()) as pieces:
            async for piece in pieces:
                crc = await self._engine.run(crc64nvme, piece, crc)
                await self._engine.run(digest.update, piece)
        if crc != self.crc:
            raise IntegrityError(
                f"part {self.number} was read twice, and has changed in between: send the object again"
            )
        return digest.hexdigest()

    def _reader(self) -> RangeReader:
        if self._source is not None:
            return Slice(self._source, self._start, self._start + self.filled)
        assert self._kept is not None
        return self._kept
