"""Whether a qemu process has an image open for writing."""

from __future__ import annotations

from pathlib import Path

from hypervisors.contract import ImageLocked
from stores.backends.devices import held_for_writing


def require_no_writer(path: Path) -> None:
    """`ImageLocked` while somebody has it open for writing. Blocking. Where the file system knows no locks, qemu makes none,
    and nobody can tell."""
    if held_for_writing(path):
        raise ImageLocked(
            f"another process has {path.name} open for writing, its virtual machine perhaps: stop it, or wait",
            ref=path.name,
        )
