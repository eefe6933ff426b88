"""An image as it will be written: its bytes in order, those of its own and those of the disk that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Metadata:
    """Bytes of the image that are known already: tables, and zeroes that fill something up."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the disk, to be read there, that come next in the image."""

    offset: int
    length: int


Piece: TypeAlias = Metadata | Data


class ImageLayout(Protocol):
    """A finished image, but for its data. It never changes, and any thread may use it."""

    size: int
    """Exactly how many bytes the image has."""

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """The image's bytes from `start` to `stop`, all of them unless told, in order and without gaps."""
        ...
