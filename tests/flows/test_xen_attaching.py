"""Machines of a fake pool get disks and ISOs by commands, and lose them: as the agent runs them, and after it was killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.commands import COMMAND, Outcome
from agent.execution import Execution
from hypervisors.contract import HypervisorType, OperationUnsupported, SizeRefused
from hypervisors.explaining import How
from hypervisors.guests import DETACH_WITHIN_S, GuestHolds
from hypervisors.operations import Operations
from hypervisors.verbs import (
    AttachIso,
    AttachVolume,
    Call,
    Copy,
    Create,
    Delete,
    DetachIso,
    DetachVolume,
    Forget,
    Request,
    touched,
)
from hypervisors.xen.xapi import Xapi
from stores.contract import Kind, MiB, Silent
from stores.errors import AlreadyExists, InvalidReference, NotFound, StorageError, StoreUnsupported
from stores.to import ImageFormat, PrimaryDataStoreTO, TemplateObjectTO, VolumeObjectTO
from tests.doubles import xapi
from tests.doubles.disk_images import DiskImages
from tests.doubles.world import world
from tests.xen_lab import Lab, laboratory
from tests.xen_machines import Machines
from tests.xen_place import xen_handler
from tests.xen_pools import connected_to

SR = PrimaryDataStoreTO(uuid="shared", poolType="SR")
VOLUME = VolumeObjectTO(path="v", dataStore=SR)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path) as made:
        yield made


@pytest.fixture
async def machines(lab: Lab) -> Machines:
    made = Machines(lab.place)
    await made.make("vm", "Running")
    return made


async def do(lab: Lab, name: str, token: str = "c-1", **fields: Any) -> Outcome:
    """A command in JSON, as a client sends it."""
    execution = Execution(lab.operations, HypervisorType.XEN)
    command = COMMAND.validate_python({"command": name, "id": token, **fields})
    return await execution.execute(command, token, Silent())


async def undo(lab: Lab, name: str, token: str = "c-1", **fields: Any) -> Outcome | None:
    execution = Execution(lab.operations, HypervisorType.XEN)
    return await execution.undo(COMMAND.validate_python({"command": name, "id": token, **fields}), token)


def disk(data: VolumeObjectTO | TemplateObjectTO, **fields: Any) -> dict[str, Any]:
    return {"type": "ISO" if data.type == "template" else "DATADISK", "data": data.model_dump(), **fields}


# ------------------------------------------------------------------------------------------------------------ volumes


async def test_a_volume_is_attached_and_detached_by_commands(lab: Lab, machines: Machines) -> None:
    await lab.operations.create(lab.call(), Create(VOLUME.model_copy(update={"size": 4 * MiB})))
    told = (await do(lab, "Attach", disk=disk(VOLUME, diskSeq=5), vmName="vm")).disk
    assert told is not None
    assert (told.diskSeq, told.path, told.type) == (5, "v", "DATADISK")
    assert machines.visible("vm") == [lab.place.named("v")]
    gone = (await do(lab, "Dettach", disk=disk(VOLUME), vmName="vm")).disk
    assert gone is not None
    assert (machines.held("vm"), gone.path) == (0, "v")
    chosen = (await do(lab, "Attach", disk=disk(VOLUME), vmName="vm", readOnly=True)).disk
    assert chosen is not None
    assert chosen.diskSeq == 0
    await do(lab, "Dettach", disk=disk(VOLUME), vmName="vm")


async def test_a_machine_that_holds_on_is_given_its_time(lab: Lab, machines: Machines) -> None:
    await lab.operations.create(lab.call(), Create(VOLUME.model_copy(update={"size": 4 * MiB})))
    await do(lab, "Attach", disk=disk(VOLUME), vmName="vm")
    await machines.hold(None)
    with pytest.raises(GuestHolds) as held:
        await do(lab, "Dettach", disk=disk(VOLUME), vmName="vm", waitDetachDevice=200)
    assert held.value.details["waited"] == 0.2
    await machines.hold(0)
    await do(lab, "Dettach", disk=disk(VOLUME), vmName="vm", waitDetachDevice=5000)
    assert machines.held("vm") == 0
    assert DETACH_WITHIN_S > 0


async def test_an_attached_volume_is_not_deleted(lab: Lab, machines: Machines) -> None:
    await lab.operations.create(lab.call(), Create(VOLUME.model_copy(update={"size": 4 * MiB})))
    await do(lab, "Attach", disk=disk(VOLUME), vmName="vm")
    with pytest.raises(StorageError, match="in use"):
        await lab.operations.delete(lab.call(), Delete(VOLUME))
    assert machines.visible("vm") == [lab.place.named("v")]


async def test_a_volume_that_is_not_there(lab: Lab, machines: Machines) -> None:
    with pytest.raises(NotFound):
        await do(lab, "Attach", disk=disk(VOLUME), vmName="vm")
    await do(lab, "Dettach", disk=disk(VOLUME), vmName="vm")
    assert await undo(lab, "Attach", disk=disk(VOLUME), vmName="vm") is None
    assert await undo(lab, "Dettach", disk=disk(VOLUME), vmName="vm") is not None


async def test_two_at_once_get_two_devices(lab: Lab, machines: Machines) -> None:
    volumes = [VolumeObjectTO(path=name, dataStore=SR, size=4 * MiB) for name in ("v", "w")]
    for volume in volumes:
        await lab.operations.create(lab.call(), Create(volume))
    answers = await asyncio.gather(
        *(do(lab, "Attach", f"t-{volume.path}", disk=disk(volume), vmName="vm") for volume in volumes)
    )
    assert {answer.disk.diskSeq for answer in answers if answer.disk is not None} == {0, 1}
    assert machines.visible("vm") == sorted(lab.place.named(name) for name in ("v", "w"))


async def test_of_two_machines_one_gets_the_disk(lab: Lab, machines: Machines) -> None:
    await machines.make("other", "Running")
    await lab.operations.create(lab.call(), Create(VOLUME.model_copy(update={"size": 4 * MiB})))
    both = await asyncio.gather(
        *(do(lab, "Attach", f"t-{vm}", disk=disk(VOLUME), vmName=vm) for vm in ("vm", "other")), return_exceptions=True
    )
    assert len([each for each in both if isinstance(each, StorageError)]) >= 1
    assert len(machines.visible("vm") + machines.visible("other")) == 2 - len(
        [each for each in both if isinstance(each, StorageError)]
    )
    assert machines.held("vm") + machines.held("other") == len(machines.visible("vm") + machines.visible("other"))


def test_locks() -> None:
    assert touched(AttachVolume(VOLUME, "vm")) == touched(DetachVolume(VOLUME, "vm", 1.0)) == ("guest:vm", "shared/v")
    iso = TemplateObjectTO(path="i", imageDataStore=SR)
    assert touched(AttachIso(iso, "vm")) == touched(DetachIso(iso, "vm")) == ("attached:vm/i", "guest:vm")


async def test_explained(lab: Lab) -> None:
    told = lab.operations.explain(HypervisorType.XEN, AttachVolume(VOLUME, "vm"))
    assert (told.operation, told.how, told.refusal) == ("attach volume", How.OPENED, None)
    assert told.source is not None
    assert told.source.chosen is Kind.MANAGED_DISK
    iso = TemplateObjectTO(path="i", imageDataStore=lab.sr("isos"))
    told = lab.operations.explain(HypervisorType.XEN, AttachIso(iso, "vm"))
    assert told.source is not None
    assert (told.how, told.source.chosen) == (How.OPENED, Kind.MANAGED_DISK)


async def test_a_handler_that_does_not_touch_guests_says_so() -> None:
    async with world() as here:
        volume = VolumeObjectTO(path="v", format=ImageFormat.QCOW2, dataStore=here.pool())
        for request in (AttachVolume(volume, "vm"), DetachVolume(volume, "vm", 1.0)):
            with pytest.raises(OperationUnsupported, match="virtual machine"):
                await attach_or_detach(here.operations, Call("c-1", HypervisorType.KVM), request)
        assert here.operations.explain(HypervisorType.KVM, AttachVolume(volume, "vm")).how is How.REFUSED
        iso = TemplateObjectTO(path="x.iso", imageDataStore=here.directory())
        with pytest.raises(OperationUnsupported, match="drive"):
            await here.operations.attach_iso(Call("c-1", HypervisorType.KVM), AttachIso(iso, "vm", insert=True))


async def attach_or_detach(operations: Operations, call: Call, request: Request) -> None:
    match request:
        case AttachVolume():
            await operations.attach_volume(call, request)
        case DetachVolume():
            await operations.detach_volume(call, request)


# --------------------------------------------------------------------------------------------------------------- ISOs


async def brought(lab: Lab, images: DiskImages, name: str = "debian.iso") -> TemplateObjectTO:
    """An ISO from a directory in the SR of ISOs."""
    shutil.copyfile(images["iso"].path, Path(lab.images().uri.reveal().removeprefix("file://")) / "a.iso")
    source = TemplateObjectTO(path="a.iso", format=ImageFormat.ISO, imageDataStore=lab.images())
    target = TemplateObjectTO(path=name, imageDataStore=lab.sr("isos"))
    made = (await lab.operations.copy(lab.call(), Copy(source, target))).data
    assert isinstance(made, TemplateObjectTO)
    return made


@pytest.mark.parametrize("name", ["debian.iso", "Debian 12 (x)", "template/9"])
async def test_an_iso_is_uploaded_and_goes_into_a_drive(
    lab: Lab, machines: Machines, disk_images: DiskImages, name: str
) -> None:
    iso = await brought(lab, disk_images, name)
    content = disk_images["iso"].path.read_bytes()
    assert (iso.path, iso.format, iso.size) == (name, ImageFormat.ISO, len(content))
    uuid = lab.place.named(name)
    assert lab.place.content(uuid) == content
    location = lab.place.vdis()[uuid]["location"]
    assert location == name if name == "debian.iso" else location.endswith(".img")
    attached = (await do(lab, "Attach", disk=disk(iso), vmName="vm", insert=True)).disk
    assert attached is not None
    assert (attached.path, attached.diskSeq) == (name, 3)
    assert machines.visible("vm") == [uuid]
    again = await undo(lab, "Attach", disk=disk(iso), vmName="vm", insert=True)
    assert again is not None
    assert again.disk == attached
    await do(lab, "Dettach", disk=disk(iso), vmName="vm")
    assert machines.visible("vm") == []
    assert await undo(lab, "Attach", disk=disk(iso), vmName="vm", insert=True) is None
    await lab.operations.delete(lab.call(), Delete(VolumeObjectTO(path=name, dataStore=lab.sr("isos"))))
    await do(lab, "Dettach", disk=disk(iso), vmName="vm")
    assert lab.vdis() == set()


async def test_isos_and_disks_are_kept_apart(lab: Lab, disk_images: DiskImages) -> None:
    iso = await brought(lab, disk_images)
    with pytest.raises(OperationUnsupported, match="holds ISOs only"):
        await lab.operations.create(lab.call(), Create(VolumeObjectTO(path="v", size=MiB, dataStore=lab.sr("isos"))))
    target = TemplateObjectTO(path="x", imageDataStore=lab.sr())
    source = TemplateObjectTO(path="a.iso", format=ImageFormat.ISO, imageDataStore=lab.images())
    with pytest.raises(OperationUnsupported, match="holds no ISOs"):
        await lab.operations.copy(lab.call(), Copy(source, target))
    with pytest.raises((OperationUnsupported, SizeRefused)):
        await lab.operations.copy(lab.call(), Copy(iso, VolumeObjectTO(path="v", dataStore=lab.sr())))
    assert lab.vdis() == {"debian.iso"}


async def test_a_file_that_is_there_already_is_not_overwritten(lab: Lab, disk_images: DiskImages) -> None:
    (sr,) = lab.place.fake.world.db.find("SR", name_label="isos")
    lab.place.fake.world.storage.create(sr, MiB, name_label="theirs", sm_config={"path": "debian.iso"})
    with pytest.raises(AlreadyExists, match="called like"):
        await brought(lab, disk_images)
    assert lab.vdis() == {"theirs"}


async def test_a_library_that_takes_no_uploads(tmp_path: Path, disk_images: DiskImages) -> None:
    async with laboratory(tmp_path, xapi.Settings(iso_uploads=False)) as lab:
        with pytest.raises(StoreUnsupported, match=r"put debian\.iso as a file into the folder"):
            await brought(lab, disk_images)
        assert lab.vdis() == set()
        iso = TemplateObjectTO(path="a.iso", format=ImageFormat.ISO, imageDataStore=lab.images())
        with pytest.raises(OperationUnsupported, match="copy the ISO there"):
            await do(lab, "Attach", disk=disk(iso), vmName="vm", insert=True)


# ------------------------------------------------------------------------------------------- introduced and forgotten


async def test_what_somebody_else_made_is_introduced_and_forgotten(lab: Lab) -> None:
    uuid = lab.place.make("theirs", b"x" * MiB)
    theirs = VolumeObjectTO(path=uuid, dataStore=lab.sr())
    stats: dict[str, Any] = {"pool": lab.sr().model_dump(), "volumeUuids": [uuid]}
    assert (await do(lab, "GetVolumeStats", **stats)).volumeStats == {}
    assert await undo(lab, "IntroduceObject", data=theirs.model_dump()) is None
    for token in ("c-1", "c-2"):
        made = (await do(lab, "IntroduceObject", token, data=theirs.model_dump())).data
        assert made is not None
        assert made.type == "volume"
        assert (made.path, made.format, made.size) == (uuid, ImageFormat.VHD, 2 * MiB)
    assert (await do(lab, "GetVolumeStats", **stats)).volumeStats is not None
    recovered = await undo(lab, "IntroduceObject", "c-1", data=theirs.model_dump())
    assert recovered is not None
    assert recovered.data == made
    for _ in range(2):
        await do(lab, "ForgetObject", data=theirs.model_dump())
        assert await undo(lab, "ForgetObject", data=theirs.model_dump()) is not None
    assert (await do(lab, "GetVolumeStats", **stats)).volumeStats == {}
    record = lab.place.vdis()[uuid]
    assert lab.place.content(uuid)[:MiB] == b"x" * MiB
    assert not [key for key in record["other_config"] if "doc:" in key]


async def test_what_we_made_is_forgotten_and_known_again_by_its_name(lab: Lab) -> None:
    await lab.operations.create(lab.call(), Create(VOLUME.model_copy(update={"size": 4 * MiB})))
    await do(lab, "ForgetObject", data=VOLUME.model_dump())
    assert lab.vdis() == {"v"}
    made = (await do(lab, "IntroduceObject", data=VOLUME.model_dump())).data
    assert made is not None
    assert made.path == "v"
    await lab.operations.delete(lab.call(), Delete(VOLUME))
    assert lab.vdis() == set()


async def test_a_file_of_a_pool_is_introduced_past_the_gate(disk_images: DiskImages) -> None:
    async with world() as here:
        call = Call("c-1", HypervisorType.KVM)
        pool = here.pool()
        place = here.root / "pool"
        shutil.copyfile(disk_images["qcow2"].path, place / "v")
        execution = Execution(here.operations, HypervisorType.KVM)

        async def introduce(**fields: Any) -> Outcome:
            data = VolumeObjectTO(path="v", dataStore=pool, **fields).model_dump()
            command = COMMAND.validate_python({"command": "IntroduceObject", "id": call.token, "data": data})
            return await execution.execute(command, call.token, Silent())

        with pytest.raises(InvalidReference, match="not guessed"):
            await introduce()
        with pytest.raises(StorageError):
            await introduce(format="VMDK")
        made = (await introduce(format="QCOW2")).data
        assert made is not None
        assert made.format is ImageFormat.QCOW2
        await here.operations.forget(call, Forget(VolumeObjectTO(path="v", dataStore=pool)))
        assert (place / "v").is_file()


# ------------------------------------------------------------------------------------------------------------- kill -9


def died(access: xapi.Access, request: Request, token: str, step: int) -> bool:
    """Run the request in a process that is killed before its call to XAPI of that number that changes something."""
    child = os.fork()
    if child == 0:
        left = step
        real = Xapi.call

        async def call(self: Xapi, host: Any, method: str, *params: Any, **named: Any) -> Any:
            nonlocal left
            if not method.partition(".")[2].startswith("get_") and not method.startswith(("session.", "event.")):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return await real(self, host, method, *params, **named)

        Xapi.call = call  # type: ignore[method-assign]
        try:
            asyncio.run(run(access, request, token))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


async def run(access: xapi.Access, request: Request | None, token: str, *, recover: bool = False) -> Any:
    """The request in a process of its own, or what is found of it afterwards; None: only whether the guest has the volume."""
    async with world() as here, connected_to(access) as pool:
        handler = xen_handler(here.engine, pool, here.root)
        operations = Operations(here.resolver, {HypervisorType.XEN: handler}, here.engine, lambda: 1.0)
        if request is None:
            return [
                (str(record["type"]), bool(record["currently_attached"]), dict(record["other_config"]))
                for record in (await pool.call("VBD.get_all_records")).values()
            ]
        if recover:
            return await operations.recover(HypervisorType.XEN, request, token)
        call = Call(token, HypervisorType.XEN)
        if isinstance(request, Create):
            return await operations.create(call, request)
        return await attach_or_detach(operations, call, request)


@pytest.mark.parametrize("way", [AttachVolume(VOLUME, "guest"), DetachVolume(VOLUME, "guest", 5.0)])
def test_killed_before_every_call(tmp_path: Path, way: AttachVolume | DetachVolume) -> None:
    """Recovery says which, and the guest has the volume, or nothing of the attempt is there."""
    with xapi.process(tmp_path / "x") as pool:
        access = pool.access
        asyncio.run(run(access, Create(VOLUME.model_copy(update={"size": 4 * MiB})), "c-0"))
        asyncio.run(start_guest(access))
        seen = set()
        for step in range(1, 30):
            asyncio.run(run(access, DetachVolume(VOLUME, "guest", 5.0), "c-d"))
            if isinstance(way, DetachVolume):
                asyncio.run(run(access, AttachVolume(VOLUME, "guest"), "c-a"))
            if not died(access, way, "c-1", step):
                break
            recovered = asyncio.run(run(access, way, "c-1", recover=True))
            vbds = asyncio.run(run(access, None, ""))
            there = recovered.outcome == ("finished" if isinstance(way, AttachVolume) else "undone")
            assert [(kind, plugged) for kind, plugged, _ in vbds] == ([("Disk", True)] if there else [])
            assert all("storage-agent:detach" not in config for _, _, config in vbds)
            seen.add(recovered.outcome)
        assert seen == {"finished", "undone"}
        assert step >= 4


async def start_guest(access: xapi.Access) -> None:
    async with connected_to(access) as pool:
        (guest,) = await pool.call("VM.get_by_name_label", "guest")
        await pool.call("VM.start", guest, False, False)
