"""What each image format is called by qemu, and the options with which qemu must open it.

A format is decided once, by the gate or by our own record, and from then on named to every tool. Tools get an image as a
`json:` node: driver and options are explicit, nothing is probed, and a file name is taken literally whatever is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from stores.to import ImageFormat

DRIVERS: Mapping[ImageFormat, str] = MappingProxyType(
    {
        ImageFormat.QCOW2: "qcow2",
        ImageFormat.RAW: "raw",
        ImageFormat.ISO: "raw",
        ImageFormat.VHD: "vpc",
        ImageFormat.VHDX: "vhdx",
        ImageFormat.VMDK: "vmdk",
    }
)
"""The formats that pass the gate, and qemu's block driver for each."""

OPEN_OPTIONS: Mapping[ImageFormat, Mapping[str, object]] = MappingProxyType(
    {
        # By default qemu trusts `current_size` of a few creators only and computes the size from the rounded geometry for
        # the others, which cuts off the end of disks that XAPI ("caml") wrote.
        ImageFormat.VHD: MappingProxyType({"force_size_calc": "current_size"}),
    }
)
"""Options that qemu needs to read an image of that format right."""


def image_node(image_format: ImageFormat, protocol: Mapping[str, object]) -> dict[str, object]:
    """qemu's description of an image on top of a protocol node, such as `file_node` and `nbd_node` give.

    KeyError for a format that the gate does not admit.
    """
    return {"driver": DRIVERS[image_format], **OPEN_OPTIONS.get(image_format, {}), "file": dict(protocol)}


def file_node(path: str) -> dict[str, object]:
    """A regular file on a local file system."""
    return {"driver": "file", "filename": path}


def nbd_node(socket: str, export: str) -> dict[str, object]:
    """An export of an NBD server on a unix socket."""
    return {"driver": "nbd", "server": {"type": "unix", "path": socket}, "export": export}


def json_filename(node: Mapping[str, object]) -> str:
    """The node as a file name for qemu's tools. Give it without `-f`: the driver is in it."""
    return "json:" + json.dumps(node, separators=(",", ":"))
