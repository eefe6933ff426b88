"""What oslo.utils' format inspector says about the same bytes: where it and our own parsers disagree, the image is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, Any, cast

from oslo_utils.imageutils import format_inspector

from hypervisors.images.parsing import Layout, refuse
from stores.to import ImageFormat

_NAMES = {
    ImageFormat.QCOW2: "qcow2",
    ImageFormat.VHD: "vhd",
    ImageFormat.VHDX: "vhdx",
    ImageFormat.VMDK: "vmdk",
    ImageFormat.ISO: "iso",
}
_SIZES_COMPARED = (ImageFormat.QCOW2, ImageFormat.VHDX, ImageFormat.VMDK)
"""Not VHD: the inspector reads the original size, we the current one. Not ISO: the volume's size is not the file's."""


def check(layout: Layout, pieces: Iterable[bytes]) -> None:
    """`pieces` are the image, in order, as far as it was read and matters.

    Partition tables are not judged: the inspector has rules for them, but they are the guest's own.
    """
    try:
        found = _inspected(pieces)
    except Exception as error:
        # It parses hostile bytes, and not everything that happens to it then is an error of its own.
        raise refuse("second-opinion", f"the format inspector fails on the image ({type(error).__name__})") from error
    by_name = {inspector.NAME: inspector for inspector in found}
    names = set(by_name)
    if not _agrees(layout, names):
        raise refuse(
            "second-opinion",
            f"the image is {layout.format} to us and {', '.join(sorted(names))} to the format inspector",
            found=sorted(names),
        )
    inspector = by_name.get(_NAMES.get(layout.format, ""))
    if inspector is not None and not layout.provisional:
        _check_one(inspector, layout)


def _inspected(pieces: Iterable[bytes]) -> Sequence[Any]:
    wrapper = format_inspector.InspectWrapper(cast("IO[bytes]", iter(pieces)))  # iterates only
    for _ in wrapper:
        pass
    return wrapper.formats or ()


def _agrees(layout: Layout, names: set[str]) -> bool:
    if layout.format is ImageFormat.RAW or (layout.format, layout.subformat) == (ImageFormat.VHD, "fixed"):
        return names <= {"raw", "gpt", "iso"}  # the guest's own beginning; an ISO there was decided by its signs
    if layout.format is ImageFormat.ISO:
        return names in ({"iso"}, {"iso", "gpt"})
    return names == {_NAMES[layout.format]}


def _check_one(inspector: Any, layout: Layout) -> None:
    try:
        inspector.safety_check()
    except (format_inspector.SafetyCheckFailed, format_inspector.ImageFormatError) as error:
        raise refuse("second-opinion", "the format inspector finds the image unsafe", format=layout.format) from error
    if layout.format in _SIZES_COMPARED and inspector.virtual_size != layout.virtual_size:
        raise refuse(
            "second-opinion",
            f"the image has {layout.virtual_size} bytes to us and {inspector.virtual_size} to the format inspector",
            ours=layout.virtual_size,
            theirs=inspector.virtual_size,
        )
