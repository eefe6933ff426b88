"""The image gate: what every image from outside passes before any tool opens it.

Our own parsers read the few bytes that decide, oslo.utils' format inspector reads the same bytes, and both must agree. What
passes is one of the formats in `formats.DRIVERS`, refers to no other file, and has a bounded size. The verdict's format is
then recorded, and told to every tool: nothing is probed again, least of all after a guest has written to it.

No host path is ever looked at: a refusal is the same whether or not a file exists that the image names.

What the gate does not see: whether the tables inside point at sense (`qemu-img check` does, after the copy), and how much
data there is. Any small file can expand to its virtual size: whoever converts reserves that much, and it is the most that a
conversion can write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypervisors.images import iso, qcow2, second_opinion, vhd, vhdx, vmdk
from hypervisors.images.parsing import HEAD, SECTOR, TAIL, Layout, refuse, whole_sectors
from hypervisors.images.signatures import Sign, at_the_beginning, at_the_end, decide
from stores.contract import GiB, MiB, RangeReader
from stores.to import ImageFormat

__all__ = ["HEAD", "GateLimits", "Verdict", "inspect", "inspect_head"]


_GPT = b"EFI PART"
_ZEROES = bytes(1 * MiB)


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What the gate lets through, in bytes."""

    virtual_size: int = 16 * 1024 * GiB


