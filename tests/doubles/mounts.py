"""Small real file systems for tests, mounted as root and always unmounted."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores.contract import MiB


@contextmanager
def mounted_tmpfs(at: Path, *, options: str = "size=64m") -> Iterator[Path]:
    """An empty tmpfs at `at`, which is made where it is missing."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@contextmanager
def mounted_ext4(at: Path, image: Path, *, size: int) -> Iterator[Path]:
    """An ext4 file system of `size` bytes in the file `image`, without room reserved for root."""
    with _mounted_file(at, image, size, "mkfs.ext4", "-q", "-F", "-m", "0"):
        yield at


@contextmanager
def mounted_xfs(at: Path, image: Path) -> Iterator[Path]:
    """An XFS, where files can share blocks, in the file `image`: of the smallest size that mkfs.xfs takes, nearly all holes."""
    with _mounted_file(at, image, 300 * MiB, "mkfs.xfs", "-q", "-f"):
        yield at


@contextmanager
def xfs_with_a_short_path() -> Iterator[Path]:
    """As `mounted_xfs`, for what has sockets in it: pytest's own folders are too deep for those."""
    with tempfile.TemporaryDirectory(prefix="sa-") as place, mounted_xfs(Path(place) / "m", Path(place) / "xfs") as at:
        yield at


@contextmanager
def _mounted_file(at: Path, image: Path, size: int, *command: str) -> Iterator[None]:
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*command, str(image)], check=True)
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)
