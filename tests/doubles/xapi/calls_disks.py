"""The calls of VDI."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from tests.doubles.xapi.disks import BLOCK, CBT_BLOCK, Tracking
from tests.doubles.xapi.errors import Failure, bad_size, no_changed_blocks
from tests.doubles.xapi.nbd import NbdServers
from tests.doubles.xapi.schema import NULL
from tests.doubles.xapi.world import Caller, World

METADATA = "cbt_metadata"


class VdiCalls:
    """Parameters are XAPI's, in its order; numbers may come as text."""

    def __init__(self, world: World, nbd: NbdServers) -> None:
        self._world = world
        self._db = world.db
        self._storage = world.storage
        self._nbd = nbd

    async def create(self, caller: Caller, record: dict[str, Any]) -> str:
        for field in ("SR", "virtual_size", "type", "sharable", "read_only"):
            if field not in record:
                raise Failure("FIELD_TYPE_ERROR", field)
        allowed = {
            "name_label",
            "name_description",
            "type",
            "sharable",
            "read_only",
            "other_config",
            "xenstore_data",
            "sm_config",
            "tags",
        }
        fields = {name: value for name, value in record.items() if name in allowed}
        return self._storage.create(record["SR"], int(record["virtual_size"]), **fields)

    async def destroy(self, caller: Caller, vdi: str) -> str:
        self._need_managed(vdi)
        self._storage.need_idle(vdi, "destroy")
        self._nbd.forget(vdi)
        self._storage.remove(vdi)
        return ""

    async def forget(self, caller: Caller, vdi: str) -> str:
        self._storage.need_idle(vdi, "forget")
        self._storage.forget(vdi)
        return ""

    async def introduce(
        self,
        caller: Caller,
        uuid: str,
        name_label: str,
        name_description: str,
        sr: str,
        vdi_type: str,
        sharable: bool,
        read_only: bool,
        other_config: dict[str, str],
        location: str,
        xenstore_data: dict[str, str],
        sm_config: dict[str, str],
        *further: Any,
    ) -> str:
        """Of the values given, the names and maps are taken; what describes the disk is as it was."""
        self._storage.need_plugged(sr)
        if self._db.find("VDI", uuid=uuid):
            raise Failure("SR_BACKEND_FAILURE_43", "", "The VDI already exists", "")
        found = self._storage.recall(sr, uuid)
        if not found:
            raise Failure("SR_BACKEND_FAILURE_144", "", "The VDI is missing", "")
        self._db.change(
            "VDI", found[0], name_label=name_label, name_description=name_description, other_config=other_config
        )
        return found[0]

    async def snapshot(self, caller: Caller, vdi: str, driver_params: dict[str, str] | None = None) -> str:
        self._need_managed(vdi)
        with self._storage.operating(vdi, "snapshot", caller.task):
            return self._storage.fork(vdi, snapshot=True, note=dict(driver_params or {}))

    async def clone(self, caller: Caller, vdi: str, driver_params: dict[str, str] | None = None) -> str:
        self._need_managed(vdi)
        with self._storage.operating(vdi, "clone", caller.task):
            return self._storage.fork(vdi, snapshot=False, note=dict(driver_params or {}))

    async def copy(self, caller: Caller, vdi: str, sr: str, base_vdi: str = NULL, into_vdi: str = NULL) -> str:
        """Can be cancelled; what it was making is then destroyed."""
        self._need_managed(vdi)
        self._world.tasks.allow_cancel(caller.task)
        if self._db.find("VBD", VDI=vdi, currently_attached=True, mode="RW"):
            raise Failure("VDI_IN_USE", vdi, "copy")
        record = self._db.get("VDI", vdi)
        with self._storage.operating(vdi, "copy", caller.task):
            if into_vdi == NULL:
                kept = ("name_label", "name_description", "type", "sharable", "read_only", "other_config", "tags")
                fields = {name: record[name] for name in kept}
                target = self._storage.create(sr, record["virtual_size"], **fields)
            else:
                target = into_vdi
            try:
                host = self._storage.hosts_of(self._db.field("VDI", target, "SR"))[0]
                with self._storage.in_dom0(target, host, "RW", task=caller.task):
                    await self._copy(caller, vdi, target, base_vdi)
            except BaseException:
                if into_vdi == NULL and self._db.has("VDI", target):
                    self._storage.remove(target)
                raise
        return target

    async def _copy(self, caller: Caller, vdi: str, target: str, base: str) -> None:
        source, into = self._storage.disks[vdi], self._storage.disks[target]
        charge = self._storage.charge(self._db.field("VDI", target, "SR"))
        blocks = source.allocated() if base == NULL else source.changed_since(self._storage.disks[base])
        for number, block in enumerate(blocks):
            await asyncio.sleep(self._storage.settings.copy_block_s)
            into.write(block * BLOCK, source.read(block * BLOCK, min(BLOCK, source.size - block * BLOCK)), charge)
            self._world.tasks.progress(caller.task, number / len(blocks))
        self._storage.account(self._db.field("VDI", target, "SR"))

    async def resize(self, caller: Caller, vdi: str, size: int | str) -> str:
        self._need_managed(vdi)
        self._storage.need_idle(vdi, "resize")
        self._resize(vdi, int(size))
        return ""

    async def resize_online(self, caller: Caller, vdi: str, size: int | str) -> str:
        self._need_managed(vdi)
        self._resize(vdi, int(size))
        return ""

    def _resize(self, vdi: str, size: int) -> None:
        disk, sr = self._storage.disks[vdi], self._db.field("VDI", vdi, "SR")
        size = -(-size // BLOCK) * BLOCK
        if size < disk.size:
            raise bad_size("shrinking is not allowed")
        more = size - disk.size
        if self._storage.kind(sr).thick:
            free = self._db.field("SR", sr, "physical_size") - self._storage.used(sr)
            if more > free:
                raise Failure("SR_BACKEND_FAILURE_44", "", "There is insufficient space", "")
        disk.size = size
        self._db.change("VDI", vdi, virtual_size=size)
        self._storage.account(sr)

    async def data_destroy(self, caller: Caller, vdi: str) -> str:
        record = self._db.get("VDI", vdi)
        if record["type"] == METADATA:
            return ""
        if not record["is_a_snapshot"]:
            raise Failure("OPERATION_NOT_ALLOWED", f"VDI is not a snapshot: {vdi}")
        if not record["cbt_enabled"]:
            raise Failure("VDI_NO_CBT_METADATA", vdi)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._storage.settings.data_destroy_wait_s
        while self._db.find("VBD", VDI=vdi):
            if loop.time() > deadline:
                raise Failure("VDI_IN_USE", vdi, "data_destroy")
            await asyncio.sleep(0.01)
        disk = self._storage.disks[vdi]
        disk.leaf = disk.nodes.make(None)
        self._nbd.forget(vdi)
        self._db.change("VDI", vdi, type=METADATA)
        self._storage.collect_soon(record["SR"])
        return ""

    async def enable_cbt(self, caller: Caller, vdi: str) -> str:
        self._need_no_snapshot(vdi)
        disk = self._storage.disks[vdi]
        if disk.tracking is None:
            disk.tracking = Tracking(None)
        self._db.change("VDI", vdi, cbt_enabled=True)
        return ""

    async def disable_cbt(self, caller: Caller, vdi: str) -> str:
        self._need_no_snapshot(vdi)
        self._storage.disks[vdi].tracking = None
        self._db.change("VDI", vdi, cbt_enabled=False)
        return ""

    async def list_changed_blocks(self, caller: Caller, vdi_from: str, vdi_to: str) -> str:
        """One bit for each 64 KiB of the larger disk, the first block's the highest of the first byte."""
        for vdi in (vdi_from, vdi_to):
            if not self._db.field("VDI", vdi, "cbt_enabled"):
                raise Failure("VDI_NO_CBT_METADATA", vdi)
        self._storage.need_idle(vdi_to, "list_changed_blocks")
        first, step = self._storage.disks[vdi_from].tracking, self._storage.disks[vdi_to].tracking
        changed: set[int] = set()
        while step is not first:
            if step is None:
                raise no_changed_blocks(f"{vdi_from} is not in the history of {vdi_to}")
            changed |= step.changed
            step = step.before
        size = max(self._storage.disks[vdi].size for vdi in (vdi_from, vdi_to))
        bits = bytearray(-(-size // CBT_BLOCK // 8))
        for block in changed:
            bits[block // 8] |= 1 << block % 8 if "bits-turned" in self._world.settings.lies else 0x80 >> block % 8
        return base64.b64encode(bits).decode()

    async def get_nbd_info(self, caller: Caller, vdi: str) -> list[dict[str, Any]]:
        record = self._db.get("VDI", vdi)
        if record["type"] == METADATA:
            raise Failure("VDI_INCOMPATIBLE_TYPE", vdi, METADATA)
        return await self._nbd.info(vdi, caller.session)

    async def pool_migrate(self, caller: Caller, vdi: str, sr: str, options: dict[str, str]) -> str:
        """A running VM's disk gets a new reference and uuid in the other SR."""
        vbds = self._db.find("VBD", VDI=vdi, currently_attached=True)
        if not vbds:
            raise Failure("VDI_NEEDS_VM_FOR_MIGRATE", vdi)
        record = self._db.get("VDI", vdi)
        kept = ("name_label", "name_description", "type", "sharable", "read_only", "other_config", "tags")
        fields = {name: record[name] for name in kept}
        target = self._storage.create(sr, record["virtual_size"], **fields)
        await self._copy(caller, vdi, target, NULL)
        for vbd in vbds:
            self._db.change("VBD", vbd, VDI=target)
        self._storage.remove(vdi)
        self._storage.refresh(target)
        return target

    def _need_managed(self, vdi: str) -> None:
        if not self._db.field("VDI", vdi, "managed"):
            raise Failure("VDI_NOT_MANAGED", vdi)

    def _need_no_snapshot(self, vdi: str) -> None:
        if self._db.field("VDI", vdi, "is_a_snapshot"):
            raise Failure("OPERATION_NOT_ALLOWED", f"VDI is a snapshot: {vdi}")
