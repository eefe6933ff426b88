"""Storage repositories and what is in them: records, contents, space, and who has a disk attached."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.doubles.xapi.database import Database
from tests.doubles.xapi.disks import BLOCK, Disk, Node, Nodes, Tracking
from tests.doubles.xapi.errors import Failure, bad_size, chain_too_long, no_space
from tests.doubles.xapi.schema import NULL
from tests.doubles.xapi.settings import Settings
from tests.doubles.xapi.tasks import Clock
from tests.doubles.xapi.vhd import LARGEST

LONGEST_CHAIN = 30
ISO_NAME = re.compile(r"[a-z0-9.-]+\.(iso|img)", re.IGNORECASE)

_ALWAYS = ["clone", "copy", "snapshot", "update"]
_DETACHED = ["destroy", "forget", "resize", "enable_cbt", "disable_cbt", "generate_config", "list_changed_blocks"]


@dataclass(frozen=True)
class Kind:
    """What SM's driver of one type of SR does."""

    thick: bool = False
    formats: bool = False
    vhd: bool = True
    shared: bool = True


KINDS = {
    "nfs": Kind(),
    "smb": Kind(),
    "ext": Kind(formats=True, shared=False),
    "lvm": Kind(thick=True, formats=True, shared=False),
    "lvmoiscsi": Kind(thick=True, formats=True),
    "iso": Kind(vhd=False),
}


