"""SRs of a fake pool of hosts are made, introduced, looked through and let go by commands, and nothing in them is lost."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.commands import COMMAND, Outcome
from agent.execution import Execution
from hypervisors.contract import HypervisorType, ImageLocked
from hypervisors.verbs import Create
from hypervisors.xen.errors import XapiFailure
from stores.contract import MiB, Silent
from stores.errors import AlreadyExists, InvalidReference, NotFound, StorageError
from stores.secret import Secret
from stores.to import PrimaryDataStoreTO, VolumeObjectTO
from tests.xen_lab import Lab, laboratory
from tests.xen_machines import Machines

PASSWORD = "very-secret-chap-7"
NFS = PrimaryDataStoreTO(uuid="p-1", poolType="NetworkFilesystem", host="nfs.example", path="/exports/a")
ISCSI = PrimaryDataStoreTO(
    uuid="p-2",
    poolType="IscsiLUN",
    host="192.0.2.7",
    path="/iqn.2020-01.example:a/0",
    details={
        "SCSIid": Secret("36001"),
        "chapInitiatorUsername": Secret("hosts"),
        "chapInitiatorSecret": Secret(PASSWORD),
    },
)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path) as made:
        yield made


def revealed(value: Any) -> Any:
    """As a client sends it."""
    if isinstance(value, dict):
        return {key: revealed(part) for key, part in value.items()}
    return value.reveal() if isinstance(value, Secret) else value


async def do(lab: Lab, name: str, pool: PrimaryDataStoreTO, **fields: Any) -> Outcome:
    execution = Execution(lab.operations, HypervisorType.XEN)
    command = COMMAND.validate_python({"command": name, "id": "c-1", "pool": revealed(dict(pool)), **fields})
    return await execution.execute(command, "c-1", Silent())


def known(lab: Lab, name: str) -> dict[str, Any]:
    """The SR's record."""
    (ref,) = lab.place.fake.world.db.find("SR", name_label=name)
    return lab.place.fake.world.db.get("SR", ref)


def plugged(lab: Lab, name: str) -> list[bool]:
    db = lab.place.fake.world.db
    return [db.field("PBD", pbd, "currently_attached") for pbd in known(lab, name)["PBDs"]]


async def volume(lab: Lab, pool: PrimaryDataStoreTO) -> VolumeObjectTO:
    data = VolumeObjectTO(path="v", dataStore=pool, size=4 * MiB)
    await lab.operations.create(lab.call(), Create(data))
    return data


def free(lab: Lab, name: str) -> None:
    """XAPI forgets the SR, and what is in it stays where it is: as in a new pool of hosts."""
    db = lab.place.fake.world.db
    (ref,) = db.find("SR", name_label=name)
    for vdi in db.find("VDI", SR=ref):
        lab.place.fake.world.storage.forget(vdi)
    for pbd in db.find("PBD", SR=ref):
        db.remove("PBD", pbd)
    db.remove("SR", ref)


# ------------------------------------------------------------------------------------------------------------- making


@pytest.mark.parametrize(
    ("pool", "kind", "config"),
    [
        (NFS, "nfs", {"server": "nfs.example", "serverpath": "/exports/a"}),
        (
            ISCSI,
            "lvmoiscsi",
            {
                "target": "192.0.2.7",
                "port": "3260",
                "targetIQN": "iqn.2020-01.example:a",
                "SCSIid": "36001",
                "chapuser": "hosts",
                "chappassword": PASSWORD,
            },
        ),
        (
            PrimaryDataStoreTO(uuid="p-3", poolType="EXT", host="host-1", path="/dev/sdb"),
            "ext",
            {"device": "/dev/sdb"},
        ),
        (PrimaryDataStoreTO(uuid="p-4", poolType="LVM", host="host-0", path="/dev/sdc"), "lvm", {"device": "/dev/sdc"}),
        (
            PrimaryDataStoreTO(uuid="p-5", poolType="ISO", host="nfs.example", path="/isos"),
            "iso",
            {"location": "nfs.example:/isos"},
        ),
    ],
)
async def test_a_pool_is_made_once(lab: Lab, pool: PrimaryDataStoreTO, kind: str, config: dict[str, str]) -> None:
    for _ in range(2):
        told = (await do(lab, "CreateStoragePool", pool)).poolInfo
        assert told is not None
        assert told.uuid == pool.uuid
        assert told.capacityBytes is not None
    record = known(lab, pool.uuid)
    hosts = 1 if kind in ("ext", "lvm") else 2
    assert (record["type"], record["content_type"]) == (kind, "iso" if kind == "iso" else "user")
    assert plugged(lab, pool.uuid) == [True] * hosts
    db = lab.place.fake.world.db
    for pbd in record["PBDs"]:
        assert db.field("PBD", pbd, "device_config") == config
    if kind == "ext":
        assert db.field("host", db.field("PBD", record["PBDs"][0], "host"), "name_label") == "host-1"
    assert (await lab.place.fake.controls.left())["tasks"] == []
    assert lab.vdis() == set()


