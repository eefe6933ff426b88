"""The image gate: what every image from outside passes before any tool opens it."""

from __future__ import annotations

from dataclasses import dataclass

from stores.contract import GiB, KiB, RangeReader
from stores.to import ImageFormat

HEAD = 64 * KiB
"""How much of an image's beginning decides its format. `inspect_head` wants at least that, unless the image is smaller."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What the gate lets through, in bytes."""

    virtual_size: int = 16 * 1024 * GiB


@dataclass(frozen=True, slots=True)
class Verdict:
    """An image that may be opened, as this format and no other.

    `virtual_size` in bytes is what a guest will see; None only from `inspect_head`, where the size is not known yet.
    `provisional` only from `inspect_head`: the end can still change the verdict, inspect again when it has landed.
    `notes` are the reasons, one line each, for operators.
    """

    format: ImageFormat
    subformat: str | None
    virtual_size: int | None
    notes: tuple[str, ...] = ()
    provisional: bool = False


async def inspect(reader: RangeReader, *, declared: ImageFormat | None, limits: GateLimits) -> Verdict:
    """Judge an image that can be read at random. Raises `ImageRefused`, and what `reader` raises."""
    raise NotImplementedError


def inspect_head(
    head: bytes, *, total_size: int | None, declared: ImageFormat | None, limits: GateLimits
) -> Verdict:
    """Judge an image by its beginning, while the rest is still to come. Raises `ImageRefused`."""
    raise NotImplementedError
