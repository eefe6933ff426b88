"""The calls of SR, PBD and VBD, and the few of VM that attached disks need."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.schema import NULL
from tests.doubles.xapi.settings import GiB
from tests.doubles.xapi.storage import KINDS
from tests.doubles.xapi.world import Caller, World

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
        """A PBD for the host (for all hosts where it is shared), plugged."""
        self._need_kind(kind)
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
            uuid=uuid,
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
        """The SRs of this type that no record names, as SM's old drivers tell it."""
        known = "".join(f"<SR><UUID>{escape(number)}</UUID></SR>" for number in self._forgotten(kind))
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
            for number in self._forgotten(kind)
        ]

    def _forgotten(self, kind: str) -> list[str]:
        self._need_kind(kind)
        return [number for number in self._storage.nodes if not self._db.find("SR", uuid=number)]

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
        self._storage.nodes.pop(self._db.field("SR", sr, "uuid")).close()
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
        if fields.get("type") == "CD" and fields.get("mode") != "RO":
            raise Failure("VBD_CDS_MUST_BE_READONLY")
        if not fields.get("empty", False):
            disk = self._db.get("VDI", fields["VDI"])
            if disk["read_only"] and fields.get("mode") == "RW":
                raise Failure("VDI_READONLY", fields["VDI"])
        used = [self._db.field("VBD", vbd, "userdevice") for vbd in self._db.find("VBD", VM=fields["VM"])]
        if fields.get("userdevice") in used:
            raise Failure("DEVICE_ALREADY_EXISTS", fields["userdevice"])
        if fields.get("userdevice") == "autodetect":
            fields["userdevice"] = next(str(number) for number in range(256) if str(number) not in used)
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
            raise Failure("DEVICE_DETACH_REJECTED", "VBD", vbd, "The device is in use by the guest")
        self._storage.detach(vbd)
        return ""

    async def unplug_force(self, caller: Caller, vbd: str) -> str:
        self._storage.detach(vbd)
        return ""

    async def destroy(self, caller: Caller, vbd: str) -> str:
        if self._db.field("VBD", vbd, "currently_attached"):
            raise Failure("OPERATION_NOT_ALLOWED", "VBD is currently attached")
        self._db.remove("VBD", vbd)
        return ""

    async def insert(self, caller: Caller, vbd: str, vdi: str) -> str:
        if not self._db.field("VBD", vbd, "empty"):
            raise Failure("VBD_NOT_EMPTY", vbd)
        self._db.change("VBD", vbd, VDI=vdi, empty=False)
        return ""

    async def eject(self, caller: Caller, vbd: str) -> str:
        if self._db.field("VBD", vbd, "empty"):
            raise Failure("VBD_IS_EMPTY", vbd)
        self._db.change("VBD", vbd, VDI=NULL, empty=True)
        return ""

    def _need_running(self, vbd: str) -> None:
        vm = self._db.field("VBD", vbd, "VM")
        if not self._world.is_running(vm):
            state = self._db.field("VM", vm, "power_state")
            raise Failure("VM_BAD_POWER_STATE", vm, "running", str(state).lower())


class VmCalls:
    """A running VM has its disks attached."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._db = world.db
        self._storage = world.storage

    async def start(self, caller: Caller, vm: str, start_paused: bool, force: bool) -> str:
        self._need(vm, "Halted")
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
        self._need(vm, "Running")
        for vbd in self._db.find("VBD", VM=vm, currently_attached=True):
            self._storage.detach(vbd)
        self._db.change("VM", vm, power_state="Halted", resident_on=NULL)
        return ""

    def _need(self, vm: str, state: str) -> None:
        found = self._db.field("VM", vm, "power_state")
        if found != state:
            raise Failure("VM_BAD_POWER_STATE", vm, state.lower(), str(found).lower())