async def test_what_is_missing_is_said(lab: Lab) -> None:
    wrong = [
        (NFS.model_copy(update={"path": None}), InvalidReference, "needs a path"),
        (ISCSI.model_copy(update={"details": None}), InvalidReference, "SCSIid"),
        (PrimaryDataStoreTO(uuid="x", poolType="EXT", path="/dev/sdb"), InvalidReference, "host-0, host-1"),
        (PrimaryDataStoreTO(uuid="x", poolType="EXT", path="/dev/sdb", host="h"), InvalidReference, "host-0, host-1"),
        (PrimaryDataStoreTO(uuid="x", poolType="PreSetup"), NotFound, "is not made here"),
        (NFS.model_copy(update={"details": {"pool": Secret("other")}}), InvalidReference, "fake"),
    ]
    for pool, error, text in wrong:
        with pytest.raises(error, match=text):
            await do(lab, "CreateStoragePool", pool)
    with pytest.raises(NotFound, match="there are"):
        await do(lab, "ModifyStoragePool", NFS)
    assert (await lab.place.fake.controls.left())["tasks"] == []


async def test_what_is_there_is_introduced_and_not_wiped(lab: Lab) -> None:
    await do(lab, "CreateStoragePool", ISCSI)
    uuid = lab.place.make("theirs", b"x" * (2 * MiB), sr="p-2")
    number = str(known(lab, "p-2")["uuid"])
    free(lab, "p-2")
    with pytest.raises(AlreadyExists, match="would wipe") as refused:
        await do(lab, "CreateStoragePool", ISCSI)
    assert number in refused.value.message
    assert lab.place.fake.world.db.find("SR", name_label="p-2") == []
    same = ISCSI.model_copy(update={"uuid": number, "name": "again"})
    for _ in range(2):
        await do(lab, "CreateStoragePool", same)
    assert plugged(lab, "again") == [True, True]
    assert lab.place.content(uuid) == b"x" * (2 * MiB)


async def test_a_second_pool_in_one_export_does_no_harm(lab: Lab) -> None:
    await do(lab, "CreateStoragePool", NFS)
    uuid = lab.place.make("theirs", b"x" * (2 * MiB), sr="p-1")
    await do(lab, "CreateStoragePool", NFS.model_copy(update={"uuid": "p-9"}))
    assert known(lab, "p-9")["uuid"] != known(lab, "p-1")["uuid"]
    assert lab.place.content(uuid) == b"x" * (2 * MiB)


@pytest.mark.parametrize("method", ["SR.introduce", "PBD.create", "Async.PBD.plug", "Async.SR.scan", "Async.SR.probe"])
@pytest.mark.parametrize("step", ["start", "answer"])
async def test_an_interrupted_introduction_is_finished_by_the_next(lab: Lab, method: str, step: str) -> None:
    await do(lab, "CreateStoragePool", NFS)
    number = str(known(lab, "p-1")["uuid"])
    free(lab, "p-1")
    same = NFS.model_copy(update={"uuid": number, "name": "again"})
    await lab.place.fake.controls.arm(where="rpc", step=step, match=method, action="drop")
    with pytest.raises(StorageError):
        await do(lab, "CreateStoragePool", same)
    await do(lab, "CreateStoragePool", same)
    assert plugged(lab, "again") == [True, True]
    for task in lab.place.fake.world.db.refs("task"):  # whose reference nobody was told
        lab.place.fake.world.tasks.lose(task)


# ---------------------------------------------------------------------------------------------------------- connecting


async def test_connecting_plugs_and_looks_anew(lab: Lab) -> None:
    await do(lab, "CreateStoragePool", NFS)
    uuid = lab.place.make("theirs", bytes(2 * MiB), sr="p-1")
    db = lab.place.fake.world.db
    lab.place.fake.world.storage.forget(db.by_uuid("VDI", uuid))
    db.change("PBD", known(lab, "p-1")["PBDs"][0], currently_attached=False)
    await do(lab, "ModifyStoragePool", NFS)
    assert plugged(lab, "p-1") == [True, True]
    assert uuid in lab.place.vdis()


