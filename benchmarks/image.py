"""The disk that the benchmarks move: 4 GiB virtual, 1.5 GiB incompressible and 0.5 GiB of text in extents of 64 KiB to
8 MiB, the rest holes; the same bytes on every machine."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from stores.contract import GiB, KiB, MiB

VIRTUAL = 4 * GiB
RANDOM = 3 * GiB // 2
TEXT = GiB // 2
WORDS = (
    "cluster",
    "disk",
    "host",
    "image",
    "object",
    "pool",
    "snapshot",
    "store",
    "template",
    "volume",
    "a",
    "in",
    "of",
)


def make_images(directory: Path) -> tuple[Path, Path]:
    """`disk.raw` and `disk.qcow2` (uncompressed) in `directory`; made once and kept."""
    raw, qcow2 = directory / "disk.raw", directory / "disk.qcow2"
    if not qcow2.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _write_raw(raw)
        partial = qcow2.with_suffix(".partial")
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, partial], check=True)
        partial.rename(qcow2)
    return raw, qcow2


def _write_raw(path: Path) -> None:
    rng = random.Random(20130527)  # reproducible content, not a secret
    left = {"random": RANDOM, "text": TEXT}
    position = 0
    with path.open("wb") as file:
        file.truncate(VIRTUAL)
        while any(left.values()):
            kind = rng.choices(list(left), weights=list(left.values()))[0]
            length = min(left[kind], 64 * KiB * rng.randint(1, 128))
            file.seek(position)
            file.write(rng.randbytes(length) if kind == "random" else _text(rng, length))
            left[kind] -= length
            gap = (VIRTUAL - position - length - sum(left.values())) // 64 // KiB
            position += length + 64 * KiB * rng.randint(0, min(gap, 128) if gap > 0 else 0)


def _text(rng: random.Random, length: int) -> bytes:
    page = " ".join(rng.choices(WORDS, k=4096)).encode()
    return (page * (length // len(page) + 1))[:length]


if __name__ == "__main__":
    print(*(f"{path}: {path.stat().st_size / MiB:.0f} MiB" for path in make_images(Path("build/bench"))), sep="\n")
