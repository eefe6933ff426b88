"""What an image claims to be: the magics that tools look for, and the decision which format it is then treated as.

The decision is explicit about images that are more than one thing:

* A container format (qcow2, VHDX, dynamic VHD, VMDK) together with another container's magic, a boot sector or an ISO 9660
  descriptor where only its own metadata can be: a polyglot, refused. No writer makes one; an attacker does, so that two
  readers see two disks.
* A boot sector (MBR, protective MBR of a GPT, or of a file system) without a container: the content of a raw disk, or of a
  fixed VHD. What its partition table says is between the disk and its guest.
* ISO 9660: an ISO. With a boot sector it is a hybrid, made to be written onto a disk as it is: an ISO too, and accepted as
  RAW where RAW was declared. A plain ISO declared as RAW is a mismatch.
* A VHD footer at the end: a fixed VHD, unless something at the beginning decides (the last sector of a qcow2 file is a
  guest's). Declared as RAW it is refused: qemu would show the footer as part of the disk, another reader would not. Together
  with ISO 9660 it must be declared, and be declared as VHD: then it is a disk that holds a hybrid ISO.
"""

from __future__ import annotations

from enum import StrEnum

from hypervisors.contract import ImageRefused
from hypervisors.images import iso, qcow2, vhd, vhdx, vmdk
from hypervisors.images.formats import DRIVERS
from hypervisors.images.parsing import SECTOR, refuse
from stores.to import ImageFormat
from stores.transfer.compression import sniff_compression


class Sign(StrEnum):
    """Something by which an image is known."""

    QCOW2 = "qcow2"
    VHD = "VHD"
    VHDX = "VHDX"
    VMDK = "VMDK"
    ISO = "ISO 9660"
    BOOT_SECTOR = "boot sector"
    QED = "QED"
    VDI = "VDI"
    LUKS = "LUKS"
    PARALLELS = "Parallels"
    BOCHS = "Bochs"
    CLOOP = "cloop"
    DMG = "DMG"
    TAR = "tar"
    ZIP = "zip"
    COMPRESSED = "compressed data"


_AT_THE_BEGINNING = (
    (0, qcow2.MAGIC, Sign.QCOW2),
    (0, vhd.COOKIE, Sign.VHD),
    (0, vhdx.MAGIC, Sign.VHDX),
    (0, vmdk.MAGIC, Sign.VMDK),
    (0, b"COWD", Sign.VMDK),
    (0, b"QED\0", Sign.QED),
    (0x40, b"\x7f\x10\xda\xbe", Sign.VDI),
    (0, b"LUKS\xba\xbe", Sign.LUKS),
    (0, b"WithoutFreeSpace", Sign.PARALLELS),
    (0, b"WithouFreSpacExt", Sign.PARALLELS),
    (0, b"Bochs Virtual HD Image", Sign.BOCHS),
    (0, b"#!/bin/sh\n#V2.0 Format\n", Sign.CLOOP),
    (257, b"ustar", Sign.TAR),
    (0, b"PK\x03\x04", Sign.ZIP),
    (510, b"\x55\xaa", Sign.BOOT_SECTOR),
    (iso.DESCRIPTORS_AT + 1, iso.IDENTIFIER, Sign.ISO),
)
_AT_THE_END = ((vhd.COOKIE, Sign.VHD), (b"koly", Sign.DMG))  # in the last sector

_CONTAINERS = {
    Sign.QCOW2: ImageFormat.QCOW2,
    Sign.VHD: ImageFormat.VHD,
    Sign.VHDX: ImageFormat.VHDX,
    Sign.VMDK: ImageFormat.VMDK,
}


def at_the_beginning(head: bytes) -> frozenset[Sign]:
    """The signs in the first `parsing.HEAD` bytes."""
    found = {sign for offset, magic, sign in _AT_THE_BEGINNING if head.startswith(magic, offset)}
    if sniff_compression(head):
        found.add(Sign.COMPRESSED)
    if _is_vmdk_descriptor(head):
        found.add(Sign.VMDK)
    return frozenset(found)


def at_the_end(tail: bytes) -> frozenset[Sign]:
    """The signs in the last sector."""
    return frozenset(sign for magic, sign in _AT_THE_END if tail[-SECTOR:].startswith(magic))


def decide(beginning: frozenset[Sign], end: frozenset[Sign], declared: ImageFormat | None) -> ImageFormat:
    """The one format that an image with these signs is treated as; `end` is empty while the end has not arrived."""
    if declared is not None and declared not in DRIVERS:
        raise refuse(
            "format", f"images of format {declared} are not taken: {', '.join(DRIVERS)} are", declared=declared
        )
    strong = beginning - {Sign.ISO, Sign.BOOT_SECTOR}
    if len(strong) > 1 or (strong and beginning != strong):
        raise refuse(
            "polyglot",
            f"the image looks like several formats at once ({_names(beginning)}): convert it into one",
            signs=sorted(beginning),
        )
    return _decide_container(next(iter(strong)), declared) if strong else _decide_raw(beginning, end, declared)


def _decide_container(sign: Sign, declared: ImageFormat | None) -> ImageFormat:
    if sign is Sign.COMPRESSED:
        raise refuse("compressed", "the image is compressed: say so in the command, or expand it first")
    found = _CONTAINERS.get(sign)
    if found is None:
        raise refuse("format", f"the image looks like {sign}, which is not taken: convert it", found=sign)
    if declared not in (None, found):
        raise _mismatch(declared, sign)
    return found


def _decide_raw(beginning: frozenset[Sign], end: frozenset[Sign], declared: ImageFormat | None) -> ImageFormat:
    """For an image whose first bytes are not a container's."""
    if Sign.DMG in end:
        raise refuse("format", "the image looks like DMG, which is not taken: convert it", found=Sign.DMG)
    if declared is ImageFormat.VHD:
        return declared  # fixed, or refused by its parser for lack of a footer
    if Sign.ISO in beginning and Sign.VHD in end:
        raise refuse("polyglot", "the image is both an ISO and a fixed VHD: declare it as VHD, or remove the footer")
    if Sign.VHD in end:
        if declared is not None:
            raise _mismatch(declared, Sign.VHD)
        return ImageFormat.VHD
    if Sign.ISO in beginning:
        if declared in (None, ImageFormat.ISO):
            return ImageFormat.ISO
        if declared is ImageFormat.RAW and Sign.BOOT_SECTOR in beginning:
            return ImageFormat.RAW
        raise _mismatch(declared, Sign.ISO)
    if declared in (None, ImageFormat.RAW):
        return ImageFormat.RAW
    raise _mismatch(declared, None)


def _mismatch(declared: ImageFormat | None, sign: Sign | None) -> ImageRefused:
    looks = f"looks like {sign}" if sign else f"does not look like {declared}"
    return refuse(
        "declared-mismatch",
        f"the image is declared as {declared} and {looks}: declare what it is",
        declared=declared,
        found=sign,
    )


def _is_vmdk_descriptor(head: bytes) -> bool:
    """As qemu probes it: after comments and empty lines, a line `version=1`, `2` or `3`."""
    for line in head[:4096].split(b"\n"):
        if line.strip(b" \r") and not line.startswith(b"#"):
            return line.rstrip(b"\r") in (b"version=1", b"version=2", b"version=3")
    return False


def _names(signs: frozenset[Sign]) -> str:
    return ", ".join(sorted(signs))
