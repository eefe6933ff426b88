"""A site whose volume a guest has and writes to all the while: block after block, each filled with its number.

A disk that is of one moment has, at every place, the highest number that belongs there of all up to that moment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any

import libvirt

from stores.contract import KiB
from stores.to import ImageFormat
from tests.doubles.backup_site import BackupSite, until
from tests.doubles.disk_images import qemu_img
from tests.images import qemu_io
from tests.kvm_machines import Stage, said

BLOCK = 64 * KiB
BLOCKS = 64
"""That the guest writes to, of a disk of twice as many."""

VM = "running"


class Live:
    """A site whose volume `v` the guest has."""

    def __init__(self, site: BackupSite, stage: Stage) -> None:
        self.site = site
        self.stage = stage
        self.writes = False

    @property
    def domain(self) -> Any:
        return self.stage.lab.domain(VM)

    def volume(self, image_format: str = "QCOW2") -> dict[str, Any]:
        return self.site.host.volume(uuid="v", format=image_format)

    def create(self, image_format: str = "QCOW2") -> None:
        """With other data behind what the guest writes to."""
        size = 2 * BLOCKS * BLOCK
        self.site.do({"command": "CreateObject", "data": self.volume(image_format) | {"size": size}})
        write = f"write -P 7 {BLOCKS * BLOCK} {BLOCKS * BLOCK}"
        qemu_io(self.site.host.pool / "v", ImageFormat(image_format), write)

    def attach(self, vm: str = VM, image_format: str = "QCOW2") -> None:
        disk = {"type": "DATADISK", "data": self.volume(image_format), "diskSeq": 0}
        self.site.do({"command": "Attach", "disk": disk, "vmName": vm})

    def begin(self, image_format: str = "QCOW2") -> None:
        """The guest has a new volume, and writes to it from now on."""
        self.create(image_format)
        self.attach(VM, image_format)
        until(lambda: "v" in self.stage.seen())
        self.stage.console.ask(f"keep-writing {self.stage.seen()['v'][0]} {BLOCKS} 2000", "WRITING")
        self.writes = True
        self.goes_on()

    def end(self) -> None:
        """It does not write any more, and does not have it."""
        if self.writes:
            self.stage.console.ask("stop-writing", "WRITTEN")
            self.writes = False
        self.stage.clear()

    def written(self) -> int:
        """How many blocks by now. None failed."""
        number, _, failed = self.stage.console.ask("written", "WRITTEN")
        assert failed == "0"
        return int(number)

    def goes_on(self) -> None:
        before = self.written()
        until(lambda: self.written() > before + BLOCKS)
        assert self.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING

    def back_up(self, name: str, parent: str | None = None, **more: Any) -> dict[str, Any]:
        """The command."""
        target = self.site.backup(name, parentSnapshotPath=f"snapshots/v/{parent}" if parent else None)
        return {"command": "Copy", "source": self.volume(), "destination": target, **more}

    def snapshot(self, name: str) -> dict[str, Any]:
        return {"type": "snapshot", "path": f"v/{name}", "dataStore": self.site.host.volume()["dataStore"]}

    def target(self) -> str:
        """libvirt's name of the volume."""
        (disk,) = (each for each in self.stage.lab.disks(VM) if each.get("device") == "disk")
        return str(said(disk, "target", "dev"))

    def job(self) -> bool:
        try:
            self.domain.backupGetXMLDesc()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
                return False
            raise
        return True

    def shown(self, command_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.site.host.call("GET", f"/v1/commands/{command_id}")[1]
        return found

    def ended(self, command_id: str) -> dict[str, Any]:
        until(lambda: "finished_at" in self.shown(command_id))
        return self.shown(command_id)

    def nothing_left(self) -> None:
        """In libvirt, and on the disk."""
        assert not self.job()
        assert self.domain.listAllCheckpoints() == []
        assert self.site.host.files() == ["v"]
        assert not self.deleted_scratch()

    def deleted_scratch(self) -> list[str]:
        """Files without a name that the guest's qemu still holds."""
        pid = (self.stage.lab.daemon.folder / "run" / "qemu" / f"{VM}.pid").read_text().strip()
        links = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
        return [str(link) for link in links if str(link).endswith("(deleted)") and "scratch" in str(link)]

    def restored(self, name: str) -> int:
        """The moment that the backup is of, which it must be as a whole."""
        self.site.restore(name, "back")
        raw = self.site.host.root / "back.raw"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", str(self.site.host.pool / "back"), str(raw))
        content = raw.read_bytes()
        self.site.do({"command": "Delete", "data": self.site.host.volume("back")})
        assert content[BLOCKS * BLOCK :] == b"\7" * BLOCKS * BLOCK
        return moment(content[: BLOCKS * BLOCK])


def moment(disk: bytes) -> int:
    numbers = [set(struct.unpack(f"<{BLOCK // 8}Q", disk[at : at + BLOCK])) for at in range(0, len(disk), BLOCK)]
    newest: int = max(max(found) for found in numbers)
    for place, found in enumerate(numbers):
        last = newest - (newest - place) % BLOCKS
        if last == newest and len(found) > 1:  # it was being written
            found.discard(newest - BLOCKS)
        assert found == {max(last, 0)}, (place, found, newest)
    return newest


@contextmanager
def live_guest(site: BackupSite, stage: Stage) -> Iterator[Live]:
    """Nothing is attached before, and nothing is left afterwards: in the pool, and in the store."""
    stage.clear()
    made = Live(site, stage)
    yield made
    site.line.cut_after = site.line.stall_after = site.line.rate_up = None
    if made.job() and site.host.process is not None:
        site.host.stop(SIGKILL)
    if site.host.process is None:
        site.host.start()
    until(lambda: not made.job())
    made.end()
    for name in ("s1", "s2", "s3"):
        site.do({"command": "Delete", "data": made.snapshot(name)})
    site.do({"command": "Delete", "data": made.volume()})
    for name in ("s3", "s2", "s1"):
        site.do({"command": "Delete", "data": site.backup(name)})
    assert not [ref for ref in site.objects() if ref.startswith("snapshots/")]
