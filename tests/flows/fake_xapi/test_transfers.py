"""The fake XenServer pool, held against curl and qemu's tools: raw data in and out, what is refused, and NBD."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stores.contract import KiB, MiB
from tests.doubles.xapi import Remote
from tests.flows.fake_xapi.tools import BLOCK, Curl, digest, disk_bytes, failure, new_disk, shared
from tests.images import make_raw


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
