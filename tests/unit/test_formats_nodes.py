"""How images are named to qemu's tools: literally, with driver and options, so that nothing is probed or interpreted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hypervisors.images.formats import DRIVERS, file_node, image_node, json_filename, nbd_node
from stores.contract import MiB
from stores.to import ImageFormat
from tests.images import SECTOR, disk_digest, make_image, make_qcow2, make_raw, make_vhd_by, opened

QEMU = ["qemu-img", "info", "--output=json"]


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with space",
        "a,b=c",
        "json:{}",
        "nbd:unix:x",
        "file.filename=x",
        '"quoted"',
        "-O",
        "ümläut",
        "new\nline",
        "%s",
    ],
)
def test_a_file_name_is_taken_literally(tmp_path: Path, name: str) -> None:
    path = make_qcow2(tmp_path / "image", MiB).rename(tmp_path / name)
    info = json.loads(subprocess.run([*QEMU, opened(path, ImageFormat.QCOW2)], check=True, capture_output=True).stdout)
    assert info["virtual-size"] == MiB


def test_a_disk_is_never_probed(tmp_path: Path) -> None:
    """What a guest wrote at the beginning of its raw disk stays content."""
    path = make_qcow2(tmp_path / "image", MiB)
    info = json.loads(subprocess.run([*QEMU, opened(path, ImageFormat.RAW)], check=True, capture_output=True).stdout)
    assert (info["format"], info["virtual-size"]) == ("raw", path.stat().st_size)


@pytest.mark.parametrize("image_format", DRIVERS)
def test_every_format_can_be_opened_by_its_node(tmp_path: Path, image_format: ImageFormat) -> None:
    raw = make_raw(tmp_path / "raw", 2 * MiB)
    options = "force_size=on" if image_format is ImageFormat.VHD else ""
    path = make_image(tmp_path / "image", image_format, 2 * MiB, options=options)
    assert disk_digest(path, image_format) == disk_digest(raw, ImageFormat.RAW)


def test_without_our_option_qemu_cuts_off_the_end_of_a_disk_by_xapi(tmp_path: Path) -> None:
    """The reason for the option: if this fails one day, qemu has learnt it."""
    size = 17 * MiB + 7 * SECTOR
    path = make_vhd_by(tmp_path / "image", b"caml", size)
    info = json.loads(subprocess.run([*QEMU, "-f", "vpc", str(path)], check=True, capture_output=True).stdout)
    assert info["virtual-size"] < size


def test_formats_that_are_not_taken_have_no_node() -> None:
    with pytest.raises(KeyError):
        image_node(ImageFormat.OVA, file_node("/image"))


def test_an_nbd_export_on_a_socket() -> None:
    node = image_node(ImageFormat.VHD, nbd_node("/run/agent/a,b.sock", ""))
    assert json.loads(json_filename(node).removeprefix("json:")) == {
        "driver": "vpc",
        "force_size_calc": "current_size",
        "file": {"driver": "nbd", "server": {"type": "unix", "path": "/run/agent/a,b.sock"}, "export": ""},
    }
