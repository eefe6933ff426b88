"""A store that is a volume group of LVM: images are logical volumes, thick, or thin where the operator names a thin pool.

An image that is being made is a volume of another name (`lvm_names`). Thin volumes share their blocks with what is derived
from them; thick ones can only be copied. What a thick volume held is wiped when it is removed, if the operator wants that; a
thin pool gives blocks to others only after it has zeroed them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import ClassVar

from stores.backends.devices import flush, held_for_writing
from stores.backends.directory import expect_version
from stores.backends.lvm_activation import Activation
from stores.backends.lvm_calls import Lvm
from stores.backends.lvm_names import doomed_name, is_image, pending_name, replaced_name, volume_name
from stores.backends.lvm_report import Volume
from stores.contract import DataStore, Kind, NetworkImage, ObjectInfo, PendingImage, StorageSide, Usage
from stores.errors import AlreadyExists, NotFound, StoreUnsupported, Unavailable
from stores.paths import check_prefix, in_listing
from stores.settings import Wipe
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted


class LvmStore(DataStore):
    writes = frozenset({Kind.BLOCK_DEVICE})

    def __init__(
        self,
        lvm: Lvm,
        engine: TransferEngine,
        *,
        id: str,  # noqa: A002 - the contract's word
        thin_pool: str | None = None,
        wipe: Wipe = Wipe.NONE,
        shared: bool = False,
    ) -> None:
        """`shared`: other hosts use the group as well."""
        self.id = id
        self.lvm = lvm
        self.engine = engine
        self.activation = Activation(lvm, shared=shared)
        self.thin_pool = thin_pool
        self._wipe = wipe

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.BLOCK_DEVICE})

    async def stat(self, ref: str) -> ObjectInfo:
        return _info(ref, await self._volume(ref))

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[NetworkImage]:
        name = volume_name(info.ref)
        if kind not in self.offers(info):
            raise self._unsupported(f"reading as {kind}")
        volume = await self._volume(info.ref)
        found = _info(info.ref, volume)
        expect_version(info, found)
        async with self.activation.of(name) as device:
            if volume.grown_from is not None:
                await self.wipe_grown(volume, device)
            yield self.image(name, device, found)

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingImage]:
        name = volume_name(ref)
        if kind not in self.writes:
            raise self._unsupported(f"writing as {kind}")
        if not replace and await self.lvm.volume(name) is not None:
            raise _taken(ref)
        pending = _PendingVolume(self, ref, pending_name(ref, token), replace=replace)
        try:
            yield pending
        finally:
            await uninterrupted(pending.close())

    async def discard(self, ref: str, *, token: str) -> None:
        """A volume that was whole and about to take another's place takes it: the other one is called differently by then."""
        name, pending = volume_name(ref), pending_name(ref, token)
        if await self.lvm.volume(replaced_name(ref)) is not None:
            if await self.lvm.volume(name) is None:
                await self.lvm.rename(pending, name)
            await self.remove(replaced_name(ref))
        await self.remove(pending)

    async def delete(self, ref: str) -> None:
        """A volume that is wiped is called differently meanwhile: it does not come back after a crash."""
        name, doomed = volume_name(ref), doomed_name(ref)
        volume = await self.lvm.volume(name)
        if volume is not None and not volume.makes_others:
            require_unused(ref, volume)
            await self.remove(doomed)
            await self.lvm.rename(name, doomed)
        await self.remove(doomed)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        prefix = check_prefix(prefix)
        for volume in sorted(await self.lvm.volumes(), key=lambda volume: volume.name):
            if is_image(volume.name) and not volume.makes_others and in_listing(volume.name, prefix):
                yield _info(volume.name, volume)

    async def usage(self) -> Usage:
        """Of the thin pool, if there is one; else of the group, whoever else has volumes there."""
        if self.thin_pool is not None:
            pool = await self.thin(self.thin_pool)
            return Usage(used=pool.used, capacity=pool.size)
        group = await self.lvm.look()
        return Usage(used=group.size - group.free, capacity=group.size)

    # ------------------------------------------------------------------------------------------------- for its parts

    async def thin(self, name: str) -> Volume:
        """The thin pool. `NotFound`."""
        pool = await self.lvm.volume(name)
        if pool is None or pool.kind != "thin-pool":
            raise NotFound(
                f"{self.lvm.group}/{name} is no thin pool; make it, or name another one in the setting lvm.thin_pools",
                group=self.lvm.group,
            )
        return pool

    def image(self, name: str, device: Path, info: ObjectInfo) -> NetworkImage:
        options: dict[str, object] = {"driver": "host_device", "filename": str(device)}
        return NetworkImage(options, info, Kind.BLOCK_DEVICE, storage=_LvmSide(self, name, device))

    async def remove(self, name: str) -> None:
        """A volume that no ref names, wiped where that is wanted. Idempotent."""
        volume = await self.lvm.volume(name)
        if volume is None:
            return
        if self._wipe is not Wipe.NONE and not volume.thin:
            async with self.activation.of(name) as device:
                await self.lvm.wipe(device, discard=self._wipe is Wipe.DISCARD)
        await self.lvm.remove(name)

    async def wipe_grown(self, volume: Volume, device: Path) -> None:
        """What it got when it grew does not show what others had there before."""
        await self.lvm.wipe(device, offset=volume.grown_from or 0)
        await self.lvm.forget_growth(volume)

    async def _volume(self, ref: str) -> Volume:
        volume = await self.lvm.volume(volume_name(ref))
        if volume is None or volume.makes_others:
            raise NotFound(f"there is no volume {ref} in the volume group {self.lvm.group}", ref=ref)
        return volume


