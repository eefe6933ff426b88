"""What the format parsers share. They do no I/O: bytes of the image in, a `Layout` out, or `ImageRefused`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from hypervisors.contract import ImageRefused
from stores.contract import KiB
from stores.to import ImageFormat

SECTOR = 512

HEAD = 64 * KiB
"""How much of an image's beginning decides its format, and holds the header of every format but VHDX."""

TAIL = 3 * SECTOR
"""How much of its end can matter: a VHD footer is one sector, what ends a streamed VMDK are three."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What an image's own metadata says, after every check that its format has.

    `virtual_size` in bytes is what a guest would see; None only where the image's end decides and has not arrived.
    `provisional`: bytes that can still change the verdict have not arrived.
    """

    format: ImageFormat
    subformat: str | None
    virtual_size: int | None
    notes: tuple[str, ...] = ()
    provisional: bool = False


def refuse(rule: str, message: str, **found: object) -> ImageRefused:
    """The refusal by `rule`, a stable name. Numbers may go with it, never text from the image: it would reach logs, and an
    answer that depends on a name in an image could tell what exists on this host."""
    return ImageRefused(message, rule=rule, **found)


def unpacked(layout: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    """The fields of a structure that must be there as a whole."""
    if len(data) < layout.size:
        raise truncated(what)
    return layout.unpack_from(data)


def truncated(what: str) -> ImageRefused:
    """For an image that ends inside, or before, something that it must have."""
    return refuse("truncated", f"the image ends before the end of its {what}: it was cut off, fetch or export it again")


def check_within(what: str, end: int, size: int | None) -> None:
    """Something that the metadata points at ends inside the image, as far as the image's size is known."""
    if size is not None and end > size:
        raise truncated(what)


def whole_sectors(size: int) -> int:
    """`size` rounded up to sectors: what a block device made of so many bytes has."""
    return -(-size // SECTOR) * SECTOR
