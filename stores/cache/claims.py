"""What a pool hands out: entries that are held, fills that are under way, and what it counted meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from stores.cache.ledger import Entry, Reservation


@dataclass(slots=True, eq=False)
class Fill:
    """A reservation of this process, and the file that may be written below it: at most `size` bytes.

    `path` exists and belongs to the filler until `Pool.publish` or `Pool.abandon`; nobody else has made or written it.
    `whole`: the parts, (start, end), that an earlier filler left. `lost`: the lease ran out or the pool is sick, and nothing
    may be written any more; abandon it.
    """

    key: str
    reservation: str
    owner: str
    path: Path
    size: int
    charge: int
    whole: tuple[tuple[int, int], ...] = ()
    lost: bool = False


@dataclass(slots=True, eq=False)
class Held:
    """An entry that proved itself, and cannot go until `Pool.unpin`."""

    path: Path
    entry: Entry
    pin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Following:
    """Somebody who lives is filling it: how far, as it last said, and in which file."""

    filling: Reservation
    path: Path
    whole: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """Nobody has it, and nobody fetches it."""


Found: TypeAlias = Held | Following | Fill | Missing


class Gone(StrEnum):
    """Why an entry went."""

    ROOM = "room"  # somebody needed it
    PRESSURE = "pressure"  # above the high water mark
    AGE = "age"  # too old, or nobody used it for too long
    ASKED = "asked"  # an operator said so
    LEFT = "left"  # another process died while it removed it
    VANISHED = "vanished"  # its file was gone
    UPLOADED = "uploaded"  # its store has it, and there is another copy of it, or nobody could find this one
    CANCELLED = "cancelled"  # it was to be uploaded, and somebody said that it should not


@dataclass(slots=True)
class Counts:
    """What happened in one pool since the process began."""

    evictions: Counter[Gone] = field(default_factory=Counter)
    adopted: int = 0  # fills that an earlier process had finished but for the ledger
    taken_over: int = 0  # fills that an earlier process had begun
    quarantined: int = 0
    lease_losses: int = 0
    ailments: int = 0  # times that the pool turned sick
    stray_files: int = 0  # that are in the directory and not in the ledger, as the last reconciliation saw it
    stray_bytes: int = 0