class _LvmSide(StorageSide):
    """Of a volume that is active."""

    def __init__(self, store: LvmStore, name: str, device: Path) -> None:
        self._store = store
        self._lvm = store.lvm
        self._name = name
        self._device = device

    async def used(self) -> int | None:
        return (await self._lvm.known(self._name)).used

    async def in_use(self) -> bool:
        """By qemu's own locks. A guest to which libvirt gives a `/dev` of its own has these on another device node: so what is
        open although nobody else uses it here is in use as well."""
        volume = await self._lvm.known(self._name)
        if volume.open and self._store.activation.uses(self._name) <= 1:
            return True
        return await self._store.engine.run(held_for_writing, self._device)

    async def resize(self, size: int) -> None:
        volume = await self._lvm.known(self._name)
        grows = size > volume.size and not volume.thin
        if grows:
            await self._lvm.note_growth(volume)
        await self._lvm.resize(self._name, size)
        if grows:
            await self._store.wipe_grown(await self._lvm.known(self._name), self._device)


class _PendingVolume:
    kind: ClassVar[Kind] = Kind.BLOCK_DEVICE

    def __init__(self, store: LvmStore, ref: str, name: str, *, replace: bool) -> None:
        self.blank = False
        self._store = store
        self._lvm = store.lvm
        self._ref = ref
        self._name = name
        self._replace = replace
        self._open = AsyncExitStack()
        self._device: Path | None = None

    async def make(self, size: int) -> NetworkImage:
        if self._store.thin_pool is None:
            await self._lvm.create(self._name, size)
        else:
            pool = await self._store.thin(self._store.thin_pool)
            await self._lvm.create_thin(self._name, size, pool.name)
            self.blank = pool.zeroes
        return await self._opened()

    async def derive(self, image: NetworkImage, tag: str | None) -> NetworkImage:
        origin = await self._lvm.known(volume_name(image.info.ref))
        if not origin.thin or tag is not None:
            raise StoreUnsupported(
                f"{image.info.ref} is no thin volume, and shares no blocks; set fullCloneFlag for a full clone",
                ref=image.info.ref,
            )
        await self._lvm.snapshot_thin(self._name, origin.name)
        return await self._opened()

    async def commit(self) -> ObjectInfo:
        if self._device is None:
            raise ValueError(f"{self._ref} is committed before it was made")
        await self._store.engine.run(flush, self._device)
        await self._open.aclose()
        name, old = volume_name(self._ref), replaced_name(self._ref)
        taken = await self._lvm.volume(name)
        if taken is None:
            await self._lvm.rename(self._name, name)
        elif not self._replace:
            raise _taken(self._ref)
        else:
            require_unused(self._ref, taken)
            await self._lvm.rename(name, old)
            try:
                await self._lvm.rename(self._name, name)
            except BaseException:
                await self._lvm.rename(old, name)
                raise
            await self._store.remove(old)
        return await self._store.stat(self._ref)

    async def close(self) -> None:
        await self._open.aclose()
        await self._store.remove(self._name)

    async def _opened(self) -> NetworkImage:
        self._device = await self._open.enter_async_context(self._store.activation.of(self._name))
        volume = await self._lvm.known(self._name)
        return self._store.image(self._name, self._device, _info(self._ref, volume))


def _info(ref: str, volume: Volume) -> ObjectInfo:
    """The version tells one volume from another, and its size; LVM does not know of what is written into it."""
    return ObjectInfo(ref, volume.size, version=f"{volume.uuid}-{volume.size}")


def _taken(ref: str) -> AlreadyExists:
    return AlreadyExists(f"{ref} exists already; nothing was overwritten", ref=ref)


def require_unused(ref: str, volume: Volume) -> None:
    if volume.open:
        raise Unavailable(f"{ref} is in use, by a virtual machine perhaps: it has to be detached first", ref=ref)
