"""Virtual machines of XenServer as the storage side knows them: a name, a power state, and what is attached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypervisors.guests import Attachment
from hypervisors.xen.errors import HANDLE_INVALID, XapiFailure
from hypervisors.xen.pool import XenPool
from stores.errors import InvalidReference, NotFound

NULL = "OpaqueRef:NULL"


@dataclass(frozen=True, slots=True)
class Vbd:
    """What connects a VDI to a machine, as XAPI showed it. `handle`, `vm` and `vdi` are XAPI's references."""

    handle: str
    vm: str
    vdi: str | None  # None: an empty drive
    device: int
    name: str | None
    drive: bool
    read_only: bool
    plugged: bool
    config: Mapping[str, str]

    def attachment(self, uuid: str | None) -> Attachment:
        """`uuid` of its VDI."""
        return Attachment(self.device, uuid, self.name, read_only=self.read_only, drive=self.drive)


@dataclass(frozen=True, slots=True)
class Machine:
    pool: XenPool
    handle: str
    name: str
    state: str  # Halted, Paused, Running, Suspended

    @property
    def running(self) -> bool:
        return self.state == "Running"

    async def vbds(self) -> list[Vbd]:
        return await shown(self.pool, await self.pool.call("VM.get_VBDs", self.handle))


async def shown(pool: XenPool, handles: Iterable[str]) -> list[Vbd]:
    """Those of the VBDs that are still there."""
    found = []
    for handle in handles:
        try:
            found.append(_vbd(handle, await pool.call("VBD.get_record", handle)))
        except XapiFailure as problem:
            if problem.code != HANDLE_INVALID:
                raise
    return found


def _vbd(handle: str, record: Mapping[str, Any]) -> Vbd:
    """From its record. A device that is not a number is one of XAPI's oldest kind, such as `hda`."""
    number, name = str(record["userdevice"]), str(record["device"])
    return Vbd(
        handle=handle,
        vm=str(record["VM"]),
        vdi=None if record["empty"] or record["VDI"] == NULL else str(record["VDI"]),
        device=int(number) if number.isdigit() else ord(number[-1:] or "a") - ord("a"),
        name=name or None,
        drive=record["type"] == "CD",
        read_only=record["mode"] == "RO",
        plugged=bool(record["currently_attached"]),
        config=dict(record["other_config"]),
    )


async def find_machine(pools: Sequence[XenPool], name: str) -> Machine:
    """`NotFound`; `InvalidReference` if several are called so. Templates, snapshots and control domains are no machines."""
    found = []
    for pool in pools:
        for handle in await pool.call("VM.get_by_name_label", name):
            record = await pool.call("VM.get_record", handle)
            if not (record["is_a_template"] or record["is_a_snapshot"] or record["is_control_domain"]):
                found.append(Machine(pool, str(handle), name, str(record["power_state"])))
    if len(found) > 1:
        raise InvalidReference(f"{len(found)} virtual machines are called {name}; nothing was changed", vm=name)
    if not found:
        where = ", ".join(pool.settings.name for pool in pools)
        raise NotFound(f"no virtual machine is called {name} in pool {where}", vm=name)
    return found[0]
