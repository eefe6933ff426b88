"""The calls of SR, PBD and VBD, and the few of VM that attached disks need."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from tests.doubles.xapi.database import Database
from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.schema import NULL
from tests.doubles.xapi.settings import GiB
from tests.doubles.xapi.storage import KINDS, whereabouts
from tests.doubles.xapi.world import Caller, World

DEVICES = 16
"""Numbers that a disk of a VM can have."""
ROOM = 1024 * GiB
"""What an SR made by SR.create has, where nothing was said."""


class SrCalls:
    def __init__(self, world: World) -> None:
        self._db = world.db
        self._storage = world.storage

    async def create(
        self,
        caller: Caller,
        host: str,
        device_config: dict[str, str],
        physical_size: int | str,
        name_label: str,
        name_description: str,
        kind: str,
        content_type: str,
        shared: bool,
        sm_config: dict[str, str] | None = None,
    ) -> str:
        """A PBD for the host (for all hosts where it is shared), plugged. Kinds that take a whole device format it."""
        self._need_kind(kind)
        self._need_whereabouts(kind, device_config)
        if KINDS[kind].formats:
            for number in self._storage.lying_at(kind, device_config):
                if self._db.find("SR", uuid=number):
                    raise Failure("SR_DEVICE_IN_USE")
                self._storage.wipe(number)
        hosts = self._db.refs("host") if shared else [host]
        ref = self._storage.add_sr(
            kind,
            name_label,
            int(physical_size) or ROOM,
            name_description=name_description,
            shared=shared,
            content_type=content_type or "user",
            sm_config=sm_config or {},
        )
        self._storage.places[self._db.field("SR", ref, "uuid")] = (kind, whereabouts(device_config))
        for one in hosts:
            self._db.add("PBD", host=one, SR=ref, device_config=device_config, currently_attached=True)
        return ref

    async def introduce(
        self,
        caller: Caller,
        uuid: str,
        name_label: str,
        name_description: str,
        kind: str,
        content_type: str,
        shared: bool,
        sm_config: dict[str, str] | None = None,
    ) -> str:
        self._need_kind(kind)
        if self._db.find("SR", uuid=uuid):
            raise Failure("SR_UUID_EXISTS", uuid)
        return self._storage.add_sr(
            kind,
            name_label,
            ROOM,
            number=uuid,
            name_description=name_description,
            shared=shared,
            content_type=content_type,
            sm_config=sm_config or {},
        )

    async def probe(
        self,
        caller: Caller,
        host: str,
        device_config: dict[str, str],
        kind: str,
        sm_config: dict[str, str] | None = None,
    ) -> str:
        """The SRs of this type that lie there, as SM's old drivers tell it."""
        self._need_kind(kind)
        self._need_whereabouts(kind, device_config)
        there = self._storage.lying_at(kind, device_config)
        known = "".join(f"\n\t<SR>\n\t\t<UUID>\n\t\t\t{escape(number)}\n\t\t</UUID>\n\t</SR>" for number in there)
        return f'<?xml version="1.0" ?><SRlist>{known}</SRlist>'

    async def probe_ext(
        self,
        caller: Caller,
        host: str,
        device_config: dict[str, str],
        kind: str,
        sm_config: dict[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        return [
            {
                "configuration": device_config,
                "complete": True,
                "sr": {"uuid": number, "name_label": "", "total_space": ROOM, "free_space": ROOM, "clustered": False},
                "extra_info": {},
            }
            for number in self._storage.lying_at(kind, device_config)
        ]

    def _need_whereabouts(self, kind: str, config: dict[str, str]) -> None:
        """What SM's driver for iSCSI asks for step by step; the last parameter lists what it has found, and is left out."""
        if kind == "lvmoiscsi" and not config.get("targetIQN"):
            raise Failure(
                "SR_BACKEND_FAILURE_96", "", "The request is missing or has an incorrect target IQN parameter", ""
            )
        if kind == "lvmoiscsi" and not config.get("SCSIid"):
            raise Failure("SR_BACKEND_FAILURE_107", "", "The SCSIid parameter is missing or incorrect", "")

    async def scan(self, caller: Caller, sr: str) -> str:
        self._storage.need_plugged(sr)
        self._storage.recall(sr)
        self._storage.collect_soon(sr)
        self._storage.account(sr)
        return ""

    async def update(self, caller: Caller, sr: str) -> str:
        self._storage.need_plugged(sr)
        self._storage.account(sr)
        return ""

    async def get_supported_types(self, caller: Caller) -> list[str]:
        return list(KINDS)

    async def forget(self, caller: Caller, sr: str) -> str:
        """The disks stay where they are; only the records go."""
        if self._storage.hosts_of(sr):
            raise Failure("SR_HAS_PBD", sr)
        for vdi in self._db.find("VDI", SR=sr):
            self._storage.forget(vdi)
        self._remove(sr)
        return ""

    async def destroy(self, caller: Caller, sr: str) -> str:
        self._storage.need_plugged(sr)
        if any(self._db.field("VDI", vdi, "managed") for vdi in self._db.find("VDI", SR=sr)):
            raise Failure("SR_BACKEND_FAILURE_39", "", "The SR is not empty", "")
        self._storage.collect(sr)
        number = self._db.field("SR", sr, "uuid")
        self._storage.nodes.pop(number).close()
        self._storage.places.pop(number, None)
        self._remove(sr)
        return ""

    def _remove(self, sr: str) -> None:
        for pbd in self._db.find("PBD", SR=sr):
            self._db.remove("PBD", pbd)
        self._db.remove("SR", sr)

    def _need_kind(self, kind: str) -> None:
        if kind not in KINDS:
            raise Failure("SR_UNKNOWN_DRIVER", kind)


class PbdCalls:
    def __init__(self, world: World) -> None:
        self._db = world.db
        self._storage = world.storage

    async def create(self, caller: Caller, record: dict[str, Any]) -> str:
        if self._db.find("PBD", host=record["host"], SR=record["SR"]):
            raise Failure("PBD_EXISTS", record["SR"], record["host"], self._db.find("PBD", SR=record["SR"])[0])
        taken = ("host", "SR", "device_config", "other_config")
        return self._db.add("PBD", **{name: record[name] for name in taken if name in record})

    async def plug(self, caller: Caller, pbd: str) -> str:
        self._db.change("PBD", pbd, currently_attached=True)
        return ""

    async def unplug(self, caller: Caller, pbd: str) -> str:
        record = self._db.get("PBD", pbd)
        for vdi in self._db.find("VDI", SR=record["SR"]):
            if self._db.find("VBD", VDI=vdi, currently_attached=True):
                raise Failure("VDI_IN_USE", vdi, "detach")
        self._db.change("PBD", pbd, currently_attached=False)
        return ""

    async def destroy(self, caller: Caller, pbd: str) -> str:
        if self._db.field("PBD", pbd, "currently_attached"):
            raise Failure("OPERATION_NOT_ALLOWED", "PBD is currently attached")
        self._db.remove("PBD", pbd)
        return ""


class VbdCalls:
    def __init__(self, world: World) -> None:
        self._world = world
        self._db = world.db
        self._storage = world.storage

    async def create(self, caller: Caller, record: dict[str, Any]) -> str:
        taken = ("VM", "VDI", "userdevice", "bootable", "mode", "type", "empty", "unpluggable", "other_config")
        fields = {name: record[name] for name in taken if name in record}
        empty, drive = bool(fields.get("empty", False)), fields.get("type") == "CD"
        if not empty and self._db.field("VDI", fields["VDI"], "type") == "cbt_metadata":
            raise Failure("VDI_INCOMPATIBLE_TYPE", fields["VDI"], "cbt_metadata")
        if drive and fields.get("mode") != "RO":
            raise Failure("VBD_CDS_MUST_BE_READONLY")
        if empty and not drive:
            raise Failure("VBD_NOT_REMOVABLE_MEDIA", "in constructor")
        if drive and not empty:
            self._need_iso(fields["VDI"])
        if not empty and self._db.get("VDI", fields["VDI"])["read_only"] and fields.get("mode") == "RW":
            raise Failure("VDI_READONLY", fields["VDI"])
        number = str(fields.get("userdevice", ""))
        if number != "autodetect" and not (number.isdigit() and int(number) < DEVICES):
            raise Failure("INVALID_DEVICE", number)
        used = [self._db.field("VBD", vbd, "userdevice") for vbd in self._db.find("VBD", VM=fields["VM"])]
        if fields.get("userdevice") in used:
            raise Failure("DEVICE_ALREADY_EXISTS", fields["userdevice"])
        if fields.get("userdevice") == "autodetect":
            free = [str(device) for device in range(DEVICES) if str(device) not in used]
            if not free:
                raise Failure("INVALID_DEVICE", number)
            fields["userdevice"] = free[0]
        return self._db.add("VBD", **fields)

    async def plug(self, caller: Caller, vbd: str) -> str:
        self._need_running(vbd)
        self._storage.attach(vbd)
        return ""

    async def unplug(self, caller: Caller, vbd: str) -> str:
        self._need_running(vbd)
        record = self._db.get("VBD", vbd)
        if not record["currently_attached"]:
            raise Failure("DEVICE_ALREADY_DETACHED", vbd)
        if not record["unpluggable"]:
            raise Failure("VBD_NOT_UNPLUGGABLE", vbd)
        self._storage.detach(vbd)
        return ""

    async def unplug_force(self, caller: Caller, vbd: str) -> str:
        self._storage.detach(vbd)
        return ""

    async def destroy(self, caller: Caller, vbd: str) -> str:
        record = self._db.get("VBD", vbd)
        if record["currently_attached"] or self._db.field("VM", record["VM"], "power_state") == "Suspended":
            raise Failure("OPERATION_NOT_ALLOWED", f"VBD '{record['uuid']}' still attached to '{record['VM']}'")
        self._db.remove("VBD", vbd)
        return ""

    async def insert(self, caller: Caller, vbd: str, vdi: str) -> str:
        self._need_drive(vbd)
        if not self._db.field("VBD", vbd, "empty"):
            raise Failure("VBD_NOT_EMPTY", vbd)
        self._need_iso(vdi)
        if self._db.find("VBD", VDI=vdi, currently_attached=True, mode="RW"):
            raise Failure("VDI_IN_USE", vdi)
        self._db.change("VBD", vbd, VDI=vdi, empty=False)
        self._storage.refresh(vdi)
        return ""

    async def eject(self, caller: Caller, vbd: str) -> str:
        self._need_drive(vbd)
        record = self._db.get("VBD", vbd)
        if record["empty"]:
            raise Failure("VBD_IS_EMPTY", vbd)
        self._db.change("VBD", vbd, VDI=NULL, empty=True)
        self._storage.refresh(record["VDI"])
        return ""

    def _need_running(self, vbd: str) -> None:
        """And not a CD drive, which only its medium leaves."""
        vm = self._db.field("VBD", vbd, "VM")
        if not self._world.is_running(vm):
            raise _bad_state(self._db, vm, "running")
        if self._db.field("VBD", vbd, "type") == "CD":
            raise Failure(
                "OPERATION_NOT_ALLOWED", "HVM CDROMs cannot be hotplugged/unplugged, only inserted or ejected"
            )

    def _need_drive(self, vbd: str) -> None:
        record = self._db.get("VBD", vbd)
        if record["type"] != "CD":
            raise Failure("VBD_NOT_REMOVABLE_MEDIA", vbd)
        if self._db.field("VM", record["VM"], "power_state") == "Suspended":
            raise _bad_state(self._db, record["VM"], "halted, running")

    def _need_iso(self, vdi: str) -> None:
        sr = self._db.get("SR", self._db.field("VDI", vdi, "SR"))
        if sr["content_type"] != "iso":
            raise Failure("VDI_IS_NOT_ISO", vdi, sr["content_type"])


def _bad_state(db: Database, vm: str, needed: str) -> Failure:
    return Failure("VM_BAD_POWER_STATE", vm, needed, str(db.field("VM", vm, "power_state")).lower())


class VmCalls:
    """A running VM has its disks attached, and so has a paused one. What a suspended one had is nobody else's to remove."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._db = world.db
        self._storage = world.storage

    async def start(self, caller: Caller, vm: str, start_paused: bool, force: bool) -> str:
        self._need(vm, "Halted")
        return self._begin(caller, vm)

    async def resume(self, caller: Caller, vm: str, start_paused: bool, force: bool) -> str:
        self._need(vm, "Suspended")
        return self._begin(caller, vm)

    def _begin(self, caller: Caller, vm: str) -> str:
        done: list[str] = []
        try:
            for vbd in self._db.find("VBD", VM=vm):
                self._storage.attach(vbd)
                done.append(vbd)
        except Failure:
            for vbd in done:
                self._storage.detach(vbd)
            raise
        host = self._world.hosts[caller.host]
        self._db.change("VM", vm, power_state="Running", resident_on=host)
        return ""

    async def clean_shutdown(self, caller: Caller, vm: str) -> str:
        return await self.hard_shutdown(caller, vm)

    async def hard_shutdown(self, caller: Caller, vm: str) -> str:
        if self._db.field("VM", vm, "power_state") not in ("Paused", "Suspended"):
            self._need(vm, "Running")
        return self._end(vm, "Halted")

    async def suspend(self, caller: Caller, vm: str) -> str:
        self._need(vm, "Running")
        return self._end(vm, "Suspended")

    def _end(self, vm: str, state: str) -> str:
        for vbd in self._db.find("VBD", VM=vm, currently_attached=True):
            self._storage.detach(vbd)
        self._db.change("VM", vm, power_state=state, resident_on=NULL)
        return ""

    async def pause(self, caller: Caller, vm: str) -> str:
        self._need(vm, "Running")
        self._db.change("VM", vm, power_state="Paused")
        return ""

    async def unpause(self, caller: Caller, vm: str) -> str:
        self._need(vm, "Paused")
        self._db.change("VM", vm, power_state="Running")
        return ""

    def _need(self, vm: str, state: str) -> None:
        if self._db.field("VM", vm, "power_state") != state:
            raise _bad_state(self._db, vm, state.lower())
