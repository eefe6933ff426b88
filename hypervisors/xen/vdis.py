"""From a disk's uuid to where it is, in whichever of the configured pools, and what XAPI does with it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypervisors.contract import ImageLocked, Written
from hypervisors.xen.errors import HANDLE_INVALID, UUID_INVALID, XapiFailure
from hypervisors.xen.hosts import Host, known
from hypervisors.xen.marks import Disk
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import Repository, disk_of
from stores.contract import ManagedDisk
from stores.errors import NotFound
from stores.to import ImageFormat


@dataclass(frozen=True, slots=True)
class Vdi:
    """A VDI as XAPI showed it, and the SR that it is in."""

    sr: Repository
    disk: Disk

    @property
    def written(self) -> Written:
        return Written(self.format, self.disk.virtual_size, self.disk.physical_size)

    @property
    def format(self) -> ImageFormat:
        """What it counts as: everything that can be a volume is a VHD here, however its SR lays it out."""
        return ImageFormat.ISO if self.sr.library else ImageFormat.VHD

    async def grown(self, size: int | None) -> Vdi:
        """At least that large. `ImageLocked` while it is attached, where its SR cannot do it then."""
        if size is None or size <= self.disk.virtual_size:
            return self
        with self.sr.telling(self.disk.name):
            method = "VDI.resize_online" if await self._attached() else "VDI.resize"
            await self.sr.pool.surely(method, self.disk.handle, size)
        return Vdi(self.sr, await self.sr.disk(self.disk.handle))

    async def require_idle(self) -> None:
        """`ImageLocked` while it is attached."""
        if await self._attached():
            raise ImageLocked(
                f"{self.disk.name} is attached to a virtual machine; detach it, or stop the machine, and try again",
                vdi=self.disk.uuid,
            )

    async def _attached(self) -> bool:
        states = [await self.sr.pool.call("VBD.get_currently_attached", vbd) for vbd in self.disk.vbds]
        return any(states)


async def find_vdi(pools: Sequence[XenPool], disk: ManagedDisk) -> Vdi:
    """`NotFound` if no pool has it any more."""
    for pool in pools:
        try:
            handle = str(await pool.call("VDI.get_by_uuid", disk.id))
            record = await pool.call("VDI.get_record", handle)
            sr = await pool.call("SR.get_record", record["SR"])
        except XapiFailure as problem:
            if problem.code in (UUID_INVALID, HANDLE_INVALID):
                continue
            raise
        return Vdi(Repository.of(pool, str(record["SR"]), sr), disk_of(handle, record))
    raise NotFound(f"no configured pool has the disk {disk.info.ref} any more", ref=disk.info.ref, vdi=disk.id)


async def host_of(sr: Repository) -> Host | None:
    """One of the configured hosts that sees the SR: others would send us there."""
    pool = sr.pool
    for pbd in await pool.call("SR.get_PBDs", sr.handle):
        record = await pool.call("PBD.get_record", pbd)
        if record["currently_attached"]:
            address = str(await pool.call("host.get_address", record["host"]))
            if (host := known(address, pool.settings.hosts)) is not None:
                return host
    return None
