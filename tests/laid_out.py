"""Images that are only laid out, for tests: written where room is dear, and read by libvhdi."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyvhdi

from hypervisors.images.pieces import Data, ImageLayout, Metadata


@contextmanager
def libvhdi(images: Sequence[bytes | Path]) -> Iterator[pyvhdi.file]:
    """The last of the images, over those before it."""
    files: list[pyvhdi.file] = []
    for image in images:
        file = pyvhdi.file()
        if isinstance(image, Path):
            file.open(str(image))
        else:
            file.open_file_object(io.BytesIO(image))
        if files:
            assert file.parent_identifier == files[-1].identifier
            file.set_parent(files[-1])
        files.append(file)
    try:
        yield files[-1]
    finally:
        for file in reversed(files):
            file.close()


def write_sparse(made: ImageLayout, path: Path, pattern: bytes) -> Path:
    """The image of a disk that is full of one byte, with holes where the image is zero."""
    with path.open("wb") as file:
        for piece in made.pieces():
            match piece:
                case Metadata(content) if any(content):
                    file.write(content)
                case Metadata(content):
                    file.seek(len(content), io.SEEK_CUR)
                case Data(_, length):
                    file.write(pattern * length)
        file.truncate(made.size)
    return path
