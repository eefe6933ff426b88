"""KVM. In pools that are directories volumes are qcow2 or raw files: qemu-img converts, plain bytes are moved by the engine.
Elsewhere they are raw disks: `hypervisors.kvm.devices`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypervisors.contract import (
    Accepts,
    HypervisorHandler,
    HypervisorType,
    ImageLocked,
    ImageSpec,
    Operation,
    OperationUnsupported,
    Scratch,
    SizeRefused,
    Source,
    Written,
    refuse_cut,
)
from hypervisors.encrypting import LUKS
from hypervisors.images.gate import GateLimits, inspect
from hypervisors.kvm.device_snapshots import DeviceSnapshots
from hypervisors.kvm.devices import KvmDevices
from hypervisors.kvm.luks import KvmLuks, require_file
from hypervisors.kvm.snapshots import KvmSnapshots
from hypervisors.kvm.volume_snapshots import VolumeSnapshots
from hypervisors.landing import land
from hypervisors.local_file import open_file
from hypervisors.narrowing import as_local, as_pending_device, as_pending_file
from hypervisors.qemu.nodes import Node, driver_of, known_format, own_node, source_node
from hypervisors.qemu.qemu_img import QemuImg, direct_io_works
from hypervisors.snapshotting import Snapshots
from stores.contract import (
    DEVICES,
    ByteStream,
    HttpUrl,
    Kind,
    LocalPath,
    NbdExport,
    NetworkImage,
    ObjectInfo,
    PendingWrite,
    Progress,
    RangeReader,
)
from stores.to import ImageFormat, ProvisioningType
from stores.tools.process import ToolMissing
from stores.transfer.digests import Checksum
from stores.transfer.engine import TransferEngine

if TYPE_CHECKING:  # it takes time to import, and is only needed where there is a libvirt
    from hypervisors.kvm.guests import KvmGuests

_DEVICE_FORMATS = (ImageFormat.RAW, ImageFormat.ISO)

_NO_URL = (
    "no URL, since a {} image can name files of this host and a server could show qemu another image than it showed"
    " the gate"
)

_VOLUME_FORMATS = (ImageFormat.QCOW2, ImageFormat.RAW)
_TARGET_FORMATS = (*_VOLUME_FORMATS, ImageFormat.ISO)

_OF_THE_POOL = (Operation.SNAPSHOT, Operation.BACK_UP, Operation.EXPORT_VOLUME)

_NAMING_OTHERS = (ImageFormat.QCOW2, ImageFormat.VMDK)
"""Formats whose metadata can name other files, which qemu would open."""

_IN_POOLS = (Kind.LOCAL_PATH, *DEVICES)

_OPENED_BY_QEMU = (*_IN_POOLS, Kind.NFS_FILE)


class KvmHandler(HypervisorHandler):
    type = HypervisorType.KVM
    native_format = ImageFormat.QCOW2
    encrypts = True

    def __init__(
        self,
        engine: TransferEngine,
        qemu_img: QemuImg,
        limits: GateLimits,
        snapshots: KvmSnapshots,
        devices: KvmDevices,
        luks: KvmLuks,
        device_snapshots: DeviceSnapshots,
        guests: KvmGuests | None = None,
    ) -> None:
        """Without `guests`, those of this host are somebody else's affair."""
        self._engine = engine
        self._qemu_img = qemu_img
        self._limits = limits
        self._files = snapshots
        self._devices = devices
        self._luks = luks
        self._snapshots = VolumeSnapshots(snapshots, device_snapshots)
        self._guests = guests

    @property
    def snapshots(self) -> Snapshots:
        return self._snapshots

    @property
    def guests(self) -> KvmGuests:
        if self._guests is None:
            raise OperationUnsupported(
                "this agent has no libvirt, and so does nothing with virtual machines; name it in kvm.libvirt_uri",
                hypervisor=self.type.value,
            )
        return self._guests

    async def reconcile(self, claimed: Collection[str] = ()) -> None:
        with suppress(ToolMissing):  # no libvirt, no guests
            await self._files.reconcile()

    async def aclose(self) -> None:
        if self._guests is not None:
            await self._guests.aclose()

    # ------------------------------------------------------------------------------------------- declarations

    def accepts(self, operation: Operation, source: ImageSpec, target: ImageSpec) -> Accepts:
        if source.format is not None:
            driver_of(source.format)
        if operation is Operation.ATTACH_ISO:
            return Accepts(
                (Kind.LOCAL_PATH,), "qemu reads a guest's CD drive from a file for as long as the guest runs"
            )
        if operation in _OF_THE_POOL:
            return Accepts(_IN_POOLS, "qemu opens the volume itself, to serve its disk over NBD")
        if operation is Operation.RESTORE:
            return Accepts(
                (Kind.RANGE_READER,),
                "the objects of a chain are read at random, and only what the disk still has of each",
            )
        if operation is Operation.LINK_TEMPLATE:
            if target.device:
                return Accepts(DEVICES, "the storage lets the clone share the template's blocks")
            return Accepts((Kind.LOCAL_PATH,), "a linked clone refers to its template by a path inside the pool")
        if target.device:
            return _to_a_device(operation, source)
        if source.compression is not None:
            where = (
                "straight into place"
                if self.keeps_bytes(source, target)
                else "into a scratch file that qemu-img converts"
            )
            return Accepts(
                (Kind.RANGE_READER, Kind.BYTE_STREAM),
                f"{source.compression} can only be expanded in order: {where}, within bounds",
            )
        if self.keeps_bytes(source, target):
            return Accepts(
                (Kind.LOCAL_PATH, Kind.RANGE_READER, Kind.BYTE_STREAM, *DEVICES),
                "source and target have the same format: the bytes go straight into place",
            )
        if source.sequential:
            return Accepts(
                (*_OPENED_BY_QEMU, Kind.BYTE_STREAM),
                "qemu-img converts and reads at random, which this store cannot: a scratch file in the pool comes in between",
            )
        if source.format in _NAMING_OTHERS:
            return Accepts(
                (*_OPENED_BY_QEMU, Kind.NBD_EXPORT),
                f"qemu-img converts and reads at random; {_NO_URL.format(source.format)}",
            )
        return Accepts((*_OPENED_BY_QEMU, Kind.HTTP_URL, Kind.NBD_EXPORT), "qemu-img converts and reads at random")

    def fills(self, operation: Operation, target: ImageSpec) -> Accepts:
        if operation is Operation.BACK_UP and target.format is not ImageFormat.QCOW2:
            raise OperationUnsupported(
                f"backups of KVM volumes are QCOW2 objects, not {target.format}",
                hypervisor=self.type.value,
                format=target.format,
            )
        if target.passphrase is not None:
            require_file(target.format, device=target.device)
        if target.device:
            return _device(target)
        if target.format not in _TARGET_FORMATS:
            raise OperationUnsupported(
                f"KVM keeps images as {', '.join(_TARGET_FORMATS)} in a directory, not as {target.format}",
                hypervisor=self.type.value,
                format=target.format,
            )
        if operation is Operation.LINK_TEMPLATE and target.format is not ImageFormat.QCOW2:
            raise OperationUnsupported(
                f"a linked clone is a QCOW2 image, not {target.format}; set fullCloneFlag for a full clone",
                hypervisor=self.type.value,
                format=target.format,
            )
        if operation in (Operation.BACK_UP, Operation.EXPORT_VOLUME):
            return Accepts(
                (Kind.LOCAL_PATH, Kind.BYTE_STREAM),
                "the image is laid out before its data are read, and sent in one pass",
            )
        return Accepts((Kind.LOCAL_PATH,), "qemu needs its volume as a file in the pool, which it writes at random")

    def keeps_bytes(self, source: ImageSpec, target: ImageSpec) -> bool:
        """Also an ISO and a raw image: qemu reads both with one driver. A device is always written by a tool, and so is what is
        encrypted."""
        if source.format is None or target.format is None or target.device or target.passphrase is not None:
            return False
        return driver_of(source.format) == driver_of(target.format)

    # --------------------------------------------------------------------------------------------------- verbs

    async def estimate(self, source: Source, target: ImageSpec) -> int | None:
        """In place: the object's size. Converted: what qemu-img measures, which for a raw object with unknown holes is all of
        it. None for compressed sources, those that come in order, and what goes to a device, which has its size or is thin."""
        if source.spec.compression is not None or target.device:
            return None
        if self.keeps_bytes(source.spec, target) and not source.backing:
            return source.presentation.info.size
        if isinstance(source.presentation, RangeReader | ByteStream):
            return None
        return await self._qemu_img.required(source_node(source), _format(target))

    async def copy(
        self,
        source: Source,
        target: PendingWrite,
        spec: ImageSpec,
        *,
        scratch: Scratch,
        checksum: Checksum | None,
        progress: Progress,
    ) -> Written:
        if not isinstance(source.presentation, RangeReader | ByteStream | NbdExport | HttpUrl):
            await self._snapshots.require_idle(source)
        if spec.device:
            return await self._devices.copy(source, as_pending_device(target), spec, progress)
        path = as_pending_file(target).path
        if self.keeps_bytes(source.spec, spec) and await self._goes_whole(source):
            digests = await self._land(source, path, checksum, progress)
        elif isinstance(source.presentation, RangeReader | ByteStream):
            async with scratch() as temporary:
                landed = as_pending_file(temporary).path
                digests = await self._land(source, landed, checksum, progress)
                await self._convert(_as_file(source, landed), path, spec, progress)
        else:
            await self._convert(source, path, spec, progress)
            digests = {}
        return await self._finished(path, spec, digests, progress)

    async def create(
        self, target: PendingWrite, spec: ImageSpec, provisioning: ProvisioningType, *, backing: Source | None = None
    ) -> Written:
        if spec.device:
            return await self._devices.create(as_pending_device(target), spec, backing=backing)
        path = as_pending_file(target).path
        size = spec.virtual_size or 0
        if spec.passphrase is not None:
            await self._luks.create(path, size, provisioning, spec.passphrase)
        elif backing is None:
            await self._qemu_img.create(path, _format(spec), size, provisioning)
        else:
            parent = as_local(backing.presentation).path
            name = os.path.relpath(parent, path.parent)
            # Without a slash before it, qemu would take what precedes a colon for the name of a protocol.
            name = name if name.startswith("../") else f"./{name}"
            await self._qemu_img.create_linked(path, size, name, known_format(backing))
        return await self._written(path, spec, {})

    async def resize(self, source: Source, new_size: int, *, shrink: bool) -> Written:
        """Also while a guest of this host has it, which then sees the new size at once."""
        present = (await self._qemu_img.sizes(own_node(source), running=True)).virtual
        if new_size < present and not shrink:
            raise SizeRefused(
                f"the image has {present} bytes and {new_size} were asked for: shrinking cuts data off and needs shrinkOk",
                asked=new_size,
                least=present,
            )
        if isinstance(source.presentation, NetworkImage):
            if new_size < present:
                await self._snapshots.require_idle(source)
            if new_size != present:
                await source.presentation.storage.resize(new_size)
            if self._guests is not None:  # also of a size that was changed elsewhere a guest does not know
                await self._guests.resize(source, new_size, present)
        elif new_size != present:
            try:
                with self._opened(source) as node:
                    await self._qemu_img.resize(node, new_size, shrink=new_size < present)
            except ImageLocked:
                if self._guests is None or not await self._guests.resize(source, new_size, present):
                    raise
        return await self.measure(source)

    async def measure(self, source: Source) -> Written:
        if isinstance(source.presentation, NetworkImage):
            return await self._devices.measure(source.presentation, known_format(source))
        sizes = await self._qemu_img.sizes(own_node(source), running=True)
        return Written(known_format(source), sizes.virtual, sizes.physical, encryption=source.spec.encryption)

    # --------------------------------------------------------------------------------------------------- steps

    async def _goes_whole(self, source: Source) -> bool:
        """Whether the image's bytes are what shall be written: a file may hold old snapshots as well."""
        return not (source.backing or isinstance(source.presentation, NetworkImage)) and (
            not isinstance(source.presentation, LocalPath)
            or source.spec.compression is not None
            or await self._files.plain(source)
        )

    async def _land(self, source: Source, path: Path, checksum: Checksum | None, progress: Progress) -> dict[str, str]:
        limit = self._limits.virtual_size
        digests = await land(self._engine, source, path, limit=limit, checksum=checksum, progress=progress)
        if source.spec.compression is not None or isinstance(source.presentation, ByteStream):
            # So far the gate has seen only the beginning of it.
            async with open_file(path, self._engine) as reader:
                await inspect(reader, declared=known_format(source), limits=self._limits)
        return digests

    async def _convert(self, source: Source, path: Path, spec: ImageSpec, progress: Progress) -> None:
        progress.phase("convert", source.spec.virtual_size)
        given, size = source.presentation, source.spec.virtual_size or 0
        direct_source = isinstance(given, LocalPath) and await self._engine.run(direct_io_works, given.path)
        if spec.passphrase is None:
            await self._qemu_img.convert(
                source_node(source),
                path,
                _format(spec),
                size=size,
                direct_source=direct_source,
                direct_target=await self._engine.run(direct_io_works, path),
                progress=progress,
            )
            return
        whole = (await self._qemu_img.sizes(own_node(source))).virtual
        await self._luks.create(path, whole, ProvisioningType.THIN, spec.passphrase)
        with self._opened(_finished_source(path, spec)) as node:
            await self._qemu_img.convert_into(
                source_node(source),
                node,
                size=size,
                direct_source=direct_source,
                direct_target=await self._engine.run(direct_io_works, path),
                blank=True,
                progress=progress,
            )

    async def _finished(self, path: Path, spec: ImageSpec, digests: dict[str, str], progress: Progress) -> Written:
        """Grown if it shall be larger, and checked."""
        progress.phase("check")
        with self._opened(_finished_source(path, spec)) as node:
            size = (await self._qemu_img.sizes(node)).virtual
            refuse_cut(size, spec.virtual_size)
            if spec.virtual_size is not None and spec.virtual_size > size:
                await self._qemu_img.resize(node, spec.virtual_size, shrink=False)
            if spec.format is ImageFormat.QCOW2:
                await self._qemu_img.check(node)
        return await self._written(path, spec, digests)

    async def _written(self, path: Path, spec: ImageSpec, digests: dict[str, str]) -> Written:
        sizes = await self._qemu_img.sizes(own_node(_finished_source(path, spec)))
        encryption = LUKS if spec.passphrase is not None else None
        return Written(_format(spec), sizes.virtual, sizes.physical, digests, encryption)

    @contextmanager
    def _opened(self, source: Source) -> Iterator[Node]:
        """The image, with its passphrase where it has one."""
        if source.spec.passphrase is None:
            yield source_node(source)
            return
        with self._luks.unlocked(as_local(source.presentation).path, source.spec.passphrase) as opened:
            yield opened