@dataclass(frozen=True, slots=True)
class Verdict:
    """An image that may be opened, as this format and no other.

    `virtual_size` in bytes is what a guest will see; None only from `inspect_head`, where it is not known yet.
    `provisional`, only from `inspect_head`: what has not arrived can still change the verdict.
    `notes` are the reasons, a line each, for operators.
    """

    format: ImageFormat
    subformat: str | None
    virtual_size: int | None
    notes: tuple[str, ...] = ()
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The bytes that decide. None: not read, because it has not arrived or is of no interest."""

    size: int | None
    head: bytes
    tail: bytes | None
    vhdx_headers: bytes | None = None
    vhdx_metadata: bytes | None = None


async def inspect(reader: RangeReader, *, declared: ImageFormat | None, limits: GateLimits) -> Verdict:
    """Judge an image that can be read at random; at most three or four small reads.

    Raises `ImageRefused`, with `rule` in its details, and whatever `reader` raises.
    """
    size = reader.info.size
    if size is None:
        raise refuse("size-unknown", "the image's size is not known: it has to be fetched before it can be judged")
    head = await reader.read(0, min(HEAD, size))
    tail = await reader.read(max(size - TAIL, 0), min(TAIL, size))
    evidence = _Evidence(size, head, tail)
    if Sign.VHDX in at_the_beginning(head):
        headers = await reader.read(0, min(vhdx.HEADERS, size))
        region = vhdx.metadata_region(headers, size)
        metadata = await reader.read(region.offset, region.length)
        evidence = replace(evidence, vhdx_headers=headers, vhdx_metadata=metadata)
    return _judge(evidence, declared, limits)


def inspect_head(head: bytes, *, total_size: int | None, declared: ImageFormat | None, limits: GateLimits) -> Verdict:
    """Judge an image by its beginning, so that a hostile one is refused while the rest is still to come.

    `head` holds at least `HEAD` bytes, or the whole image where it is smaller; more is welcome (4 MiB hold all that decides
    of a VHDX by qemu). ValueError for less. `total_size` is the image's size in bytes, expanded, where it is known.

    Raises `ImageRefused`. **A verdict that is `provisional` is not yet permission to open the image**: a fixed VHD, the
    footer of a streamed VMDK, a raw image that ends in somebody's footer show themselves only at the end, and an image of
    unknown size may be cut off anywhere. Whoever gets one writes the rest to its temporary file without letting a tool see
    it, calls `inspect` on that file with the same arguments, and goes on with the verdict of that call, which may refuse.
    """
    whole = total_size if total_size is not None else (len(head) if len(head) < HEAD else None)
    if len(head) < HEAD and len(head) != whole:
        raise ValueError(f"{len(head)} bytes are not enough to judge an image by: {HEAD} are, or all of it")
    tail = head[-TAIL:] if len(head) == whole else None
    evidence = _Evidence(whole, head[:HEAD], tail)
    if Sign.VHDX in at_the_beginning(head) and (len(head) >= vhdx.HEADERS or len(head) == whole):
        region = vhdx.metadata_region(head[: vhdx.HEADERS], whole)
        metadata = head[region.offset : region.offset + region.length]
        arrived = len(metadata) == region.length or len(head) == whole
        evidence = replace(evidence, vhdx_headers=head[: vhdx.HEADERS], vhdx_metadata=metadata if arrived else None)
    return _judge(evidence, declared, limits)


def _judge(evidence: _Evidence, declared: ImageFormat | None, limits: GateLimits) -> Verdict:
    if evidence.size == 0:
        raise refuse("empty", "the image has no bytes at all")
    beginning = at_the_beginning(evidence.head)
    end = at_the_end(evidence.tail) if evidence.tail is not None else frozenset[Sign]()
    layout = _layout(decide(beginning, end, declared), evidence, beginning)
    if layout.virtual_size is not None and not 0 < layout.virtual_size <= limits.virtual_size:
        raise refuse(
            "virtual-size",
            f"the image's virtual size is {layout.virtual_size} bytes, between 1 and {limits.virtual_size} are allowed",
            virtual_size=layout.virtual_size,
            limit=limits.virtual_size,
        )
    second_opinion.check(layout, _pieces(layout, evidence))
    told = f"declared as {declared}" if declared is not None else "not declared, decided from its bytes"
    notes = (*layout.notes, told, "the format inspector of oslo.utils agrees")
    # Without the size, nobody has seen whether the tables lie inside the image.
    provisional = layout.provisional or evidence.size is None
    return Verdict(layout.format, layout.subformat, layout.virtual_size, notes, provisional)


def _layout(chosen: ImageFormat, evidence: _Evidence, beginning: frozenset[Sign]) -> Layout:
    size, head, tail = evidence.size, evidence.head, evidence.tail
    match chosen:
        case ImageFormat.QCOW2:
            return qcow2.parse(head, size)
        case ImageFormat.VHD:
            return vhd.parse(head, tail, size)
        case ImageFormat.VMDK:
            return vmdk.parse(head, tail, size)
        case ImageFormat.VHDX if evidence.vhdx_headers is not None:
            return vhdx.parse(evidence.vhdx_headers, evidence.vhdx_metadata, size)
        case ImageFormat.VHDX:
            return Layout(chosen, None, None, ("its headers have not arrived",), provisional=True)
        case ImageFormat.ISO:
            layout = iso.parse(head, size, hybrid=Sign.BOOT_SECTOR in beginning)
            return replace(layout, provisional=tail is None)
    return _raw(evidence, beginning)


def _raw(evidence: _Evidence, beginning: frozenset[Sign]) -> Layout:
    """Whatever is nothing else: a disk's content as it is. To a guest it is rounded up to whole sectors."""
    table = "GPT" if evidence.head[SECTOR:].startswith(_GPT) else "boot sector, no GPT"
    return Layout(
        ImageFormat.RAW,
        None,
        whole_sectors(evidence.size) if evidence.size is not None else None,
        (f"raw: no format's signature; {table if Sign.BOOT_SECTOR in beginning else 'no partition table'}",),
        provisional=evidence.tail is None,
    )


def _pieces(layout: Layout, evidence: _Evidence) -> Iterator[bytes]:
    """What was read, as a short stand-in for the image: the format inspector reads in order from the first byte on."""
    # A small piece first: the inspector's test for a text descriptor trips over text that turns into something else.
    yield evidence.head[:SECTOR]
    if evidence.vhdx_headers is not None and evidence.vhdx_metadata is not None:
        yield evidence.vhdx_headers[SECTOR:]
        gap = vhdx.metadata_region(evidence.vhdx_headers, evidence.size).offset - len(evidence.vhdx_headers)
        while gap > 0:
            yield _ZEROES[:gap]
            gap -= len(_ZEROES)
        yield evidence.vhdx_metadata
        return
    yield evidence.head[SECTOR:]
    if layout.format is ImageFormat.VMDK and evidence.tail is not None and evidence.size is not None:
        # The inspector takes the last bytes that it gets for the end, wherever they were.
        beyond = evidence.size - len(evidence.head)
        yield evidence.tail[max(len(evidence.tail) - beyond, 0) :]
