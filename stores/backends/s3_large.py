"""A part of a multipart upload that is larger than the memory there is for it: it passes through once for its checksum, and is
then sent from where it can be read again."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from stores.backends.s3_sums import crc64nvme
from stores.contract import RangeReader
from stores.errors import IntegrityError
from stores.transfer.engine import TransferEngine
from stores.transfer.put import Reread
from stores.transfer.scratch import Scratch
from stores.transfer.slices import Slice


class LargePart:
    """Part `number`, which begins at byte `start` of the object. With `source`, which is the whole object, it is read again
    from there; without, it is kept in a file without a name (`TransferEngine.scratch_file`)."""

    def __init__(
        self,
        engine: TransferEngine,
        number: int,
        start: int,
        length: int,
        source: RangeReader | None,
        send: Callable[[LargePart], Awaitable[None]],
    ) -> None:
        """`length`: the most that it can have. Bytes, as `start`. `send` sends the part, once all of it has passed."""
        self.number = number
        self.length = length
        self.filled = 0
        self.crc = 0
        self._engine = engine
        self._start = start
        self._source = source
        self._send = send
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

    async def send(self) -> None:
        await self._send(self)

    def body(self) -> Reread:
        """All of it once more. Where the bytes are other ones by now, the server refuses them, or does not confirm them."""
        return Reread(self._engine, self._reader())

    async def close(self) -> None:
        """Nothing is kept any more. Idempotent."""
        if self._kept is not None:
            await self._kept.close()

    async def md5(self) -> str:
        """Of what has passed through: reading it once more must give the same CRC."""
        digest, crc = hashlib.md5(usedforsecurity=False), 0
        async with aclosing(self.body().pieces()) as pieces:
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
