"""A disk on its way into an SR: a VDI that is marked as unfinished from its first moment on."""

from __future__ import annotations

import re
from typing import ClassVar

import structlog

from hypervisors.contract import ImageLocked, OperationUnsupported
from hypervisors.xen.locks import Lock
from hypervisors.xen.marks import (
    COPYING,
    IMAGE,
    OF,
    READY,
    Copying,
    Disk,
    Image,
    Ready,
    about_documents,
    all_ready,
    document_key,
    is_foreign_disk,
)
from hypervisors.xen.removing import copying_ended, destroy_unfinished, end_copying, remove_replaced
from hypervisors.xen.repository import Repository
from hypervisors.xen.tasks import let_go
from stores.contract import Kind, ManagedDisk, ObjectInfo, PendingWrite
from stores.errors import AlreadyExists, NotFound, StorageError, Unavailable
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_COPYING_S = 120.0
"""How long a disk stays marked as being copied when whoever copies it dies."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def info_of(ref: str, disk: Disk) -> ObjectInfo:
    """What the store says of it. A guest that writes into it does not change its version: it is the same disk."""
    return ObjectInfo(ref, disk.physical_size, version=disk.uuid, ranges=False)


async def owners(sr: Repository, ref: str) -> list[Disk]:
    """The disks that have the name `ref`: several after an interrupted replacement, of which the last counts. Those that we
    made are called so; others are known by their uuid."""
    foreign = await sr.by_uuid(ref) if _UUID.fullmatch(ref) else None
    return [
        *([foreign] if foreign is not None and is_foreign_disk(foreign) else []),
        *all_ready(ref, await sr.named(ref)),
    ]


class PendingVdi:
    """See `stores.contract.PendingDisk`. What XAPI is asked for is waited for also when cancelled: it would do it anyway, and
    only its answer tells what is to be removed."""

    kind: ClassVar[Kind] = Kind.MANAGED_DISK

    def __init__(self, sr: Repository, ref: str, lock: Lock, *, token: str, replace: bool) -> None:
        self.sr = sr
        self._ref = ref
        self._lock = lock
        self._replace = replace
        self._mark = Image(ref=ref, token=token, owner=sr.pool.settings.originator, id=sr.pool.fresh())
        self._begun = False
        self._committed = False
        self._disk: Disk | None = None

    async def __aenter__(self) -> PendingVdi:
        self.sr.pool.busy.add(self._mark.id)
        return self

    async def __aexit__(self, *raised: object) -> None:
        try:
            if self._begun and not self._committed:
                await uninterrupted(self._abandon())
        finally:
            self.sr.pool.busy.discard(self._mark.id)

    async def make(self, size: int) -> ManagedDisk:
        """XAPI rounds up to what the SR can; `NoSpace`. `OperationUnsupported` where new disks are not zero: of what is written
        to them, zeroes are left out."""
        if not self.sr.zeroed:
            raise OperationUnsupported(
                f"SR {self.sr.name} does not keep its disks as VHD, and gives new ones with what was on the storage before:"
                " upgrade it, or use another SR",
                sr=self.sr.uuid,
            )
        return await uninterrupted(self._make(size))

    async def derive(self, disk: ManagedDisk, *, frozen: bool) -> ManagedDisk:
        """By VDI.snapshot or VDI.clone. `ImageLocked` while somebody else's agent does the same."""
        return await uninterrupted(self._derive(disk, frozen=frozen))

    async def commit(self) -> ObjectInfo:
        return await uninterrupted(self._commit())

    # ------------------------------------------------------------------------------------------------------ making

    async def _make(self, size: int) -> ManagedDisk:
        self._begun = True
        sr = self.sr
        try:
            handle = await sr.create(self._ref, size, {IMAGE: self._mark.text()})
        except Unavailable:
            handle = await self._lost()
        disk = await sr.disk(handle)
        await sr.add_key("VDI", handle, OF, disk.uuid)
        return await self._made(handle)

    async def _derive(self, disk: ManagedDisk, *, frozen: bool) -> ManagedDisk:
        self._begun = True
        sr = self.sr
        source = await sr.by_uuid(disk.id)
        if source is None:
            raise NotFound(f"SR {sr.name} does not have the disk {disk.id} any more", ref=disk.info.ref, sr=sr.uuid)
        copying = await self._announce(source)
        try:
            try:
                handle = await sr.copy(source, frozen=frozen)
            except Unavailable:
                handle = await self._lost()
            await sr.pool.surely(
                "VDI.set_other_config", handle, {IMAGE: self._mark.text(), OF: (await sr.disk(handle)).uuid}
            )
            await sr.pool.surely("VDI.set_name_label", handle, self._ref)
        finally:
            await end_copying(sr, source, copying)
        return await self._made(handle)

    async def _made(self, handle: str) -> ManagedDisk:
        self._disk = await self.sr.disk(handle)
        return ManagedDisk(self._disk.uuid, info_of(self._ref, self._disk))

    async def _lost(self) -> str:
        """The disk that was made although nobody said so."""
        for disk in await self._ours():
            return disk.handle
        raise Unavailable(f"the pool did not say whether it made {self._ref}, and it is not there", ref=self._ref)

    async def _ours(self) -> list[Disk]:
        """All disks that this write made."""
        return [
            disk
            for disk in await self.sr.disks()
            if self._mark.id in (disk.image and disk.image.id, disk.copied and disk.copied.id)
        ]

    async def _announce(self, source: Disk) -> Copying:
        """The source says that it is being copied, so that the copy does too."""
        sr, pool = self.sr, self.sr.pool
        attempts = max(1, round(pool.settings.grace_s / pool.settings.pause_s)) if pool.settings.pause_s > 0 else 1
        for _ in range(attempts):
            copying = Copying(
                **self._mark.model_dump(), of=source.uuid, name=source.name, until=pool.clock() + _COPYING_S
            )
            with sr.telling(source.name):
                if await sr.add_key("VDI", source.handle, COPYING, copying.text()):
                    return copying
            source = await sr.disk(source.handle)
            other = source.copying
            if other is None or copying_ended(sr, other):  # if it is of another disk, it came with a copy
                await end_copying(sr, source, other)
            else:
                await pool.sleep(pool.settings.pause_s)
        raise ImageLocked(
            f"{source.name} is being copied by somebody else all the time; try again later", ref=source.name
        )

    # -------------------------------------------------------------------------------------------------- committing

    async def _commit(self) -> ObjectInfo:
        assert self._disk is not None, "nothing was made"
        sr = self.sr
        await self._lock.check()
        before = await owners(sr, self._ref)
        if before and not self._replace:
            raise AlreadyExists(f"{self._ref} exists already; nothing was overwritten", ref=self._ref, sr=sr.uuid)
        for old in before:
            if await sr.attached(old):
                raise ImageLocked(
                    f"{self._ref} cannot be replaced while a virtual machine has it; detach it first",
                    ref=self._ref,
                    vdi=old.uuid,
                )
        if before:
            await self._carry_over(before[-1], self._disk)
        seq = 1 + max((old.ready.seq for old in before if old.ready is not None), default=0)
        ready = Ready(seq=seq, over=tuple(old.uuid for old in before))
        with sr.telling(self._ref):
            kept = await sr.add_key("VDI", self._disk.handle, READY, ready.text())
        if not kept:
            raise ImageLocked(
                f"{self._ref} was given up by another agent, which took this one for dead; try again",
                ref=self._ref,
                sr=sr.uuid,
            )
        self._committed = True
        made = await sr.disk(self._disk.handle)
        if made.vbds:
            await let_go(sr, made)
        await remove_replaced(sr, before)
        return info_of(self._ref, made)

    async def _carry_over(self, old: Disk, new: Disk) -> None:
        """Documents of the disk that had the name. Nobody else knows the new one yet."""
        for parts, versions in about_documents(old).items():
            await self.sr.add_key("VDI", new.handle, document_key(parts, 1), versions[max(versions)])

    async def _abandon(self) -> None:
        """What cannot be removed now is found by `discard`, or when this agent starts again."""
        try:
            for disk in [self._disk] if self._disk is not None else await self._ours():
                await destroy_unfinished(self.sr, disk)
        except StorageError as problem:
            _log.warning("unfinished disk left behind", ref=self._ref, sr=self.sr.uuid, error=problem.message)


def as_pending_vdi(pending: PendingWrite) -> PendingVdi:
    """What the handler fills is what the store that it gave has begun."""
    if isinstance(pending, PendingVdi):
        return pending
    raise TypeError(f"asked for a VDI to make, got {pending.kind}")
