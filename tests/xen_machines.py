"""Virtual machines of a fake pool: made, started, and looked at without going through the agent."""

from __future__ import annotations

from typing import Any

from hypervisors.contract import Source
from hypervisors.narrowing import as_managed
from tests.xen_place import XenPlace


class Machines:
    def __init__(self, place: XenPlace) -> None:
        self._place = place
        self._db = place.fake.world.db
        self._holding: int | None = None

    async def make(self, name: str, state: str, *, drive: bool = True, **fields: Any) -> str:
        """Its reference."""
        vm = self._db.add("VM", name_label=name, power_state=state, **fields)
        if drive:
            self._db.add(
                "VBD",
                VM=vm,
                userdevice="3",
                type="CD",
                mode="RO",
                empty=True,
                currently_attached=state == "Running",
            )
        return vm

    async def call(self, vm: str, method: str, *params: Any) -> None:
        await self._place.pool.call(f"VM.{method}", self._ref(vm), *params)

    async def connect(self, vm: str, volume: Source, config: dict[str, str]) -> str:
        """The reference of a VBD that is not plugged."""
        vdi = self._db.by_uuid("VDI", self.id_of(volume))
        return self._db.add(
            "VBD", VM=self._ref(vm), VDI=vdi, userdevice="7", mode="RW", type="Disk", other_config=config
        )

    async def hold(self, times: int | None) -> None:
        if self._holding is not None:
            await self._place.fake.controls.disarm(self._holding)
            self._holding = None
        if times != 0:
            error = ["DEVICE_DETACH_REJECTED", "VBD", "OpaqueRef:x", "the guest says no"]
            self._holding = await self._place.fake.controls.arm(
                where="async", step="start", match="VBD.unplug", action="fail", times=times, error=error
            )

    def id_of(self, volume: Source) -> str:
        return as_managed(volume.presentation).id

    def visible(self, vm: str) -> list[str]:
        """uuids of what is attached now, or, where the machine does not run, at its next start."""
        ref = self._ref(vm)
        runs = self._db.field("VM", ref, "power_state") == "Running"
        found = []
        for vbd in self._db.find("VBD", VM=ref):
            record = self._db.get("VBD", vbd)
            if not record["empty"] and (record["currently_attached"] or not runs):
                found.append(str(self._db.field("VDI", record["VDI"], "uuid")))
        return sorted(found)

    def held(self, vm: str) -> int:
        return len(self._db.find("VBD", VM=self._ref(vm), type="Disk"))

    def _ref(self, vm: str) -> str:
        """The one that is a machine."""
        return next(
            ref
            for ref in self._db.find("VM", name_label=vm)
            if not self._db.field("VM", ref, "is_a_template") and not self._db.field("VM", ref, "is_a_snapshot")
        )
