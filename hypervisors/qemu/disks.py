"""The disk of an image that is read at random, whichever of us reads it.

| the image comes as | and is read |
| --- | --- |
| ranges of a QCOW2 | by its map, straight from there |
| ranges of a QCOW2 with compressed clusters, or of another format | by qemu-nbd, over the bridge |
| a file, the bridge's NBD export | by qemu-nbd |
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hypervisors.contract import Source
from hypervisors.images import qcow2_map
from hypervisors.images.mapped import MappedDisk
from hypervisors.nbd import connect
from hypervisors.qemu.exports import exported
from hypervisors.qemu.nodes import known_format
from stores.bridge import serve
from stores.contract import RangeReader
from stores.errors import StorageError
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine


@dataclass(frozen=True, slots=True)
class ForeignDisks:
    """Sockets live below `runtime_dir`."""

    engine: TransferEngine
    tools: ToolRunner
    runtime_dir: Path

    @asynccontextmanager
    async def opened(self, source: Source) -> AsyncIterator[RangeReader]:
        """With its extents, until the context ends. Of an image that the gate has let pass, not compressed and no stream.
        `ImageRefused` for one whose tables cannot be; otherwise what the source and qemu-nbd raise."""
        given = source.presentation
        if not isinstance(given, RangeReader):
            async with self._by_qemu(source) as disk:
                yield disk
            return
        clusters = None
        if known_format(source) is ImageFormat.QCOW2:
            clusters = await qcow2_map.read_map(given, self.engine)
        if clusters is not None:
            yield await self.engine.run(MappedDisk, given, clusters, self.engine.network.of(given))
        else:
            async with self._by_bridge(source, given) as disk:
                yield disk

    @asynccontextmanager
    async def _by_qemu(self, source: Source) -> AsyncIterator[RangeReader]:
        async with (
            exported(self.tools, source, runtime_dir=self.runtime_dir) as (socket, name),
            connect(socket, name, engine=self.engine) as disk,
        ):
            yield disk

    @asynccontextmanager
    async def _by_bridge(self, source: Source, image: RangeReader) -> AsyncIterator[RangeReader]:
        socket = self.runtime_dir / "nbd" / f"{secrets.token_hex(6)}.sock"
        async with serve(image, socket) as export:
            try:
                async with self._by_qemu(replace(source, presentation=export)) as disk:
                    yield disk
            except StorageError as error:
                cause = export.failure()  # qemu only says "Input/output error"
                if cause is None:
                    raise
                raise cause from error
