"""One storage repository and its VDIs: XAPI's calls on them, with our errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from hypervisors.xen.errors import (
    HANDLE_INVALID,
    MAP_DUPLICATE_KEY,
    NO_SPACE,
    UUID_INVALID,
    XapiFailure,
    of_disk,
)
from hypervisors.xen.marks import Disk
from hypervisors.xen.pool import XenPool
from stores.contract import Usage
from stores.errors import AlreadyExists, NoSpace, NotFound, StorageError, StoreUnsupported

_LIBRARY_FILE = re.compile(r"[a-z0-9-][a-z0-9.-]{0,200}\.(iso|img)", re.IGNORECASE)
"""Names that ISOSR.py takes (`vdi_path_regex`), and that are plain to see."""
_NO_UPLOADS = {"SR_OPERATION_NOT_SUPPORTED", "SR_BACKEND_FAILURE_78"}
_EXISTS = "SR_BACKEND_FAILURE_43"

_LVM = {"lvm", "lvmoiscsi", "lvmohba"}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Repository:
    """An SR that was found. `handle` is XAPI's reference. `library`: its disks are files that are ISOs. `zeroed`: what was not
    written to a new disk reads as zero."""

    pool: XenPool
    handle: str
    uuid: str
    name: str
    library: bool = False
    zeroed: bool = True

    @classmethod
    def of(cls, pool: XenPool, handle: str, record: Mapping[str, Any]) -> Repository:
        """From an SR's record."""
        return cls(
            pool,
            handle,
            str(record["uuid"]),
            str(record["name_label"]),
            library=record["content_type"] == "iso",
            zeroed=new_disks_are_zero(record["type"], record["sm_config"]),
        )

    # ---------------------------------------------------------------------------------------------------- looking

    async def named(self, name: str) -> list[Disk]:
        """All VDIs called so."""
        return await self.shown(await self.pool.call("VDI.get_by_name_label", name))

    async def by_uuid(self, uuid: str) -> Disk | None:
        try:
            handle = await self.pool.call("VDI.get_by_uuid", uuid)
        except XapiFailure as problem:
            if problem.code in (UUID_INVALID, HANDLE_INVALID):
                return None
            raise
        return next(iter(await self.shown([handle])), None)

    async def disk(self, handle: str) -> Disk:
        """`NotFound` if it is gone."""
        found = await self.shown([handle])
        if not found:
            raise NotFound(f"SR {self.name} does not have that VDI any more", sr=self.uuid)
        return found[0]

    async def disks(self) -> list[Disk]:
        """All VDIs, in one call, which is long where there are thousands."""
        records = await self.pool.call("VDI.get_all_records_where", f'field "SR"="{self.handle}"')
        return [disk_of(handle, record) for handle, record in records.items()]

    async def shown(self, handles: Sequence[str]) -> list[Disk]:
        """Those of them that are there and in this SR."""

        async def shown(handle: str) -> Disk | None:
            try:
                record = await self.pool.call("VDI.get_record", handle)
            except XapiFailure as problem:
                if problem.code == HANDLE_INVALID:  # gone since
                    return None
                raise
            return disk_of(handle, record) if record["SR"] == self.handle else None

        return [disk for disk in await asyncio.gather(*map(shown, handles)) if disk is not None]

    async def config(self) -> dict[str, str]:
        """The SR's own `other_config`."""
        return dict(await self.pool.call("SR.get_other_config", self.handle))

    async def usage(self) -> Usage:
        """As XAPI knows it, which asks the storage now and then only."""
        record = await self.pool.call("SR.get_record", self.handle)
        capacity = int(record["physical_size"])
        return Usage(used=max(0, int(record["physical_utilisation"])), capacity=capacity if capacity > 0 else None)

    # --------------------------------------------------------------------------------------------------- changing

    async def create(self, name: str, size: int, config: Mapping[str, str]) -> str:
        """An empty VDI's handle. `NoSpace`; `Unavailable` leaves open whether it was made; `StoreUnsupported` where the SR is a
        library that takes no uploads."""
        record = {
            "name_label": name,
            "name_description": "",
            "SR": self.handle,
            "virtual_size": size,
            "type": "user",
            "sharable": False,
            "read_only": False,
            "other_config": dict(config),
            "xenstore_data": {},
            "sm_config": library_config(name) if self.library else {},
            "tags": [],
        }
        try:
            return str(await self.pool.call("VDI.create", record))
        except XapiFailure as problem:
            raise await self.explained(problem, name, needed=size) from problem

    async def copy(self, disk: Disk, *, frozen: bool) -> str:
        """A snapshot's or clone's handle. As `create`."""
        try:
            return str(await self.pool.call("VDI.snapshot" if frozen else "VDI.clone", disk.handle, {}))
        except XapiFailure as problem:
            raise await self.explained(problem, disk.name) from problem

    async def add_key(self, kind: str, handle: str, key: str, value: str) -> bool:
        """As the function of that name. `kind`: VDI, VBD or SR."""
        return await add_key(self.pool, kind, handle, key, value)

    async def remove_keys(self, kind: str, handle: str, keys: Sequence[str]) -> None:
        """One after the other, in this order."""
        for key in keys:
            await self.pool.surely(f"{kind}.remove_from_other_config", handle, key)

    async def explained(self, problem: XapiFailure, ref: str, *, needed: int | None = None) -> StorageError:
        """The store's error for what XAPI says of a disk."""
        if problem.code in _NO_UPLOADS and self.library:
            return StoreUnsupported(
                f"SR {self.name} takes no uploads: {problem.message}; put {ref} as a file into the folder that it shows, and"
                " attach it by the uuid that it has there",
                ref=ref,
                sr=self.uuid,
            )
        if problem.code == _EXISTS:
            return AlreadyExists(
                f"SR {self.name} has a file that is called like {ref} already; delete it first", ref=ref
            )
        if problem.code not in NO_SPACE:
            return of_disk(problem, ref)
        available = None
        try:
            usage = await self.usage()
            available = max(0, usage.capacity - usage.used) if usage.capacity is not None else None
        except StorageError as further:
            _log.info("free space of the sr is not known", sr=self.uuid, error=further.message)
        return NoSpace(
            f"SR {self.name} has no room for {ref}: {needed or 'some more'} bytes are needed and"
            f" {available if available is not None else 'fewer'} are available; free space or use another SR",
            needed=needed,
            available=available,
            sr=self.uuid,
        )

    @contextmanager
    def telling(self, ref: str) -> Iterator[None]:
        """As `explained`, for what is not about room."""
        try:
            yield
        except XapiFailure as problem:
            raise of_disk(problem, ref) from problem

    # -------------------------------------------------------------------------------------------------- destroying

    async def destroy(self, disk: Disk) -> None:
        """Idempotent. `ImageLocked` while it is attached or something goes on with it."""
        with self.telling(disk.name):
            await self._gone("VDI.destroy", disk)

    async def destroy_content(self, disk: Disk) -> None:
        """Of a snapshot: what is left says which blocks had changed. As `destroy`."""
        with self.telling(disk.name):
            await self._gone("VDI.data_destroy", disk)

    async def try_to_destroy(self, disk: Disk) -> None:
        """As `destroy`, with XAPI's own errors: `XapiBusy` while it is attached."""
        await self._gone("VDI.destroy", disk)

    async def _gone(self, method: str, disk: Disk) -> None:
        try:
            await self.pool.surely(method, disk.handle)
        except XapiFailure as problem:
            if problem.code != HANDLE_INVALID:
                raise

    async def attached(self, disk: Disk) -> bool:
        """Whether it belongs to any virtual machine, running or not."""
        return bool(await self.vbds(disk))

    async def vbds(self, disk: Disk) -> Sequence[str]:
        """What attaches it now to virtual machines and control domains."""
        found = await self.shown([disk.handle])
        return found[0].vbds if found else ()


