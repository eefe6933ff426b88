"""The fake XenServer pool, held against programs that know nothing of it: XAPI's own client, curl, libvhdi, qemu's tools."""

from __future__ import annotations

import base64
import hashlib
import shutil
import struct
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pyvhdi
import XenAPI

from stores.contract import GiB, KiB, MiB
from stores.to import ImageFormat
from tests.doubles.xapi import Remote, Settings, process
from tests.images import make_image, make_raw

BLOCK = 2 * MiB


@pytest.fixture(scope="module")
def pool() -> Iterator[Remote]:
    """In a process of its own; its path has no underscore, which XAPI's client takes for a slash."""
    folder = Path("/tmp") / f"xapi-{uuid.uuid4().hex}"
    try:
        with process(folder, Settings(gc_delay_s=3600.0, data_destroy_wait_s=0.2, qcow2=True)) as remote:
            yield remote
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def session(pool: Remote) -> Iterator[Any]:
    with XenAPI.Session(pool.access.urls[0], ignore_ssl=True) as session:
        session.xenapi.login_with_password(pool.access.user, pool.access.password, "1.0", "tests")
        yield session
        session.xenapi.session.logout()
    assert pool.control("left")["sessions"] == []


@pytest.fixture
def api(session: Any) -> Any:
    return session.xenapi


@pytest.fixture
def srs(pool: Remote) -> dict[str, str]:
    found: dict[str, str] = pool.control("srs")
    return found


def new_disk(api: Any, sr: str, size: int, **further: Any) -> str:
    told = {"SR": sr, "virtual_size": str(size), "type": "user", "sharable": False, "read_only": False}
    return str(api.VDI.create({**told, "name_label": "disk", "other_config": {}, **further}))


def shared(api: Any) -> str:
    return str(api.SR.get_by_name_label("shared")[0])


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def failure(call: Any, *arguments: Any, **further: Any) -> list[str]:
    with pytest.raises(XenAPI.Failure) as caught:
        call(*arguments, **further)
    details: list[str] = caught.value.details
    return details


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
    assert failure(new_disk, api, api.SR.get_by_name_label("isos")[0], MiB)[0] == "SR_BACKEND_FAILURE_78"


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


def test_storage_repositories_come_and_go_with_their_disks(pool: Remote, api: Any, tmp_path: Path) -> None:
    host = api.host.get_all()[0]
    sr = api.SR.create(host, {"server": "a"}, str(GiB), "new", "", "nfs", "user", True, {})
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
    assert number in api.SR.probe(host, {}, "nfs", {})
    assert [found["sr"]["uuid"] for found in api.SR.probe_ext(host, {}, "nfs", {})] == [number]

    again = api.SR.introduce(number, "again", "", "nfs", "user", True, {})
    api.PBD.plug(api.PBD.create({"host": host, "SR": again, "device_config": {}}))
    api.SR.scan(again)
    assert api.SR.get_VDIs(again) == [api.VDI.get_by_uuid(disk)]
    assert pool.control("digest", vdi=disk) == digest(raw)
    api.VDI.destroy(api.VDI.get_by_uuid(disk))
    api.SR.destroy(again)


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


# ------------------------------------------------------------------------------------------------ data by way of curl


class Curl:
    """The handlers as `curl` sees them: `-T` and `-o` with a session in a cookie."""

    def __init__(self, pool: Remote, session: Any, folder: Path) -> None:
        self._pool = pool
        self._session = session
        self._heads = folder / "heads"
        self._ca = folder / "ca.pem"
        self._ca.write_text(pool.access.ca_pem)

    def run(self, *arguments: str, host: int = 0, path: str) -> tuple[str, dict[str, str]]:
        """The first status line, and the headers of the answer."""
        command = ["curl", "-s", "-D", str(self._heads), "--cacert", str(self._ca)]
        command += ["-b", f"session_id={self._session._session}", *arguments, self._pool.access.urls[host] + path]
        subprocess.run(command, capture_output=True, timeout=60, check=False)
        status, *lines = self._heads.read_text().splitlines() or [""]
        pairs = [line.split(": ", 1) for line in lines if ": " in line]
        return status, dict(pairs)

    def put(self, source: Path, query: str) -> dict[str, Any]:
        """The task of the upload, destroyed. Where the host ends early, curl may see a reset before it sees the answer."""
        task = self._session.xenapi.task.create("upload", "")
        upload = ["-T", str(source), "-H", "Expect:", "-o", "/dev/null"]  # or curl waits a second for 100 Continue
        self.run(*upload, path=f"/import_raw_vdi?{query}&task_id={task}")
        return self.ended(task)

    def get(self, target: Path, query: str, *, host: int = 0) -> dict[str, Any]:
        status, headers = self.run("-o", str(target), path=f"/export_raw_vdi?{query}", host=host)
        assert status == "HTTP/1.1 200 OK"
        assert "content-length" not in headers
        return self.ended(headers["task-id"])

    def ended(self, task: str) -> dict[str, Any]:
        api = self._session.xenapi
        token = ""
        while (record := api.task.get_record(task))["status"] == "pending":
            token = getattr(api.event, "from")([f"task/{task}"], token, 10.0)["token"]
        api.task.destroy(task)
        found: dict[str, Any] = record
        return found


