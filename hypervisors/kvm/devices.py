"""KVM's volumes that are no files: raw disks on the network or of this host, which qemu opens by itself.

What their storage does by itself (`stores.contract.StorageSide`) is left to it; all else is qemu-img's.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from hypervisors.contract import ImageSpec, Source, Written, refuse_cut
from hypervisors.narrowing import as_device
from hypervisors.qemu.nodes import Node, own_node, raw_node, source_node, zeroes_node
from hypervisors.qemu.qemu_img import QemuImg, direct_io_works
from stores.bridge import serve
from stores.contract import LocalPath, NetworkImage, PendingImage, Progress, RangeReader, Silent
from stores.errors import StorageError
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine


class KvmDevices:
    """Writes them, and changes their sizes. Snapshots: `hypervisors.kvm.device_snapshots`."""

    def __init__(self, engine: TransferEngine, qemu_img: QemuImg, runtime_dir: Path) -> None:
        """Sockets live below `runtime_dir`."""
        self._engine = engine
        self._qemu_img = qemu_img
        self._runtime_dir = runtime_dir

    async def copy(self, source: Source, target: PendingImage, spec: ImageSpec, progress: Progress) -> Written:
        """The disk of `source`, which qemu opens; grown to `spec.virtual_size`."""
        given, size = source.presentation, (await self._qemu_img.sizes(own_node(source))).virtual
        refuse_cut(size, spec.virtual_size)
        direct = isinstance(given, LocalPath) and await self._engine.run(direct_io_works, given.path)
        made = await target.make(max(size, spec.virtual_size or 0))
        await self._write(source_node(source), size, made, blank=target.blank, direct=direct, progress=progress)
        return await self.measure(made, spec.format)

    async def fill(self, disk: RangeReader, target: PendingImage, spec: ImageSpec, progress: Progress) -> Written:
        """The content of `disk`; what it says is zero is not read."""
        socket = self._runtime_dir / "nbd" / f"{secrets.token_hex(6)}.sock"
        async with serve(disk, socket) as export:
            try:
                return await self.copy(Source(export, ImageSpec(ImageFormat.RAW)), target, spec, progress)
            except StorageError as error:
                cause = export.failure()  # qemu only says "Input/output error"
                if cause is None:
                    raise
                raise cause from error

    async def create(self, target: PendingImage, spec: ImageSpec, *, backing: Source | None) -> Written:
        """Empty, or with the content of `backing`, whose blocks it shares."""
        if backing is not None:
            made = await target.derive(as_device(backing.presentation), None)
            return await self.grown(made, spec)
        size = spec.virtual_size or 0
        made = await target.make(size)
        if not target.blank:
            await self._write(zeroes_node(size), size, made, blank=False, direct=False, progress=Silent())
        return await self.measure(made, spec.format)

    async def grown(self, image: NetworkImage, spec: ImageSpec) -> Written:
        """`image`, of at least `spec.virtual_size` bytes. `SizeRefused` if it is larger than that."""
        size = await self.size(image)
        refuse_cut(size, spec.virtual_size)
        if spec.virtual_size is not None and spec.virtual_size > size:
            await image.storage.resize(spec.virtual_size)
        return await self.measure(image, spec.format)

    async def measure(self, image: NetworkImage, image_format: ImageFormat | None) -> Written:
        size, used = await self.size(image), await image.storage.used()
        return Written(image_format or ImageFormat.RAW, size, size if used is None else used)

    async def size(self, image: NetworkImage) -> int:
        """Bytes that a guest sees. Also while one has it."""
        told = await image.storage.size()
        return told if told is not None else (await self._qemu_img.sizes(raw_node(image), running=True)).virtual

    async def _write(
        self, source: Node, size: int, made: NetworkImage, *, blank: bool, direct: bool, progress: Progress
    ) -> None:
        """All of `source`, which has `size` bytes, and zeroes behind it."""
        progress.phase("convert", size)
        await self._qemu_img.convert_into(
            source, raw_node(made), size=size, direct_source=direct, blank=blank, progress=progress
        )
        rest = 0 if blank else await self.size(made) - size
        if rest > 0:
            await self._qemu_img.convert_into(
                zeroes_node(rest),
                raw_node(made, offset=size),
                size=rest,
                direct_source=False,
                blank=False,
                progress=Silent(),
            )
