"""An ext4 file system in memory: a disk that is as fast everywhere.

What the agent saves is work; how much time that is depends on the disk. On a slow one everything waits for the same writes,
and the differences between programs disappear. The figures are therefore taken on ext4 over a loop device over tmpfs, which
takes writes at 1 to 2 GB/s like an NVMe drive, and, for comparison, on the machine's own disk.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores.contract import GiB


@contextmanager
def ram_disk(size: int) -> Iterator[Path]:
    """A directory on it. Needs root; blocks are given back as files go, and everything when the context ends."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as holder:
        image, mounted = Path(holder) / "disk", Path(holder) / "mnt"
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        lazy = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", lazy, image], check=True)
        subprocess.run(["mount", "-o", "loop,discard", image, mounted], check=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", mounted], check=True)


def write_rate(directory: Path) -> float:
    """Bytes per second of 1 GiB written past the page cache, 8 MiB at a time: what the disk is good for just now."""
    target = directory / "rate"
    argv = ["dd", "if=/dev/zero", f"of={target}", "bs=8M", "count=128", "oflag=direct", "status=none"]
    started = time.perf_counter()
    subprocess.run(argv, check=True)
    rate = GiB / (time.perf_counter() - started)
    target.unlink()
    return rate