@pytest.fixture
def curl(pool: Remote, session: Any, tmp_path: Path) -> Curl:
    return Curl(pool, session, tmp_path)


def test_raw_disks_go_in_and_out_by_curl(pool: Remote, api: Any, curl: Curl, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", 16 * MiB)
    disk = new_disk(api, shared(api), 16 * MiB)
    assert curl.put(raw, f"vdi={disk}")["status"] == "success"
    number = api.VDI.get_uuid(disk)
    assert pool.control("digest", vdi=number) == digest(raw)
    assert curl.get(tmp_path / "back", f"vdi={number}&format=raw")["status"] == "success"
    assert digest(tmp_path / "back") == digest(raw)
    line, headers = curl.run("-T", str(raw), "-H", "Expect:", path=f"/import_raw_vdi?vdi={disk}")
    assert line == "HTTP/1.1 200 OK"
    assert "content-length" not in headers
    assert curl.ended(headers["task-id"])["status"] == "success"

    longer = make_raw(tmp_path / "longer", 18 * MiB)
    task = curl.put(longer, f"vdi={disk}")
    assert (task["status"], task["error_info"]) == ("failure", ["VDI_IO_ERROR", "Device I/O errors"])
    assert curl.put(make_raw(tmp_path / "short", 4 * MiB, seed=1), f"vdi={disk}")["status"] == "success"
    assert (tmp_path / "short").read_bytes() == disk_bytes(pool, number, tmp_path)[: 4 * MiB]
    api.VDI.destroy(disk)
    assert pool.control("left")["dom0_vbds"] == []


def disk_bytes(pool: Remote, number: str, folder: Path) -> bytes:
    pool.control("save", vdi=number, path=str(folder / "saved"))
    return (folder / "saved").read_bytes()


def test_an_upload_may_make_its_own_disk(
    pool: Remote, api: Any, curl: Curl, srs: dict[str, str], tmp_path: Path
) -> None:
    raw = make_raw(tmp_path / "raw", 4 * MiB)
    task = curl.put(raw, f"sr_uuid={srs['shared']}&format=raw")
    vdi = task["result"].removeprefix("<value>").removesuffix("</value>")
    assert pool.control("digest", vdi=api.VDI.get_uuid(vdi)) == digest(raw)
    api.VDI.destroy(vdi)


def test_isos_are_uploaded_where_that_is_possible(pool: Remote, api: Any, curl: Curl, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"iso" * 1000 + bytes(72))
    sr = api.SR.get_by_name_label("isos")[0]
    disk = new_disk(api, sr, image.stat().st_size, sm_config={"path": "Some-1.0.iso"})
    assert api.VDI.get_location(disk) == "Some-1.0.iso"
    assert failure(new_disk, api, sr, MiB, sm_config={"path": "Some-1.0.iso"})[0] == "SR_BACKEND_FAILURE_43"
    assert curl.put(image, f"vdi={disk}")["status"] == "success"
    assert pool.control("digest", vdi=api.VDI.get_uuid(disk)) == digest(image)
    api.VDI.destroy(disk)


def test_chunks(pool: Remote, api: Any, curl: Curl, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", 16 * MiB, extents=[(2 * MiB, MiB), (14 * MiB, 2 * MiB)])
    content = raw.read_bytes()

    def frame(offset: int, length: int) -> bytes:
        return struct.pack("<QI", offset, length) + content[offset : offset + length]

    def sent(*parts: bytes) -> dict[str, Any]:
        (tmp_path / "frames").write_bytes(b"".join(parts))
        return curl.put(tmp_path / "frames", f"vdi={disk}&chunked=true")

    disk = new_disk(api, shared(api), 16 * MiB)
    number = api.VDI.get_uuid(disk)
    end = struct.pack("<QI", 0, 0)
    junk = struct.pack("<QI", 14 * MiB, 512) + b"j" * 512
    assert sent(junk, frame(14 * MiB, 2 * MiB), frame(2 * MiB, MiB), end)["status"] == "success"
    assert pool.control("digest", vdi=number) == digest(raw)
    assert pool.control("blocks", vdi=number) == [1, 7]
    for wrong in (
        [frame(0, 512)],  # no end
        [struct.pack("<QI", 100, 512) + bytes(512), end],
        [struct.pack("<QI", 0, 100) + bytes(100), end],
        [struct.pack("<QI", 16 * MiB, 512) + bytes(512), end],
    ):
        assert sent(*wrong)["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
    api.VDI.destroy(disk)


# --------------------------------------------------------------------------------------------------------- VHD


def vhdi_digest(path: Path, parent: Path | None = None) -> tuple[int, str]:
    """Size and content as libvhdi reads them; `parent`: the VHD that this one is a difference from."""
    with path.open("rb") as file, (parent or path).open("rb") as below_file:
        image, below = pyvhdi.file(), pyvhdi.file()
        image.open_file_object(file)
        below.open_file_object(below_file)
        if parent is not None:
            assert image.parent_identifier == below.identifier
            image.set_parent(below)
        hashed, size = hashlib.sha256(), image.get_media_size()
        for offset in range(0, size, BLOCK):
            hashed.update(image.read_buffer_at_offset(min(BLOCK, size - offset), offset))
        image.close()
        below.close()
    return size, hashed.hexdigest()


def test_exported_vhds_are_read_by_libvhdi_and_qemu(pool: Remote, api: Any, curl: Curl, tmp_path: Path) -> None:
    size = 126 * MiB
    raw = make_raw(tmp_path / "raw", size, extents=[(0, 64 * KiB), (51 * MiB + 512, MiB), (size - 512, 512)])
    number = pool.control("make_vdi", sr=pool.control("srs")["shared"], size=size, content=str(raw))
    exported = tmp_path / "disk.vhd"
    assert curl.get(exported, f"vdi={number}&format=vhd")["status"] == "success"
    assert exported.stat().st_size < 9 * MiB
    assert vhdi_digest(exported) == (size, digest(raw))

    node = f"driver=vpc,force_size_calc=current_size,file.filename={exported}"
    back = tmp_path / "back"
    subprocess.run(["qemu-img", "convert", "--image-opts", "-O", "raw", node, str(back)], check=True)
    assert (back.stat().st_size, digest(back)) == (size, digest(raw))
    api.VDI.destroy(api.VDI.get_by_uuid(number))


@pytest.mark.parametrize(("size", "believed"), [(GiB, 1073479680), (20 * GiB, 21474754560)])
def test_qemu_believes_in_the_geometry_of_exports(
    api: Any, curl: Curl, tmp_path: Path, size: int, believed: int
) -> None:
    """Unless it is told otherwise: the creator is one that it does not know."""
    disk = new_disk(api, shared(api), size)
    assert curl.get(tmp_path / "empty.vhd", f"vdi={disk}&format=vhd")["status"] == "success"
    told = subprocess.run(
        ["qemu-img", "info", "-f", "vpc", str(tmp_path / "empty.vhd")], check=True, capture_output=True
    )
    assert f"{believed} bytes".encode() in told.stdout
    api.VDI.destroy(disk)


def test_differences_are_read_by_libvhdi_and_restore_the_disk(
    pool: Remote, api: Any, curl: Curl, tmp_path: Path
) -> None:
    raw = make_raw(tmp_path / "raw", 32 * MiB)
    number = pool.control("make_vdi", sr=pool.control("srs")["shared"], size=32 * MiB, content=str(raw))
    disk = api.VDI.get_by_uuid(number)
    first = api.VDI.snapshot(disk)
    (tmp_path / "data").write_bytes(b"changed" * 100)
    pool.control("write", vdi=number, offset=9 * MiB - 100, content=str(tmp_path / "data"))
    pool.control("write", vdi=number, offset=4096, content=str(tmp_path / "data"))
    second = api.VDI.snapshot(disk)
    assert curl.get(tmp_path / "full.vhd", f"vdi={first}&format=vhd")["status"] == "success"
    base = api.VDI.get_uuid(first)
    assert curl.get(tmp_path / "delta.vhd", f"vdi={second}&format=vhd&base={base}")["status"] == "success"
    now = pool.control("digest", vdi=number)
    assert now != digest(raw)
    assert (tmp_path / "delta.vhd").stat().st_size < 7 * MiB
    assert vhdi_digest(tmp_path / "full.vhd") == (32 * MiB, digest(raw))
    assert vhdi_digest(tmp_path / "delta.vhd", tmp_path / "full.vhd") == (32 * MiB, now)

    restored = new_disk(api, shared(api), 32 * MiB)
    assert curl.put(tmp_path / "full.vhd", f"vdi={restored}&format=vhd")["status"] == "success"
    assert curl.put(tmp_path / "delta.vhd", f"vdi={restored}&format=vhd")["status"] == "success"
    assert pool.control("digest", vdi=api.VDI.get_uuid(restored)) == now
    stranger = curl.get(tmp_path / "none", f"vdi={restored}&format=vhd&base={new_elsewhere(api)}")
    assert stranger["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
    transfer = pool.control("transfers")[-4]
    assert (transfer["kind"], transfer["base"], transfer["credential"]) == ("export", base, "cookie")
    for one in (disk, first, second, restored):
        api.VDI.destroy(one)


def new_elsewhere(api: Any) -> str:
    return new_disk(api, api.SR.get_by_name_label("local-0")[0], 32 * MiB)


def test_vhds_of_qemu_are_imported_to_the_byte(pool: Remote, api: Any, curl: Curl, tmp_path: Path) -> None:
    size = 64 * MiB
    image = make_image(tmp_path / "image.vhd", ImageFormat.VHD, size, options="force_size=on")
    disk = new_disk(api, shared(api), size)
    number = api.VDI.get_uuid(disk)
    assert curl.put(image, f"vdi={disk}&format=vhd")["status"] == "success"
    assert pool.control("digest", vdi=number) == vhdi_digest(image)[1]

    fixed = make_image(tmp_path / "fixed.vhd", ImageFormat.VHD, 4 * MiB, options="force_size=on,subformat=fixed")
    assert curl.put(fixed, f"vdi={disk}&format=vhd")["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
    cut = tmp_path / "cut.vhd"
    cut.write_bytes(image.read_bytes()[:-512])
    assert curl.put(cut, f"vdi={disk}&format=vhd")["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
    raw_lvm = new_disk(api, api.SR.get_by_name_label("blocks")[0], size, sm_config={"type": "raw"})
    assert curl.put(image, f"vdi={raw_lvm}&format=vhd")["status"] == "failure"
    for one in (disk, raw_lvm):
        api.VDI.destroy(one)


def test_qcow2_goes_in_and_out_where_hosts_know_it(pool: Remote, api: Any, curl: Curl, tmp_path: Path) -> None:
    size = 16 * MiB
    image = make_image(tmp_path / "image.qcow2", ImageFormat.QCOW2, size, compressed=True)
    raw = make_raw(tmp_path / "raw", size)
    disk = new_disk(api, shared(api), size)
    assert curl.put(image, f"vdi={disk}&format=qcow2")["status"] == "success"
    assert pool.control("digest", vdi=api.VDI.get_uuid(disk)) == digest(raw)
    assert curl.get(tmp_path / "out.qcow2", f"vdi={disk}&format=qcow2")["status"] == "success"
    subprocess.run(["qemu-img", "compare", "-F", "raw", str(tmp_path / "out.qcow2"), str(raw)], check=True)
    api.VDI.destroy(disk)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "path", "status"),
    [
        (["-T", "-"], "/import_raw_vdi?vdi={vdi}", "404 Not Found"),  # curl then uses Transfer-Encoding
        (["-X", "PUT"], "/import_raw_vdi", "400 Bad Request"),
        (["-X", "PUT"], "/import_raw_vdi?vdi={vdi}&format=vmdk", "404 Not Found"),
        (["-X", "PUT"], "/import_raw_vdi?vdi={vdi}&format=vhd&chunked=1", "404 Not Found"),
        (["-X", "PUT"], "/import_raw_vdi?sr_id={sr}&format=vhd", "400 Bad Request"),
        ([], "/export_raw_vdi", "500 Internal Server Error"),
        ([], "/export_raw_vdi?vdi=unknown", "500 Internal Server Error"),
        (["-X", "POST"], "/export_raw_vdi?vdi={vdi}", "501 Not Implemented"),
        (["-b", "session_id=OpaqueRef:none"], "/export_raw_vdi?vdi={vdi}", "401 Unauthorized"),
        ([], "/nowhere", "404 Not Found"),
        (["-d", "{}"], "/jsonrpc", "500 Internal Server Error"),
        (["-d", "x" * 400 * KiB], "/jsonrpc", "413 Request Entity Too Large"),
    ],
)
def test_requests_are_refused(
    curl: Curl, api: Any, tmp_path: Path, arguments: list[str], path: str, status: str
) -> None:
    sr = shared(api)
    disk = new_disk(api, sr, BLOCK)
    if arguments[:1] == ["-d"]:
        (tmp_path / "body").write_text(arguments[1])
        arguments = ["-d", f"@{tmp_path / 'body'}"]
    line, headers = curl.run(*arguments, "-o", "/dev/null", path=path.format(vdi=disk, sr=sr))
    assert line == f"HTTP/1.1 {status}"
    assert headers["connection"] == "close"
    api.VDI.destroy(disk)


def test_a_refused_upload_fails_the_task_that_it_names(curl: Curl, api: Any) -> None:
    task = api.task.create("upload", "")
    curl.run("-X", "PUT", "-o", "/dev/null", path=f"/import_raw_vdi?task_id={task}")
    assert api.task.get_error_info(task)[0] == "VDI_MISSING"
    api.task.destroy(task)


def test_credentials_other_than_a_session(pool: Remote, api: Any, tmp_path: Path) -> None:
    disk = new_disk(api, shared(api), BLOCK)
    for arguments in (
        ["-k", "-u", f"root:{pool.access.password}", f"{pool.access.urls[0]}/export_raw_vdi?vdi={disk}"],
        ["--unix-socket", pool.access.sockets[0], f"http://localhost/export_raw_vdi?vdi={disk}"],
    ):
        subprocess.run(["curl", "-sf", "-o", str(tmp_path / "out"), *arguments], check=True, timeout=60)
        assert (tmp_path / "out").stat().st_size == BLOCK
    assert [transfer["credential"] for transfer in pool.control("transfers")[-2:]] == ["basic", "socket"]
    for wrong in (["-u", "root:no"], []):
        told = subprocess.run(
            ["curl", "-sk", "-i", *wrong, f"{pool.access.urls[0]}/export_raw_vdi?vdi={disk}"], capture_output=True
        ).stdout
        assert b"401 Unauthorized" in told
        assert b'www-authenticate: Basic realm="XenServer"' in told
    for task in api.task.get_all():
        api.task.destroy(task)
    api.VDI.destroy(disk)


def test_a_host_that_does_not_see_the_disk_sends_clients_to_one_that_does(
    pool: Remote, api: Any, curl: Curl, srs: dict[str, str], tmp_path: Path
) -> None:
    raw = make_raw(tmp_path / "raw", 4 * MiB)
    number = pool.control("make_vdi", sr=srs["local-0"], size=4 * MiB, content=str(raw))
    line, headers = curl.run("-T", str(raw), "-o", "/dev/null", path=f"/import_raw_vdi?vdi={number}&x=a%20b", host=1)
    assert line == "HTTP/1.1 302 Found"
    assert headers["location"] == f"{pool.access.urls[0]}/import_raw_vdi?vdi={number}&x=a%20b"
    task = api.task.create("export", "")
    line, _ = curl.run("-L", "-o", str(tmp_path / "out"), path=f"/export_raw_vdi?vdi={number}&task_id={task}", host=1)
    assert curl.ended(task)["status"] == "success"
    assert digest(tmp_path / "out") == digest(raw)
    api.VDI.destroy(api.VDI.get_by_uuid(number))


# --------------------------------------------------------------------------------------------------------- NBD


def test_disks_are_read_over_nbd_with_tls(pool: Remote, api: Any, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", 8 * MiB)
    number = pool.control("make_vdi", sr=pool.control("srs")["shared"], size=8 * MiB, content=str(raw))
    disk, network = api.VDI.get_by_uuid(number), api.network.get_all()[0]
    assert api.VDI.get_nbd_info(disk) == []
    api.network.add_purpose(network, "nbd")
    assert failure(api.network.add_purpose, network, "insecure_nbd")[0] == "NETWORK_INCOMPATIBLE_PURPOSES"
    entries = api.VDI.get_nbd_info(disk)
    assert len(entries) == 2
    entry = entries[0]
    assert entry["exportname"].startswith(f"/{number}?session_id=OpaqueRef:")
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "ca-cert.pem").write_text(pool.access.ca_pem)
    told = f"driver=nbd,server.type=inet,server.host={entry['address']},server.port={entry['port']}"
    told += f",export={entry['exportname']},tls-creds=tls,tls-hostname={entry['subject']}"
    tls = ["--object", f"tls-creds-x509,id=tls,endpoint=client,dir={tmp_path / 'tls'}"]
    command = ["qemu-img", "convert", *tls, "-O", "raw", "--image-opts", told, str(tmp_path / "back")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert digest(tmp_path / "back") == digest(raw)
    api.network.remove_purpose(network, "nbd")
    api.VDI.destroy(disk)