async def test_a_host_that_cannot_have_it_is_no_failure(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    await do(lab, "CreateStoragePool", NFS)
    db = lab.place.fake.world.db
    db.change("PBD", known(lab, "p-1")["PBDs"][0], currently_attached=False)
    down = ["HOST_OFFLINE", "OpaqueRef:host"]
    await lab.place.fake.controls.arm(where="async", step="start", match="PBD.plug", action="fail", error=down)
    await do(lab, "ModifyStoragePool", NFS)
    assert sorted(plugged(lab, "p-1")) == [False, True]
    for pbd in known(lab, "p-1")["PBDs"]:
        db.change("PBD", pbd, currently_attached=False)
    await lab.place.fake.controls.arm(
        where="async", step="start", match="PBD.plug", action="fail", error=down, times=None
    )
    with pytest.raises(XapiFailure, match="HOST_OFFLINE"):
        await do(lab, "ModifyStoragePool", NFS)


# -------------------------------------------------------------------------------------------------------- letting go


async def test_an_sr_without_anything_of_ours_is_forgotten(lab: Lab) -> None:
    await do(lab, "CreateStoragePool", NFS)
    uuid = lab.place.make("theirs", b"x" * (2 * MiB), sr="p-1")
    number = str(known(lab, "p-1")["uuid"])
    for _ in range(2):
        await do(lab, "DeleteStoragePool", NFS)
    assert lab.place.fake.world.db.find("SR", name_label="p-1") == []
    await do(lab, "CreateStoragePool", NFS.model_copy(update={"uuid": number}))
    assert lab.place.content(uuid) == b"x" * (2 * MiB)


async def test_an_sr_with_disks_of_ours_is_only_unplugged(lab: Lab) -> None:
    """XAPI alone knows how they are called."""
    await do(lab, "CreateStoragePool", NFS)
    await volume(lab, NFS)
    for _ in range(2):
        await do(lab, "DeleteStoragePool", NFS)
        assert plugged(lab, "p-1") == [False, False]
    await do(lab, "CreateStoragePool", NFS)
    assert plugged(lab, "p-1") == [True, True]
    assert lab.marks("v")


async def test_one_that_is_in_use_stays_as_it_is(lab: Lab) -> None:
    machines = Machines(lab.place)
    await machines.make("vm", "Running")
    await do(lab, "CreateStoragePool", NFS)
    data = await volume(lab, NFS)
    source = lab.place.source(lab.place.named(str(data.path)), data.path)
    await lab.place.handler.guests.attach("vm", source, device=None, read_only=False, token="c-2")
    with pytest.raises(ImageLocked):
        await do(lab, "DeleteStoragePool", NFS)
    assert plugged(lab, "p-1") == [True, True]
    assert machines.visible("vm") == [lab.place.named("v")]


async def test_maintenance_of_one_host_takes_it_from_nobody(lab: Lab) -> None:
    await do(lab, "CreateStoragePool", NFS)
    await do(lab, "ModifyStoragePool", NFS, add=False)
    assert plugged(lab, "p-1") == [True, True]
    await do(lab, "ModifyStoragePool", NFS)


# ------------------------------------------------------------------------------------------------------------ secrets


async def test_the_chap_secret_is_told_to_xapi_and_to_nobody_else(
    lab: Lab, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    quoting = ["SR_BACKEND_FAILURE_68", "", f"iSCSI login failed [opterr=chappassword={PASSWORD}]", ""]
    for method in ("SR.probe", "SR.create"):
        await lab.place.fake.controls.arm(where="async", step="start", match=method, action="fail", error=quoting)
        with pytest.raises(StorageError) as failed:
            await do(lab, "CreateStoragePool", ISCSI)
        shown = [repr(failed.value), str(failed.value), repr(failed.value.details)]
        assert "SR_BACKEND_FAILURE_68" in shown[1]
        assert not [text for text in shown if PASSWORD in text]
        assert failed.value.__cause__ is None
    await do(lab, "CreateStoragePool", ISCSI)
    assert PASSWORD not in caplog.text
    assert PASSWORD not in "".join(capsys.readouterr())
    command = COMMAND.validate_python({"command": "CreateStoragePool", "id": "c-1", "pool": revealed(dict(ISCSI))})
    assert PASSWORD not in command.model_dump_json()