def _device(target: ImageSpec) -> Accepts:
    if target.format not in _DEVICE_FORMATS:
        raise OperationUnsupported(
            f"a disk that is no file holds raw bytes, and cannot be {target.format}; name RAW, or no format",
            hypervisor=HypervisorType.KVM.value,
            format=target.format,
        )
    return Accepts(DEVICES, "the storage keeps raw disks and no files")


def _to_a_device(operation: Operation, source: ImageSpec) -> Accepts:
    if source.compression is not None and operation in (Operation.COPY_TEMPLATE, Operation.COPY_VOLUME):
        raise OperationUnsupported(
            f"a {source.format or 'source'} compressed by {source.compression} is expanded into a file first, which a pool"
            " without files has no place for; store it uncompressed, or copy it to a pool that is a directory",
            hypervisor=HypervisorType.KVM.value,
            compression=source.compression,
        )
    if source.format in _NAMING_OTHERS:
        return Accepts(
            (*_OPENED_BY_QEMU, Kind.NBD_EXPORT),
            f"qemu-img writes the disk; {_NO_URL.format(source.format)}",
        )
    return Accepts((*_OPENED_BY_QEMU, Kind.HTTP_URL, Kind.NBD_EXPORT), "qemu-img writes the disk, and reads at random")


def _format(spec: ImageSpec) -> ImageFormat:
    if spec.format is None:
        raise ValueError("the target's format was not decided")
    return spec.format


def _finished_source(path: Path, spec: ImageSpec) -> Source:
    """An image under its temporary name."""
    return Source(LocalPath(path, ObjectInfo(path.name, None)), ImageSpec(_format(spec), passphrase=spec.passphrase))


def _as_file(source: Source, path: Path) -> Source:
    """What has landed in `path`, expanded."""
    info = ObjectInfo(source.presentation.info.ref, None)
    return Source(LocalPath(path, info), replace(source.spec, compression=None))
