"""The fake XenServer pool's images, held against libvhdi and qemu."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from stores.contract import GiB, KiB, MiB
from stores.to import ImageFormat
from tests.doubles.xapi import Remote
from tests.flows.fake_xapi.tools import Curl, digest, new_disk, new_elsewhere, shared, vhdi_digest
from tests.images import make_image, make_raw


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
