"""What is opened for reading, as a qemu block node: every driver and every parent explicit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from hypervisors.contract import OperationUnsupported, Source
from hypervisors.images.formats import DRIVERS, file_node, image_node, json_filename, nbd_node
from stores.contract import HttpUrl, KiB, LocalPath, NbdExport, NetworkImage
from stores.errors import RequirementNotMet
from stores.to import ImageFormat

_READ_AHEAD = 256 * KiB
"""For qemu's http driver: measured; 4 MiB is half as fast."""

_WITH_PARENTS = frozenset({ImageFormat.QCOW2})
"""Formats that can name a parent inside the file. qemu is told the one we recorded, or that there is none."""


@dataclass(frozen=True, slots=True)
class Node:
    """A block node, and the objects (`--object`) that its options name."""

    options: dict[str, object]
    objects: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """The image, to a tool of qemu's: no `-f` beside it, the driver is in it."""
        return [*(part for each in self.objects for part in ("--object", each)), json_filename(self.options)]


def source_node(source: Source) -> Node:
    """`source` on top of its recorded parents. Names of parents or data files inside the images are not followed."""
    return _node([source, *source.backing])


def own_node(source: Source) -> Node:
    """`source` without its parents, for what only looks at the image's own metadata: `info` takes no parents."""
    return _node([source])


def raw_node(image: NetworkImage, *, offset: int = 0) -> Node:
    """The raw disk `image` itself, from `offset` on."""
    options = {"driver": "raw", "file": dict(image.options), **({"offset": offset} if offset else {})}
    return Node(options, image.objects)


def zeroes_node(size: int) -> Node:
    """A disk of `size` bytes that reads as zeroes."""
    return Node({"driver": "raw", "file": {"driver": "null-co", "size": size, "read-zeroes": True}})


def _node(layers: Sequence[Source]) -> Node:
    given = [layer.presentation for layer in layers]
    objects = [each for one in given if isinstance(one, NetworkImage) for each in one.objects]
    return Node(_stacked(list(layers)), tuple(dict.fromkeys(objects)))


def _stacked(layers: list[Source]) -> dict[str, object]:
    top, *parents = layers
    image_format = known_format(top)
    driver_of(image_format)
    node = image_node(image_format, _protocol(top))
    if image_format in _WITH_PARENTS:
        node["backing"] = _stacked(parents) if parents else None
    return node


def driver_of(image_format: ImageFormat) -> str:
    """qemu's block driver. `OperationUnsupported` for a format that is none of a disk's, or that the gate never admits."""
    if image_format not in DRIVERS:
        raise OperationUnsupported(
            f"qemu reads images here as {', '.join(DRIVERS)}, not as {image_format}", format=image_format.value
        )
    return DRIVERS[image_format]


def known_format(source: Source) -> ImageFormat:
    if source.spec.format is None:
        raise ValueError(f"{source.presentation.info.ref} reached a tool before its format was decided")
    return source.spec.format


def _protocol(source: Source) -> dict[str, object]:
    match source.presentation:
        case LocalPath(path=path):
            return file_node(str(path))
        case NbdExport(socket=socket, export=export):
            return nbd_node(str(socket), export)
        case HttpUrl(url=url):
            return {"driver": urlsplit(url).scheme, "url": url, "readahead": _READ_AHEAD}
        case NetworkImage(options=options):
            return dict(options)
        case other:
            raise RequirementNotMet(f"qemu cannot open a {other.kind} by itself", kind=other.kind)
