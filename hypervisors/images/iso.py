"""ISO 9660 images, plain and hybrid (with a boot sector or partition table, to be written onto a USB stick as they are).

Layout: ECMA-119. Volume descriptors follow one another from sector 16 on; the primary one has the volume's size. To a
guest an ISO is as large as its file: it is a raw image by another name.
"""

from __future__ import annotations

from hypervisors.images.parsing import HEAD, Layout, check_within, refuse, truncated, whole_sectors
from stores.to import ImageFormat

IDENTIFIER = b"CD001"
DESCRIPTORS_AT = 16 * 2048

_DESCRIPTOR = 2048
_PRIMARY, _TERMINATOR = 1, 255
_BLOCKS = (512, 1024, 2048)


def parse(head: bytes, size: int | None, *, hybrid: bool) -> Layout:
    """Refuses an image that is shorter than its volume, or has no primary volume descriptor near its beginning."""
    descriptor = _primary(head)
    space, block = _both_endian(descriptor[80:88]), _both_endian(descriptor[128:132])
    if block not in _BLOCKS or not space:
        raise refuse("iso-descriptor", "the ISO image contradicts itself about the size of its volume")
    check_within("ISO 9660 volume", space * block, size)
    kind = "hybrid" if hybrid else "plain"
    return Layout(
        ImageFormat.ISO,
        kind,
        whole_sectors(size) if size is not None else None,
        (f"ISO 9660, {kind}: volume of {space * block} bytes",),
    )


def _primary(head: bytes) -> bytes:
    for offset in range(DESCRIPTORS_AT, HEAD, _DESCRIPTOR):
        descriptor = head[offset : offset + _DESCRIPTOR]
        if len(descriptor) < _DESCRIPTOR:
            raise truncated("ISO 9660 volume descriptors")
        if descriptor[1:6] != IDENTIFIER or descriptor[0] == _TERMINATOR:
            break
        if descriptor[0] == _PRIMARY:
            return descriptor
    raise refuse("iso-descriptor", "the ISO image has no primary volume descriptor")


def _both_endian(data: bytes) -> int:
    """A number stored twice, little-endian and big-endian; 0 when the two differ."""
    half = len(data) // 2
    little, big = int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "big")
    return little if little == big else 0
