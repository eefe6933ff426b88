"""Machines of a real libvirt, held to the contract; and what only they can have: a guest that says what it sees, a daemon that
comes and goes, and other processes that have the disk."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest

from hypervisors.contract import ImageLocked, ImageSpec, OperationUnsupported, SizeRefused, Source
from hypervisors.guests import Attachment, DeviceTaken, GuestHolds, GuestUnfit, Tuning
from hypervisors.kvm.guests import KvmGuests
from hypervisors.kvm.libvirt import Disconnected, Libvirt, LibvirtFailure
from stores.contract import Kind, MiB, NetworkImage, ObjectInfo
from stores.errors import InvalidReference, NotFound, Unavailable
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests.contract.guests_contract import SOON, TOKEN, AskingGuestsContract
from tests.doubles.world import running_qemu
from tests.kvm_machines import Lab, Stage, path_of, said, source, until
from tests.libvirtd import WAIT_S


@pytest.fixture
async def guests(stage: Stage, engine: TransferEngine) -> AsyncIterator[KvmGuests]:
    made = KvmGuests(Libvirt(stage.lab.daemon.uri, patience_s=2 * WAIT_S), engine)
    yield made
    await made.aclose()
    stage.clear()


class TestKvmGuests(AskingGuestsContract):
    @pytest.fixture(autouse=True)
    def machines(self, stage: Stage, guests: KvmGuests) -> None:
        self.stage, self.lab = stage, stage.lab

    def volume(self) -> Source:
        return self.lab.volume()

    def iso(self) -> Source:
        return self.lab.iso()

    async def start(self, vm: str) -> None:
        self.lab.domain(vm).create()

    async def stop(self, vm: str) -> None:
        self.lab.domain(vm).destroy()

    async def suspend(self, vm: str) -> None:
        self.lab.domain(vm).suspend()

    async def without_drive(self) -> str:
        self.lab.define("bare", drive=False)
        return "bare"

    async def hold(self, times: int | None) -> None:
        self.stage.hold(times)

    def visible(self, vm: str) -> list[str]:
        return self.lab.visible(vm)

    def held(self, vm: str) -> int:
        return self.lab.held(vm)

    def id_of(self, source: Source) -> str:
        return str(path_of(source))


async def attach(guests: KvmGuests, volume: Source, vm: str = "running", **told: Any) -> Attachment:
    return await guests.attach(vm, volume, **{"device": None, "read_only": False, "token": TOKEN, **told})


def content_of(image: Source) -> str:
    """sha256 of what a guest reads."""
    raw = path_of(image).with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path_of(image)), str(raw)], check=True)
    return hashlib.sha256(raw.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------ what the guest sees


@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.RAW])
async def test_the_guest_reads_and_writes_it(guests: KvmGuests, stage: Stage, image_format: ImageFormat) -> None:
    volume = stage.lab.volume(b"from the host", image_format=image_format)
    before = content_of(volume)
    tuning = Tuning(serial="0123456789abcdef0123", cache="NONE", bytes_read=64 * MiB, writes=1000)
    await attach(guests, volume, tuning=tuning)
    until(lambda: "0123456789abcdef0123" in stage.seen())
    name, read_only, size = stage.seen()["0123456789abcdef0123"]
    assert (read_only, size) == (False, 8 * MiB)
    assert stage.console.ask(f"hash {name}", "HASH") == [before]
    (disk,) = (each for each in stage.lab.disks("running") if each.get("device") == "disk")
    assert (said(disk, "driver", "cache"), said(disk, "driver", "discard")) == ("none", "unmap")
    assert (disk.findtext("iotune/read_bytes_sec"), disk.findtext("iotune/write_iops_sec")) == (f"{64 * MiB}", "1000")
    stage.console.ask(f"write {name} from-the-guest", "WROTE")
    (after,) = stage.console.ask(f"hash {name}", "HASH")
    await guests.detach("running", volume, within_s=SOON, token="c-2")
    assert stage.seen() == {}
    assert after == content_of(volume) != before


async def test_a_linked_clone_has_the_parents_that_we_recorded(guests: KvmGuests, stage: Stage) -> None:
    template = stage.lab.volume(b"of the template")
    clone = stage.lab.volume(backing=template)
    await attach(guests, clone, read_only=True, tuning=Tuning(serial="clone"))
    until(lambda: "clone" in stage.seen())
    name, read_only, _ = stage.seen()["clone"]
    assert read_only
    assert stage.console.ask(f"hash {name}", "HASH") == [content_of(template)]


async def test_the_guest_reads_the_other_medium(guests: KvmGuests, stage: Stage) -> None:
    for iso in (stage.lab.iso(), stage.lab.iso()):
        await guests.insert("running", iso)
        assert stage.console.ask("medium", "MEDIUM") == [hashlib.sha256(path_of(iso).read_bytes()).hexdigest()]


async def test_a_medium_that_the_guest_has_mounted_stays(guests: KvmGuests, stage: Stage) -> None:
    iso, other = stage.lab.iso(), stage.lab.iso()
    await guests.insert("running", iso)
    assert stage.console.ask("mount", "MOUNTED") == ["0", "number"]
    with pytest.raises(GuestHolds) as held:
        await guests.eject("running", iso)
    assert held.value.details["vm"] == "running"
    with pytest.raises(GuestHolds):
        await guests.insert("running", other)
    assert stage.lab.visible("running") == [str(path_of(iso))]
    stage.console.ask("umount", "UMOUNTED")
    await guests.eject("running", iso)
    assert stage.lab.visible("running") == []


async def test_a_volume_grows_while_the_guest_has_it(guests: KvmGuests, stage: Stage) -> None:
    volume = stage.lab.volume()
    assert not await guests.resize(volume, 16 * MiB, 8 * MiB)  # nobody has it
    await attach(guests, volume, tuning=Tuning(serial="grows"))
    assert await guests.resize(volume, 16 * MiB, 8 * MiB)
    until(lambda: stage.seen().get("grows", ("", False, 0))[2] == 16 * MiB)
    with pytest.raises(SizeRefused, match="running"):
        await guests.resize(volume, 8 * MiB, 16 * MiB)


async def test_the_guest_has_a_device_of_the_host(guests: KvmGuests, stage: Stage, tmp_path: Path) -> None:
    backing = tmp_path / "device"
    backing.write_bytes(b"from the host".ljust(8 * MiB, b"\0"))
    losetup = ["losetup", "--find", "--show", str(backing)]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    options: dict[str, object] = {"driver": "host_device", "filename": device}
    given = NetworkImage(options, ObjectInfo("disk", 8 * MiB), Kind.BLOCK_DEVICE)
    volume = Source(given, ImageSpec(ImageFormat.RAW, 8 * MiB))
    try:
        first = await attach(guests, volume, tuning=Tuning(serial="device"))
        assert await attach(guests, volume) == first
        until(lambda: "device" in stage.seen())
        name, _, size = stage.seen()["device"]
        assert size == 8 * MiB
        assert stage.console.ask(f"hash {name}", "HASH") == [hashlib.sha256(backing.read_bytes()).hexdigest()]
        stage.console.ask(f"write {name} from-the-guest", "WROTE")
        with backing.open("r+b") as file:
            file.truncate(16 * MiB)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        assert await guests.resize(volume, 16 * MiB, 8 * MiB)
        until(lambda: stage.seen()["device"][2] == 16 * MiB)
        await guests.detach("running", volume, within_s=SOON, token="c-2")
        assert stage.seen() == {}
    finally:
        stage.clear()
        subprocess.run(["losetup", "--detach", device], check=True)
    assert backing.read_bytes().startswith(b"from-the-guest")


async def test_what_only_others_give_to_guests(guests: KvmGuests, lab: Lab) -> None:
    lun = NetworkImage({"driver": "iscsi"}, ObjectInfo("iqn.x/1", 8 * MiB), Kind.ISCSI_LUN)
    with pytest.raises(OperationUnsupported, match="IscsiLun"):
        await attach(guests, Source(lun, ImageSpec(ImageFormat.RAW)))


# ------------------------------------------------------------------------------------------------- kinds of machines


async def test_a_machine_that_is_gone_when_it_stops(guests: KvmGuests, lab: Lab) -> None:
    lab.connection.createXML(lab.xml("transient"))
    volume, iso = lab.volume(), lab.iso()
    first = await attach(guests, volume, "transient")
    assert await attach(guests, volume, "transient") == first
    await guests.insert("transient", iso)
    assert lab.visible("transient") == sorted([str(path_of(volume)), str(path_of(iso))])


async def test_a_machine_with_scsi_disks(guests: KvmGuests, lab: Lab) -> None:
    """Which it lets go without being asked."""
    lab.define("scsi")
    first, second = lab.volume(), lab.volume()
    target = "<target dev='sda' bus='scsi'/>"
    driver = "<driver name='qemu' type='qcow2'/>"
    lab.domain("scsi").attachDeviceFlags(
        f"<disk type='file' device='disk'>{driver}<source file='{path_of(first)}'/>{target}</disk>",
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    lab.domain("scsi").create()
    assert (await attach(guests, second, "scsi")).name == "sdb"
    await guests.detach("scsi", second, within_s=SOON, token="c-2")
    assert lab.visible("scsi") == [str(path_of(first))]


async def test_a_machine_without_a_free_slot(guests: KvmGuests, lab: Lab) -> None:
    lab.define("full", ports=1).create()
    with pytest.raises(GuestUnfit, match="pcie-root-port"):
        await attach(guests, lab.volume(), "full")
    assert lab.held("full") == 0


async def test_a_machine_whose_memory_lies_on_a_disk(guests: KvmGuests, lab: Lab) -> None:
    volume = lab.volume()
    await attach(guests, volume, "other")
    lab.domain("other").managedSave()
    with pytest.raises(GuestUnfit):
        await attach(guests, lab.volume(), "other")
    with pytest.raises(GuestUnfit):
        await guests.detach("other", volume, within_s=SOON, token="c-2")
    assert lab.visible("other") == [str(path_of(volume))]


async def test_formats_that_guests_do_not_have(guests: KvmGuests, lab: Lab) -> None:
    with pytest.raises(OperationUnsupported, match="VHD"):
        await attach(guests, source(path_of(lab.volume()), ImageFormat.VHD))
    with pytest.raises(InvalidReference):
        await guests.insert("running", lab.volume())


async def test_names_are_taken_literally(guests: KvmGuests, lab: Lab) -> None:
    volume = lab.volume()
    strange = path_of(volume).rename(path_of(volume).with_name("a'b\"<&>json:{c},d.qcow2"))
    await attach(guests, source(strange, ImageFormat.QCOW2), "other")
    assert lab.visible("other") == [str(strange)]


# ------------------------------------------------------------------------------------------------------- who has it


async def test_another_process_has_it(guests: KvmGuests, lab: Lab) -> None:
    volume = lab.volume()
    async with running_qemu(path_of(volume)):
        with pytest.raises(ImageLocked):
            await attach(guests, volume)
        assert lab.held("running") == 0
    await attach(guests, volume)


async def test_a_file_that_is_not_there(guests: KvmGuests, lab: Lab) -> None:
    volume = lab.volume()
    path_of(volume).unlink()
    with pytest.raises((LibvirtFailure, FileNotFoundError)):
        await attach(guests, volume)
    assert lab.held("running") == 0


# ------------------------------------------------------------------------------------------- what is slow, or breaks


async def test_a_machine_that_is_starting_is_asked_again(guests: KvmGuests, lab: Lab) -> None:
    lab.define("boots", system=True).create()
    volume = lab.volume()
    await attach(guests, volume, "boots")
    await guests.detach("boots", volume, within_s=120.0, token="c-2")
    assert lab.held("boots") == 0


async def test_a_guest_that_stops_has_let_go(guests: KvmGuests, lab: Lab) -> None:
    volume = lab.volume()
    await attach(guests, volume, "other")
    letting_go = asyncio.create_task(guests.detach("other", volume, within_s=600.0, token="c-2"))
    await asyncio.sleep(0.5)
    assert not letting_go.done()
    lab.domain("other").destroy()
    await letting_go
    assert lab.held("other") == 0


async def test_libvirtd_is_restarted_while_a_guest_is_asked(guests: KvmGuests, stage: Stage) -> None:
    volume = stage.lab.volume()
    await attach(guests, volume)
    stage.hold(None)
    letting_go = asyncio.create_task(guests.detach("running", volume, within_s=600.0, token="c-2"))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(stage.lab.restart)
    assert not letting_go.done()
    stage.hold(0)
    await letting_go
    assert stage.lab.held("running") == 0


async def test_without_libvirtd(stage: Stage, guests: KvmGuests, engine: TransferEngine) -> None:
    volume = stage.lab.volume()
    impatient = KvmGuests(Libvirt(stage.lab.daemon.uri, patience_s=0.0), engine)
    for each in (guests, impatient):
        assert (await each.attached("running"))[0].drive
    stage.lab.daemon.stop()
    with pytest.raises(Disconnected, match="libvirt"):
        await attach(impatient, volume)
    waiting = asyncio.create_task(attach(guests, volume))
    await asyncio.sleep(0.2)
    stage.lab.daemon.start()
    await waiting
    stage.lab.connection = stage.lab.daemon.connect()
    assert stage.lab.visible("running") == [str(path_of(volume))]
    await impatient.aclose()


async def test_a_libvirtd_that_hangs(stage: Stage, guests: KvmGuests, engine: TransferEngine) -> None:
    volume = stage.lab.volume()
    hurried = KvmGuests(Libvirt(stage.lab.daemon.uri, call_s=0.5, patience_s=0.0), engine)
    with suppress(Unavailable):
        await hurried.attached("running")
    stage.lab.daemon.pause()
    with pytest.raises(Unavailable):
        await attach(hurried, volume)
    stage.lab.daemon.go_on()
    assert stage.lab.held("running") == 0
    await attach(guests, volume)
    await hurried.aclose()


async def test_cancelled_at_any_moment(guests: KvmGuests, lab: Lab) -> None:
    """It is not attached then; or it had been."""
    volume = lab.volume()
    for turns in (0, 1, 2, 4, 8, 16):
        attaching = asyncio.create_task(attach(guests, volume))
        for _ in range(turns):
            await asyncio.sleep(0.002)
        attaching.cancel()
        with suppress(asyncio.CancelledError):
            await attaching
            await guests.detach("running", volume, within_s=SOON, token="c-2")
        assert lab.held("running") == 0


async def test_an_agent_that_died_when_the_guest_had_let_go(guests: KvmGuests, lab: Lab) -> None:
    volume = lab.volume()
    await attach(guests, volume)
    (disk,) = (each for each in lab.disks("running") if each.get("device") == "disk")
    lab.domain("running").detachDeviceAlias(said(disk, "alias", "name"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    until(lambda: lab.visible("running") == [])
    assert lab.held("running") == 1  # at its next start
    assert await guests.resume_detaching("running", volume, token=TOKEN) is True
    assert lab.held("running") == 0


async def test_nothing_is_opened_before_it_is_needed(engine: TransferEngine) -> None:
    guests = KvmGuests(Libvirt("qemu+unix:///system?socket=/nowhere", patience_s=0.0), engine)
    await guests.aclose()
    with pytest.raises(Disconnected, match="/nowhere"):
        await guests.attached("vm")


async def test_no_such_machine(guests: KvmGuests, lab: Lab) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await attach(guests, lab.volume(), "nobody")
    with pytest.raises(DeviceTaken):
        await attach(guests, lab.volume(), device=3_000)
