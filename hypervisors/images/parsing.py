"""What the format parsers share. They do no I/O: a parser is a generator that yields the range it wants to see next and is
sent those bytes, until it returns what it found or raises `ImageRefused`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from hypervisors.contract import ImageRefused
from stores.to import ImageFormat


@dataclass(frozen=True, slots=True)
class Range:
    """`length` bytes from `offset`. The answer is shorter where the image ends before that."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What an image's own metadata says, after every check that its format has.

    `virtual_size` in bytes is what a guest would see; None only where the image's end decides and has not arrived.
    `provisional`: bytes that can still change the verdict have not arrived.
    """

    format: ImageFormat
    subformat: str | None
    virtual_size: int | None
    notes: tuple[str, ...] = ()
    provisional: bool = False


Parser: TypeAlias = Generator[Range, bytes | None, Layout]
"""Sent None for a range that has not arrived yet, which happens only while a stream is judged by its head."""


def refuse(rule: str, message: str, **found: object) -> ImageRefused:
    """The refusal by `rule`, a stable name. Never put text from the image into it: it would reach logs and answers."""
    return ImageRefused(message, rule=rule, **found)