class Storage:
    """All of it for one pool. Methods fail as SM does, by `Failure`."""

    def __init__(self, db: Database, clock: Clock, settings: Settings, folder: Path) -> None:
        self._db = db
        self._clock = clock
        self.settings = settings
        self._folder = folder
        self.disks: dict[str, Disk] = {}
        self.nodes: dict[str, Nodes] = {}
        self.places: dict[str, tuple[str, dict[str, str]]] = {}
        """By the SR's uuid: its type, and where it lies, for those that SR.create made."""
        self.forgotten: dict[str, list[tuple[dict[str, Any], Disk]]] = {}
        """By the SR's uuid: disks without a record, which a scan or VDI.introduce finds again."""
        self._collecting: dict[str, asyncio.TimerHandle] = {}

    # ---------------------------------------------------------------------------------------------------- SRs

    def add_sr(self, kind: str, name: str, size: int, *, number: str = "", **fields: Any) -> str:
        """A repository; one that was known by its uuid, `number`, is found as it was left."""
        fields = {"shared": KINDS[kind].shared, "content_type": "iso" if kind == "iso" else "user", **fields}
        if KINDS[kind].thick:  # LVHDSR.py says so of all that it makes
            fields["sm_config"] = {**fields.get("sm_config", {}), "use_vhd": "true", "allocation": "thick"}
        ref = self._db.add("SR", uuid=number, type=kind, name_label=name, physical_size=size, **fields)
        number = self._db.field("SR", ref, "uuid")
        if number not in self.nodes:
            self.nodes[number] = Nodes(self._folder / number)
        return ref

    def kind(self, sr: str) -> Kind:
        return KINDS[self._db.field("SR", sr, "type")]

    def hosts_of(self, sr: str) -> list[str]:
        """Those that have it plugged."""
        plugged = self._db.find("PBD", SR=sr, currently_attached=True)
        return [self._db.field("PBD", pbd, "host") for pbd in plugged]

    def need_plugged(self, sr: str) -> None:
        if not self.hosts_of(sr):
            self._db.get("SR", sr)
            raise Failure("SR_NO_PBDS", sr)

    def used(self, sr: str) -> int:
        kind = self.kind(sr)
        number = self._db.field("SR", sr, "uuid")
        if not kind.thick:
            return self.nodes[number].held()
        leaves: dict[Node, int] = {}
        for vdi in self._db.find("VDI", SR=sr):
            record = self._db.get("VDI", vdi)
            if vdi in self.disks and not record["is_a_snapshot"]:
                leaves[self.disks[vdi].leaf] = record["virtual_size"]
        return sum(leaves.get(node, len(node.blocks) * BLOCK) for node in self.nodes[number].all)

    def charge(self, sr: str) -> Callable[[int], None]:
        """What a disk's `write` calls before it takes more."""

        def charge(count: int) -> None:
            if not self.kind(sr).thick and self.used(sr) + count > self._db.field("SR", sr, "physical_size"):
                raise no_space()

        return charge

    def account(self, sr: str) -> None:
        """Bring the figures in the records up to date."""
        if not self._db.has("SR", sr):
            return
        total = 0
        for vdi in self._db.find("VDI", SR=sr):
            total += self._db.field("VDI", vdi, "virtual_size")
            if vdi in self.disks:
                held = len(self.disks[vdi].leaf.blocks) * BLOCK
                self._db.change("VDI", vdi, physical_utilisation=held)
        self._db.change("SR", sr, physical_utilisation=self.used(sr), virtual_allocation=total)

    def lying_at(self, kind: str, config: dict[str, str]) -> list[str]:
        """uuids of the SRs of that type in the place that `config` says, whether they are known or not."""
        return [number for number, place in self.places.items() if place == (kind, whereabouts(config))]

    def wipe(self, number: str) -> None:
        """What formatting its place does to an SR that nobody has plugged."""
        del self.places[number]
        for _, disk in self.forgotten.pop(number, []):
            disk.leaf = disk.nodes.make(None)
        self.nodes.pop(number).close()

    # --------------------------------------------------------------------------------------------------- VDIs

    def create(self, sr: str, size: int, **fields: Any) -> str:
        kind = self.kind(sr)
        self.need_plugged(sr)
        if kind.vhd and not 0 < size <= LARGEST:
            raise bad_size(f"{size} is not between 2 MiB and {LARGEST}")
        if kind.vhd:
            size = size // BLOCK * BLOCK if "size-down" in self.settings.lies else -(-size // BLOCK) * BLOCK
        if kind.thick and self.used(sr) + size > self._db.field("SR", sr, "physical_size"):
            raise no_space()
        sm_config = dict(fields.pop("sm_config", {}))
        location = ""
        if not kind.vhd:
            if not self.settings.iso_uploads:
                raise Failure("SR_OPERATION_NOT_SUPPORTED", sr)
            location = sm_config.get("path") or f"{uuid.uuid4()}.img"
            if not ISO_NAME.fullmatch(location):
                raise Failure("SR_BACKEND_FAILURE_78", "", f"VDI Creation failed [opterr=path {location!r}]", "")
            if self._db.find("VDI", SR=sr, location=location):
                raise Failure("SR_BACKEND_FAILURE_43", "", "The VDI already exists", "")
        ref = self._add(sr, Disk(self._nodes(sr), size), location=location, sm_config=sm_config, **fields)
        self.account(sr)
        return ref

    def fork(self, vdi: str, *, snapshot: bool, note: dict[str, str]) -> str:
        """VDI.snapshot and VDI.clone."""
        record, disk = self._db.get("VDI", vdi), self.disks[vdi]
        sr = record["SR"]
        self.need_plugged(sr)
        if not self.kind(sr).vhd:
            raise Failure("SR_OPERATION_NOT_SUPPORTED", sr)
        if disk.depth >= LONGEST_CHAIN:
            raise chain_too_long()
        if self.kind(sr).thick:
            size = self._db.field("SR", sr, "physical_size")
            if self.used(sr) + len(disk.leaf.blocks) * BLOCK + (0 if snapshot else disk.size) > size:
                raise no_space()
        shared = ("snapshot-shared" if snapshot else "clone-shared") in self.settings.lies
        new = Disk(disk.nodes, disk.size, disk.leaf) if shared else disk.fork()
        fields: dict[str, Any] = {
            "name_label": record["name_label"],
            "name_description": record["name_description"],
            "type": record["type"],
            "sharable": record["sharable"],
            "xenstore_data": record["xenstore_data"],
            "tags": record["tags"],
            "other_config": {} if "config-lost" in self.settings.lies else record["other_config"],
            "sm_config": {**record["sm_config"], **note},
        }
        if snapshot:
            fields |= {"is_a_snapshot": True, "snapshot_of": vdi, "snapshot_time": self._clock.moment()}
            fields["cbt_enabled"] = record["cbt_enabled"]
            new.tracking = disk.tracking
            if disk.tracking is not None:
                disk.tracking = Tracking(disk.tracking)
        ref = self._add(sr, new, **fields)
        self._name_parents(sr)
        self.account(sr)
        return ref

    def remove(self, vdi: str) -> None:
        """The record at once, the space when the garbage collector has been there."""
        sr = self._db.field("VDI", vdi, "SR")
        for vbd in self._db.find("VBD", VDI=vdi):
            self._db.remove("VBD", vbd)
        for snapshot in self._db.find("VDI", snapshot_of=vdi):
            self._db.change("VDI", snapshot, snapshot_of=NULL)
        self._db.remove("VDI", vdi)
        del self.disks[vdi]
        self.collect_soon(sr)

    def forget(self, vdi: str) -> None:
        record = self._db.get("VDI", vdi)
        disk = self.disks[vdi]
        for vbd in self._db.find("VBD", VDI=vdi):
            self._db.remove("VBD", vbd)
        self._db.remove("VDI", vdi)
        del self.disks[vdi]
        number = self._db.field("SR", record["SR"], "uuid")
        self.forgotten.setdefault(number, []).append((record, disk))

    def recall(self, sr: str, wanted: str | None = None) -> list[str]:
        """Give the disks that are there without a record one again: a scan."""
        number = self._db.field("SR", sr, "uuid")
        lost = self.forgotten.get(number, [])
        found = [pair for pair in lost if wanted in (None, pair[0]["uuid"])]
        self.forgotten[number] = [pair for pair in lost if pair not in found]
        kept = ("uuid", "type", "location", "sm_config", "is_a_snapshot", "snapshot_time", "read_only", "cbt_enabled")
        return [self._add(sr, disk, **{name: record[name] for name in kept}) for record, disk in found]

    def _add(self, sr: str, disk: Disk, **fields: Any) -> str:
        ref = self._db.add("VDI", SR=sr, virtual_size=disk.size, **fields)
        if not fields.get("location"):
            self._db.change("VDI", ref, location=self._db.field("VDI", ref, "uuid"))
        self.disks[ref] = disk
        self.refresh(ref)
        return ref

    def _nodes(self, sr: str) -> Nodes:
        return self.nodes[self._db.field("SR", sr, "uuid")]

    # --------------------------------------------------------------------------------------------- attachments

    def need_idle(self, vdi: str, operation: str) -> None:
        """Not attached, and nothing else going on."""
        self.need_no_operation(vdi)
        if self._db.find("VBD", VDI=vdi, currently_attached=True):
            raise Failure("VDI_IN_USE", vdi, operation)

    def need_no_operation(self, vdi: str) -> None:
        for task, operation in self._db.field("VDI", vdi, "current_operations").items():
            raise Failure("OTHER_OPERATION_IN_PROGRESS", "VDI", vdi, operation, task)

    @contextmanager
    def operating(self, vdi: str, operation: str, task: str) -> Iterator[None]:
        self.need_no_operation(vdi)
        self._db.change("VDI", vdi, current_operations={task: operation}, allowed_operations=[])
        try:
            yield
        finally:
            if self._db.has("VDI", vdi):
                self._db.change("VDI", vdi, current_operations={})
                self.refresh(vdi)

    def attach(self, vbd: str) -> None:
        """The VBD's disk becomes visible to its VM: alone, or with others where all only read."""
        record = self._db.get("VBD", vbd)
        vdi = record["VDI"]
        if record["currently_attached"]:
            raise Failure("DEVICE_ALREADY_ATTACHED", vbd)
        if not record["empty"]:
            self.need_no_operation(vdi)
            disk = self._db.get("VDI", vdi)
            self.need_plugged(disk["SR"])
            others = [self._db.get("VBD", other) for other in self._db.find("VBD", VDI=vdi, currently_attached=True)]
            writers = [other for other in others if other["mode"] == "RW"]
            if not disk["sharable"] and (writers or (others and record["mode"] == "RW")):
                raise Failure("VDI_IN_USE", vdi, "attach")
            if disk["read_only"] and record["mode"] == "RW":
                raise Failure("VDI_READONLY", vdi)
        self._db.change("VBD", vbd, currently_attached=True, device=_device(record["userdevice"]))
        self.refresh(vdi)

    def detach(self, vbd: str) -> None:
        self._db.change("VBD", vbd, currently_attached=False, device="")
        self.refresh(self._db.field("VBD", vbd, "VDI"))

    @contextmanager
    def in_dom0(self, vdi: str, host: str, mode: str, *, task: str, leave: bool = False) -> Iterator[Disk]:
        """Attached to a host's control domain for the time being, as data handlers do it; `leave`: and ever after."""
        domain = self._db.field("host", host, "control_domain")
        noted = {"task_id": task}  # vbd_task_key of xapi_globs.ml: by it XAPI finds VBDs whose task is gone
        vbd = self._db.add("VBD", VM=domain, VDI=vdi, mode=mode, userdevice="autodetect", other_config=noted)
        try:
            self.attach(vbd)
            yield self.disks[vdi]
        finally:
            if self._db.has("VBD", vbd) and not leave:
                self._db.remove("VBD", vbd)
            if self._db.has("VDI", vdi):
                self.refresh(vdi)
                self.account(self._db.field("VDI", vdi, "SR"))

    def refresh(self, vdi: str) -> None:
        """What is allowed now."""
        if vdi == NULL or not self._db.has("VDI", vdi):
            return
        record = self._db.get("VDI", vdi)
        allowed = [] if record["current_operations"] else list(_ALWAYS)
        if allowed and not self._db.find("VBD", VDI=vdi, currently_attached=True):
            allowed += _DETACHED
            if record["is_a_snapshot"] and record["cbt_enabled"]:
                allowed.append("data_destroy")
        self._db.change("VDI", vdi, allowed_operations=sorted(allowed))

    # ------------------------------------------------------------------------------------- garbage collection

    def collect_soon(self, sr: str) -> None:
        if sr not in self._collecting:
            loop = asyncio.get_running_loop()
            self._collecting[sr] = loop.call_later(self.settings.gc_delay_s, self.collect, sr)

    def collect(self, sr: str) -> None:
        """Space of what nobody stands on is free again, and chains are shorter: parents change."""
        handle = self._collecting.pop(sr, None)
        if handle is not None:
            handle.cancel()
        if not self._db.has("SR", sr):
            return
        number = self._db.field("SR", sr, "uuid")
        nodes = self.nodes[number]
        disks = [disk for disk in self.disks.values() if disk.nodes is nodes]
        disks += [disk for _, disk in self.forgotten.get(number, [])]
        moved = nodes.collect([disk.leaf for disk in disks])
        for disk in disks:
            while disk.leaf in moved:
                disk.leaf = moved[disk.leaf]
        self._name_parents(sr)
        self.account(sr)

    def _name_parents(self, sr: str) -> None:
        for vdi in self._db.find("VDI", SR=sr):
            config = self._db.field("VDI", vdi, "sm_config")
            parent = self.disks[vdi].leaf.parent if vdi in self.disks else None
            config.pop("vhd-parent", None)
            if parent is not None:
                config["vhd-parent"] = parent.path.stem
            self._db.change("VDI", vdi, sm_config=config)

    def close(self) -> None:
        for handle in self._collecting.values():
            handle.cancel()
        for nodes in self.nodes.values():
            nodes.close()


def whereabouts(config: dict[str, str]) -> dict[str, str]:
    """The part of a `device_config` that says where, and not as whom."""
    return {key: value for key, value in config.items() if not key.startswith("chap")}


def _device(number: str) -> str:
    """What a guest calls the disk of that number."""
    return f"xvd{chr(ord('a') + int(number))}" if number.isdigit() else "xvda"
