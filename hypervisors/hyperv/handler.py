"""Hyper-V, from a gateway: disks are VHDX files on a share, written by SMB in one stream; the host is driven by PowerShell.

No file is ever made on the gateway, and no disk of a pool is ever sparse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypervisors.contract import (
    OF_THE_POOL,
    Accepts,
    HypervisorHandler,
    HypervisorType,
    ImageInUse,
    ImageSpec,
    Operation,
    OperationUnsupported,
    Scratch,
    SizeRefused,
    Source,
    Written,
    refuse_cut,
)
from hypervisors.hyperv.files import pool_of_place
from hypervisors.hyperv.guests import HypervGuests
from hypervisors.hyperv.iso import bring_iso
from hypervisors.hyperv.pending import PendingVhdx, as_pending_vhdx
from hypervisors.hyperv.place import HostFile, Place, as_host_file
from hypervisors.hyperv.powershell import PowerShellPort
from hypervisors.hyperv.reading import Reading
from hypervisors.hyperv.settings import HypervHostSettings, folder_of
from hypervisors.hyperv.snapshots import HypervSnapshots, filled
from hypervisors.images.vhdx_reading import open_image
from hypervisors.landing import verify
from hypervisors.primary import Pool
from hypervisors.qemu.nodes import driver_of
from stores.backends.smb_place import place_of_pool
from stores.contract import DataStore, Kind, PendingWrite, Progress, RangeReader
from stores.locations import SMB_POOLS
from stores.to import ImageFormat, PrimaryDataStoreTO, ProvisioningType
from stores.transfer.digests import Checksum
from stores.transfer.engine import TransferEngine

_TARGETS = (ImageFormat.VHDX, ImageFormat.ISO)

_AT_RANDOM = (ImageFormat.VHDX, ImageFormat.VHD, ImageFormat.QCOW2, ImageFormat.RAW)
"""Formats that our own code reads, by ranges."""


class HypervHandler(HypervisorHandler):
    type = HypervisorType.HYPERV
    native_format = ImageFormat.VHDX

    def __init__(
        self,
        engine: TransferEngine,
        hosts: Sequence[HypervHostSettings],
        connect: Callable[[HypervHostSettings], PowerShellPort],
        stores: Callable[[PrimaryDataStoreTO], DataStore],
        reading: Reading,
        *,
        limit: int,
    ) -> None:
        """`connect`: makes the port to a host, which is closed with the handler. `stores`: makes the store of a share, which
        stays its maker's. `limit`: the most bytes that an expanded image may have."""
        self._engine = engine
        self._hosts = tuple(hosts)
        self._connect = connect
        self._stores = stores
        self._reading = reading
        self._limit = limit
        self._snapshots = HypervSnapshots(engine, reading)
        self._guests = HypervGuests(lambda: map(self._port, self._hosts))
        self._ports: dict[str, PowerShellPort] = {}

    def pool(self, to: PrimaryDataStoreTO) -> Pool:
        """A folder of an SMB share that one of the hosts has."""
        if to.poolType not in SMB_POOLS:
            raise OperationUnsupported(
                f"Hyper-V keeps disks on SMB shares: pool {to.uuid} is of type {to.poolType}, not {', '.join(SMB_POOLS)}",
                hypervisor=self.type.value,
                pool=to.uuid,
            )
        folder = folder_of(place_of_pool(to), self._hosts)
        return pool_of_place(Place(self._stores(to), folder, self._port(folder.host), self._engine))

    @property
    def snapshots(self) -> HypervSnapshots:
        return self._snapshots

    @property
    def guests(self) -> HypervGuests:
        return self._guests

    # ------------------------------------------------------------------------------------------- declarations

    def accepts(self, operation: Operation, source: ImageSpec, target: ImageSpec) -> Accepts:
        if source.format is not None:
            driver_of(source.format)
        if target.format is ImageFormat.ISO and source.format not in (ImageFormat.ISO, None):
            raise OperationUnsupported(
                f"an ISO is not made of a {source.format} image", hypervisor=self.type.value, format=source.format
            )
        if operation in OF_THE_POOL:
            return Accepts(
                (Kind.MANAGED_DISK,),
                "the files of a pool are read and copied where they are, by SMB, and tested by the host",
            )
        if operation is Operation.RESTORE:
            return Accepts(
                (Kind.RANGE_READER,),
                "the objects of a chain are read at random, and only what the disk still has of each",
            )
        if operation is Operation.ATTACH_ISO:
            return Accepts((Kind.MANAGED_DISK,), "a machine reads its DVD drive from a file that its host has")
        if source.format in (ImageFormat.ISO, None):
            return Accepts(
                (Kind.MANAGED_DISK, Kind.RANGE_READER, Kind.BYTE_STREAM),
                "the bytes go straight into a file of the share",
            )
        if source.compression is not None:
            raise OperationUnsupported(
                f"a {source.format} image is read at random, which {source.compression} does not allow: store it uncompressed",
                hypervisor=self.type.value,
                format=source.format,
            )
        if source.format in _AT_RANDOM:
            return Accepts(
                (Kind.MANAGED_DISK, Kind.RANGE_READER),
                "a VHDX goes into a file of the share as it is; others are read at random, laid out as VHDX, and sent in one"
                " stream",
            )
        return Accepts(
            (Kind.MANAGED_DISK, Kind.NBD_EXPORT)
            if source.sequential
            else (Kind.MANAGED_DISK, Kind.LOCAL_PATH, Kind.NBD_EXPORT),
            "such an image is read at random, by qemu-nbd, which serves its disk; that is laid out as VHDX, and sent in one"
            " stream",
        )

    def fills(self, operation: Operation, target: ImageSpec) -> Accepts:
        if target.format not in _TARGETS or (
            target.format is ImageFormat.ISO and operation is not Operation.COPY_TEMPLATE
        ):
            raise OperationUnsupported(
                f"Hyper-V's disks are VHDX here, not {target.format}: leave the format out, or name VHDX",
                hypervisor=self.type.value,
                format=target.format,
            )
        if operation in (Operation.BACK_UP, Operation.EXPORT_VOLUME):
            return Accepts(
                (Kind.BYTE_STREAM, Kind.LOCAL_PATH),
                "the image is laid out before its data are read, and sent in one pass",
            )
        if target.format is ImageFormat.ISO:
            return Accepts((Kind.BYTE_STREAM,), "a file of the share, written in order")
        return Accepts((Kind.MANAGED_DISK,), "a VHDX in a file of the share, written in order, or copied by its server")

    # --------------------------------------------------------------------------------------------------- verbs

    async def estimate(self, source: Source, target: ImageSpec) -> int | None:
        """Of what goes as it is, its size; of others it shows when they are laid out, before a byte is written."""
        return source.presentation.info.size if self._as_it_is(source, target) else None

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
        if spec.format is ImageFormat.ISO:
            return await bring_iso(
                self._engine, source, target, limit=self._limit, checksum=checksum, progress=progress
            )
        pending = as_pending_vhdx(target)
        if source.presentation.kind is Kind.MANAGED_DISK:
            return await self._copied(source, as_host_file(source.presentation), pending, spec, progress)
        if isinstance(source.presentation, RangeReader) and self._as_it_is(source, spec):
            return await _sent(source, source.presentation, pending, checksum, progress)
        async with self._reading.foreign(source, progress) as content:
            refuse_cut(content.size, spec.virtual_size)
            return await filled(pending, content, spec, progress)

    async def create(
        self, target: PendingWrite, spec: ImageSpec, provisioning: ProvisioningType, *, backing: Source | None = None
    ) -> Written:
        """A dynamic disk, or a differencing one. FAT is refused."""
        pending = as_pending_vhdx(target)
        if provisioning is ProvisioningType.FAT:
            raise OperationUnsupported(
                "disks of Hyper-V grow as they are written to, here: leave provisioningType out",
                hypervisor=self.type.value,
            )
        size = spec.virtual_size or 0
        if backing is None:
            await pending.make(size)
        else:
            parent = as_host_file(backing.presentation)
            async with parent.opened() as reader:
                image = await open_image(reader, self._engine)
            size = max(size, image.virtual_size)
            await pending.link(parent, image.content_id, image.disk_id, size=size, sector=image.sector)
        return Written(ImageFormat.VHDX, size, pending.size)

    async def resize(self, source: Source, new_size: int, *, shrink: bool) -> Written:
        """By the host, also while a machine runs, where the disk's controller allows."""
        disk = as_host_file(source.presentation)
        present = (await self.measure(source)).virtual_size
        if new_size < present and not shrink:
            raise SizeRefused(
                f"the disk has {present} bytes and {new_size} were asked for: a disk of Hyper-V only grows here",
                asked=new_size,
                least=present,
            )
        if new_size < present:
            raise OperationUnsupported("a disk of Hyper-V is not made smaller here", hypervisor=self.type.value)
        if new_size > present:
            await self._refuse_children(disk)
            await disk.place.port.run("resize-vhd", {"path": disk.id, "size": new_size})
        return await self.measure(source)

    async def measure(self, source: Source) -> Written:
        """By the host, which can look at disks in use."""
        if source.spec.format is ImageFormat.ISO:
            size = source.presentation.info.size or 0
            return Written(ImageFormat.ISO, size, size)
        disk = as_host_file(source.presentation)
        told = await disk.place.port.run("get-vhd", {"path": disk.id})
        return Written(ImageFormat.VHDX, told["size"], told["file_size"])

    async def aclose(self) -> None:
        while self._ports:
            await self._ports.popitem()[1].aclose()

    # --------------------------------------------------------------------------------------------------- steps

    def _port(self, host: HypervHostSettings) -> PowerShellPort:
        if host.name not in self._ports:
            self._ports[host.name] = self._connect(host)
        return self._ports[host.name]

    def _as_it_is(self, source: Source, target: ImageSpec) -> bool:
        """Whether the object's very bytes become the file."""
        spec = source.spec
        grown = None not in (spec.virtual_size, target.virtual_size) and spec.virtual_size != target.virtual_size
        return self.keeps_bytes(spec, target) and spec.compression is None and not grown

    async def _copied(
        self, source: Source, disk: HostFile, pending: PendingVhdx, spec: ImageSpec, progress: Progress
    ) -> Written:
        """Of a disk of this pool or another one: by the server of the share where the file stands for itself, and is in the
        same pool; else through here."""
        await self._snapshots.require_idle(source)
        size = (await self.measure(source)).virtual_size
        refuse_cut(size, spec.virtual_size)
        same = disk.place.share.id == pending.place.share.id
        if same and not source.backing and spec.virtual_size in (None, size):
            await pending.derive(disk, frozen=False)
            return Written(ImageFormat.VHDX, size, pending.size)
        async with self._reading.own(source) as content:
            return await filled(pending, content, spec, progress)

    async def _refuse_children(self, disk: HostFile) -> None:
        """Linked clones are made for just the content that their parent has."""
        children = await pool_of_place(disk.place).records.children(disk.info.ref)
        if children:
            raise ImageInUse(
                f"{disk.info.ref} is the parent of {len(children)} linked clones, which would be lost if it changed:"
                f" {', '.join(children[:10])}",
                ref=disk.info.ref,
                children=list(children),
            )


async def _sent(
    source: Source, image: RangeReader, pending: PendingVhdx, checksum: Checksum | None, progress: Progress
) -> Written:
    progress.phase("transfer", image.info.size)
    digests = [checksum.algorithm] if checksum is not None else []
    sent = await pending.send(image, digests=digests, progress=progress)
    verify(checksum, sent.digests, image.info.ref)
    assert source.spec.virtual_size is not None
    return replace(Written(ImageFormat.VHDX, source.spec.virtual_size, sent.size), digests=sent.digests)