async def add_key(pool: XenPool, kind: str, handle: str, key: str, value: str) -> bool:
    """To the `other_config` of an object of that class. Whether `key` has that value now; False where it has another one."""
    try:
        await pool.surely(f"{kind}.add_to_other_config", handle, key, value)
    except XapiFailure as problem:
        if problem.code != MAP_DUPLICATE_KEY:
            raise
        config: dict[str, str] = await pool.call(f"{kind}.get_other_config", handle)
        return config.get(key) == value
    return True


def new_disks_are_zero(kind: str, sm_config: Mapping[str, str]) -> bool:
    """Not of SRs on LVM that were made before there were VHDs in them, and never upgraded: a new disk is a logical volume, with
    what others have left in it. XAPI goes by the same rule (`must_write_zeroes_into_new_vdi` of sm_fs_ops.ml); SM says
    `use_vhd` of all others (LVHDSR.py)."""
    return kind.lower() not in _LVM or sm_config.get("use_vhd") == "true"


def library_config(name: str) -> dict[str, str]:
    """The `sm_config` of an ISO's VDI: the file that it will be, called as the ISO is where that can be a file's name there;
    else it is called by its uuid (`vdi` of ISOSR.py)."""
    file = name if name.lower().endswith((".iso", ".img")) else f"{name}.iso"
    return {"path": file} if _LIBRARY_FILE.fullmatch(file) else {}


def disk_of(handle: str, record: Mapping[str, Any]) -> Disk:
    """From a VDI's record. 64 bit integers may be text."""
    return Disk(
        handle=handle,
        uuid=str(record["uuid"]),
        name=str(record["name_label"]),
        virtual_size=int(record["virtual_size"]),
        physical_size=max(0, int(record["physical_utilisation"])),
        config=dict(record["other_config"]),
        type=str(record["type"]),
        usable=bool(record["managed"]) and not record["missing"],
        snapshot=bool(record["is_a_snapshot"]),
        tracked=bool(record["cbt_enabled"]),
        vbds=tuple(record["VBDs"]),
    )
