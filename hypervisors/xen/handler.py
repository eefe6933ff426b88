"""XenServer and XCP-ng: volumes are VDIs, and what goes in or out is a stream between a store and XAPI. No file anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

from hypervisors.contract import (
    OF_THE_POOL,
    Accepts,
    HostPool,
    HypervisorHandler,
    HypervisorType,
    ImageSpec,
    Operation,
    OperationUnsupported,
    Scratch,
    SizeRefused,
    Source,
    Written,
    refuse_cut,
)
from hypervisors.narrowing import as_managed
from hypervisors.primary import Pool
from hypervisors.qemu.nodes import driver_of
from hypervisors.xen.guests import XenGuests
from hypervisors.xen.importing import Importer, new_disk
from hypervisors.xen.moving import copied
from hypervisors.xen.pending import as_pending_vdi
from hypervisors.xen.pool import XenPool
from hypervisors.xen.provision import provided, released
from hypervisors.xen.reconciling import reconcile
from hypervisors.xen.repository import Repository
from hypervisors.xen.snapshots import XenSnapshots
from hypervisors.xen.sr import pool_of_sr
from hypervisors.xen.vdis import find_vdi
from stores.contract import Kind, ManagedDisk, PendingWrite, Progress
from stores.to import ImageFormat, PrimaryDataStoreTO, ProvisioningType
from stores.transfer.digests import Checksum
from stores.transfer.engine import TransferEngine

_IN_ORDER = (ImageFormat.VHD, ImageFormat.RAW, ImageFormat.ISO)
"""Formats that are understood while they come."""


class XenHandler(HypervisorHandler):
    type = HypervisorType.XEN
    native_format = ImageFormat.VHD

    def __init__(
        self, engine: TransferEngine, pools: Sequence[XenPool], importer: Importer, snapshots: XenSnapshots
    ) -> None:
        """`pools` are opened when they are needed, and closed with the handler."""
        self._engine = engine
        self._pools = tuple(pools)
        self._importer = importer
        self._snapshots = snapshots
        self._guests = XenGuests(self._pools)
        self._primaries: dict[str, Pool] = {}

    def pool(self, to: PrimaryDataStoreTO) -> Pool:
        """The SR with that uuid or name, in whichever of the pools of hosts."""
        if to.uuid not in self._primaries:
            self._primaries[to.uuid] = pool_of_sr(to.uuid, self._pools)
        return self._primaries[to.uuid]

    @property
    def snapshots(self) -> XenSnapshots:
        return self._snapshots

    @property
    def guests(self) -> XenGuests:
        return self._guests

    async def provide(self, to: PrimaryDataStoreTO, *, make: bool) -> None:
        """See `hypervisors.xen.provision`."""
        await provided(to, self._pools, make=make)

    async def release(self, to: PrimaryDataStoreTO) -> None:
        """See `hypervisors.xen.provision`."""
        await released(to, self._pools)

    # ------------------------------------------------------------------------------------------- declarations

    def accepts(self, operation: Operation, source: ImageSpec, target: ImageSpec) -> Accepts:
        if source.format is not None:
            driver_of(source.format)
        if operation in OF_THE_POOL:
            return Accepts((Kind.MANAGED_DISK,), "XAPI itself copies, clones, and exports what is in an SR")
        if operation is Operation.RESTORE:
            return Accepts(
                (Kind.RANGE_READER,),
                "the objects of a chain are read at random, and only what the disk still has of each",
            )
        if operation is Operation.ATTACH_ISO:
            return Accepts(
                (Kind.MANAGED_DISK, Kind.LOCAL_PATH),
                "an ISO of an SR goes into the machine's drive; an SR that takes no uploads lists what lies in its folder: a"
                " file of the host that has it mounted",
            )
        if source.compression is not None and source.format not in (*_IN_ORDER, None):
            raise OperationUnsupported(
                f"a {source.format} image is read at random, which {source.compression} does not allow: store it uncompressed",
                hypervisor=self.type.value,
                format=source.format,
            )
        if source.compression is not None or source.format in _IN_ORDER:
            return Accepts(
                (Kind.MANAGED_DISK, Kind.RANGE_READER, Kind.BYTE_STREAM),
                "XAPI itself copies what is in an SR; other images are understood while they come, and what is not zero is"
                " sent on to the host",
            )
        if source.sequential:
            return Accepts(
                (Kind.MANAGED_DISK, Kind.NBD_EXPORT),
                f"a {source.format or 'foreign'} image is read at random, and no file is made of one: it takes a server that"
                " gives ranges, or the image as VHD or RAW",
            )
        if source.format is ImageFormat.QCOW2:
            return Accepts(
                (Kind.MANAGED_DISK, Kind.LOCAL_PATH, Kind.RANGE_READER),
                "XAPI itself copies what is in an SR; a QCOW2 image is read by its map, and what is not zero is sent on to the"
                " host",
                random=True,
            )
        return Accepts(
            (Kind.MANAGED_DISK, Kind.LOCAL_PATH, Kind.NBD_EXPORT),
            "XAPI itself copies what is in an SR; other images are read at random, by qemu-nbd, which serves their disk, and"
            " what is not zero is sent on to the host",
        )

    def fills(self, operation: Operation, target: ImageSpec) -> Accepts:
        if target.format is ImageFormat.ISO and operation is Operation.COPY_TEMPLATE:
            return Accepts(
                (Kind.MANAGED_DISK,),
                "an SR of ISOs, where it takes uploads: XAPI makes the file, and writes what it is sent",
            )
        if target.format is not ImageFormat.VHD:
            raise OperationUnsupported(
                f"XenServer's disks are VHD, not {target.format}: leave the format out, or name VHD",
                hypervisor=self.type.value,
                format=target.format,
            )
        if operation in (Operation.BACK_UP, Operation.EXPORT_VOLUME):
            return Accepts(
                (Kind.BYTE_STREAM, Kind.LOCAL_PATH), "XAPI exports a VHD in order, without what is not there"
            )
        return Accepts(
            (Kind.MANAGED_DISK,), "a disk of the SR, which XAPI makes, and to which it writes what it is sent"
        )

    def keeps_bytes(self, source: ImageSpec, target: ImageSpec) -> bool:
        """Never: XAPI lays an image out as its storage likes."""
        return False

    # --------------------------------------------------------------------------------------------------- verbs

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
        pending = as_pending_vdi(target)
        _require_fit(pending.sr, spec)
        if isinstance(source.presentation, ManagedDisk):
            given = await find_vdi(self._pools, source.presentation)
            disk = await copied(given, source.presentation, pending, self._importer, self._engine, progress)
            return await self._finished(disk, spec)
        made: list[ManagedDisk] = []

        async def make(size: int) -> str:
            refuse_cut(size, spec.virtual_size)
            made.append(await pending.make(spec.virtual_size or size))
            return made[-1].id

        new = await new_disk(pending.sr, make)
        brought = await self._importer.bring(source, new, checksum=checksum, progress=progress)
        return replace(await self._finished(made[-1], spec), digests=brought.digests)

    async def create(
        self, target: PendingWrite, spec: ImageSpec, provisioning: ProvisioningType, *, backing: Source | None = None
    ) -> Written:
        """How much room an empty disk takes is the SR's affair: FAT is refused."""
        pending = as_pending_vdi(target)
        if provisioning is ProvisioningType.FAT:
            raise OperationUnsupported(
                "whether a disk takes all its room at once is decided by the kind of its SR: leave provisioningType out",
                hypervisor=self.type.value,
            )
        if backing is None:
            _require_fit(pending.sr, spec)
            made = await pending.make(spec.virtual_size or 0)
        else:
            made = await pending.derive(as_managed(backing.presentation), frozen=False)
        return await self._finished(made, spec)

    async def resize(self, source: Source, new_size: int, *, shrink: bool) -> Written:
        vdi = await find_vdi(self._pools, as_managed(source.presentation))
        present = vdi.disk.virtual_size
        if new_size < present and not shrink:
            raise SizeRefused(
                f"the disk has {present} bytes and {new_size} were asked for: a disk of XenServer only grows",
                asked=new_size,
                least=present,
            )
        if new_size < present:
            raise OperationUnsupported("XenServer cannot make a disk smaller", hypervisor=self.type.value)
        return await self._finished(as_managed(source.presentation), ImageSpec(ImageFormat.VHD, new_size))

    async def measure(self, source: Source) -> Written:
        return (await find_vdi(self._pools, as_managed(source.presentation))).written

    async def reconcile(self, claimed: Collection[str] = ()) -> None:
        """All pools at once; one that is away keeps no other from it."""
        done = await asyncio.gather(*(reconcile(pool, claimed=claimed) for pool in self._pools), return_exceptions=True)
        for problem in done:
            if isinstance(problem, BaseException):
                raise problem

    def host_pools(self) -> Sequence[HostPool]:
        return [pool.found for pool in self._pools]

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()

    # --------------------------------------------------------------------------------------------------- steps

    async def _finished(self, made: ManagedDisk, spec: ImageSpec) -> Written:
        """Grown if it shall be larger."""
        return (await (await find_vdi(self._pools, made)).grown(spec.virtual_size)).written


def _require_fit(sr: Repository, spec: ImageSpec) -> None:
    """ISOs go to SRs of ISOs, and nothing else does."""
    if sr.library is (spec.format is ImageFormat.ISO):
        return
    raise OperationUnsupported(
        f"SR {sr.name} {'holds ISOs only' if sr.library else 'holds no ISOs'}, and a {spec.format} was to be written there:"
        f" {'name an SR for disks' if sr.library else 'name an SR whose content type is iso'}",
        sr=sr.uuid,
        format=spec.format,
    )
