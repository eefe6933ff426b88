"""What tests do to a pool and see of it, behind the backs of its clients.

All arguments and results are of JSON's kinds, so that the same calls go to a pool in another process (see `remote`).
VDIs and SRs are named by uuid, hosts by number, content travels in files.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

from tests.doubles.xapi.disks import BLOCK, Disk
from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.faults import Fault
from tests.doubles.xapi.server import Servers
from tests.doubles.xapi.tls import Identity
from tests.doubles.xapi.world import World


class Controls:
    """Every public method is one control."""

    def __init__(self, world: World, servers: Servers) -> None:
        self._world = world
        self._db = world.db
        self._servers = servers

    # ------------------------------------------------------------------------------------------------------ faults

    async def arm(self, **fault: Any) -> int:
        """Arm `Fault(**fault)`; its number."""
        return self._world.faults.arm(Fault(**fault)).id

    async def disarm(self, number: int | None = None) -> int:
        """One of them, or all. How often they acted."""
        return self._world.faults.disarm(number)

    # ------------------------------------------------------------------------------------------------------- hosts

    async def stop_host(self, host: int) -> None:
        """Connections are reset, and then refused."""
        await self._servers.stop(host)

    async def start_host(self, host: int) -> None:
        await self._servers.start(host)

    async def restart(self, host: int | None = None, *, sessions: bool = True, generation: int | None = None) -> None:
        """XAPI on one host or on all: connections are reset, unfinished tasks gone. `sessions`: whether they stay valid;
        `generation`: what events are counted from afterwards."""
        for number in range(len(self._servers.hosts)) if host is None else [host]:
            await self._servers.cut(number)
            self._world.tasks.restart(self._world.hosts[number])
        if not sessions:
            self._world.sessions.drop_all()
        if generation is not None:
            self._db.restart(generation)

    async def make_coordinator(self, host: int) -> None:
        """The others send whoever logs in there to it. As in a real one, every XAPI restarts."""
        self._db.change("pool", self._world.pool, master=self._world.hosts[host])
        await self.restart()

    async def show_certificate(self, host: int, identity: Identity) -> None:
        """To connections to come: "own", "another-host" or "stranger"."""
        self._servers.show(host, identity)

    async def set_json_numbers(self, numbers: bool) -> None:
        self._world.json_numbers = numbers

    # -------------------------------------------------------------------------------------------- tasks, sessions

    async def advance(self, seconds: float) -> None:
        """So much time has passed, and the garbage collector looks at tasks and sessions."""
        self._world.clock.ahead += seconds
        self._world.collect()

    async def session_refs(self) -> list[str]:
        """Of those who are logged in: each is as good as a password."""
        return list(self._db.refs("session"))

    async def drop_sessions(self) -> None:
        self._world.sessions.drop_all()

    async def lose_task(self, task: str) -> None:
        self._world.tasks.lose(task)

    async def cancel_task(self, task: str) -> None:
        """An administrator's cancellation, whatever the task allows."""
        self._world.tasks.fail(task, Failure("TASK_CANCELLED", task))

    # ----------------------------------------------------------------------------------------------------- storage

    async def srs(self) -> dict[str, str]:
        """uuids by name: "shared" (NFS), "blocks" (LVM over iSCSI), "isos", and "local-N" of each host."""
        return {
            self._db.field("SR", ref, "name_label"): self._db.field("SR", ref, "uuid") for ref in self._db.refs("SR")
        }

    async def make_vdi(self, sr: str, size: int, content: str | None = None, name: str = "") -> str:
        """The uuid of a new VDI with the content of a raw file; holes of the file, in whole 2 MiB, stay holes."""
        ref = self._world.storage.create(self._db.by_uuid("SR", sr), size, name_label=name)
        if content is not None:
            self._fill(ref, Path(content))
        return str(self._db.field("VDI", ref, "uuid"))

    async def write(self, vdi: str, offset: int, content: str) -> None:
        """What a guest does: the content of a file to its disk, from `offset`."""
        ref = self._db.by_uuid("VDI", vdi)
        charge = self._world.storage.charge(self._db.field("VDI", ref, "SR"))
        self._disk(vdi).write(offset, Path(content).read_bytes(), charge)
        self._world.storage.account(self._db.field("VDI", ref, "SR"))

    async def digest(self, vdi: str) -> str:
        """SHA-256 of all of the disk's bytes."""
        return await asyncio.to_thread(self._disk(vdi).digest)

    async def same(self, vdi: str, other: str) -> bool:
        """Whether both disks have the same size and the same bytes."""
        return await asyncio.to_thread(self._disk(vdi).same, self._disk(other))

    async def save(self, vdi: str, path: str) -> None:
        """The disk as a sparse raw file."""
        await asyncio.to_thread(self._disk(vdi).flatten, Path(path))

    async def blocks(self, vdi: str) -> list[int]:
        """Numbers of the 2 MiB blocks that the disk's chain holds."""
        return self._disk(vdi).allocated()

    async def depth(self, vdi: str) -> int:
        """How many VHDs the disk stands on, itself included."""
        return self._disk(vdi).depth

    async def set_room(self, sr: str, size: int) -> None:
        """So many bytes are free from now on."""
        ref = self._db.by_uuid("SR", sr)
        self._db.change("SR", ref, physical_size=self._world.storage.used(ref) + size)

    async def collect(self) -> None:
        """The storage garbage collector runs now."""
        for ref in self._db.refs("SR"):
            self._world.storage.collect(ref)

    async def plug(self, host: int, sr: str, plugged: bool) -> None:
        """A host sees an SR, or does not."""
        ref = self._db.by_uuid("SR", sr)
        for pbd in self._db.find("PBD", SR=ref, host=self._world.hosts[host]):
            self._db.change("PBD", pbd, currently_attached=plugged)

    async def set_vdi(self, vdi: str, **fields: Any) -> None:
        """Fields of the record that no call sets: read_only, managed, missing."""
        self._db.change("VDI", self._db.by_uuid("VDI", vdi), **fields)

    # --------------------------------------------------------------------------------------------------- looking

    async def transfers(self) -> list[dict[str, Any]]:
        """What came to the data handlers, in order: the fields of `world.Transfer`."""
        return [dataclasses.asdict(transfer) for transfer in self._world.transfers]

    async def calls(self) -> dict[str, int]:
        """How often each method was called."""
        return dict(self._world.calls)

    async def left(self) -> dict[str, Any]:
        """What somebody may have left behind."""
        domains = [vm for vm in self._db.refs("VM") if self._db.field("VM", vm, "is_control_domain")]
        return {
            "tasks": [self._db.get("task", ref) for ref in self._db.refs("task")],
            "sessions": [self._db.field("session", ref, "originator") for ref in self._db.refs("session")],
            "dom0_vbds": [ref for ref in self._db.refs("VBD") if self._db.field("VBD", ref, "VM") in domains],
            "vdis": {self._db.field("VDI", ref, "uuid"): self._db.get("VDI", ref) for ref in self._db.refs("VDI")},
            "sr_configs": {
                self._db.field("SR", ref, "uuid"): self._db.field("SR", ref, "other_config")
                for ref in self._db.refs("SR")
            },
            "connections": self._servers.connections,
        }

    def _disk(self, vdi: str) -> Disk:
        return self._world.storage.disks[self._db.by_uuid("VDI", vdi)]

    def _fill(self, ref: str, content: Path) -> None:
        disk, sr = self._world.storage.disks[ref], self._db.field("VDI", ref, "SR")
        charge = self._world.storage.charge(sr)
        with content.open("rb") as file:
            for offset in range(0, disk.size, BLOCK):
                data = file.read(BLOCK)
                if data.strip(b"\0"):
                    disk.write(offset, data, charge)
        self._world.storage.account(sr)
