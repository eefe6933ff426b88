"""The fake XenServer pool, held against XAPI's own client: disks, tasks, events, space and chains."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from stores.contract import GiB, KiB, MiB
from tests.doubles.xapi import Remote
from tests.flows.fake_xapi.tools import BLOCK, digest, failure, new_disk, shared
from tests.images import make_raw

# ----------------------------------------------------------------------------------------------- XAPI's own client


def test_the_official_client_knows_its_way_around(pool: Remote, session: Any, api: Any) -> None:
    assert session.API_version == "2.21"
    coordinator = api.pool.get_master(api.pool.get_all()[0])
    assert api.host.get_address(coordinator) == pool.access.address(0)
    assert {record["type"] for record in api.SR.get_all_records().values()} == {"nfs", "lvmoiscsi", "iso", "ext"}
    methods = session.system.listMethods()
    assert {"VDI.copy", "Async.VDI.copy", "event.from", "task.set_status", "VDI.add_to_other_config"} <= set(methods)
    assert not {"Async.event.from", "Async.task.create", "Async.VDI.get_nbd_info", "VDI.set_virtual_size"} & set(
        methods
    )


def test_a_disk_from_its_creation_to_its_destruction(api: Any) -> None:
    sr = shared(api)
    vdi = new_disk(api, sr, 5 * MiB, other_config={"ours": "yes"})
    record = api.VDI.get_record(vdi)
    assert (record["virtual_size"], record["other_config"], record["SR"]) == (str(6 * MiB), {"ours": "yes"}, sr)
    assert vdi in api.SR.get_VDIs(sr)
    assert failure(api.VDI.add_to_other_config, vdi, "ours", "again")[0] == "MAP_DUPLICATE_KEY"
    api.VDI.remove_from_other_config(vdi, "never there")

    api.VDI.resize(vdi, str(64 * MiB))
    assert api.VDI.get_virtual_size(vdi) == str(64 * MiB)
    assert failure(api.VDI.resize, vdi, str(32 * MiB))[0] == "SR_BACKEND_FAILURE_79"

    snapshot = api.VDI.snapshot(vdi)
    clone = api.VDI.clone(vdi, {"epoch": "1"})
    assert api.VDI.get_snapshots(vdi) == [snapshot]
    assert api.VDI.get_is_a_snapshot(snapshot)
    assert not api.VDI.get_is_a_snapshot(clone)
    found = api.VDI.get_all_records_where(f'field "snapshot_of"="{vdi}" and not (field "SR"="elsewhere")')
    assert list(found) == [snapshot]

    for one in (vdi, snapshot, clone):
        api.VDI.destroy(one)
    assert failure(api.VDI.get_record, vdi) == ["HANDLE_INVALID", "VDI", vdi]
    assert failure(api.VDI.get_by_uuid, record["uuid"]) == ["UUID_INVALID", "VDI", record["uuid"]]


def test_calls_that_are_wrong_say_how(api: Any) -> None:
    assert failure(api.VDI.export_changed_blocks, "x") == ["MESSAGE_METHOD_UNKNOWN", "VDI.export_changed_blocks"]
    assert failure(api.VDI.get_record)[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"
    assert failure(api.VDI.destroy, "a", "b") == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VDI.destroy", "2", "3"]
    assert failure(api.VDI.create, {"SR": shared(api)}) == ["FIELD_TYPE_ERROR", "virtual_size"]
    assert failure(new_disk, api, shared(api), 2041 * GiB)[0] == "SR_BACKEND_FAILURE_79"
    odd = {"SR": api.SR.get_by_name_label("isos")[0], "virtual_size": str(MiB), "type": "user", "sharable": False}
    assert (
        failure(api.VDI.create, {**odd, "read_only": False, "sm_config": {"path": "a b"}})[0] == "SR_BACKEND_FAILURE_78"
    )


def test_logging_in(pool: Remote) -> None:
    def refusal(host: int, password: str) -> list[str]:
        with XenAPI.Session(pool.access.urls[host], ignore_ssl=True) as session:
            return failure(session.login_with_password, pool.access.user, password, "1.0", "x")

    assert refusal(0, "wrong")[0] == "SESSION_AUTHENTICATION_FAILED"
    assert refusal(1, pool.access.password) == ["HOST_IS_SLAVE", pool.access.address(0)]
    with XenAPI.Session(pool.access.urls[0]) as session, pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        session.login_with_password("root", "x", "1.0", "x")


def test_a_member_passes_on_what_comes_over_its_socket(pool: Remote) -> None:
    url = "http://" + pool.access.sockets[1].replace("/", "_")
    with XenAPI.Session(url, transport=XenAPI.UDSTransport()) as session:
        session.xenapi.login_with_password(pool.access.user, pool.access.password, "1.0", "socket")
        assert len(session.xenapi.host.get_all()) == 2
        session.xenapi.session.logout()


def test_the_client_logs_in_again_where_its_session_is_gone(pool: Remote, api: Any) -> None:
    pool.control("drop_sessions")
    assert len(api.host.get_all()) == 2
    assert pool.control("left")["sessions"] == ["tests"]


def test_tasks_and_events(pool: Remote, api: Any) -> None:
    events = getattr(api.event, "from")
    vdi = new_disk(api, shared(api), 4 * MiB)
    start = events(["vdi"], "", 5.0)
    assert {event["operation"] for event in start["events"]} == {"add"}
    assert events(["VDI"], start["token"], 0.1)["events"] == []

    task = getattr(api, "Async").VDI.snapshot(vdi)  # noqa: B009
    seen = events([f"task/{task}"], "", 5.0)
    assert [event["ref"] for event in seen["events"]] == [task]
    record = api.task.get_record(task)
    assert (record["status"], record["progress"]) == ("success", 1.0)
    snapshot = record["result"].removeprefix("<value>").removesuffix("</value>")
    changes = {event["ref"]: event for event in events(["vdi"], start["token"], 5.0)["events"]}
    assert (changes[snapshot]["operation"], changes[vdi]["operation"]) == ("add", "mod")
    assert changes[snapshot]["snapshot"]["is_a_snapshot"] is True

    api.task.destroy(task)
    gone = events(["task"], seen["token"], 5.0)["events"]
    assert [(event["operation"], event["ref"]) for event in gone] == [("del", task)]
    assert "snapshot" not in gone[0]
    assert failure(events, ["task"], "rubbish", 1.0) == ["EVENT_FROM_TOKEN_PARSE_FAILURE", "rubbish"]
    assert failure(events, ["nonsense"], "", 1.0) == ["EVENT_SUBSCRIPTION_PARSE_FAILURE", "nonsense"]
    for one in (vdi, snapshot):
        api.VDI.destroy(one)


def test_failed_tasks_say_why_and_may_not_be_cancelled(api: Any) -> None:
    task = getattr(api, "Async").VDI.destroy("OpaqueRef:none")  # noqa: B009
    getattr(api.event, "from")([f"task/{task}"], "", 5.0)
    assert api.task.get_error_info(task) == ["HANDLE_INVALID", "VDI", "OpaqueRef:none"]
    assert api.task.get_progress(task) == 1.0
    api.task.destroy(task)

    own = api.task.create("ours", "")
    assert failure(api.task.cancel, own)[0] == "OPERATION_NOT_ALLOWED"
    api.task.destroy(own)
    assert api.task.get_status(own) == "pending"  # only marked
    api.task.set_status(own, "cancelled")
    api.task.destroy(own)
    assert failure(api.task.get_status, own)[0] == "HANDLE_INVALID"


def test_attached_disks_are_in_use(api: Any) -> None:
    vdi = new_disk(api, shared(api), 4 * MiB)
    guest = api.VM.get_by_name_label("guest")[0]
    vbd = {"VM": guest, "VDI": vdi, "userdevice": "0", "mode": "RW", "type": "Disk", "empty": False}
    attached = api.VBD.create({**vbd, "bootable": True, "other_config": {}, "qos_algorithm_type": ""})
    assert failure(api.VBD.create, vbd) == ["DEVICE_ALREADY_EXISTS", "0"]
    assert failure(api.VBD.create, {**vbd, "userdevice": "3", "type": "CD"}) == ["VBD_CDS_MUST_BE_READONLY"]
    assert failure(api.VBD.plug, attached)[0] == "VM_BAD_POWER_STATE"
    api.VM.start(guest, False, False)
    assert api.VBD.get_device(attached) == "xvda"
    assert failure(api.VDI.destroy, vdi) == ["VDI_IN_USE", vdi, "destroy"]
    assert failure(api.VDI.copy, vdi, shared(api)) == ["VDI_IN_USE", vdi, "copy"]
    assert failure(api.VDI.resize, vdi, str(8 * MiB)) == ["VDI_IN_USE", vdi, "resize"]
    assert failure(api.VBD.plug, attached) == ["DEVICE_ALREADY_ATTACHED", attached]
    assert "destroy" not in api.VDI.get_allowed_operations(vdi)
    other = api.SR.get_by_name_label("blocks")[0]
    moved = api.VDI.pool_migrate(vdi, other, {})
    assert api.VBD.get_VDI(attached) == moved
    assert failure(api.VDI.get_uuid, vdi)[0] == "HANDLE_INVALID"
    api.VBD.unplug(attached)
    assert failure(api.VBD.unplug, attached) == ["DEVICE_ALREADY_DETACHED", attached]
    api.VM.hard_shutdown(guest)
    api.VDI.destroy(moved)
    assert api.VM.get_VBDs(guest) == []


def test_disks_of_a_guest_depend_on_its_state(api: Any) -> None:
    vdi = new_disk(api, shared(api), 4 * MiB)
    guest = api.VM.get_by_name_label("guest")[0]
    vbd = {"VM": guest, "VDI": vdi, "userdevice": "autodetect", "mode": "RW", "type": "Disk", "empty": False}
    assert failure(api.VBD.create, {**vbd, "userdevice": "16"}) == ["INVALID_DEVICE", "16"]
    assert failure(api.VBD.create, {**vbd, "empty": True})[0] == "VBD_NOT_REMOVABLE_MEDIA"
    assert failure(api.VBD.create, {**vbd, "type": "CD", "mode": "RO"})[0] == "VDI_IS_NOT_ISO"
    api.VM.start(guest, False, False)
    fixed = api.VBD.create({**vbd, "unpluggable": False})
    api.VBD.plug(fixed)
    assert failure(api.VBD.unplug, fixed) == ["VBD_NOT_UNPLUGGABLE", fixed]
    api.VM.pause(guest)
    assert failure(api.VBD.unplug, fixed) == ["VM_BAD_POWER_STATE", guest, "running", "paused"]
    api.VM.unpause(guest)
    api.VM.suspend(guest)
    assert failure(api.VBD.destroy, fixed)[0] == "OPERATION_NOT_ALLOWED"
    api.VM.resume(guest, False, False)
    assert api.VBD.get_currently_attached(fixed) is True
    api.VM.hard_shutdown(guest)
    api.VBD.destroy(fixed)
    api.VDI.destroy(vdi)


def test_only_isos_go_into_a_drive(api: Any) -> None:
    sr = api.SR.get_by_name_label("isos")[0]
    told = {"SR": sr, "virtual_size": str(MiB), "type": "user", "sharable": False, "read_only": False}
    named = api.VDI.create({**told, "sm_config": {"path": "a.iso"}})
    nameless = api.VDI.create({**told, "sm_config": {}})
    assert api.VDI.get_location(named) == "a.iso"
    assert api.VDI.get_location(nameless).endswith(".img")
    assert api.VDI.get_virtual_size(named) == str(MiB)
    guest = api.VM.get_by_name_label("guest")[0]
    drive = {"VM": guest, "userdevice": "3", "mode": "RO", "type": "CD", "empty": True}
    vbd = api.VBD.create(drive)
    disk = new_disk(api, shared(api), 4 * MiB)
    assert failure(api.VBD.insert, vbd, disk)[0] == "VDI_IS_NOT_ISO"
    api.VM.start(guest, False, False)
    api.VBD.insert(vbd, named)
    assert failure(api.VBD.insert, vbd, nameless) == ["VBD_NOT_EMPTY", vbd]
    assert failure(api.VDI.destroy, named) == ["VDI_IN_USE", named, "destroy"]
    assert failure(api.VBD.unplug, vbd)[0] == "OPERATION_NOT_ALLOWED"
    api.VBD.eject(vbd)
    assert failure(api.VBD.eject, vbd) == ["VBD_IS_EMPTY", vbd]
    api.VM.suspend(guest)
    assert failure(api.VBD.insert, vbd, named)[0] == "VM_BAD_POWER_STATE"
    api.VM.hard_shutdown(guest)
    api.VBD.destroy(vbd)
    for vdi in (named, nameless, disk):
        api.VDI.destroy(vdi)


def test_storage_repositories_come_and_go_with_their_disks(pool: Remote, api: Any, tmp_path: Path) -> None:
    host = api.host.get_all()[0]
    place = {"server": "a"}
    sr = api.SR.create(host, place, str(GiB), "new", "", "nfs", "user", True, {})
    number = api.SR.get_uuid(sr)
    raw = make_raw(tmp_path / "raw", 8 * MiB)
    disk = pool.control("make_vdi", sr=number, size=8 * MiB, content=str(raw), name="kept")
    assert failure(api.SR.destroy, sr)[0] == "SR_BACKEND_FAILURE_39"
    assert failure(api.SR.forget, sr) == ["SR_HAS_PBD", sr]
    pbds = api.SR.get_PBDs(sr)
    assert len(pbds) == 2
    for pbd in pbds:
        api.PBD.unplug(pbd)
    assert failure(new_disk, api, sr, MiB) == ["SR_NO_PBDS", sr]
    api.SR.forget(sr)
    assert number in api.SR.probe(host, place, "nfs", {})
    assert number not in api.SR.probe(host, {"server": "b"}, "nfs", {})
    assert [found["sr"]["uuid"] for found in api.SR.probe_ext(host, place, "nfs", {})] == [number]

    again = api.SR.introduce(number, "again", "", "nfs", "user", True, {})
    api.PBD.plug(api.PBD.create({"host": host, "SR": again, "device_config": place}))
    api.SR.scan(again)
    assert api.SR.get_VDIs(again) == [api.VDI.get_by_uuid(disk)]
    assert api.VDI.get_name_label(api.VDI.get_by_uuid(disk)) == ""  # which only XAPI knew
    assert pool.control("digest", vdi=disk) == digest(raw)
    api.VDI.destroy(api.VDI.get_by_uuid(disk))
    api.SR.destroy(again)
    assert number not in api.SR.probe(host, place, "nfs", {})


def test_an_sr_that_takes_a_device_wipes_what_was_there(api: Any) -> None:
    host = api.host.get_all()[0]
    lun = {"target": "a", "targetIQN": "iqn.x", "SCSIid": "36", "chapuser": "u", "chappassword": "p"}
    for missing, code in (("targetIQN", "SR_BACKEND_FAILURE_96"), ("SCSIid", "SR_BACKEND_FAILURE_107")):
        less = {key: value for key, value in lun.items() if key != missing}
        assert failure(api.SR.create, host, less, "0", "n", "", "lvmoiscsi", "user", True, {})[0] == code
    sr = api.SR.create(host, lun, "0", "one", "", "lvmoiscsi", "user", True, {})
    number = api.SR.get_uuid(sr)
    assert failure(api.SR.create, host, lun, "0", "two", "", "lvmoiscsi", "user", True, {}) == ["SR_DEVICE_IN_USE"]
    for pbd in api.SR.get_PBDs(sr):
        api.PBD.unplug(pbd)
    api.SR.forget(sr)
    other = {**lun, "chapuser": "somebody"}
    assert number in api.SR.probe(host, other, "lvmoiscsi", {})
    new = api.SR.create(host, other, "0", "two", "", "lvmoiscsi", "user", True, {})
    assert api.SR.get_uuid(new) in (found := api.SR.probe(host, lun, "lvmoiscsi", {}))
    assert number not in found
    api.SR.destroy(new)


# ---------------------------------------------------------------------------------------------- space and chains


def test_space_comes_back_when_the_collector_has_run(pool: Remote, api: Any, tmp_path: Path) -> None:
    sr = api.SR.create(api.host.get_all()[0], {}, str(40 * MiB), "small", "", "nfs", "user", True, {})
    number = api.SR.get_uuid(sr)
    raw = make_raw(tmp_path / "raw", 32 * MiB, extents=[(0, 4 * MiB), (20 * MiB, 2 * MiB)])
    disk = api.VDI.get_by_uuid(pool.control("make_vdi", sr=number, size=32 * MiB, content=str(raw)))
    assert api.SR.get_physical_utilisation(sr) == str(6 * MiB)
    snapshot = api.VDI.snapshot(disk)
    assert pool.control("depth", vdi=api.VDI.get_uuid(disk)) == 2
    parent = api.VDI.get_sm_config(disk)["vhd-parent"]
    assert api.VDI.get_sm_config(snapshot)["vhd-parent"] == parent

    copy = api.VDI.copy(snapshot, sr)
    assert pool.control("digest", vdi=api.VDI.get_uuid(copy)) == digest(raw)
    api.VDI.destroy(copy)
    assert api.SR.get_physical_utilisation(sr) == str(12 * MiB)
    api.VDI.destroy(snapshot)
    pool.control("collect")
    assert api.SR.get_physical_utilisation(sr) == str(6 * MiB)
    assert pool.control("depth", vdi=api.VDI.get_uuid(disk)) == 1
    assert "vhd-parent" not in api.VDI.get_sm_config(disk)
    assert pool.control("digest", vdi=api.VDI.get_uuid(disk)) == digest(raw)

    pool.control("set_room", sr=number, size=4 * MiB)
    before = set(api.SR.get_VDIs(sr))
    assert failure(api.VDI.copy, disk, sr) == ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]
    assert set(api.SR.get_VDIs(sr)) == before
    api.VDI.destroy(disk)
    api.SR.destroy(sr)


def test_thick_repositories_charge_at_once_and_chains_have_an_end(pool: Remote, api: Any, srs: dict[str, str]) -> None:
    blocks = api.SR.get_by_uuid(srs["blocks"])
    size = int(api.SR.get_physical_size(blocks))
    assert failure(new_disk, api, blocks, size + BLOCK)[0] == "SR_BACKEND_FAILURE_44"
    disk = new_disk(api, shared(api), BLOCK)
    made = [disk, *(api.VDI.snapshot(disk) for _ in range(29))]
    assert failure(api.VDI.snapshot, disk)[0] == "SR_BACKEND_FAILURE_109"
    for one in made:
        api.VDI.destroy(one)
    pool.control("collect")
    assert api.SR.get_physical_utilisation(shared(api)) == "0"


def test_changed_blocks(pool: Remote, api: Any, tmp_path: Path) -> None:
    disk = new_disk(api, shared(api), 64 * MiB)
    number = api.VDI.get_uuid(disk)
    plain = api.VDI.snapshot(disk)
    api.VDI.enable_cbt(disk)
    first = api.VDI.snapshot(disk)
    (tmp_path / "data").write_bytes(b"x" * 70 * KiB)
    for offset in (0, 10 * MiB):
        pool.control("write", vdi=number, offset=offset, content=str(tmp_path / "data"))
    second = api.VDI.snapshot(disk)
    pool.control("write", vdi=number, offset=32 * MiB, content=str(tmp_path / "data"))
    third = api.VDI.snapshot(disk)

    def changed(start: str, end: str) -> list[int]:
        bits = base64.b64decode(api.VDI.list_changed_blocks(start, end))
        assert len(bits) == 64 * MiB // (64 * KiB) // 8
        return [number for number in range(len(bits) * 8) if bits[number // 8] & (0x80 >> number % 8)]

    assert changed(first, second) == [0, 1, 160, 161]
    assert changed(first, third) == [0, 1, 160, 161, 512, 513]
    assert changed(second, third) == [512, 513]
    assert failure(api.VDI.list_changed_blocks, third, first)[0] == "SR_BACKEND_FAILURE_460"
    assert failure(api.VDI.list_changed_blocks, plain, first) == ["VDI_NO_CBT_METADATA", plain]

    api.VDI.data_destroy(first)
    assert api.VDI.get_type(first) == "cbt_metadata"
    assert changed(first, second) == [0, 1, 160, 161]
    assert failure(api.VDI.get_nbd_info, first)[0] == "VDI_INCOMPATIBLE_TYPE"
    assert failure(api.VDI.data_destroy, plain) == ["VDI_NO_CBT_METADATA", plain]
    assert failure(api.VDI.enable_cbt, second)[0] == "OPERATION_NOT_ALLOWED"
    for one in (disk, plain, first, second, third):
        api.VDI.destroy(one)
