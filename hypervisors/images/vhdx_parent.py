"""What a differencing VHDX says of its parent: the parent locator.

Source: Microsoft's [MS-VHDX], 2.6.2.6. Keys and values are UTF-16, little-endian. A parent is the right one if the id of its
content is one that the locator names; where it is, the paths tell, of which one is enough.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import chain
from uuid import UUID

from hypervisors.images.parsing import refuse, unpacked
from hypervisors.images.vhdx import Parameters

_VHDX_LOCATOR = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913").bytes_le
_HEADER = struct.Struct("<16s2xH")
_PAIR = struct.Struct("<IIHH")
"""Place of the key and of the value, and their lengths."""
_MOST_PAIRS = 64
_LONGEST = 0xFFFE

_LINKAGES = ("parent_linkage", "parent_linkage2")
_RELATIVE, _VOLUME, _ABSOLUTE = "relative_path", "volume_path", "absolute_win32_path"
_ID = re.compile(r"\{([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\}")


@dataclass(frozen=True, slots=True)
class Parent:
    r"""The image that a differencing disk builds on.

    `data_write_id`: of its header, when the child was made; it must not be written to since. `relative_path`: from the
    child's directory, with backslashes. `absolute_path`: as Windows has it on the host, beginning with `\\?\`.
    """

    data_write_id: UUID
    relative_path: str
    absolute_path: str | None = None


@dataclass(frozen=True, slots=True)
class Locator:
    """What an image says: text of whoever wrote it, not to be believed, and not to be opened without a look at where it leads.
    `ids` are those that the parent's content may have; Hyper-V writes two while it merges."""

    ids: frozenset[UUID]
    relative_path: str | None
    volume_path: str | None
    absolute_path: str | None


def packed(parent: Parent) -> bytes:
    """The metadata item. ValueError for paths that cannot be."""
    pairs = {_LINKAGES[0]: f"{{{parent.data_write_id}}}", _RELATIVE: parent.relative_path}
    if parent.absolute_path is not None:
        pairs[_ABSOLUTE] = parent.absolute_path
    for path in (parent.relative_path, parent.absolute_path):
        if path is not None and (not path or "/" in path or "\0" in path or len(path.encode("utf-16-le")) > _LONGEST):
            raise ValueError(f"{path!r} is not the path of a parent as a VHDX has it")
    if parent.absolute_path is not None and not parent.absolute_path.startswith("\\\\?\\"):
        raise ValueError(rf"the absolute path {parent.absolute_path!r} of a parent does not begin with \\?\ ")
    texts = [text.encode("utf-16-le") for text in chain.from_iterable(pairs.items())]
    position = _HEADER.size + len(pairs) * _PAIR.size
    table = [_HEADER.pack(_VHDX_LOCATOR, len(pairs))]
    for key, value in zip(texts[::2], texts[1::2], strict=True):
        table.append(_PAIR.pack(position, position + len(key), len(key), len(value)))
        position += len(key) + len(value)
    return b"".join(table + texts)


def read_locator(parameters: Parameters) -> Locator | None:
    """None for a disk without a parent. `ImageRefused` where the two ways to say that it has one disagree, or the locator is
    damaged, of another kind, or names no VHDX by its id."""
    item = parameters.locator
    if (item is not None) != parameters.differencing:
        raise refuse("vhdx-parent", "the VHDX says that it has a parent disk, and that it has none")
    if item is None:
        return None
    kind, count = unpacked(_HEADER, item, "VHDX parent locator")
    if kind != _VHDX_LOCATOR or count > _MOST_PAIRS or _HEADER.size + count * _PAIR.size > len(item):
        raise refuse(
            "vhdx-parent", "the VHDX has a parent locator that is damaged, or of a kind that is not known here"
        )
    pairs: dict[str, str] = {}
    for index in range(count):
        key_at, value_at, key_length, value_length = _PAIR.unpack_from(item, _HEADER.size + index * _PAIR.size)
        key = _text(item, key_at, key_length)
        if key in pairs:
            raise refuse("vhdx-parent", "the VHDX has a parent locator that says something twice")
        pairs[key] = _text(item, value_at, value_length)
    matches = [_ID.fullmatch(pairs[key]) for key in _LINKAGES if key in pairs]
    if not matches or None in matches:
        raise refuse("vhdx-parent", "the VHDX does not say by its id which parent it was made for")
    ids = frozenset(UUID(match[1]) for match in matches if match)
    return Locator(ids, pairs.get(_RELATIVE), pairs.get(_VOLUME), pairs.get(_ABSOLUTE))


def _text(item: bytes, offset: int, length: int) -> str:
    if not length or offset < _HEADER.size or offset + length > len(item):
        raise refuse("vhdx-parent", "the VHDX has a parent locator that points outside of itself")
    try:
        text = item[offset : offset + length].decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise refuse("vhdx-parent", "the VHDX has a parent locator that is no text") from error
    if "\0" in text:
        raise refuse("vhdx-parent", "the VHDX has a parent locator with a NUL inside its text")
    return text
