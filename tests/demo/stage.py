"""What the demos have in common: how they speak, end when something is not as it should be, and make and compare images."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.guest import run


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise SystemExit(otherwise)


def make_template(path: Path, *, data: int, size: int) -> Path:
    """A qcow2 image of `size` bytes that begins with so many bytes of `data`."""
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        file.write(random.Random(8).randbytes(data))
        file.truncate(size)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    return path


def compare(one: Path, one_format: str, other: Path, other_format: str) -> None:
    """Ends the demo unless a guest reads the same from both."""
    told = run("qemu-img", "compare", "-f", one_format, "-F", other_format, one, other).decode().strip()
    print(f"$ qemu-img compare {one.name} {other.name}: {told}", flush=True)
